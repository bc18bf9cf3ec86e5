"""Format `folder`: all images below a folder, in path order; the first folder below the root is the class."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np

from beitcli.data.decoding import heif
from beitcli.data.sources.base import OnProgress, Source
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.files import (
    EXTENSIONS,
    count_of_images,
    folders_below,
    identities,
    is_image_name,
    mask_folders,
    number_classes,
    require_whole_labels,
    sibling_names,
)
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats._folder_listing import holds_image, list_images
from beitcli.data.sources.formats._local_files import LocalFiles
from beitcli.data.sources.formats._shards_below import open_shards, shards_below
from beitcli.data.sources.formats._wrappers import unwrapped
from beitcli.data.sources.left_aside import LeftAside
from beitcli.data.sources.splits import (
    are_split_folders,
    canonical,
    choose_split,
    has_train_and_val,
    is_split,
    report_unused_splits,
)
from beitcli.errors import DataError

_COMMON = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")  # endings to name where there is no image


class FolderSource(LocalFiles):
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
        listing = list_images(self._root, on_progress)
        self._names, self._folders, self._folder_of = listing.names, listing.folders, listing.folder_of
        if not len(self._names):
            raise _no_images(root, listing.aside)
        if on_progress is not None and (remark := listing.aside.remark(self.name)):
            on_progress(remark, 0, 0, "")
        class_names = [os.fsdecode(folder.partition(b"/")[0]) for folder in self._folders]
        codes = np.array([code if name and classed else -1 for code, name in enumerate(class_names)], dtype=np.int32)
        self.classes, self._labels = number_classes(class_names, codes[self._folder_of])
        if labelled and self.classes is None:
            require_whole_labels(self.name, self._labels, self.path(int(np.argmin(self._labels))))

    @property
    def root(self) -> str:
        """The folder."""
        return os.fsdecode(self._root)

    def __len__(self) -> int:
        return len(self._names)

    def identities(self, indices: np.ndarray) -> Iterator[bytes]:
        if sys.getfilesystemencoding() != "utf-8":  # the fingerprint is of names as text
            return super().identities(indices)
        labels = None if self.classes is None else self._labels
        return identities(self._names, self._prefix, self._folder_of, labels, indices)

    def _prefix(self, folder: int) -> bytes:
        return os.path.join(self._root, self._folders[folder], b"")

    def _file(self, index: int) -> bytes:
        return os.path.join(self._root, self._folders[self._folder_of[index]], self._names[index])


def _open(paths: list[str], request: Request) -> list[Source]:
    return [_open_one(path, request) for path in paths]


def _open_one(path: str, request: Request) -> Source:
    """Opens the images of a folder or, if they hold as many images, its parquet files or tar shards.

    As many: rows of parquet may name the very images of the folder, and know their labels.
    """
    shards = shards_below(path, request.on_progress)
    if not shards:
        try:
            return open_folder(path, request)
        except DataError:
            shards = [] if holds_image(path) else shards_below(path, request.on_progress, most=None)
            if not shards:
                raise
    loose = len(list_images(os.fsencode(path), request.on_progress).names)
    others = [str(each) for each in shards[1:] if each.images]
    if shards[0].images < loose:
        for each in shards:
            if each.problem is not None:
                request.say(f"'{path}': {each} beside its images cannot be read: {each.problem}")
        others = [str(each) for each in shards if each.images]
        if others:
            example = os.path.join(path, shards[0].files[0])
            request.say(f"'{path}': reading its {count_of_images(loose)}, not {' and '.join(others)}, as '{example}'.")
        return open_folder(path, request)
    others += [f"its {count_of_images(loose)} outside of them"] if loose else []
    if others:
        request.say(f"'{path}': reading {shards[0]}, not {' and '.join(others)}.")
    return open_shards(path, shards[0], request)


def open_folder(path: str, request: Request) -> Source:
    """Opens a folder or one of its splits: those of `splits_below` with one of its names, or the subfolder `--split`.

    Of a folder with images and masks (`images/` beside `masks/` or `annotations/`), only the images are opened.

    Raises:
        DataError: The split is missing, or as in `FolderSource`.
    """
    base = unwrapped(path, lambda folder: bool(splits_below(folder)) or beside_masks(folder) is not None)
    splits, names = splits_below(base), [""]
    if request.split not in splits and request.split in folders_below(base):  # a folder of another name
        names = [request.split]
        if splits:
            report_unused_splits(path, names, splits, request)
    elif request.split is not None or splits:
        outside = _outside(base, splits) if request.on_progress is not None else ""
        names = choose_split(path, splits, request, outside=outside)
    roots = [os.path.join(base, name) for name in names]
    filled = [root for root in roots if len(roots) == 1 or holds_image(root)]
    parts = [_open_images(root, path, request) for root in filled or roots[:1]]
    source = parts[0] if len(parts) == 1 else Concat(parts)
    source.name, source.splits = path, frozenset(map(canonical, splits))
    return source


def _open_images(root: str, name: str, request: Request) -> FolderSource:
    """Opens the folder of a split, or one without splits."""
    masks = beside_masks(root)
    return FolderSource(
        root if masks is None else masks[0],
        name=name,
        classed=masks is None,
        labelled=request.labelled and masks is None,
        on_progress=request.on_progress,
    )


def beside_masks(root: str) -> tuple[str, str] | None:
    """Returns the folders of images and masks; None without them, as where `annotations/` holds JSON."""
    folders = mask_folders(root)
    return folders if folders is not None and holds_image(folders[1]) else None


def _outside(root: str, splits: list[str]) -> str:
    """Names the folders with images, and counts the images, that lie beside the splits."""
    folders = [name for name in folders_below(root) if name not in splits and holds_image(os.path.join(root, name))]
    images = sum(name[0] != "." and is_image_name(os.fsencode(name)) for name in sibling_names(root))
    return " and ".join([*folders, *([count_of_images(images)] if images else [])])


def splits_below(root: str) -> list[str]:
    """Lists the subfolders that are splits; empty if such a name is a class, as `train` beside `bus`.

    Names of one split only are splits if there is no other folder. Folders without images are not classes, so of
    `train`, `test` and `annotations` the first two are splits. See `are_split_folders`.
    """
    folders = folders_below(root)
    splits = [name for name in folders if is_split(name)]
    others = [name for name in folders if name not in splits]
    kinds = set(map(canonical, splits))
    if has_train_and_val(kinds):
        return splits
    if not are_split_folders(splits, lambda name: bool(folders_below(os.path.join(root, name)))):
        return []
    beside = others if len(kinds) == 1 else [name for name in others if holds_image(os.path.join(root, name))]
    return [] if beside else splits


def _no_images(root: str, aside: LeftAside) -> DataError:
    common = ", ".join(f".{extension}" for extension in _COMMON)
    hint = f"Images end in {common} or one of {len(EXTENSIONS) - len(_COMMON)} rarer endings."
    if aside.has_heif:
        hint = heif.WAY_OUT
    held = f": it holds {text}" if (text := aside.text()) else ""
    return DataError(f"No images below '{root}'{held}.", hint=hint)


FORMAT = Format(
    looks="a folder",
    labels="FOLDER/CLASS/image.jpg",
    recognizes=os.path.isdir,
    open=_open,
    rank=10,
    finds_splits=True,
)
