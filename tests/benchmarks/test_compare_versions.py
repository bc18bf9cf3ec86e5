"""The comparison of two versions finds one flipped bit, wherever it is, and minds no times."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare_versions.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_versions", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def found(script: ModuleType, old: Path, new: Path) -> dict[str, str]:
    return {check: difference for check, difference in script.run_differences(old, new, "run") if difference}


def flip(checkpoint: Path, file: str) -> str:
    """The lowest bit of one number of the first tensor; returns the tensor's name."""
    tensors = load_file(checkpoint / file)
    name = min(tensors)
    tensors[name].view(-1).view(torch.uint8)[0] ^= 1
    save_file(tensors, checkpoint / file)
    return name


def reword(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture
def copy(tmp_path: Path, pretrained_run: Path) -> Path:
    return Path(shutil.copytree(pretrained_run, tmp_path / "copy"))


def test_a_run_equals_its_copy_but_for_times(script, pretrained_run, copy):
    reword(script.last_checkpoint(copy) / "trainer.json", lambda document: document.update(seconds=1e9))
    lines = [
        json.loads(line) | {"images_per_second": 0.5, "data_wait_share": 0.5}
        for line in (copy / "metrics.jsonl").read_text().splitlines()
    ]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(list(script.run_differences(pretrained_run, copy, "run"))) == 6
    assert found(script, pretrained_run, copy) == {}


@pytest.mark.parametrize(
    ("file", "check"), [("model.safetensors", "run: weights"), ("trainer.safetensors", "run: optimizer")]
)
def test_a_flipped_bit_is_found(script, pretrained_run, copy, file, check):
    name = flip(script.last_checkpoint(copy), file)
    differing = found(script, pretrained_run, copy)
    assert list(differing) == [check]
    assert differing[check].startswith(f"{name}: 1 of ")


def test_a_changed_number_of_a_document_is_found(script, pretrained_run, copy):
    checkpoint = script.last_checkpoint(copy)
    reword(checkpoint / "trainer.json", lambda document: document.update(images_seen=document["images_seen"] + 1))
    reword(checkpoint / "config.json", lambda document: document["beit"]["architecture"].update(patch_size=4))
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    loss = json.loads(lines[0])["loss"]
    first = json.dumps(json.loads(lines[0]) | {"loss": loss * (1 + 2**-52)})
    (copy / "metrics.jsonl").write_text("\n".join([first, *lines[1:]]) + "\n")
    differing = found(script, pretrained_run, copy)
    assert set(differing) == {"run: trainer.json", "run: config.json", "run: metrics.jsonl"}
    assert differing["run: metrics.jsonl"].startswith(f"line 0.loss: {loss}")


def test_a_lost_checkpoint_is_found(script, pretrained_run, copy):
    shutil.rmtree(script.last_checkpoint(copy))
    assert "run: last step" in found(script, pretrained_run, copy)


def test_a_written_record_of_a_cache_is_found_even_with_equal_bytes(script, tmp_path):
    record = tmp_path / "key" / "epoch-0000000.rows"
    record.parent.mkdir()
    record.write_bytes(b"tokens")
    before = script.state_of(tmp_path)
    assert script.state_of(tmp_path) == before
    with record.open("r+b") as file:
        file.write(b"tokens")
    assert script.state_of(tmp_path) != before


def test_a_changed_picture_is_found(script, tmp_path, picture):
    for name in ("old", "new"):
        picture(f"{name}/a.png")
    assert script.folder_difference(tmp_path / "old", tmp_path / "new") == ""
    picture("new/a.png", seed=2)
    assert script.folder_difference(tmp_path / "old", tmp_path / "new") == "a.png"
    picture("new/b.png")
    assert script.folder_difference(tmp_path / "old", tmp_path / "new") == "only in one: b.png"


def test_a_version_that_fails_is_named_with_the_end_of_its_stderr(tmp_path):
    package = tmp_path / "checkout" / "beitcli"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("raise RuntimeError('it cannot do this')")
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(package.parent), str(package.parent), "--work", str(tmp_path / "work")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "OLD failed with exit code 1: -m beitcli train-tokenizer sample" in ended.stderr
    assert ended.stderr.strip().endswith("RuntimeError: it cannot do this")
    assert not (tmp_path / "work").exists()


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(tmp_path), "--work", str(tmp_path / "work")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "OLD" in ended.stderr
