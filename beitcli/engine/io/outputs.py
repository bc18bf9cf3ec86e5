"""The files that a command writes: names that stay inside their folder, and nothing that is overwritten unasked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from beitcli.config.output_formats import unknown_format
from beitcli.data.sources.base import Source
from beitcli.engine.io.output_paths import descriptor_of, is_stream, make_folder, require_folder
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.io.unfinished_outputs import UnfinishedOutputs
from beitcli.engine.io.write_output import replace_file, write_output
from beitcli.errors import UsageError

if TYPE_CHECKING:
    import torch

MOST_IN_ONE = 100  # images of one picture or page
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {  # Pillow's format and settings by suffix; the first is the default
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 92, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 92, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 92}),
}
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


@dataclass(frozen=True)
class OutputFile:
    """One output file of a job.

    Attributes:
        is_named: Whether the user gave its name. Then a link is followed, and a pipe or device is written into; in a
            folder of outputs whatever has its name is replaced, as a link in it may be a stranger's.
        log: Where it is noted once it is written.
    """

    path: Path
    is_named: bool = False
    log: UnfinishedOutputs | None = None

    def write(self, write: Callable[[BinaryIO], object]) -> None:
        """Writes the file, whole or not at all. Raises StorageError."""
        if self.is_named:
            write_output(self.path, write)
        else:
            replace_file(self.path, self.path, write)
        if self.log is not None:
            self.log.wrote(self.path)

    def save_png(self, image: Image.Image) -> None:
        self.write(lambda file: image.save(file, format="PNG"))

    def save_picture(self, image: Image.Image) -> None:
        """Writes it in the format of PICTURES that the name ends in; a pipe of another name gets PNG."""
        format, settings = PICTURES.get(self.path.suffix.lower(), PICTURES[".png"])
        self.write(lambda file: image.save(file, format=format, **settings))


def output_files(
    output: str,
    source: Source,
    formats: tuple[str, ...],
    inputs: ProtectedInputs,
    *,
    overwrite: bool,
    of_all: tuple[str, ...] = (),
    makes: bool = True,
) -> list[OutputFile]:
    """Plans one file per image: OUT, or files named after the images if there are several or OUT is a folder.

    In a folder they have the first of `formats`, unless its name ends in another one. A name that ends in one is a
    folder's where there is such a folder, or a slash follows.

    Args:
        makes: Whether the folder is made; else it is only checked that it can be.
        of_all: Those of `formats` of which one file holds all images; then each image has the same file, unless OUT is
            a folder.

    Raises:
        UsageError: Unknown format, more images than one file can show, a file where a folder is needed, or a file
            exists already or is an input.
        StorageError: The folder cannot be created.
    """
    require_known_format(output, formats)
    target = Path(output)
    has_format, is_special, is_folder = target.suffix.lower() in formats, is_stream(target), _is_folder(output)
    together = target.suffix.lower() in of_all and not is_folder
    if together and len(source) > MOST_IN_ONE:
        raise UsageError(
            f"-o '{output}' is one file, and {len(source):,} images are too many for it.",
            f"Give a folder, or --limit {MOST_IN_ONE}.",
        )
    several = len(source) > 1 and not together
    if several and is_special:
        raise UsageError(f"-o '{output}' takes one file, but {len(source):,} images are given.", "Give -o DIR.")
    if several and has_format and not is_folder and not os.path.lexists(target):
        raise UsageError(
            f"-o '{output}' takes one image, but {len(source):,} are given.",
            f"'{output}/' is a folder with a file each.",
        )
    if several or is_folder:
        if os.path.lexists(target) and not target.is_dir():
            raise UsageError(f"-o '{output}' is a file, and a folder is needed.", "Give -o DIR.")
        names = OutputNames(target, target.suffix.lower() if has_format else formats[0])
        log = UnfinishedOutputs(target, inputs.config)
        files = [OutputFile(names.path(source.path(index)), log=log) for index in range(len(source))]
    else:
        files = [OutputFile(target, is_named=True)]
    paths, named = [file.path for file in files], files[0].is_named if files else False
    own = files[0].log.holds if files and files[0].log is not None else None
    require_writable_outputs(paths, f"-o '{output}'", inputs, overwrite=overwrite, follows=named, own=own)
    if not is_special:
        place = target if several or is_folder else Path(os.path.realpath(target)).parent
        (make_folder if makes else require_folder)(place)
    return files * len(source) if together else files


def finish(files: Sequence[OutputFile] | None) -> None:
    """Notes that all outputs are written, so that a further command may not replace them unasked."""
    for log in {file.log for file in files or () if file.log is not None}:
        log.end()


def require_known_format(output: str, formats: tuple[str, ...]) -> None:
    """Raises UsageError for `-` and for a name that ends in no known format, and is no folder, pipe or device."""
    has_format = Path(output).suffix.lower() in formats
    if output == "-" or not (has_format or _is_folder(output) or is_stream(Path(output))):
        raise unknown_format(output, hint=f"Give a name that ends in {', '.join(formats)}, or a folder.")


def _is_folder(output: str) -> bool:
    target = Path(output)
    return not is_stream(target) and (target.is_dir() or output.endswith("/") or not target.suffix)


def require_writable_outputs(
    outputs: Iterable[Path],
    option: str,
    inputs: ProtectedInputs,
    *,
    overwrite: bool,
    follows: bool = False,
    way_out: str = "",
    own: Callable[[Path], bool] | None = None,
) -> None:
    """Refuses to replace what exists.

    Args:
        option: Name of the outputs for the message: `-o 'DIR'`.
        follows: Whether a link counts as what it points to, so that one to nothing is free.
        way_out: What else to do, for the hint.
        own: Whether a file is this command's own, from when it ended before its time; such a file may be replaced.

    Raises:
        UsageError: An output is a folder, an input, or exists and `overwrite` is not given.
    """
    present = [path for path in outputs if os.path.lexists(path) and not is_stream(path)]
    for path in present:
        kind = inputs.kind_of(path)
        if kind:
            raise UsageError(f"{option} would overwrite the {kind} '{path}'.", "Give another name or folder.")
        if path.is_dir():
            raise UsageError(f"{_named(option, path)} is a folder.", "Give another name, or move it away.")
    held = [path for path in present if path.exists()] if follows else present
    held = [path for path in held if path.is_symlink() or path.stat().st_size]  # nothing is lost with an empty file
    if held and not overwrite and own is not None:
        held = [path for path in held if not own(path)]
    if held and not overwrite:
        there = f"and {len(held) - 1:,} more exist" if len(held) > 1 else "exists"
        raise UsageError(
            f"{_named(option, held[0])} {there} already.",
            f"Add --overwrite to replace, or give another name{way_out}.",
        )


def _named(option: str, path: Path) -> str:
    """Returns the option and a file that it stands for; the option alone where it names the file."""
    return option if option.endswith(f" '{path}'") else f"{option}: '{path}'"


def require_distinct_outputs(outputs: Iterable[tuple[str, Path]]) -> None:
    """Refuses that two outputs of a job are the same file, of which the later would replace the earlier.

    Args:
        outputs: The option that each follows from, for the message, and the file; each file once.

    Raises:
        UsageError: Two are the same: by name, through a link, or as stdout.
    """
    taken: dict[str, str] = {}
    folders: dict[Path, str] = {}  # resolving each of many is slow
    for option, path in outputs:
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        place = os.path.join(folders[path.parent], path.name)
        if os.path.islink(place):
            number = descriptor_of(path)
            place = os.path.realpath(path) if number is None else f"descriptor {number}"
        if place in taken and place != os.devnull:
            both = f"{option} would twice" if taken[place] == option else f"{taken[place]} and {option} would both"
            raise UsageError(f"{both} write '{path}'.", "Give each a name or a folder of its own.")
        taken[place] = option


def to_picture(image: torch.Tensor) -> Image.Image:
    """Converts (3, H, W) in [0, 1] to a Pillow image."""
    pixels = image.mul(255).round().clamp(0, 255).byte().cpu().permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())
