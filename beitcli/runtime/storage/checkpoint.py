"""Atomic checkpoints: a checkpoint folder is complete or absent.

A checkpoint is written to a temporary folder, every file is fsynced and hashed, and the folder is renamed; only then is
`latest` updated and are old checkpoints removed. It consists of safetensors and JSON; nothing is pickled. A checkpoint
of a later step than the one just saved must have been skipped as damaged: it is renamed to `damaged-step-NNNNNNN`, so
that it is neither used nor lost. One of the same step is set aside until the new one has its name.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from beitcli.errors import StorageError
from beitcli.runtime.metric_text import size_text
from beitcli.runtime.storage.hashing import sha256_of
from beitcli.runtime.storage.own_files import (
    apply_umask,
    atomic_write_text,
    create_new,
    not_permitted,
    remove_entry,
    require_own,
)
from beitcli.runtime.storage.regular_files import read_regular, require_regular
from beitcli.runtime.storage.safe_json import dump_json, parse_json

SUMS = "SHA256SUMS"
_MODEL = {"model.safetensors", "config.json"}
_UNFINISHED = (".step-*.partial-*", ".latest.[0-9]*", ".latest-*")  # the last of earlier versions
_REPLACED = re.compile(r"\.(step-[0-9]+)\.replaced-[0-9]+")
_STEP = re.compile(r"step-([0-9]+)")


@dataclass(frozen=True)
class CheckpointFolder:
    """A verified checkpoint folder.

    Attributes:
        damaged: A sentence for each newer checkpoint that was skipped.
    """

    path: Path
    damaged: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The `beit` section of config.json, with which this program opens the checkpoint."""
        try:
            section = parse_json(read_regular(self.path / "config.json"))["beit"]
            if not isinstance(section["kind"], str):
                raise ValueError("it names no kind")
            return section
        except (OSError, ValueError, LookupError, TypeError):
            raise StorageError(
                f"'{self.path / 'config.json'}' is none of this version's.",
                "Train again, or use the version that made it.",
            ) from None

    @property
    def trainer(self) -> dict[str, Any]:
        """The trainer state in trainer.json. Raises StorageError if it is not a JSON object."""
        try:
            document = parse_json(read_regular(self.path / "trainer.json"))
            if not isinstance(document, dict):
                raise ValueError("it is no JSON object")
            return document
        except (OSError, ValueError) as error:
            raise StorageError(
                f"'{self.path / 'trainer.json'}' cannot be read: {error}.", "Take another checkpoint of the run."
            ) from None

    def model_tensors(self) -> dict[str, torch.Tensor]:
        return load_tensors(self.path / "model.safetensors")

    def trainer_tensors(self) -> dict[str, torch.Tensor]:
        return load_tensors(self.path / "trainer.safetensors")


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        require_regular(path)
        return load_file(path)
    except PermissionError:
        raise not_permitted(path) from None
    except (SafetensorError, OSError) as error:
        raise StorageError(f"'{path}' cannot be read: {error}.", "Take another checkpoint of the run.") from None


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    beside: Mapping[str, Any] | None = None,
    trainer_tensors: Mapping[str, torch.Tensor],
    trainer: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes `folder/step-NNNNNNN`, keeps it and the `keep` - 1 before it, and renames those of later steps.

    Args:
        config: The `beit` section of config.json.
        beside: Its other keys, with which other programs open the folder.
        trainer: Contents of trainer.json.

    Raises:
        StorageError: The disk is full or not writable; earlier checkpoints are unchanged.
    """
    final = folder / f"step-{step:07d}"
    partial, replaced = (folder / f".{final.name}.{what}-{os.getpid()}" for what in ("partial", "replaced"))
    needed = sum(t.numel() * t.element_size() for t in (*model.values(), *trainer_tensors.values()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        partial.mkdir()
        _save_tensors(partial / "model.safetensors", model)
        _save_tensors(partial / "trainer.safetensors", trainer_tensors)
        _write(partial / "config.json", dump_json({**(beside or {}), "beit": config}, indent=2) + "\n")
        _write(partial / "trainer.json", dump_json(trainer) + "\n")
        names = sorted(entry.name for entry in partial.iterdir())
        _write(partial / SUMS, "".join(f"{sha256_of(partial / name)}  {name}\n" for name in names))
        _sync_folder(partial)
        _rename_over(partial, final, replaced)
        _sync_folder(folder)
        remove_entry(replaced)
        point_latest(folder, final.name)
        _prune(folder, step, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        hint = "Free space or give another --out, then go on with --resume; earlier checkpoints are intact."
        if isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EACCES):
            hint = "Put right what the message names, then go on with --resume; earlier checkpoints are intact."
        raise StorageError(
            f"Checkpoint '{final}' cannot be written ({size_text(needed)} needed): {error}.", hint
        ) from None
    return final


def _rename_over(partial: Path, final: Path, replaced: Path) -> None:
    """Gives `partial` the name `final`; a checkpoint of that name is set aside, and gets it back if that fails."""
    if os.path.lexists(final):
        final.rename(replaced)
    try:
        partial.rename(final)
    except BaseException:
        with suppress(OSError):  # FileNotFoundError if there was none
            replaced.rename(final)
        raise


def point_latest(folder: Path, name: str) -> None:
    """Makes `latest` name a checkpoint, atomically; a link in its place is replaced. Raises OSError."""
    latest = folder / "latest"
    if latest.is_dir() and not latest.is_symlink():
        require_own(latest)
    atomic_write_text(latest, name + "\n", sync=True)
    _sync_folder(folder)


def repair_latest(checkpoint: CheckpointFolder) -> None:
    """Makes `latest` name the given checkpoint, if a process was killed before it did. Raises StorageError."""
    latest = checkpoint.path.parent / "latest"
    try:
        if latest.is_file() and latest.read_bytes() == f"{checkpoint.path.name}\n".encode():
            return
        point_latest(latest.parent, checkpoint.path.name)
    except OSError as error:
        raise StorageError(
            f"'{latest}' cannot be written: {error.strerror or error}.",
            "Move it away, or make the folder writable, then go on with --resume.",
        ) from None


def step_folders(folder: Path) -> list[Path]:
    """Lists the checkpoint folders, newest first; `damage` verifies them. Raises StorageError if that is forbidden."""
    try:
        names = os.listdir(folder)
    except PermissionError:
        raise not_permitted(folder) from None
    except OSError:  # there are none
        return []
    found = (folder / name for name in names if _STEP.fullmatch(name) and os.path.isdir(folder / name))
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def damage(checkpoint: Path, *, weights_only: bool = False) -> str:
    """Describes the damage of a checkpoint folder; empty if its files match their hashes.

    Args:
        weights_only: Checks only the model, not the optimizer state, which is three times larger.
    """
    try:
        lines = read_regular(checkpoint / SUMS).decode().splitlines()
        entries = [line.split("  ", 1) for line in lines]
        listed = {entry[1] for entry in entries if len(entry) == 2}
        if not listed >= _MODEL:
            return f"{SUMS} is incomplete"
        for digest, name in entries:
            if weights_only and name not in _MODEL:
                continue
            if "/" in name or not (checkpoint / name).is_file():
                return f"{name} is missing"
            if sha256_of(checkpoint / name) != digest:
                return f"{name} does not match its SHA-256"
    except PermissionError as error:
        raise not_permitted(error.filename or checkpoint) from None
    except (OSError, ValueError) as error:
        return f"{SUMS} cannot be read ({type(error).__name__})"
    return ""


def newest_checkpoint(run: Path, *, weights_only: bool = False) -> CheckpointFolder | None:
    """Returns the newest undamaged checkpoint of a run; None if there are no checkpoints.

    Raises:
        StorageError: All checkpoints are damaged.
    """
    damaged: list[str] = []
    for path in step_folders(run / "checkpoints"):
        wrong = damage(path, weights_only=weights_only)
        if not wrong:
            return CheckpointFolder(path, tuple(f"Damaged checkpoint passed over: {each}." for each in damaged))
        damaged.append(f"{path.name}: {wrong}")
    if damaged:
        raise StorageError(
            f"Every checkpoint of '{run}' is damaged ({'; '.join(damaged)}).",
            "Restore one from a backup, or train again with another --out.",
        )
    return None


def verified_checkpoint(path: Path, *, weights_only: bool = False) -> CheckpointFolder:
    """Returns a checkpoint folder, verified by its hashes. Raises StorageError if it is damaged."""
    wrong = damage(path, weights_only=weights_only)
    if wrong:
        raise StorageError(f"Checkpoint '{path}' is damaged: {wrong}.", "Take another checkpoint of the run.")
    return CheckpointFolder(path)


def _prune(folder: Path, saved: int, keep: int) -> None:
    checkpoints = step_folders(folder)
    for later in (path for path in checkpoints if step_of(path) > saved):
        aside, number = folder / f"damaged-{later.name}", 2
        while os.path.lexists(aside):
            aside, number = folder / f"damaged-{later.name}-{number}", number + 1
        later.rename(aside)
    for old in [path for path in checkpoints if step_of(path) < saved][max(0, keep - 1) :]:
        going = folder / f".{old.name}.partial-{os.getpid()}"  # half-removed it would look damaged
        old.rename(going)
        remove_entry(going)  # of a link, the link: what it points to was moved elsewhere on purpose


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file(_with_storage_of_their_own(tensors), path)
    apply_umask(path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _with_storage_of_their_own(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors on the CPU, as safetensors stores them: copies of those that share storage or have gaps."""
    found, taken = {}, set[int]()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        storage = tensor.untyped_storage()
        if not tensor.is_contiguous() or storage.nbytes() != tensor.nbytes or storage.data_ptr() in taken:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        taken.add(storage.data_ptr())
        found[name] = tensor
    return found


def _write(path: Path, text: str) -> None:
    with create_new(path) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> list[str]:
    """Removes temporary files that a killed process left behind, and returns their names.

    A checkpoint that was set aside, and whose successor has not got its name, gets its name back.
    """
    leftovers = sorted(found for form in _UNFINISHED for found in folder.glob(form))
    for aside in folder.glob(".step-*.replaced-*"):
        name = _REPLACED.fullmatch(aside.name)
        if name and not os.path.lexists(folder / name[1]):
            with suppress(OSError):
                aside.rename(folder / name[1])
        elif name:
            leftovers.append(aside)
    for leftover in leftovers:
        with suppress(OSError):
            remove_entry(leftover)
    return [leftover.name for leftover in leftovers]
