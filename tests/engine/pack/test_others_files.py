"""The folder of a pack: nothing that is another's, or an input, is replaced, removed or believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from beitcli.config.pack import PackConfig
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.pack import run as run_of_pack
from beitcli.engine.pack.folder import PackFolder
from beitcli.engine.pack.run import pack
from beitcli.errors import UsageError
from tests.helpers.packs import packed


def test_a_folder_with_anything_else_is_refused(split_folder: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"other files, such as 'mine\.txt'"):
            packed(split_folder, tmp_path / "out", overwrite=overwrite)
    with pytest.raises(UsageError, match="lies inside"):
        packed(split_folder, split_folder / "packed")
    packed(split_folder, tmp_path / "first")
    with pytest.raises(UsageError, match="would replace the input"):
        packed(tmp_path / "first", tmp_path / "first", overwrite=True)


def test_a_link_in_place_of_the_unfinished_part_is_not_followed(split_folder: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.tar").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".partial").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="is a link"):
        packed(split_folder, tmp_path / "out")
    assert (tmp_path / "mine" / "x.tar").read_text() == "mine"


def test_names_in_a_manifest_lead_to_no_other_folder(split_folder: Path, tmp_path: Path):
    out, mine = tmp_path / "out", tmp_path / "mine.tar"
    mine.write_text("mine")
    packed(split_folder, out)
    manifest = json.loads((out / "pack.json").read_text())
    manifest["splits"]["train"]["shards"].append({"file": "../mine.tar"})
    (out / "pack.json").write_text(json.dumps(manifest))
    packed(split_folder, out, overwrite=True)
    assert mine.read_text() == "mine"


def test_two_packs_of_one_folder_do_not_run_at_once(split_folder: Path, tmp_path: Path, monkeypatch):
    write = run_of_pack.write_shard
    config = PackConfig(data=(str(split_folder),), output=str(tmp_path / "out"))

    def within(packing, shard):
        with pytest.raises(UsageError, match="Another process is packing"):
            PackFolder(tmp_path / "out", {}, ProtectedInputs(config), overwrite=True)
        return write(packing, shard)

    monkeypatch.setattr(run_of_pack, "write_shard", within)
    assert packed(split_folder, tmp_path / "out").images == 16


def test_files_of_a_pack_that_are_anothers_are_not_replaced(split_folder: Path, tmp_path: Path):
    for name in ("SHA256SUMS", "bad-images.jsonl", "pack.json"):
        mine = tmp_path / f"out-{name}" / name
        mine.parent.mkdir()
        mine.write_text("{}")
        with pytest.raises(UsageError, match=f"other files, such as '{name}'"):
            packed(split_folder, mine.parent, overwrite=True)
        assert (mine.read_text(), os.listdir(mine.parent)) == ("{}", [name])


def test_a_link_in_place_of_a_file_of_the_pack_is_replaced_and_not_followed(
    split_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The link is there before, which is refused, or comes while shards are written."""
    out, victim, write = tmp_path / "out", tmp_path / "victim", run_of_pack.write_shard
    victim.write_text("mine")
    out.mkdir()
    (out / "SHA256SUMS").symlink_to(victim)
    with pytest.raises(UsageError, match="other files"):
        packed(split_folder, out)
    (out / "SHA256SUMS").unlink()

    def planted(packing: Any, shard: Any) -> Any:
        if shard.split == 0:
            (out / "SHA256SUMS").symlink_to(victim)
        return write(packing, shard)

    monkeypatch.setattr(run_of_pack, "write_shard", planted)
    packed(split_folder, out)
    assert (victim.read_text(), (out / "SHA256SUMS").is_symlink()) == ("mine", False)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_manifest_decides_about_shards_alone(split_folder: Path, tmp_path: Path, is_ours: bool):
    out = tmp_path / "out"
    packed(split_folder, out)
    (out / "thesis.doc").write_text("mine")
    manifest = json.loads((out / "pack.json").read_text())
    if is_ours:
        manifest["splits"]["train"]["shards"].append({"file": "thesis.doc"})
    else:
        (out / "thesis.doc").rename(out / "mine-00000-of-00001.tar")
        manifest["format"] = "another"
        manifest["splits"]["train"]["shards"].append({"file": "mine-00000-of-00001.tar"})
    (out / "pack.json").write_text(json.dumps(manifest))
    there = {each.name: each.read_bytes() for each in out.iterdir()}
    with pytest.raises(UsageError, match="other files"):
        packed(split_folder, out, overwrite=True)
    assert {each.name: each.read_bytes() for each in out.iterdir()} == there


def test_a_record_of_another_program_decides_nothing(split_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / ".partial").mkdir(parents=True)
    (out / "thesis.doc").write_text("mine")
    (out / ".partial" / "mine-00000-of-00001.tar").write_text("mine")
    written = {"file": "thesis.doc", "sha256": ""}
    (out / ".partial" / "record.jsonl").write_text(f'{{"format": "another"}}\n{json.dumps(written)}\n')
    for _ in range(2):
        with pytest.raises(UsageError, match="other files"):
            packed(split_folder, out, overwrite=True)
        (out / "thesis.doc").unlink(missing_ok=True)
    assert (out / ".partial" / "mine-00000-of-00001.tar").read_text() == "mine"


def test_shards_that_hold_the_input_are_not_replaced(split_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    packed(split_folder, out)
    shard = next(out.glob("validation-*.tar"))
    listed = tmp_path / "list.txt"
    listed.write_text(f"{shard}/00000000.jpg\n{shard}/00000001.jpg\n")
    content = shard.read_bytes()
    for data in ((str(listed),), (str(split_folder), str(listed))):
        with pytest.raises(UsageError, match=f"would replace the input '{shard}'"):
            pack(PackConfig(data=data, output=str(out), workers=0, overwrite=True))
    assert shard.read_bytes() == content
