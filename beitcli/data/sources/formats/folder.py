"""A folder: every image below it, in the order of the paths; the first folder below the root is the class."""

from __future__ import annotations

import os

import numpy as np

from beitcli.data.sources.base import OnProgress, Source
from beitcli.data.sources.files import (
    EXTENSIONS,
    choose_split,
    number_classes,
    read_file,
    require_whole_labels,
    sibling_names,
)
from beitcli.data.sources.formats.folder_listing import list_images
from beitcli.errors import DataError

SPLITS = ("train", "val")
MASK_FOLDERS = ("masks", "annotations")


class FolderSource(Source):
    """Every image below one folder; splits are not looked for here.

    Costs 4 bytes, an 8-byte bound and the file's name an image; the folders' names are kept once.
    """

    def __init__(
        self,
        root: str,
        *,
        name: str = "",
        classed: bool = True,
        labelled: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """
        Args:
            root: The folder.
            name: The DATA reference; `root` where it is empty.
            classed: Whether the first folder below the root is the class.
            labelled: Whether labels are needed, so that images outside class folders are refused.
            on_progress: Told how many images are found.

        Raises:
            DataError: no images, a folder that cannot be listed, or labels missing for some.
        """
        self.name = name or root
        self._root = os.fsencode(root)
        self._names, self._folders, self._folder_of = list_images(self._root, on_progress)
        if not len(self._names):
            raise _no_images(root)
        class_names = [os.fsdecode(folder.partition(b"/")[0]) for folder in self._folders]
        codes = np.array([code if name and classed else -1 for code, name in enumerate(class_names)], dtype=np.int32)
        self.classes, self._labels = number_classes(class_names, codes[self._folder_of])
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
    reference: str,
    *,
    split: str | None = None,
    role: str = "train",
    labelled: bool = False,
    on_progress: OnProgress | None = None,
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
        pictures if has_masks else root,
        name=reference,
        classed=not has_masks,
        labelled=labelled and not has_masks,
        on_progress=on_progress,
    )


def _splits_below(root: str) -> list[str]:
    """The split folders; one that stands alone is a split only where no other folder does (`train` is a class too)."""
    folders = [name for name in sibling_names(root) if name[0] != "." and os.path.isdir(os.path.join(root, name))]
    splits = [name for name in SPLITS if name in folders]
    if len(splits) == 1 and set(folders) - {*splits, "test"}:
        return []
    return splits


def _no_images(root: str) -> DataError:
    shards = [entry for entry in sibling_names(root) if entry.endswith(".tar")]
    hint = "Images end in " + ", ".join(f".{extension}" for extension in EXTENSIONS) + "."
    if shards:
        hint = f"It holds {len(shards)} tar shards: pass '{os.path.join(root, '*.tar')}'."
    return DataError(f"No images below '{root}'.", hint=hint)
