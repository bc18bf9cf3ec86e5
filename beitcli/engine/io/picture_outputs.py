"""Where pictures go that an option names: one file, a file per image in a folder, or a sheet with all images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from beitcli.config.output_formats import is_one_picture, unknown_format
from beitcli.data.sources.base import Source
from beitcli.engine.io.output_paths import is_stream, make_folder, require_folder
from beitcli.engine.io.outputs import MOST_IN_ONE, PICTURES, OutputFile, output_files, require_writable_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.errors import UsageError


@dataclass(frozen=True)
class PictureOutputs:
    """One file per image, which is the same one if all images share a sheet.

    Attributes:
        is_sheet: Whether they do.
    """

    files: list[OutputFile]
    is_sheet: bool


def picture_outputs(
    output: str, option: str, source: Source, inputs: ProtectedInputs, *, overwrite: bool, makes: bool = True
) -> PictureOutputs:
    """Plans a picture per image, or one for several images if `output` ends in a picture's suffix and is no folder.

    Args:
        option: The option that names it, for messages.
        makes: Whether the folder is made; else it is only checked that it can be.

    Raises:
        UsageError: Unknown format, more images than a sheet can show, or a file exists already or is an input.
        StorageError: The folder cannot be made.
    """
    target = Path(output)
    if not (len(source) > 1 and is_one_picture(output)) or is_stream(target):
        files = output_files(output, source, tuple(PICTURES), inputs, overwrite=overwrite, makes=makes)
        return PictureOutputs(files, False)
    if len(source) > MOST_IN_ONE:
        raise UsageError(
            f"{option} '{output}' is one picture, and {len(source):,} images are too many for it.",
            f"Give a folder for a picture each, or --limit {MOST_IN_ONE}.",
        )
    file = picture_file(output, option, inputs, overwrite=overwrite, makes=makes)
    return PictureOutputs([file] * len(source), True)


def picture_file(
    output: str,
    option: str,
    inputs: ProtectedInputs,
    *,
    overwrite: bool,
    formats: Iterable[str] = tuple(PICTURES),
    makes: bool = True,
) -> OutputFile:
    """Plans one picture that the user names; pipes and devices are written into.

    Args:
        option: The option that names it, for messages.
        makes: Whether its folder is made; else it is only checked that it can be.

    Raises:
        UsageError: Unknown format, or it exists already or is an input.
        StorageError: Its folder cannot be made.
    """
    file = OutputFile(Path(output), is_named=True)
    if not is_stream(file.path) and file.path.suffix.lower() not in formats:
        raise unknown_format(output, formats, option=option)
    require_writable_outputs([file.path], f"{option} '{output}'", inputs, overwrite=overwrite, follows=True)
    if not is_stream(file.path):
        (make_folder if makes else require_folder)(Path(os.path.realpath(file.path)).parent)
    return file
