"""Targets: tar shards, WebDataset members, parquet, lists, tables, COCO."""

from __future__ import annotations

import io
import json
import os
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from fuzz_readers.mutators import json_mutation, parquet_mutation, tar_mutation
from fuzz_readers.pictures import pngs
from fuzz_readers.target import Place, Prepared, Target


def read_all(reference: str, *, vectors: bool = False) -> None:
    """Opens DATA with and without labels, and reads all that it holds."""
    from beitcli.data.sources.open_data import open_data
    from beitcli.errors import BeitError

    last: BeitError | None = None
    for options in ({}, {"labelled": True}, {"split": "train"}, *([{"vectors": True}] if vectors else [])):
        try:
            source = open_data([reference], **{"split": None, "role": "train", "sample_size": 16} | options)
        except BeitError as error:
            last = error
            continue
        source.fingerprint()
        for index in range(min(len(source), 20)):
            source.path(index), source.label(index), source.global_index(index), source.label_vector(index)
            with suppress(BeitError):
                source.image(index)
    if last is not None:
        raise last


def _member(archive: tarfile.TarFile, name: str, content: bytes, **about: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in about.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def _shards() -> list[bytes]:
    picture, made = pngs()[4], []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            _member(archive, "train/cat/0.png", picture)
            _member(archive, f"train/dog/{'long/' * 30 if kind != tarfile.USTAR_FORMAT else ''}1.png", picture)
            _member(archive, "val/cat/2.PNG", picture)
            _member(archive, "val/cat/link.png", b"", type=tarfile.LNKTYPE, linkname="train/cat/0.png")
            _member(archive, "val/dog/symlink.png", b"", type=tarfile.SYMTYPE, linkname="../cat/2.PNG")
            _member(archive, "val/dog/words.txt", b"words")
        made.append(file.getvalue())
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a/s.png"}
        sparse |= {"GNU.sparse.realsize": str(len(picture) + 600)}
        held = b"1\n600\n%d\n" % len(picture)
        _member(archive, "a/GNUSparseFile.0/s.png", held.ljust(512, b"\0") + picture, pax_headers=sparse)
        _member(archive, "b/1.png", picture, pax_headers={"path": "b/one.png", "size": str(len(picture))})
    return [*made, file.getvalue()]


def _tar(place: Place) -> Prepared:
    path = place.folder / "shard.tar"

    def use(data: bytes) -> None:
        path.write_bytes(data)
        read_all(str(path))

    return Prepared(use, _shards(), tar_mutation)


def _webdataset(place: Place) -> Prepared:
    """Of each input: the label's text, JSON and name, divided by zero bytes."""
    path, picture = place.folder / "shard.tar", pngs()[4]

    def use(data: bytes) -> None:
        label, document, name = (*data.split(b"\0", 2), b"", b"")[:3]
        with tarfile.open(path, mode="w") as archive:
            for key in ("0", "1", os.fsdecode(name[:60].replace(b"\0", b"")) or "2"):
                _member(archive, f"{key}.png", picture)
                _member(archive, f"{key}.cls", label)
                _member(archive, f"{key}.json", document)
        read_all(str(path))

    return Prepared(use, [b"7\0{}\0a", b"cat\0" + json.dumps({"label": 3}).encode() + b"\0b.c", b" 12\n\0[1]\0d/e"])


def _parquet_files() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = pngs()[4]
    images = [{"bytes": picture, "path": f"{number}.png"} for number in range(4)]
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    table = pa.table({"image": images, "label": [0, 1, 0, 1]})
    tables = [
        table.replace_schema_metadata({"huggingface": json.dumps(names)}),
        pa.table({"image": [picture] * 2, "label": ["cat", "dog"]}),
        pa.table({"image": pa.array(["a.png", "b.png"]), "label": pa.array(["x", "y"]).dictionary_encode()}),
        pa.table({"image": images[:2], "label": [1.0, 2.0], "cat": [0, 1], "dog": [1, 0]}),
        pa.table({"image": images[:2], "label": pa.array([2**63, 5], pa.uint64())}),
    ]
    made = []
    for number, each in enumerate(tables):
        sink = io.BytesIO()
        pq.write_table(each, sink, row_group_size=2, compression=("none", "snappy", "zstd")[number % 3])
        made.append(sink.getvalue())
    return made


def _parquet(place: Place) -> Prepared:
    path = place.folder / "rows.parquet"

    def use(data: bytes) -> None:
        path.write_bytes(data)
        read_all(str(path), vectors=True)

    return Prepared(use, _parquet_files(), parquet_mutation)


def _lists(place: Place) -> Prepared:
    """The first byte chooses the ending."""
    (place.folder / "a.png").write_bytes(pngs()[4])
    endings = ("list.txt", "list.tsv", "table.csv")

    def use(data: bytes) -> None:
        path = place.folder / endings[data[0] % 3 if data else 0]
        path.write_bytes(data[1:])
        read_all(str(path), vectors=True)

    texts = [b"a.png\tcat\nb.png\tdog\n", b"\xef\xbb\xbf# words\r\na.png\t1\tmore\r\n", b"a.png\n/etc/passwd\n../a.png"]
    tables = [b'path,cat,dog\na.png,1,0\n"b.png",0,1\n', b"image,x\na.png,1e39\nb.png,-0.5\n", b"file_name\na.png\n"]
    return Prepared(use, [b"\0" + texts[0], b"\1" + texts[1], b"\1" + texts[2], *(b"\2" + each for each in tables)])


def _stdin(place: Place) -> Prepared:
    """Paths on stdin, ended by lines or by zero bytes."""
    (place.folder / "a.png").write_bytes(pngs()[4])

    def use(data: bytes) -> None:
        from beitcli.data.sources.open_data import open_data
        from beitcli.errors import BeitError

        for nul in (False, True):
            source = open_data(["-"], stdin=io.BytesIO(data), nul_separated=nul, role="eval")
            for index in range(min(len(source), 10)):
                source.path(index)
                with suppress(BeitError):
                    source.image(index)

    return Prepared(use, [b"a.png\nb.png\n", b"a.png\0b\nc.png\0"])


def _coco_files() -> list[bytes]:
    square = [2, 2, 12, 2, 12, 12, 2, 12]
    images = [{"id": 1, "file_name": "a.png", "width": 29, "height": 21}]
    images.append({"id": "two", "file_name": "b/a.png", "width": 8.0, "height": 4})
    categories = [
        {"id": 3, "name": "cat", "supercategory": "animal"},
        {"id": 0, "name": "root", "supercategory": "none"},
    ]
    categories.append({"id": 5, "name": "dog"})
    boxes = [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 2, 10, 10], "area": 100, "iscrowd": 0}]
    boxes.append({"id": 2, "image_id": "two", "category_id": 5.0, "bbox": [0, 0, 8, 4.5], "iscrowd": 1})
    for shape in ([square], {"size": [21, 29], "counts": [609]}, {"size": [21, 29], "counts": "Q300Q3"}):
        boxes.append(boxes[0] | {"id": len(boxes) + 1, "segmentation": shape})
    documents = [
        {"images": images, "categories": categories, "annotations": boxes},
        {"images": images[:1], "categories": categories[:1], "annotations": [], "info": {"x": None}},
    ]
    return [json.dumps(each).encode() for each in documents]


