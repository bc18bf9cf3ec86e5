"""A small pretraining run for the faults that interrupt one, and what must be equal whatever interrupted it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from beitcli.data.loading import batches as loader
from beitcli.engine.trainer import data as data_module
from beitcli.runtime.storage.checkpoint import damage, newest_checkpoint, step_folders

_EQUAL = ("step", "epoch", "loss", "lr", "gradient_norm", "masked_accuracy")
STEPS, SAVE_EVERY, BATCH = 12, 4, 5


def command(data: Path, tokenizer: Path | str, out: Path, *more: object) -> list[str]:
    """23 images in batches of 5: epochs end inside steps; drop path and jitter draw from what a resume must restore."""
    words = [
        "pretrain", data, "--recipe", "tiny", "--tokenizer", tokenizer, "--image-size", 32, "--num-masked", 6,
        "--steps", STEPS, "--batch-size", BATCH, "--micro-batch", 3, "--drop-path", 0.2, "--color-jitter", 0.4,
        "--save-every", SAVE_EVERY, "--log-every", 1, "--keep", 2, "--workers", 0, "--device", "cpu", "--out", out,
        "--quiet", *more,
    ]  # fmt: skip
    return [str(word) for word in words]


def resumption(run: Path, *more: object) -> list[str]:
    return [str(word) for word in ("pretrain", "--out", run, "--resume", "--quiet", *more)]


def note_images(file: Path) -> None:
    """From now on, each batch of this process adds a line {step: the images' numbers} to `file`."""
    batches = loader.training_batches

    def noted(source: Any, transform: Any, part: Any, **kwargs: Any) -> Iterator[Any]:
        step = part.images_seen // part.batch_size
        for batch in batches(source, transform, part, **kwargs):
            step += 1
            with file.open("a") as lines:
                lines.write(json.dumps({str(step): batch.indices}) + "\n")
            yield batch

    data_module.training_batches = noted  # type: ignore[assignment]


def outcome(run: Path, images: Path | None = None) -> dict[str, Any]:
    """Weights, optimizer, every step's metrics, and the images of every step where they were noted."""
    newest = newest_checkpoint(run)
    assert newest is not None
    assert newest.damaged == ()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen: dict[str, list[int]] = {}
    for line in images.read_text().splitlines() if images else ():
        for step, indices in json.loads(line).items():
            assert seen.setdefault(step, indices) == indices, step
    return {
        "steps": newest.trainer["step"],
        "model": (newest.path / "model.safetensors").read_bytes(),
        "trainer": (newest.path / "trainer.safetensors").read_bytes(),
        "figures": newest.trainer["figures"],
        "lines": [{name: line[name] for name in _EQUAL} for line in lines],
        "images": seen,
    }


def whole_checkpoints(run: Path) -> list[str]:
    """Names, newest first; `latest` names the newest of them, and nothing unfinished lies beside."""
    folder = run / "checkpoints"
    found = step_folders(folder)
    assert [damage(path) for path in found] == [""] * len(found)
    assert not list(folder.glob(".*"))
    if found:
        assert (folder / "latest").read_text() == f"{found[0].name}\n"
    return [path.name for path in found]


def on_call(owner: Any, name: str, number: int, harm: Callable[[], object]) -> None:
    """Does harm right before the `number`-th call of a function, which is then made."""
    function, calls = getattr(owner, name), [0]

    def harmed(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            harm()
        return function(*args, **kwargs)

    setattr(owner, name, harmed)


CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "open")


def on_change(folder: Path, number: int, harm: Callable[[], object]) -> list[str]:
    """Does harm right before the `number`-th change below a folder, by Python's audit events and fsync.

    Returns:
        What was changed so far, grows.
    """
    changes: list[str] = []
    inside = f"{folder}/"
    sync = os.fsync

    def count(what: str) -> None:
        changes.append(what)
        if len(changes) == number:
            harm()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGING and isinstance(arguments[0], str | os.PathLike):
            path = os.fspath(arguments[0])
            if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # below an open folder, as rmtree goes
                path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), path)
            writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if isinstance(path, str) and path.startswith(inside) and writes:
                count(f"{event} {path.removeprefix(inside)}")

    def synced(descriptor: int) -> None:
        count("fsync")
        sync(descriptor)

    sys.addaudithook(hook)
    os.fsync = synced
    return changes
