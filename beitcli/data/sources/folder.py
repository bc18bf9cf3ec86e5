"""A folder: every image below it, in the order of the paths; the first folder below the root is the class."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.data.sources.files import (
    EXTENSIONS,
    Labeller,
    PackedNames,
    choose_split,
    is_image_name,
    read_file,
    require_whole_labels,
    sibling_names,
)
from beitcli.errors import DataError

SPLITS = ("train", "val")
MASK_FOLDERS = ("masks", "annotations")


class FolderSource(Source):
    """Every image below one folder; splits are not looked for here.

    Costs 4 bytes, an 8-byte bound and the file's name an image; the folders' names are kept once.
    """

    def __init__(self, root: str, *, name: str = "", classed: bool = True, labelled: bool = False) -> None:
        """
        Args:
            root: The folder.
            name: The DATA reference; `root` where it is empty.
            classed: Whether the first folder below the root is the class.
            labelled: Whether labels are needed, so that images outside class folders are refused.

        Raises:
            DataError: no images, a folder that cannot be listed, or labels missing for some.
        """
        self.name = name or root
        self._root = os.fsencode(root)
        folders: dict[bytes, int] = {}
        folder_of, names, labeller = array("i"), [], Labeller()
        for folder, file_name in _walk(self._root):
            folder_of.append(folders.setdefault(folder, len(folders)))
            names.append(file_name)
            labeller.add(os.fsdecode(folder.partition(b"/")[0]) if folder and classed else None)
        if not names:
            raise _no_images(root)
        self._names = PackedNames(names)
        self._folders = list(folders)
        self._folder_of = np.array(folder_of, dtype=np.int32)
        self.classes, self._labels = labeller.finish()
        if labelled and self.classes is None:
            require_whole_labels(self.name, self._labels, self.path(int(np.argmin(self._labels))))

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        return os.fsdecode(self._file(index))

    def read(self, index: int) -> bytes:
        return read_file(self._file(index))

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self._labels[index])

    def _file(self, index: int) -> bytes:
        return os.path.join(self._root, self._folders[self._folder_of[index]], self._names[index])


def open_folder(
    reference: str, *, split: str | None = None, role: str = "train", labelled: bool = False
) -> FolderSource:
    """The folder, or the split of it: `train/` and `val/` below it are splits, and so is whatever `split` names.

    A folder of pictures and masks (`images/` beside `masks/` or `annotations/`) gives its pictures only.

    Raises:
        DataError: the split is absent, or as `FolderSource`.
    """
    root = reference
    splits = _splits_below(reference)
    if split is not None and os.path.isdir(os.path.join(reference, split)):
        root = os.path.join(reference, split)
    elif split is not None or splits:
        root = os.path.join(reference, choose_split(reference, splits, split, role))
    pictures = os.path.join(root, "images")
    has_masks = os.path.isdir(pictures) and any(os.path.isdir(os.path.join(root, mask)) for mask in MASK_FOLDERS)
    return FolderSource(
        pictures if has_masks else root, name=reference, classed=not has_masks, labelled=labelled and not has_masks
    )


def _splits_below(root: str) -> list[str]:
    """The split folders; one that stands alone is a split only where no other folder does (`train` is a class too)."""
    folders = [name for name in sibling_names(root) if name[0] != "." and os.path.isdir(os.path.join(root, name))]
    splits = [name for name in SPLITS if name in folders]
    if len(splits) == 1 and set(folders) - {*splits, "test"}:
        return []
    return splits


def _walk(root: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (folder relative to the root, file name) of every image, in the byte order of the whole paths.

    Linked folders are followed, but not into a folder that they stand in.
    """
    pending: list[tuple[bytes, bytes, frozenset[tuple[int, int]]]] = [(b"", b"/", frozenset())]
    while pending:
        folder, name, above = pending.pop()
        if not name.endswith(b"/"):
            yield folder, name
            continue
        inside = os.path.join(folder, name[:-1])
        try:
            status = os.stat(os.path.join(root, inside))
            if (status.st_dev, status.st_ino) in above:
                continue
            entries = _entries(os.path.join(root, inside))
        except OSError as error:
            place = os.fsdecode(os.path.join(root, inside))
            raise DataError(f"'{place}' cannot be listed: {error.strerror}.", hint="Check its permissions.") from None
        here = above | {(status.st_dev, status.st_ino)}
        pending.extend((inside, entry, here) for entry in reversed(entries))


def _entries(folder: bytes) -> list[bytes]:
    """Names of the images and, with a slash after them, of the folders in it, sorted; hidden ones left out.

    The slash makes the order that of the whole paths: `a-b/1.png` comes before `a/1.png`.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if _is_folder(entry):
                found.append(entry.name + b"/")
            elif is_image_name(entry.name) and (entry.is_symlink() or entry.is_file()):
                found.append(entry.name)
    return sorted(found)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _no_images(root: str) -> DataError:
    shards = [entry for entry in sibling_names(root) if entry.endswith(".tar")]
    hint = "Images end in " + ", ".join(f".{extension}" for extension in EXTENSIONS) + "."
    if shards:
        hint = f"It holds {len(shards)} tar shards: pass '{os.path.join(root, '*.tar')}'."
    return DataError(f"No images below '{root}'.", hint=hint)
