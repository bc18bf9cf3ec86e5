"""Lists the images below a folder in the byte order of their paths; large listings are cached until a folder changes.

Listing costs some 3 microseconds per image, a cached listing one `stat` per folder. Adding, removing or renaming a file
changes the modification time of its folder, so the folders' times tell whether the cached listing is valid.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from beitcli.data.sources.base import OnProgress
from beitcli.data.sources.files import EXTENSIONS, PackedNames, is_image_name
from beitcli.data.sources.index_cache import WORTH_KEEPING, index_path, is_settled, load_index, save_index
from beitcli.data.sources.left_aside import LeftAside
from beitcli.errors import DataError

_TELL_EVERY = 10_000  # images
_MOST_REPEATS = 1000  # visits of folders that links have led to before, beside 10 a folder
_ABOUT = {"folder": 2, "endings": " ".join(EXTENSIONS)}


@dataclass(frozen=True)
class Listing:
    """The images below a folder.

    Attributes:
        names: File names.
        folders: Folders with images, relative to the root.
        folder_of: (n,) int32, index of each image's folder.
        aside: What is not read.
    """

    names: PackedNames
    folders: list[bytes]
    folder_of: np.ndarray
    aside: LeftAside


def list_images(root: bytes, on_progress: OnProgress | None = None) -> Listing:
    """Lists all images below a folder, without hidden ones.

    Args:
        on_progress: Receives the number of images found.

    Raises:
        DataError: A folder cannot be listed, or links lead to the same folders in very many ways.
    """
    place = index_path("folder", root)
    kept = load_index(place, _ABOUT)
    if kept is not None and np.array_equal(_stamps(root, _names(kept, "visited")), kept["stamps"]):
        folders = list(_names(kept, "folders"))
        return Listing(_names(kept, "names"), folders, kept["folder_of"], LeftAside.of_arrays(kept))
    walk = _Walk(root, on_progress)
    names = PackedNames(walk.images())
    folder_of = np.array(walk.folder_of, dtype=np.int32)
    stamps = np.array(walk.stamps, dtype=np.int64)
    if len(names) >= WORTH_KEEPING and walk.is_lasting and is_settled(int(stamps[1::4].max())):
        arrays: dict[str, np.ndarray] = {"folder_of": folder_of, "stamps": stamps, **walk.aside.arrays()}
        packed_folders, visited = PackedNames(walk.folders), PackedNames(walk.visited)
        for part, packed in (("names", names), ("folders", packed_folders), ("visited", visited)):
            arrays |= {part: packed.block, f"{part} bounds": packed.bounds}
        save_index(place, _ABOUT, arrays, os.path.abspath(root))
    return Listing(names, list(walk.folders), folder_of, walk.aside)


def holds_image(root: str) -> bool:
    """Whether there is an image below the folder; stops at the first."""
    return next(_Walk(os.fsencode(root), None).images(), None) is not None


def _names(kept: dict[str, np.ndarray], part: str) -> PackedNames:
    return PackedNames.of(kept[part], kept[f"{part} bounds"])


def _stamps(root: bytes, folders: PackedNames) -> np.ndarray:
    """Returns times and identity of each folder, (4 n,) int64; shorter if one is missing."""
    stamps = array("q")
    for folder in folders:
        try:
            stamps.extend(_stamp(os.stat(os.path.join(root, folder))))
        except OSError:
            break
    return np.array(stamps, dtype=np.int64)


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    device, inode = (number - (1 << 64) if number >> 63 else number for number in _identity(status))
    return status.st_mtime_ns, status.st_ctime_ns, device, inode


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class _Walk:
    """A walk through all folders below a root.

    Attributes:
        folders: Folders with images -> their index.
        folder_of: Folder index of each image.
        visited: All folders that were listed.
        stamps: `_stamp` of each of them, taken before it was listed.
        aside: What is not read.
        is_lasting: Whether the folders' times show every change; they do not for the target of a broken link.
    """

    def __init__(self, root: bytes, on_progress: OnProgress | None) -> None:
        self.root, self.on_progress = root, on_progress
        self.folders: dict[bytes, int] = {}
        self.folder_of = array("i")
        self.visited: list[bytes] = []
        self.stamps = array("q")
        self.is_lasting = True
        self.aside = LeftAside()

    def images(self) -> Iterator[bytes]:
        """Yields file names, in the byte order of the whole paths.

        Symbolic links to folders are followed, except to a parent of the link.
        """
        pending: list[tuple[bytes, list[bytes], frozenset[tuple[int, int]]]] = [(b"", [b"/"], frozenset())]
        distinct: set[tuple[int, int]] = set()
        while pending:
            folder, entries, above = pending[-1]
            if not entries:
                pending.pop()
                continue
            name = entries.pop()
            if name.endswith(b"/"):
                inside = os.path.join(folder, name[:-1])
                try:
                    status = os.stat(os.path.join(self.root, inside))
                    if _identity(status) in above:
                        continue
                    distinct.add(_identity(status))
                    self.visited.append(inside)
                    # n folders that link one another have n! ways
                    if len(self.visited) > 11 * len(distinct) + _MOST_REPEATS:
                        raise _too_many_ways(self.root, inside, len(distinct))
                    self.stamps.extend(_stamp(status))
                    pending.append((inside, self._entries(inside), above | {_identity(status)}))
                except OSError as error:
                    place = os.fsdecode(os.path.join(self.root, inside))
                    raise DataError(
                        f"'{place}' cannot be listed: {error.strerror}.", hint="Check its permissions."
                    ) from None
                continue
            self.folder_of.append(self.folders.setdefault(folder, len(self.folders)))
            if self.on_progress is not None and len(self.folder_of) % _TELL_EVERY == 0:
                self.on_progress("looking for images", len(self.folder_of), 0, "image")
            yield name

    def _entries(self, folder: bytes) -> list[bytes]:
        """Lists images and, with a trailing slash, subfolders, in reverse order, without hidden ones.

        With the slash, the order is that of the full paths: `a-b/1.png` comes before `a/1.png`.
        """
        found = []
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if _is_folder(entry):
                    found.append(entry.name + b"/")
                elif is_image_name(entry.name) and (entry.is_symlink() or entry.is_file()):
                    found.append(entry.name)
                else:
                    self._leave_aside(entry)
        return sorted(found, reverse=True)

    def _leave_aside(self, entry: os.DirEntry[bytes]) -> None:
        if entry.is_symlink() and not os.path.exists(entry.path):
            self.is_lasting = False
        elif entry.is_file():
            self.aside.add_file(entry.name)


def _too_many_ways(root: bytes, folder: bytes, distinct: int) -> DataError:
    return DataError(
        f"Links below '{os.fsdecode(root)}' lead to the same {distinct:,} folders in more than "
        f"{11 * distinct + _MOST_REPEATS:,} ways, the last '{os.fsdecode(folder)}'.",
        hint="Remove links that lead to folders beside them, or give the folders themselves.",
    )


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
