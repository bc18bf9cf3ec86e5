"""`--pages all`: every page of a TIFF as an image, equal to what Pillow reads of that page."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitcli.data.decoding.tiff_pages import page_file, page_offsets
from beitcli.data.sources.open_data import open_data
from beitcli.errors import BadImage
from tests.conftest import Ended

MODES = ("L", "I;16", "RGB", "F", "1", "P")


def page(mode: str, seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    size = (20 + seed, 30)
    if mode == "RGB":
        return Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8))
    if mode == "I;16":
        return Image.fromarray(draw.integers(0, 65536, size, dtype=np.uint16))
    if mode == "F":
        return Image.fromarray(draw.random(size, dtype=np.float32))
    gray = Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8))
    return gray if mode == "L" else gray.convert(mode)


def stack(pages: list[Image.Image], **options: object) -> bytes:
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], **options)
    return file.getvalue()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_a_page_by_itself_is_the_page_of_the_stack(compression: str | None, big: bool):
    pages = [page(mode, seed) for seed, mode in enumerate(MODES)]
    data = stack(pages, compression=compression, big_tiff=big)
    offsets = page_offsets(io.BytesIO(data))
    assert len(offsets) == len(pages)
    for offset, expected in zip(offsets, pages, strict=True):
        alone = page_file(io.BytesIO(data), offset)
        assert len(alone) < len(data)
        with Image.open(io.BytesIO(alone)) as found:
            assert found.n_frames == 1
            assert found.mode == expected.mode
            assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_big_endian_and_jpeg_pages_are_read():
    gray = [page("RGB", seed) for seed in range(3)]
    data = stack(gray, compression="jpeg")
    for number, offset in enumerate(page_offsets(io.BytesIO(data))):
        whole = Image.open(io.BytesIO(data))
        whole.seek(number)
        alone = Image.open(io.BytesIO(page_file(io.BytesIO(data), offset)))
        assert np.array_equal(np.asarray(alone), np.asarray(whole))
    values = np.arange(6, dtype=">u2").reshape(2, 3)
    entries = [(256, 3, 1, 3 << 16), (257, 3, 1, 2 << 16), (258, 3, 1, 16 << 16), (259, 3, 1, 1 << 16)]
    entries += [(262, 3, 1, 1 << 16), (273, 4, 1, 8), (277, 3, 1, 1 << 16), (279, 4, 1, 12)]
    directory = len(entries).to_bytes(2, "big")
    for tag, kind, count, value in entries:
        directory += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + count.to_bytes(4, "big")
        directory += value.to_bytes(4, "big")
    data = b"MM\0*" + (20).to_bytes(4, "big") + values.tobytes() + directory + bytes(4)
    assert page_offsets(io.BytesIO(data)) == [20]
    alone = Image.open(io.BytesIO(page_file(io.BytesIO(data), 20)))
    assert np.array_equal(np.asarray(alone), values)


def test_circles_and_cut_directories_end():
    data = bytearray(stack([page("L", seed) for seed in range(3)]))
    first, second, last = page_offsets(io.BytesIO(data))
    entries = int.from_bytes(data[last : last + 2], "little")
    after = last + 2 + 12 * entries
    data[after : after + 4] = first.to_bytes(4, "little")
    assert page_offsets(io.BytesIO(data)) == [first, second, last]
    assert page_offsets(io.BytesIO(data[: second + 4])) == [first]
    assert page_offsets(io.BytesIO(b"II*\0\x08\0")) == []
    assert page_offsets(io.BytesIO(b"\x89PNG")) == []
    with pytest.raises(BadImage, match="directory of a TIFF page"):
        page_file(io.BytesIO(bytes(data[: second + 4])), second)


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    for name, count in (("cells", 3), ("walls", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tif").write_bytes(stack([page("L", seed) for seed in range(count)]))
    page("RGB", 9).save(tmp_path / "walls" / "b.png")
    (tmp_path / "walls" / "c.tif").write_bytes(b"")
    return tmp_path


def test_each_page_is_an_image_with_its_files_label(stacks: Path):
    told: list[str] = []
    source = open_data([str(stacks)], pages="all", on_progress=lambda what, *_: told.append(what))
    names = [str(Path(source.path(index)).relative_to(stacks)) for index in range(len(source))]
    assert names == ["cells/a.tif#page=1", "cells/a.tif#page=2", "cells/a.tif#page=3", "walls/a.tif", "walls/b.png",
                     "walls/c.tif"]  # fmt: skip
    assert [source.classes[source.label(index)] for index in range(6)] == ["cells"] * 3 + ["walls"] * 3
    for index in range(3):
        assert np.array_equal(np.asarray(source.image(index))[..., 0], np.asarray(page("L", index)))
    with pytest.raises(BadImage, match="empty file"):
        source.image(5)
    assert f"'{stacks}': 6 pages of 4 files are images." in told
    assert len(open_data([str(stacks)])) == 4


def test_members_of_a_shard_have_pages_too(stacks: Path, tmp_path: Path):
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as file:
        file.add(stacks / "cells" / "a.tif", "cells/a.tif")
    source = open_data([str(shard)], pages="all")
    assert [source.path(index).rpartition("/")[2] for index in range(3)] == [f"a.tif#page={n}" for n in (1, 2, 3)]
    assert np.array_equal(np.asarray(source.image(2))[..., 0], np.asarray(page("L", 2)))


def test_pages_reach_every_command_and_not_annotated_files(stacks: Path, scenes: Path, beit: Callable[..., Ended]):
    (document,) = beit("doctor", stacks, "--json", "--pages", "all").lines
    assert document["images"] == 6
    assert [each["kind"] for each in document["findings"] if each["kind"] == "stack"] == []
    shown = beit("mask-preview", stacks, "--json", "--pages", "all")
    assert sum("#page=" in line["path"] for line in shown.lines) == 3
    refused = beit("finetune", scenes, "--task", "segment", "--init", "random", "--pages", "all", "--steps", 1)
    assert refused.code == 2
    assert "--pages all does not go with masks or boxes" in refused.err


def test_strips_that_overlap_are_refused_before_they_fill_the_memory():
    data = bytearray(stack([page("L", seed) for seed in range(2)]))
    _, offset = page_offsets(io.BytesIO(data))
    entries = int.from_bytes(data[offset : offset + 2], "little")
    places = [offset + 2 + 12 * number for number in range(entries)]
    (counts,) = [place for place in places if int.from_bytes(data[place : place + 2], "little") == 279]
    data[counts + 8 : counts + 12] = (1 << 31).to_bytes(4, "little")
    with pytest.raises(BadImage, match="directory of a TIFF page"):
        page_file(io.BytesIO(bytes(data)), offset)
