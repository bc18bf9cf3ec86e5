"""Folders that other programs leave behind: the newest weights are taken, or the format and the way out are named."""

from __future__ import annotations

import ast
import json
import shlex
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint
from safetensors.torch import save_file
from timm.models.beit import Beit

from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.open import open_model
from tests.helpers.foreign_models import PER_BLOCK, hf_classifier


def save(path: Path, step: int, key: str = "state_dict") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = Beit(**PER_BLOCK).state_dict()
    state["head.bias"] = torch.full((3,), float(step))
    torch.save({key: state, "step": step}, path)


def taken(folder: Path) -> int:
    return int(open_model(str(folder)).tensors()["head.bias"][0])


@pytest.mark.parametrize(
    "names",
    [
        ("epoch=0-step=9.ckpt", "epoch=1-step=18.ckpt", "epoch=11-step=100.ckpt"),
        ("checkpoints/epoch=9-step=90.ckpt", "checkpoints/epoch=10-step=100.ckpt"),
        ("lightning_logs/version_9/checkpoints/epoch=3-step=40.ckpt",
         "lightning_logs/version_10/checkpoints/epoch=0-step=4.ckpt"),
        ("checkpoint-9.pth", "checkpoint-99.pth", "checkpoint-100.pth"),
        ("epoch_2.pth", "epoch_10.pth"),
        ("iter_4000.pth", "iter_16000.pth"),
        ("checkpoint-9/mp_rank_00_model_states.pt", "checkpoint-19/mp_rank_00_model_states.pt"),
    ],
)  # fmt: skip
def test_newest_checkpoint_of_another_program_is_taken(tmp_path: Path, names: tuple[str, ...]) -> None:
    for step, name in enumerate(reversed(names)):
        save(tmp_path / name, len(names) - step, "module" if "rank" in name else "state_dict")
    assert taken(tmp_path) == len(names)


def test_newest_checkpoint_of_a_trainer_is_taken_with_its_config(tmp_path: Path) -> None:
    for step in (500, 1000, 80):
        hf_classifier(tmp_path / f"checkpoint-{step}")
        torch.save({"state": {}, "param_groups": []}, tmp_path / f"checkpoint-{step}" / "optimizer.pt")
    checkpoint = open_model(str(tmp_path))
    assert checkpoint.weights.parent.name == "checkpoint-1000"
    assert checkpoint.classes == ("blue", "green", "red")
    assert any("the newest weights are taken" in each and "checkpoint-1000" in each for each in checkpoint.warnings)
    hf_classifier(tmp_path)  # as save_model leaves it
    assert open_model(str(tmp_path)).weights.parent == tmp_path


def test_unrelated_weights_in_a_folder_are_still_to_be_named(tmp_path: Path) -> None:
    for name in ("ours.pth", "theirs.pth"):
        save(tmp_path / name, 1)
    with pytest.raises(UsageError, match="2 files of weights"):
        open_model(str(tmp_path))


def test_tag_that_deepspeed_calls_latest_is_taken(tmp_path: Path) -> None:
    for step, tag in enumerate(("global_step20", "global_step100", "best")):
        save(tmp_path / tag / "mp_rank_00_model_states.pt", step, "module")
    (tmp_path / "latest").write_text("global_step20")
    assert taken(tmp_path) == 0


def refused(folder: Path) -> StorageError:
    with pytest.raises(StorageError) as caught:
        open_model(str(folder))
    return caught.value


def test_shards_of_deepspeed_name_the_script_that_joins_them(tmp_path: Path) -> None:
    shard = tmp_path / "global_step5" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    shard.parent.mkdir()
    empty = {name: torch.zeros(0) for name in Beit(**PER_BLOCK).state_dict()}
    torch.save({"module": empty, "ds_version": "0.18", "param_shapes": [{}]}, shard)
    for place in (tmp_path, shard):
        failure = refused(place)
        assert "DeepSpeed" in failure.message
        assert "zero_to_fp32.py" in failure.hint


def test_shards_of_one_tag_of_deepspeed_are_joined_by_the_script_beside_its_folder(tmp_path: Path) -> None:
    shard = tmp_path / "step 5" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    shard.parent.mkdir()
    torch.save({"module": {}, "ds_version": "0.18", "param_shapes": [{}]}, shard)
    (tmp_path / "zero_to_fp32.py").touch()
    run = ["python", f"{tmp_path}/zero_to_fp32.py", str(tmp_path), "weights"]
    assert command_in(refused(tmp_path).hint) == run
    assert command_in(refused(shard.parent).hint) == [*run, "--tag", "step 5"]


def test_optimizer_states_of_deepspeed_name_the_model_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": {"slices": [ast.Load()]}}, path)  # a class that torch's guard refuses
    failure = refused(path)
    assert "optimizer and no model" in failure.message
    assert "mp_rank_00_model_states.pt" in failure.hint


def command_in(hint: str) -> list[str]:
    return shlex.split(hint.partition("`")[2].partition("`")[0])


@pytest.mark.parametrize("name", ["my run", "$(touch pwned)", "it's `one`", 'a "b"'])
def test_commands_in_hints_hold_each_name_as_one_word(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
    hint = refused(folder).hint
    *_, program = shlex.split(hint.partition(": ")[2].partition(", and give")[0])
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]
    assert {name, str(folder), "merged"} == {node.value for node in calls}
    (folder / "adapter_config.json").unlink()
    (folder / "0_0.distcp").touch()
    assert shlex.split(refused(folder).hint.partition("`")[2].rpartition("`")[0])[-2:] == [str(folder), "weights.pth"]


def test_adapter_names_its_base_model_in_the_command_that_merges_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "microsoft/beit-base"}))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    failure = refused(tmp_path)
    assert "adapter of peft" in failure.message
    assert 'from_pretrained("microsoft/beit-base")' in failure.hint
    assert "merge_and_unload" in failure.hint


def test_distributed_checkpoint_names_the_command_that_joins_it(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # it saves in one process, and says so
        torch.distributed.checkpoint.save({"model": Beit(**PER_BLOCK).state_dict()}, checkpoint_id=tmp_path)
    assert "dcp_to_torch" in refused(tmp_path).hint


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("model.onnx", b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "ONNX"), ("m.gguf", b"GGUF\x03\0\0\0", "GGUF"),
     ("flax_model.msgpack", b"\x81\xa4beit\x82", "msgpack")],
)  # fmt: skip
def test_folder_with_another_format_names_it(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refused(tmp_path).message
