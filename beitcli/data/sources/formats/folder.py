"""Format `folder`: all images below a folder, in path order; the first folder below the root is the class."""

from __future__ import annotations

import glob
import os
from dataclasses import replace

import numpy as np

from beitcli.data.sources.base import OnProgress, Source
from beitcli.data.sources.files import (
    EXTENSIONS,
    folders_below,
    number_classes,
    read_file,
    require_whole_labels,
    sibling_names,
)
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats._folder_listing import holds_image, list_images
from beitcli.data.sources.formats.parquet import open_parquet
from beitcli.data.sources.splits import (
    are_splits,
    canonical,
    choose_split,
    files_of_split,
    has_train_and_val,
    is_split,
    report_unused_splits,
)
from beitcli.errors import DataError

MASK_FOLDERS = ("masks", "annotations")


class FolderSource(Source):
    """All images below one folder; it does not look for splits.

    Memory per image: 12 bytes and the file name; folder names are stored once.
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
            name: The DATA reference; `root` if empty.
            classed: Whether the first folder below the root is the class.
            labelled: Whether labels are required: images outside class folders are then an error.
            on_progress: Receives the number of images found.

        Raises:
            DataError: There are no images, a folder cannot be listed, or some images have no label.
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


def _open(paths: list[str], request: Request) -> list[Source]:
    return [_open_one(path, request) for path in paths]


def _open_one(path: str, request: Request) -> Source:
    try:
        return open_folder(path, request)
    except DataError:
        files = sorted(glob.glob("**/*.parquet", root_dir=path, recursive=True))
        if not files or holds_image(path):
            raise
        chosen, splits = files_of_split(path, files, request)
        source = open_parquet([os.path.join(path, file) for file in chosen], replace(request, name=path))
        source.splits = splits
        return source


def open_folder(path: str, request: Request) -> FolderSource:
    """Opens a folder or one of its splits: the subfolder `--split`, or one of `splits_below`.

    Of a folder with images and masks (`images/` beside `masks/` or `annotations/`), only the images are opened.

    Raises:
        DataError: The split is missing, or as in `FolderSource`.
    """
    root, splits = path, splits_below(path)
    if request.split is not None and os.path.isdir(os.path.join(path, request.split)):
        root = os.path.join(path, request.split)
        if splits:
            report_unused_splits(path, request.split, splits, request)
    elif request.split is not None or splits:
        root = os.path.join(path, choose_split(path, splits, request))
    pictures = os.path.join(root, "images")
    has_masks = os.path.isdir(pictures) and any(os.path.isdir(os.path.join(root, mask)) for mask in MASK_FOLDERS)
    source = FolderSource(
        pictures if has_masks else root,
        name=path,
        classed=not has_masks,
        labelled=request.labelled and not has_masks,
        on_progress=request.on_progress,
    )
    source.splits = frozenset(map(canonical, splits))
    return source


def splits_below(root: str) -> list[str]:
    """Lists the subfolders that are splits; empty if such a name is a class, as `train` beside `bus`.

    A single one is a split if there is no other folder, and it is named `train` or `val` or has subfolders. Folders
    without images are not classes, so of `train`, `test` and `annotations` the first two are splits.
    """
    folders = folders_below(root)
    splits = [name for name in folders if is_split(name)]
    others = [name for name in folders if name not in splits]
    if len(splits) == 1 and not others:
        is_alone = splits[0] in ("train", "val") or bool(folders_below(os.path.join(root, splits[0])))
        return splits if is_alone else []
    if not are_splits(splits):
        return []
    is_whole = has_train_and_val(map(canonical, splits)) or not any(holds_image(os.path.join(root, o)) for o in others)
    return splits if is_whole else []


def _no_images(root: str) -> DataError:
    shards = [entry for entry in sibling_names(root) if entry.endswith(".tar")]
    hint = "Images end in " + ", ".join(f".{extension}" for extension in EXTENSIONS) + "."
    if shards:
        hint = f"It holds {len(shards)} tar shards: pass '{os.path.join(root, '*.tar')}'."
    return DataError(f"No images below '{root}'.", hint=hint)


FORMAT = Format(
    looks="a folder",
    labels="FOLDER/CLASS/image.jpg",
    recognizes=os.path.isdir,
    open=_open,
    rank=10,
    finds_splits=True,
)
