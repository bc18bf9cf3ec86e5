"""Where references lead: folders of every shape, the hub through a loopback server, timm's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.build import open_classifier
from beitcli.models.checkpoints.locate import locate
from beitcli.models.checkpoints.open import open_model
from tests.helpers.foreign_models import ReleasedMasked, hf_classifier, noise, save_plain, save_released, timm_small
from tests.helpers.hub_server import HubServer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@torch.no_grad()
def test_a_hub_repository_opens_and_is_fetched_once(tmp_path, monkeypatch):
    theirs = hf_classifier(tmp_path / "theirs")
    progress: list[tuple[str, int, int]] = []
    with HubServer({"owner/beit": contents(tmp_path / "theirs")}) as server:
        server.use(monkeypatch, tmp_path / "cache")
        model, checkpoint = open_classifier("hf://owner/beit", on_progress=lambda *seen: progress.append(seen))
        fetched = len(server.bodies())
        open_model("hf://owner/beit")
        assert len(server.bodies()) == fetched
    images, _ = noise()
    assert (model(images) - theirs(images).logits).abs().max() <= 1e-5
    assert checkpoint.classes == ("blue", "green", "red")
    assert progress[-1][1] == progress[-1][2] == (tmp_path / "theirs" / "model.safetensors").stat().st_size
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_model("hf://owner/beit").kind == "classifier"
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE") as caught:
        open_model("hf://owner/another")
    assert caught.value.exit_code == 4


def test_a_revision_may_be_named(tmp_path, monkeypatch):
    hf_classifier(tmp_path / "theirs")
    with HubServer({"owner/beit": contents(tmp_path / "theirs")}) as server:
        server.use(monkeypatch, tmp_path / "cache")
        assert open_model(f"hf://owner/beit@{server.commit('owner/beit')}").format == "hf"
        with pytest.raises(StorageError):
            open_model("hf://owner/beit@nosuchbranch")


@torch.no_grad()
def test_a_timm_name_leads_to_its_repository_with_the_default_tag(tmp_path, monkeypatch):
    theirs = timm_small(tmp_path / "theirs")
    repo = "timm/beit_base_patch16_224.in22k_ft_in22k_in1k"
    with HubServer({repo: contents(tmp_path / "theirs")}) as server:
        server.use(monkeypatch, tmp_path / "cache")
        model, checkpoint = open_classifier("timm/beit_base_patch16_224")
        again = open_model("timm/beit_base_patch16_224.in22k_ft_in22k_in1k")
    images, _ = noise()
    assert torch.equal(model(images), theirs(images))
    assert checkpoint.format == again.format == "timm"


def test_timm_names_that_are_none_are_refused():
    with pytest.raises(StorageError, match="timm has no model") as caught:
        locate("timm/beit_base_patch16_225")
    assert "timm/beit_base_patch16_224" in caught.value.hint
    with pytest.raises(UsageError, match="is no BEiT"):
        locate("timm/resnet18")
    with pytest.raises(StorageError, match=r"timm has no weights 'beit_base_patch16_224\.nosuch'") as caught:
        locate("timm/beit_base_patch16_224.nosuch")
    assert "in22k" in caught.value.hint


def test_a_folder_with_one_file_of_any_name_is_enough(tmp_path):
    save_released(ReleasedMasked(use_abs_pos_emb=True), tmp_path / "beit_pt.pth", num_heads=4)
    (tmp_path / "notes.txt").write_text("weights of mine")
    assert open_model(str(tmp_path)).kind == "masked-image-model"


def test_a_folder_with_several_files_asks_which(tmp_path):
    for name in ("a.pth", "b.pth"):
        save_released(ReleasedMasked(use_abs_pos_emb=True), tmp_path / name, num_heads=4)
    with pytest.raises(UsageError, match=r"2 files of weights \(a.pth, b.pth\)"):
        open_model(str(tmp_path))
    assert open_model(str(tmp_path / "b.pth")).kind == "masked-image-model"


def test_settings_beside_a_file_of_another_name_are_not_its_own(tmp_path):
    hf_classifier(tmp_path)
    path = save_released(ReleasedMasked(use_abs_pos_emb=True), tmp_path / "other.pth", num_heads=4)
    checkpoint = open_model(str(path))
    assert (checkpoint.format, checkpoint.architecture.positions) == ("official", "absolute")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"config.json": b"<html>"}, "cannot be read"),
        ({"config.json": b"[1, 2]"}, "no JSON object"),
        ({"config.json": json.dumps({"model_type": "beit", "image_size": "big"}).encode()}, "settings"),
        ({"config.json": json.dumps({"model_type": "beit", "hidden_act": "relu"}).encode()}, "relu"),
        ({"config.json": json.dumps({"model_type": "beit", "num_attention_heads": 5}).encode()}, "5 heads"),
        ({"model.safetensors": b"\x00" * 5}, "model.safetensors"),
        ({"model.safetensors": b"<!DOCTYPE html><title>Sign in</title>"}, "Sign in"),
    ],
)
def test_damaged_folders_are_storage_errors_that_name_the_file_or_value(tmp_path, damage, message):
    hf_classifier(tmp_path)
    for name, content in damage.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StorageError) as caught:
        open_model(str(tmp_path))
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("blocks.1.", "lacks blocks"),
        ("blocks.0.attn.qkv.weight", "lacks blocks.0.attn.qkv.weight"),
        ("patch_embed.proj.weight", "holds no BEiT"),
        ("pos_embed", "no positions"),
        ("norm.", "has no norm"),
    ],
)
def test_incomplete_weights_say_what_is_missing(tmp_path, without, message):
    model = ReleasedMasked(use_abs_pos_emb=True)
    path = save_plain(model, tmp_path / "whole.safetensors")
    from safetensors.torch import load_file, save_file

    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(without)}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.raises(StorageError, match=message):
        open_model(str(tmp_path / "part.safetensors"))


class Runs:
    """Pickles to a call of a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("command", ["inspect", "export", "attn-map", "finetune"])
def test_a_pickle_that_would_run_a_command_does_not(beit, tmp_path, picture, labelled_folder, command, legacy):
    canary = tmp_path / "canary"
    path = tmp_path / "weights.pth"
    state = ReleasedMasked(use_abs_pos_emb=True).state_dict()
    torch.save({"model": state, "args": Runs(f"touch {canary}")}, path, _use_new_zipfile_serialization=not legacy)
    arguments = {
        "inspect": [path],
        "export": [path, "--to", "hf", "-o", tmp_path / "out"],
        "attn-map": [picture("a.png"), "--model", path],
        "finetune": [labelled_folder, "--init", path, "--recipe", "tiny", "--out", tmp_path / "run"],
    }
    ended = beit(command, *arguments[command])
    assert ended.code == 4, ended.err
    assert "system" in ended.err
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()  # the trap is a real one
