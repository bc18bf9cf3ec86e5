"""Names of files to write: which are one picture, and what is said of one that ends in no known format."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from beitcli.errors import UsageError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FILE_SUFFIXES = {  # of names that are hardly meant for folders
    *PICTURE_SUFFIXES,
    *(".gif", ".bmp", ".tif", ".tiff", ".svg", ".pdf", ".html", ".htm"),
    *(".npy", ".npz", ".parquet", ".json", ".jsonl", ".txt", ".csv", ".tsv", ".tar", ".tgz", ".gz", ".zip"),
    *(".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx"),
}


def is_one_picture(output: str) -> bool:
    """Whether a name stands for one picture, of all images together where there are several, and for no folder."""
    target = Path(output)
    return target.suffix.lower() in PICTURE_SUFFIXES and not target.is_dir() and not output.endswith("/")


def require_folder_name(output: str | None, option: str = "-o") -> None:
    """Refuses to make a folder of a name that reads as a file's, unless it is there or ends in a slash.

    Args:
        option: The option that names it, for the message.

    Raises:
        UsageError: The name ends in a file's suffix, and nothing of that name is there.
    """
    if not output or output.endswith("/") or os.path.lexists(output):
        return
    folder = Path(output)
    while folder.suffix.lower() in _FILE_SUFFIXES:
        folder = folder.with_suffix("")
    if folder != Path(output):
        raise UsageError(
            f"{option} '{output}' reads as one file, and a folder is needed.",
            f"Give a folder, such as '{folder}'; '{output}/' makes one of that very name.",
        )


def unknown_format(output: object, suffixes: Iterable[str] = (), *, option: str = "-o", hint: str = "") -> UsageError:
    """Returns the error for a name that ends in none of the suffixes.

    Args:
        output: The name as it was given.
        option: The option that names it.
        hint: In place of the list of suffixes.
    """
    suffixes, name = tuple(suffixes), Path(str(output)).name.lower()
    if name in suffixes:
        return UsageError(f"{option} '{output}' has no name before its suffix.", f"Give one, such as out{name}.")
    message = f"{option} '{output}' ends in no format that is known here."
    return UsageError(message, hint or f"Give a name that ends in {', '.join(suffixes)}.")
