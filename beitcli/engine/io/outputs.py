"""Output files of per-image commands: names that stay inside their folder, and atomic writes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image

from beitcli.errors import StorageError, UsageError

_STEM_BYTES = 180  # a name may have 255; a number, a suffix and the PID follow


class OutputNames:
    """File names for inputs, from their stems; a name that is taken gets a number.

    Args:
        beside: Suffixes of the stem for further files of the same input, which are reserved too.
    """

    def __init__(self, folder: Path, suffix: str, beside: tuple[str, ...] = ()) -> None:
        self.folder, self.suffix, self.endings = folder, suffix, ("", *beside)
        self._taken: set[str] = set()
        self._number: dict[str, int] = {}  # last number per stem: counting from 2 again would be quadratic

    def path(self, input_path: str) -> Path:
        """Returns FOLDER/STEM.SUFFIX; no `input_path` can lead out of FOLDER."""
        stem = Path(input_path.replace("\\", "/")).stem
        stem = re.sub(r"[^\w.+ -]", "_", stem.encode(errors="replace").decode()).strip(". ") or "image"
        stem = stem.encode()[:_STEM_BYTES].decode(errors="ignore")
        number = self._number.get(stem.lower(), 0) + 1
        while not self._taken.isdisjoint(self._claimed(_numbered(stem, number))):
            number += 1
        name, self._number[stem.lower()] = _numbered(stem, number), number
        self._taken.update(self._claimed(name))
        return self.folder / f"{name}{self.suffix}"

    def _claimed(self, name: str) -> list[str]:
        return [f"{name}{ending}".lower() for ending in self.endings]


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}-{number}"


def check_no_overwrite(outputs: Iterable[Path], inputs: Iterable[str], option: str) -> None:
    """Raises UsageError if an output would overwrite one of the input images.

    Args:
        option: Name of the outputs for the message: `-o 'DIR'`.
    """
    present = [path for path in outputs if path.exists()]
    images = {os.path.realpath(path) for path in inputs} if present else set()
    for path in present:
        if os.path.realpath(path) in images:
            raise UsageError(f"{option} would overwrite the image '{path}'.", "Give another name or folder.")


def make_folder(folder: Path) -> Path:
    """Creates a folder; raises StorageError if it cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"Output folder '{folder}' cannot be made: {error.strerror or error}.", "Give a writable folder."
        ) from None
    if not os.access(folder, os.W_OK):
        raise StorageError(f"Output folder '{folder}' cannot be written.", "Give a writable folder.")
    return folder


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically: to a temporary file, which is renamed to `path`.

    Raises:
        StorageError: The disk is full or the folder cannot be written; an existing file is unchanged.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            write(file)
        beside.replace(path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise StorageError(
            f"'{path}' cannot be written: {error.strerror or error}.", "Free space, or give another output."
        ) from None


def save_png(image: Image.Image, path: Path) -> None:
    atomic_write(path, lambda file: image.save(file, format="PNG"))


def to_picture(image: torch.Tensor) -> Image.Image:
    """Converts (3, H, W) in [0, 1] to a Pillow image."""
    pixels = image.mul(255).round().clamp(0, 255).to(torch.uint8).cpu().permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())
