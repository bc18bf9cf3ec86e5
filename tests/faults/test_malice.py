"""Files that mean harm: pickles that run commands, archives and names that lead out of their folder.

Each carries a canary: a file that appears where the harm is done.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from beitcli.data.sources.open_data import open_data
from tests.faults.test_mutations import sign

pytestmark = [pytest.mark.faults, pytest.mark.slow]

NEWEST, BEFORE = "step-0000004", "step-0000002"


class Command:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


def pickles(canary: Path) -> dict[str, bytes]:
    """The same harm as torch writes it, zipped and not, and as pickle does, of the oldest and the newest protocol."""
    made = {f"protocol {protocol}": pickle.dumps(Command(canary), protocol=protocol) for protocol in (0, 5)}
    for name, zipped in (("zip", True), ("legacy", False)):
        file = io.BytesIO()
        torch.save(
            {"model": {"weight": torch.zeros(2)}, "extra": Command(canary)}, file, _use_new_zipfile_serialization=zipped
        )
        made[name] = file.getvalue()
    return made


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_pickles_do_harm_where_they_are_trusted(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for content in pickles(canary).values():
        try:
            torch.load(io.BytesIO(content), weights_only=False)
        except Exception:
            pickle.loads(content)
        assert canary.exists()
        canary.unlink()


@pytest.mark.parametrize("kind", ["protocol 0", "protocol 5", "zip", "legacy"])
@pytest.mark.parametrize("signed", [False, True], ids=["", "with-its-hash"])
def test_pickles_in_a_checkpoint_run_nothing(
    beit: Callable,
    finetuned_run: Path,
    pretrained_run: Path,
    labelled_folder: Path,
    tmp_path: Path,
    kind: str,
    signed: bool,
) -> None:
    """In place of the weights, of the optimizer's state, of the tokenizer; also where SHA256SUMS was forged with it."""
    canary = tmp_path / "canary"
    content = pickles(canary)[kind]
    image = labelled_folder / "red" / "01.png"
    uses = [
        (finetuned_run, "model.safetensors", lambda run: ["predict", run, image]),
        (pretrained_run, "trainer.safetensors", lambda run: ["pretrain", "--out", run, "--resume"]),
    ]
    for number, (whole, name, argv) in enumerate(uses):
        run = shutil.copytree(whole, tmp_path / f"run{number}")
        for step in (NEWEST, BEFORE):
            (run / "checkpoints" / step / name).write_bytes(content)
            if signed:
                sign(run / "checkpoints" / step)
        ended = beit(*argv(run))
        assert ended.code == 4, ended.err
        assert "Traceback" not in ended.err
        assert not canary.exists()


