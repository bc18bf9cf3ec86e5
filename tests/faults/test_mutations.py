"""Thousands of damaged files: each is read, or refused by a BeitError; none hangs, crashes or shows a traceback.

The work runs in a forked child with little memory and an alarm a file, so that a bomb, a loop and a crash in a
decoder's C code are failures of the test, which names the seed: `mutated(content, seed)` makes the file again.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import shutil
import signal
import struct
import tarfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.decode import decode_index_mask, decode_pixels, decode_rgb, read_upright_size
from beitcli.data.sources.open_data import open_data
from beitcli.engine.io.token_files import FORMATS, open_token_file
from beitcli.engine.io.token_lines import TokenKind, parse_line
from beitcli.engine.pretrain import pretrain
from beitcli.engine.trainer.metric_writers.jsonl import MetricsJsonl
from beitcli.errors import BeitError
from beitcli.models.checkpoints.build import open_classifier, open_masked_image_model
from beitcli.models.checkpoints.open import open_model
from beitcli.runtime.storage.checkpoint import damage, newest_checkpoint
from beitcli.runtime.storage.hashing import sha256_of
from beitcli.runtime.storage.run_dir import RunFolder
from beitcli.runtime.weight_files.reader import read_header, read_tensors
from beitcli.tokenizers.open import open_tokenizer
from tests.faults.mutations import mutated, mutated_json
from tests.helpers.foreign_models import hf_classifier, timm_small
from tests.helpers.forked import forked

pytestmark = [pytest.mark.faults, pytest.mark.slow]

MEMORY = 3_000_000_000  # bytes beyond the test's own; the largest image that is allowed takes 0.7 GB with its copies
SECONDS = 30  # for one file, on a busy machine


def assert_contained(seeds: range, use: Callable[[int], object]) -> None:
    """`use(seed)` ends well or in a BeitError for every seed."""
    shared = mmap.mmap(-1, 8)

    def work() -> int:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        bugs: dict[tuple[str, str, int], str] = {}  # one of a kind, by what was raised and where
        for seed in seeds:
            struct.pack_into("q", shared, 0, seed)
            signal.alarm(SECONDS)
            try:
                use(seed)
            except BeitError as error:
                if not str(error).strip():
                    bugs["", "", seed] = f"seed {seed}: an error without words"
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                told = f"seed {seed}: {traceback.format_exc(limit=-5)}"
                bugs.setdefault((type(error).__name__, last.filename, last.lineno or 0), told)
        print(*bugs.values(), sep="\n")
        return min(len(bugs), 50)

    ended = forked(work, seconds=600, memory=MEMORY)
    (seed,) = struct.unpack("q", shared)
    assert ended.code >= 0, f"seed {seed} ends in signal {-ended.code}: {ended.err[-2000:]}"
    assert ended.code == 0, ended.out[:6000] + ended.err[-2000:]


# Images


def _photographs() -> list[bytes]:
    """20 images: ten kinds of file, two of each, with alpha, palettes, EXIF, 16 bits and several frames."""
    draw = np.random.default_rng(0)
    made = []
    for number in range(2):
        knots = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        rgb = knots.resize((45 + 8 * number, 31), Image.Resampling.BICUBIC)
        gray = rgb.convert("L")
        exif = Image.Exif()
        exif[0x0112] = 6
        frames = [rgb.rotate(angle) for angle in (0, 20, 40)]
        kinds: list[tuple[Image.Image, str, dict[str, object]]] = [
            (rgb, "JPEG", {"quality": 80, "exif": exif}),
            (rgb, "JPEG", {"progressive": True, "quality": 60}),
            (rgb.convert("RGBA") if number else rgb.quantize(32), "PNG", {}),
            (gray.convert("I;16") if number else gray.convert("1"), "PNG", {}),
            (rgb, "WEBP", {"lossless": bool(number)}),
            (frames[0].quantize(16), "GIF", {"save_all": True, "append_images": [f.quantize(16) for f in frames[1:]]}),
            (rgb, "BMP", {}),
            (rgb, "TIFF", {"compression": "tiff_deflate" if number else "tiff_lzw"}),
            (gray, "TIFF", {"compression": "raw"}),
            (rgb, "PPM" if number else "JPEG2000", {}),
        ]
        for image, kind, options in kinds:
            file = io.BytesIO()
            image.save(file, kind, **options)
            made.append(file.getvalue())
    return made


def test_2000_damaged_images_are_pixels_or_bad_images() -> None:
    images = _photographs()
    assert len(images) == 20

    def use(seed: int) -> None:
        data = mutated(images[seed % 20], seed)
        outcomes = []
        for decode in (decode_rgb, decode_pixels):
            try:
                outcomes.append(np.asarray(decode(data)))
            except BeitError:
                outcomes.append(None)
        first, second = outcomes
        if first is not None:
            assert (first.dtype, first.ndim, first.shape[2]) == (np.uint8, 3, 3)
        # One of the two decoders may see what the other does not; where both read a file, they read the same.
        if first is not None and second is not None:
            assert np.array_equal(first, second)
        assert (first is None) == (second is None)
        for read in (read_upright_size, decode_index_mask):
            with suppress(BeitError):
                read(data)

    assert_contained(range(2000), use)


# Containers of images


def _read_all(reference: Path, **options: object) -> None:
    for labelled in (False, True):
        source = open_data([str(reference)], split=None, role="train", labelled=labelled, sample_size=16, **options)
        source.fingerprint()
        for index in range(min(len(source), 50)):
            source.path(index), source.label(index), source.global_index(index)
            with suppress(BeitError):
                source.image(index)


def test_damaged_tar_shards_are_read_or_refused(tmp_path: Path) -> None:
    shards = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            for number, content in enumerate(_photographs()[:3]):
                member = tarfile.TarInfo(f"{'long/' * 30 if number == 1 else 'cat/'}{number}.jpg")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
                label = tarfile.TarInfo(f"cat/{number}.cls")
                label.size = 1
                archive.addfile(label, io.BytesIO(b"7"))
            link = tarfile.TarInfo("cat/link.jpg")
            link.type, link.linkname = tarfile.LNKTYPE, "cat/0.jpg"
            archive.addfile(link)
        shards.append(file.getvalue())

    def use(seed: int) -> None:
        path = tmp_path / "shard.tar"
        content = bytearray(shards[seed % 3])
        if seed % 2:  # in a header, with its checksum made right again
            start = 512 * (seed // 2 % (len(content) // 512))
            header = bytearray(mutated(bytes(content[start : start + 512]), seed)[:512].ljust(512, b"\0"))
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            content[start : start + 512] = header
        else:
            content = bytearray(mutated(bytes(content), seed))
        path.write_bytes(content)
        _read_all(path)

    assert_contained(range(400), use)


def test_damaged_parquet_files_are_read_or_refused(tmp_path: Path) -> None:
    files = []
    for compression in ("none", "snappy"):
        images = [{"bytes": content, "path": f"{n}.jpg"} for n, content in enumerate(_photographs()[:6])]
        table = pa.table({"image": images, "label": [0, 1, 0, 1, 0, 1]})
        names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=2, compression=compression)
        files.append(sink.getvalue())

    def use(seed: int) -> None:
        path = tmp_path / "rows.parquet"
        content = files[seed % 2]
        if seed % 4 < 2:  # the footer: the schema, the places of the columns and their counts
            start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
            footer = mutated(content[start:-8], seed)
            path.write_bytes(content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
        else:
            path.write_bytes(mutated(content, seed))
        _read_all(path)

    assert_contained(range(400), use)


def test_damaged_lists_are_read_or_refused(tmp_path: Path, labelled_folder: Path) -> None:
    lines = [f"{path}\t{path.parent.name}" for path in sorted(labelled_folder.rglob("*.png"))]
    content = "\n".join(lines).encode()

    def use(seed: int) -> None:
        path = tmp_path / ("list.tsv" if seed % 2 else "list.txt")
        path.write_bytes(mutated(content, seed))
        _read_all(path)

    assert_contained(range(300), use)


# Settings


def test_damaged_toml_is_read_or_refused(tmp_path: Path, pretrained_run: Path) -> None:
    content = (pretrained_run / "config.toml").read_bytes()
    values = (
        b"nan",
        b"-1",
        b"0",
        b"[]",
        b"{}",
        b'""',
        b"1e999",
        b"true",
        b"[[1]]",
        b"99999999999999999999",
        b'"\\u0000"',
    )

    def use(seed: int) -> None:
        path = tmp_path / "config.toml"
        lines = content.splitlines(keepends=True)
        if seed % 100 == 99:
            path.write_bytes(b"steps = " + b"[" * 100_000)
        elif seed % 2:
            keys = [number for number, line in enumerate(lines) if b" = " in line]
            number = keys[seed // 2 % len(keys)]
            key = lines[number].split(b" = ")[0]
            lines[number] = key + b" = " + values[seed // 2 // len(keys) % len(values)] + b"\n"
            path.write_bytes(b"".join(lines))
        else:
            path.write_bytes(mutated(content, seed))
        resolve(PretrainConfig, {"config": str(path)})

    assert_contained(range(1200), use)


# Weights and what stands beside them


@pytest.fixture(scope="module")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    hf_classifier(root / "hf")
    (root / "hf" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_center_crop": True, "crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 73},
                "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            }
        )
    )  # fmt: skip
    timm_small(root / "timm")
    return {"hf": root / "hf", "timm": root / "timm"}


def test_damaged_safetensors_are_read_or_refused(tmp_path: Path, small_models: dict[str, Path]) -> None:
    content = (small_models["hf"] / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")

    def use(seed: int) -> None:
        path = tmp_path / "model.safetensors"
        if seed % 3 == 0:
            path.write_bytes(mutated(content, seed))
        else:
            header = (mutated_json if seed % 3 == 1 else mutated)(content[8:end], seed)
            path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
        with suppress(BeitError):
            read_header(path)
        with suppress(BeitError):
            read_tensors(path)
        open_classifier(str(path))

    assert_contained(range(300), use)


@pytest.mark.parametrize(
    ("model", "name"),
    [("hf", "config.json"), ("hf", "preprocessor_config.json"), ("timm", "config.json")],
    ids=lambda word: word,
)
def test_damaged_settings_beside_weights_are_read_or_refused(
    tmp_path: Path, small_models: dict[str, Path], model: str, name: str
) -> None:
    folder = shutil.copytree(small_models[model], tmp_path / "model")
    content = (folder / name).read_bytes()

    def use(seed: int) -> None:
        (folder / name).write_bytes(mutated_json(content, seed))
        checkpoint = open_model(str(folder))
        if seed % 4 == 0:
            open_classifier(str(folder), None)
        assert checkpoint.kind

    assert_contained(range(500), use)


def sign(checkpoint: Path) -> None:
    """SHA256SUMS made right again: the damage was there before the checkpoint was hashed."""
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != "SHA256SUMS")
    (checkpoint / "SHA256SUMS").write_text("".join(f"{sha256_of(checkpoint / name)}  {name}\n" for name in names))


@pytest.mark.parametrize("kind", ["pretrained_run", "finetuned_run", "tokenizer_run"])
def test_damaged_settings_of_a_checkpoint_are_read_or_refused(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    run = shutil.copytree(request.getfixturevalue(kind), tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-0000002")
    checkpoint = run / "checkpoints" / "step-0000004"
    content = (checkpoint / "config.json").read_bytes()
    opening = {"pretrained_run": open_masked_image_model, "finetuned_run": open_classifier}.get(kind, open_tokenizer)

    def use(seed: int) -> None:
        (checkpoint / "config.json").write_bytes(mutated_json(content, seed))
        if seed % 10:
            sign(checkpoint)
        opening(str(run))

    assert_contained(range(200), use)


def test_a_damaged_state_of_training_goes_on_or_is_refused(
    tmp_path: Path, pretrained_run: Path, labelled_folder: Path
) -> None:
    """trainer.json, hashed after the damage, and SHA256SUMS itself."""
    whole = shutil.copytree(pretrained_run, tmp_path / "whole")
    shutil.rmtree(whole / "checkpoints" / "step-0000004")
    kept = {
        name: (whole / "checkpoints" / "step-0000002" / name).read_bytes() for name in ("trainer.json", "SHA256SUMS")
    }

    def use(seed: int) -> None:
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        checkpoint = run / "checkpoints" / "step-0000002"
        if seed % 6 == 5:
            (checkpoint / "SHA256SUMS").write_bytes(mutated(kept["SHA256SUMS"], seed))
        else:
            (checkpoint / "trainer.json").write_bytes(mutated_json(kept["trainer.json"], seed))
            sign(checkpoint)
        pretrain(resolve(PretrainConfig, {"out": str(run), "resume": True}).config)

    assert_contained(range(60), use)


def test_damaged_files_of_a_run_are_read_or_refused(tmp_path: Path, pretrained_run: Path) -> None:
    run = shutil.copytree(pretrained_run, tmp_path / "run")
    metrics, sums = ((run / name).read_bytes() for name in ("metrics.jsonl", "checkpoints/step-0000004/SHA256SUMS"))

    def use(seed: int) -> None:
        (run / "metrics.jsonl").write_bytes(mutated(metrics, seed))
        writer = MetricsJsonl()
        writer.start(RunFolder.create(run, resume=True), PretrainConfig(steps=1))
        writer.rewind(3)
        (run / "checkpoints" / "step-0000004" / "SHA256SUMS").write_bytes(mutated(sums, seed))
        damage(run / "checkpoints" / "step-0000004")
        (run / "checkpoints" / "latest").write_bytes(mutated(b"step-0000004\n", seed))
        assert newest_checkpoint(run) is not None

    assert_contained(range(300), use)


@pytest.mark.parametrize("suffix", list(FORMATS))
def test_damaged_token_files_are_taken_up_or_refused(tmp_path: Path, suffix: str) -> None:
    kind = TokenKind((4, 4), 16, hashlib.sha256(b"tokenizer").hexdigest())
    whole = tmp_path / f"whole{suffix}"
    file = open_token_file(whole, kind, resume=False)
    for number in range(5):
        file.add({"path": f"{number}.png", "grid": [4, 4], "tokens": list(range(16))})
    file.close()
    content = whole.read_bytes()

    def use(seed: int) -> None:
        path = tmp_path / f"tokens{suffix}"
        if suffix == ".jsonl" and seed % 2:
            first, _, rest = content.partition(b"\n")
            path.write_bytes(mutated_json(first, seed) + b"\n" + rest)
        else:
            path.write_bytes(mutated(content, seed))
        for line in path.read_text(errors="replace").splitlines() if suffix == ".jsonl" else ():
            with suppress(BeitError):
                parse_line(line, "here")
        taken = open_token_file(path, kind, resume=True)
        taken.add({"path": "more.png", "grid": [4, 4], "tokens": [1] * 16})
        taken.close()

    assert_contained(range(400), use)


def test_damaged_torch_files_are_read_or_refused(tmp_path: Path, small_models: dict[str, Path]) -> None:
    tensors = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.zeros(3, dtype=torch.bfloat16)}
    files = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"model": tensors, "epoch": 3}, file, _use_new_zipfile_serialization=zipped)
        files.append(file.getvalue())

    def use(seed: int) -> None:
        path = tmp_path / "model.pth"
        path.write_bytes(mutated(files[seed % 2], seed))
        with suppress(BeitError):
            read_header(path)
        with suppress(BeitError):
            read_tensors(path)
        open_model(str(path))

    assert_contained(range(600), use)