def _coco(place: Place) -> Prepared:
    path = place.folder / "_annotations.coco.json"

    def use(data: bytes) -> None:
        from beitcli.data.annotations.instance_masks import decoded
        from beitcli.data.sources.coco import read_coco
        from beitcli.errors import BeitError

        path.write_bytes(data)
        with suppress(BeitError):
            read_coco(str(path))
        found = read_coco(str(path), outlines=True)
        for boxes in found.boxes:
            assert bool(np.isfinite(boxes.boxes).all() and np.isfinite(boxes.areas).all())
            for outline in boxes.outlines or ():
                if boxes.size[0] * boxes.size[1] < 1_000_000:
                    assert decoded(outline.runs(boxes.size)).shape == boxes.size

    return Prepared(use, _coco_files(), json_mutation)


def _runs_of_pixels(place: Place) -> Prepared:
    """The compressed text of a run-length encoding; the first two bytes are the sides."""

    def use(data: bytes) -> None:
        from beitcli.data.annotations.instance_masks import outline_of

        size = (data[0] + 1, data[1] + 1) if len(data) > 1 else (3, 4)
        shape = {"size": list(size), "counts": data[2:].decode("latin1")}
        outline = outline_of(shape, size, 1.0)
        assert outline.whole(size).shape == size
        outline.runs(size)

    from pycocotools.mask import encode

    mask = np.zeros((9, 7), np.uint8, order="F")
    mask[2:5, 3:6] = 1
    return Prepared(use, [bytes([8, 6]) + encode(mask)["counts"], b"\x02\x03<0"])


def _class_names(place: Place) -> Prepared:
    path = Path(place.folder / "names.txt")

    def use(data: bytes) -> None:
        from beitcli.engine.segmentation.dataset import read_names

        path.write_bytes(data)
        read_names(str(path))

    return Prepared(use, [b"cat\ndog\n", "Größe\n\nx\n".encode()])


TARGETS = [
    Target("class names", "--classes FILE", _class_names, 4096),
    Target("tar", "tar headers, links, sparse files, members", _tar, 32_768),
    Target("webdataset", ".cls and .json members of WebDataset", _webdataset, 2048),
    Target("parquet", "parquet: footer, pages, labels, images", _parquet, 32_768),
    Target("lists", ".txt and .tsv lists, .csv tables", _lists, 4096),
    Target("stdin", "paths on stdin", _stdin, 2048),
    Target("coco", "COCO annotations", _coco),
    Target("rle", "compressed run lengths of COCO masks", _runs_of_pixels, 2048),
]