@pytest.mark.parametrize("kind", ["protocol 0", "protocol 5", "zip", "legacy"])
def test_pickles_as_model_or_tokenizer_run_nothing(
    beit: Callable, picture: Callable, tmp_path: Path, kind: str
) -> None:
    canary, image = tmp_path / "canary", picture("a.png")
    content = pickles(canary)[kind]
    for name in ("encoder.pkl", "model.pth", "model.safetensors", "pytorch_model.bin"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(content)
        for argv in (
            ["inspect", folder / name],
            ["inspect", folder],
            ["predict", folder / name, image],
            ["tokenize", image, "--tokenizer", folder],
            ["tokenize", image, "--tokenizer", folder / name],
            ["attn-map", image, "--model", folder, "-o", tmp_path / "map.png"],
            ["export", folder / name, "--to", "timm", "-o", tmp_path / "exported"],
        ):
            ended = beit(*argv)
            assert ended.code in (2, 4), (argv, ended.err)
            assert "Traceback" not in ended.err
            assert not canary.exists()
            assert not (tmp_path / "exported").exists()


def test_pickled_arrays_in_a_token_file_run_nothing(
    beit: Callable, tokenizer_run: Path, picture: Callable, tmp_path: Path
) -> None:
    import numpy as np

    canary, image = tmp_path / "canary", picture("a.png")
    np.savez(
        tmp_path / "tokens.npz", paths=np.array([Command(canary)], dtype=object), tokens=np.zeros((1, 16), np.int32)
    )
    ended = beit("tokenize", image, "--tokenizer", tokenizer_run, "-o", tmp_path / "tokens.npz", "--resume")
    assert ended.code == 4
    assert not canary.exists()


# Names that lead outside


def hostile_tar(path: Path, outside: Path) -> Path:
    """Members above the shard and at absolute places, links to a file outside and a device, among two good ones."""
    picture = io.BytesIO()
    Image.new("RGB", (12, 12), (200, 30, 30)).save(picture, "PNG")
    with tarfile.open(path, "w") as archive:

        def add(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            if kind == tarfile.REGTYPE:
                member.size = len(picture.getvalue())
            if kind == tarfile.CHRTYPE:
                member.devmajor, member.devminor = 1, 5  # /dev/zero, which never ends
            archive.addfile(member, io.BytesIO(picture.getvalue()) if kind == tarfile.REGTYPE else None)

        add("cat/good.png")
        add("../../above.png")
        add(f"{outside}/absolute.png")
        add("cat/symlink.png", tarfile.SYMTYPE, str(outside / "secret.png"))
        add("cat/hardlink.png", tarfile.LNKTYPE, str(outside / "secret.png"))
        add("cat/zero.png", tarfile.CHRTYPE)
        add("cat/pipe.png", tarfile.FIFOTYPE)
        add("dog/good.png")
    return path


def test_tar_members_that_lead_outside_are_bytes_and_never_places(
    beit: Callable, tokenizer_run: Path, tmp_path: Path
) -> None:
    """A shard is read by offset and never unpacked: a name is a name, a link to elsewhere or a device is no image."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir(), inside.mkdir()
    Image.new("RGB", (12, 12), (1, 2, 3)).save(outside / "secret.png")
    shard = hostile_tar(inside / "shard.tar", outside)
    source = open_data([str(shard)], split=None, role="train", labelled=False, sample_size=16)
    members = [source.path(index).removeprefix(f"{shard}/") for index in range(len(source))]
    assert members[0] == "cat/good.png"
    assert members[-1] == "dog/good.png"
    assert not {"cat/symlink.png", "cat/hardlink.png", "cat/zero.png", "cat/pipe.png"} & set(members)
    for index in range(len(source)):
        assert source.image(index).getpixel((0, 0)) == (200, 30, 30)
    before = files_below(tmp_path)
    made, masks = tmp_path / "made", tmp_path / "made-masks"
    ended = beit("tokenize", shard, "--tokenizer", tokenizer_run, "--reconstruct", made)
    assert ended.code == 0, ended.err
    assert beit("mask-preview", shard, "-o", masks).code == 0
    assert {name for name in files_below(tmp_path) - before if not name.startswith("made")} == set()
    for folder in (made, masks):
        assert list(folder.iterdir())
        assert all(path.is_file() and not path.is_symlink() for path in folder.iterdir())


CLIMBING = (
    *("../../climbed.png", "/etc/beit-climbed.png", "a/../../../climbed.png", "..", "....//x", "", ".", "/"),
    *("C:\\x\\..\\..\\y.png", "~root/x.png", "x\0y.png", "con.png\n", "\udcff.png", "x" * 300 + ".png"),
)


def test_decoded_names_stay_in_their_folder(beit: Callable, tokenizer_run: Path, tmp_path: Path) -> None:
    """JSON Lines of tokens name their images as they like; the pictures land in -o."""
    lines = [json.dumps({"path": path, "grid": [4, 4], "tokens": [1] * 16}) for path in CLIMBING]
    work = tmp_path / "deep" / "er"
    work.mkdir(parents=True)
    before = files_below(tmp_path)
    for number, line in enumerate(lines):
        target = work / f"decoded{number}"
        ended = beit(
            "tokenize", "--decode", "-", "--tokenizer", tokenizer_run, "-o", target, stdin=(line + "\n").encode()
        )
        assert ended.code in (0, 3, 4), (line, ended.err)
        assert "Traceback" not in ended.err
        made = list(target.iterdir()) if target.exists() else []
        assert len(made) == (ended.code == 0), line
        assert all(path.is_file() and not path.is_symlink() and path.suffix == ".png" for path in made)
    new = files_below(tmp_path) - before
    assert all(name.startswith("deep/er/decoded") for name in new), new
    assert not Path("/etc/beit-climbed.png").exists()


def test_names_in_lists_and_parquet_make_no_files_outside(
    beit: Callable, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    picture = (labelled_folder / "red" / "01.png").read_bytes()
    work = tmp_path / "deep" / "er"
    work.mkdir(parents=True)
    (tmp_path / "climbed.png").write_bytes(picture)
    (work / "list.txt").write_text("../../climbed.png\n/etc/passwd\n/dev/zero\n/proc/self/mem\npipe.png\n")
    os.mkfifo(work / "pipe.png")
    table = pa.table({"image": [{"bytes": picture, "path": path} for path in CLIMBING if path.isascii()]})
    pq.write_table(table, work / "rows.parquet")
    before = files_below(tmp_path)
    assert beit("tokenize", work / "list.txt", "--tokenizer", tokenizer_run, "--reconstruct", work / "made").code == 3
    assert beit("mask-preview", work / "rows.parquet", "-o", work / "masks").code == 0
    new = files_below(tmp_path) - before
    assert all(name.startswith(("deep/er/made", "deep/er/masks")) for name in new), new
    assert len(list((work / "masks").iterdir())) == table.num_rows


def test_devices_and_pipes_in_place_of_data_are_refused(beit: Callable, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for place in ("/dev/zero", "/dev/null"):
        assert beit("mask-preview", place).code == 3
    assert beit("mask-preview", tmp_path / "pipe.png").code == 3


def test_output_names_that_are_links_outside_are_refused_or_replaced_and_not_followed(
    beit: Callable, tokenizer_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("mine")
    made = tmp_path / "made"
    made.mkdir()
    (made / "a.png").symlink_to(tmp_path / "precious")
    line = json.dumps({"path": "a.png", "grid": [4, 4], "tokens": [1] * 16}) + "\n"
    argv = ["tokenize", "--decode", "-", "--tokenizer", tokenizer_run, "-o", made]
    assert beit(*argv, stdin=line.encode()).code == 2
    assert (made / "a.png").is_symlink()
    assert beit(*argv, "--overwrite", stdin=line.encode()).code == 0
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (made / "a.png").is_symlink()
