"""Opens segmentation datasets: `images/` beside `masks/`, ADE20K's layout, or `sample`.

| layout | images | masks |
|---|---|---|
| ours | ROOT/images, ROOT/train/images | ROOT/masks, ROOT/train/masks (or `annotations`) |
| ADE20K | ROOT/images/training | ROOT/annotations/training |

ROOT may lie below wrappers (`unwrapped`). A mask has the path of its image except for the extension; its pixels are
class indices.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from beitcli.data.annotations.label_maps import LabelMapping
from beitcli.data.decode import decode_index_mask
from beitcli.data.sources.annotated import AnnotatedSource
from beitcli.data.sources.base import Source
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.files import folders_below, is_image_name, mask_folders, sibling_names
from beitcli.data.sources.format import Request
from beitcli.data.sources.formats._sample_shapes import SHAPES
from beitcli.data.sources.formats._wrappers import unwrapped
from beitcli.data.sources.formats.folder import FolderSource
from beitcli.data.sources.formats.sample import SampleSource, open_sample
from beitcli.data.sources.splits import are_parts, canonical, choose_split
from beitcli.data.sources.subset import Subset
from beitcli.errors import BadImage, DataError
from beitcli.runtime.metric_text import none_of

_LAYOUT = "Give ROOT/images and ROOT/masks, the same below train/ and val/, ADE20K's layout, or `sample`."
SAMPLE_CLASSES = ("background", *SHAPES)
Folders = tuple[str, str]  # of images, of masks


class SegmentationSource(AnnotatedSource):
    """Images with segmentation masks, without image labels.

    Attributes:
        missing: Paths of images without a mask; they are left out.

    Args:
        masks: Source of the mask files, in the order of the images.
        rule: Mapping of mask values to labels.
    """

    def __init__(self, images: Source, masks: Source, rule: LabelMapping, missing: Sequence[str] = ()) -> None:
        super().__init__(images)
        self.masks, self.rule, self.missing = masks, rule, tuple(missing)

    def subset(self, indices: np.ndarray) -> SegmentationSource:
        """Returns a subset; global indices stay those of the whole."""
        return SegmentationSource(Subset(self.images, indices), Subset(self.masks, indices), self.rule)

    def with_label_rule(self, rule: LabelMapping) -> SegmentationSource:
        """Returns the same images and masks with another label mapping."""
        return SegmentationSource(self.images, self.masks, rule, self.missing)

    def pixels_and_labels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pixels (H, W, 3) uint8 and the labels (H, W) uint8. Raises BadImage."""
        pixels = self.pixels(index)
        return pixels, self.labels(index, pixels.shape[:2])

    def labels(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Reads the labels of an image, (H, W) uint8.

        Args:
            size: (H, W) of the image.

        Raises:
            BadImage: The mask cannot be read, has another size, or contains values that are not classes.
        """
        path = self.masks.path(index)
        try:
            mask = decode_index_mask(self.masks.read(index))
            if mask.shape != size:
                there, due = (f"{shape[1]} x {shape[0]}" for shape in (mask.shape, size))
                raise BadImage(f"it is {there} pixels, the image {due}")
            return self.rule.to_labels(mask)
        except BadImage as error:
            raise BadImage(f"mask '{path}': {error.message}") from None


class _SampleMasks(Source):
    """Masks of `sample` as PNG files: 0 for background, class + 1 for shapes."""

    def __init__(self, drawn: SampleSource) -> None:
        self.drawn, self.name = drawn, drawn.name

    def __len__(self) -> int:
        return len(self.drawn)

    def path(self, index: int) -> str:
        return f"{self.drawn.path(index)}.mask"

    def read(self, index: int) -> bytes:
        file = BytesIO()
        Image.fromarray(self.drawn.segmentation(index)).save(file, "PNG", compress_level=0)
        return file.getvalue()


def _of_folders(root: str, rule: LabelMapping, request: Request) -> SegmentationSource:
    """Opens a folder, or the folders of one of its splits."""
    folders, splits = _folders(root, request)
    sources = [_paired(root, each, splits, rule, request) for each in folders]
    return sources[0] if len(sources) == 1 else _joined(sources)


def _paired(
    root: str, folders: Folders, splits: frozenset[str], rule: LabelMapping, request: Request
) -> SegmentationSource:
    """Opens a folder of images and one of masks, and pairs them by path."""
    images, masks = (FolderSource(each, name=root, classed=False, on_progress=request.on_progress) for each in folders)
    images.splits = splits
    mask_of: dict[str, int] = {}
    for mask in range(len(masks)):
        stem, extension = os.path.splitext(os.path.relpath(masks.path(mask), folders[1]))
        if extension.lower() == ".png" or stem not in mask_of:
            mask_of[stem] = mask
    stems = [os.path.splitext(os.path.relpath(images.path(image), folders[0]))[0] for image in range(len(images))]
    paired = [image for image, stem in enumerate(stems) if stem in mask_of]
    if not paired:
        raise DataError(
            f"{none_of(len(images), 'image', folders[0], 'has a mask', 'has no mask')} in '{folders[1]}', "
            f"such as '{images.path(0)}'.",
            "A mask has its image's name, but for the ending: a.jpg and a.png.",
        )
    return SegmentationSource(
        Subset(images, np.array(paired)),
        Subset(masks, np.array([mask_of[stems[image]] for image in paired])),
        rule,
        [images.path(image) for image, stem in enumerate(stems) if stem not in mask_of],
    )


def _joined(sources: Sequence[SegmentationSource]) -> SegmentationSource:
    missing = [path for source in sources for path in source.missing]
    images, masks = (Concat([getattr(source, part) for source in sources]) for part in ("images", "masks"))
    return SegmentationSource(images, masks, sources[0].rule, missing)


def open_segmentation(
    references: Sequence[str], rule: LabelMapping, request: Request | None = None, **changes: Any
) -> SegmentationSource:
    """Opens DATA references as images with masks.

    Args:
        rule: Mapping of mask values to labels.
        request: Options such as the split; the defaults if None.
        changes: Fields that replace those of `request`.

    Raises:
        DataError: Data, masks or the split are missing.
    """
    request = replace(request or Request(), **changes)
    request.refuse_pages(" ".join(references))
    sources: list[SegmentationSource] = []
    for reference in references:
        if reference == "sample":
            drawn = open_sample(request)
            sources.append(SegmentationSource(drawn, _SampleMasks(drawn), rule))
        elif os.path.isdir(reference):
            sources.append(_of_folders(reference, rule, request))
        elif os.path.exists(reference):
            raise DataError(f"'{reference}' has no masks.", _LAYOUT)
        else:
            raise DataError(f"'{reference}' does not exist.", _LAYOUT)
    source = sources[0] if len(sources) == 1 else _joined(sources)
    request.set_intensity(source)
    return source


def require_masks(references: Sequence[str], request: Request) -> None:
    """Raises the DataError of `open_segmentation` for data without masks, of which it reads none."""
    open_segmentation(references, LabelMapping(), request)


def _folders(root: str, request: Request) -> tuple[list[Folders], frozenset[str]]:
    """Returns the folders to read, and the canonical names of all splits."""

    def holds_dataset(folder: str) -> bool:
        return mask_folders(folder) is not None or are_parts(_splits(folder), request.split)

    base = unwrapped(root, holds_dataset)
    splits = _splits(base)
    if splits or request.split is not None:
        chosen = choose_split(root, splits, request)
        return [splits[name] for name in chosen], frozenset(map(canonical, splits))
    pair = mask_folders(base)
    if pair is None:
        raise DataError(f"'{root}' has no images/ beside masks/ or annotations/.", _LAYOUT)
    return [pair], frozenset()


def _splits(root: str) -> dict[str, Folders]:
    """Returns the image and mask folders of each split, by its name."""
    found = {name: pair for name in folders_below(root) if (pair := mask_folders(os.path.join(root, name)))}
    pair = mask_folders(root)
    if pair is not None and not _holds_images(pair[0]):
        inner = [name for name in folders_below(pair[0]) if name in folders_below(pair[1])]
        if {"train", "validation"} & set(map(canonical, inner)):
            found |= {name: (os.path.join(pair[0], name), os.path.join(pair[1], name)) for name in inner}
    return found


def _holds_images(folder: str) -> bool:
    return any(is_image_name(os.fsencode(name)) for name in sibling_names(folder))
