"""Reads and checks an annotation file in COCO's format.

    {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name"}],
     "annotations": [{"id", "image_id", "category_id", "bbox": [x, y, width, height], "area", "iscrowd"}]}

An error in one image marks that image as bad, with the reason; an error of the whole file is a DataError. Instance
masks (`segmentation`: polygons or RLE) are read only if requested. Whole numbers may be written as floats (1.0).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from beitcli.data.annotations.boxes import BoxLabels
from beitcli.data.annotations.coco_ids import id_order, identity_of, whole_number, without_root
from beitcli.data.annotations.instance_masks import outline_of
from beitcli.data.decode import MAX_PIXELS
from beitcli.data.sources.files import read_file
from beitcli.errors import BadImage, DataError
from beitcli.runtime.storage.safe_json import parse_json
from beitcli.runtime.weight_files.file_sniffing import one_line

_PARTS = ("images", "annotations", "categories")
_ROUNDING = 1.0  # pixels by which a box may exceed the image, as some of COCO's do; it is clipped
_FORMAT = "Give annotations in COCO's format: images, annotations and categories, each a list."
_MOST_SIDE = 1_000_000


@dataclass(frozen=True)
class CocoFile:
    """Contents of an annotation file.

    Attributes:
        classes: Category names by ascending id, which is label order.
        names: File names of the images, in the file's order.
        boxes: Boxes of each image.
        bad: Image number -> reason why it cannot be used.
        remarks: What the user should know of it.
    """

    path: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    boxes: tuple[BoxLabels, ...]
    bad: dict[int, str]
    remarks: tuple[str, ...] = ()


def read_coco(path: str, outlines: bool = False) -> CocoFile:
    """Reads and checks an annotation file.

    Args:
        outlines: Whether to read instance masks.

    Raises:
        DataError: It cannot be read, is not in COCO's format, or is inconsistent.
    """
    document = _parsed(path)
    categories, remarks = without_root(document["categories"], document["annotations"], path)
    classes, label_of = _categories(categories, path)
    images = [_image(entry, number, path) for number, entry in enumerate(document["images"])]
    if not images:
        raise DataError(f"'{path}' lists no images.", _FORMAT)
    number_of = {identity: number for number, (identity, *_) in enumerate(images)}
    if len(number_of) < len(images):
        twice = next(identity for number, (identity, *_) in enumerate(images) if number_of[identity] != number)
        raise DataError(f"'{path}' lists two images of id {_shown(twice)}.", "Give every image an id of its own.")
    bad = {number: reason for number, (_, _, size, reason) in enumerate(images) if reason}
    of_image: list[list[tuple[Any, ...]]] = [[] for _ in images]
    homeless: list[Mapping[str, Any]] = []
    for annotation in document["annotations"]:
        place = _number_of(annotation, number_of, path)
        if place is None:
            homeless.append(annotation)
        elif place not in bad:
            try:
                of_image[place].append(_object(annotation, label_of, images[place][2], outlines))
            except BadImage as error:
                bad[place] = f"annotation {_shown(annotation.get('id'))}: {error.message}"
    if homeless:
        first, where = (_shown(homeless[0].get(key)) for key in ("id", "image_id"))
        raise DataError(
            f"'{path}' has {len(homeless):,} annotations of images that it does not list "
            f"(the first: annotation {first} of image {where}).",
            "List those images, or take the annotations out.",
        )
    boxes = tuple(_joined(objects, size, outlines) for objects, (_, _, size, _) in zip(of_image, images, strict=True))
    return CocoFile(path, classes, tuple(name for _, name, *_ in images), boxes, bad, remarks)


def _parsed(path: str) -> dict[str, list[Any]]:
    try:
        document = parse_json(read_file(path))
    except (BadImage, ValueError) as error:
        raise DataError(f"'{path}' holds no annotations: {one_line(str(error), 200)}.", _FORMAT) from None
    if not isinstance(document, dict):
        raise DataError(f"'{path}' holds no annotations: it is a JSON {type(document).__name__}.", _FORMAT)
    lacking = [part for part in _PARTS if not isinstance(document.get(part), list)]
    if lacking:
        raise DataError(f"'{path}' holds no annotations: no list of {' and '.join(lacking)} is there.", _FORMAT)
    return document


def _categories(entries: list[Any], path: str) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Returns the names by ascending id, and the label of each id."""
    named: dict[int | str, str] = {}
    names: set[str] = set()
    for entry in entries:
        identity, name = (identity_of(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if identity is None or not isinstance(name, str) or not name:
            raise DataError(f"'{path}' has the category {_shown(entry)}.", "Give every category an id and a name.")
        if identity in named or name in names:
            raise DataError(f"'{path}' has the category {_shown(entry)} twice.", "Give each its own id and name.")
        named[identity] = name
        names.add(name)
    if not named:
        raise DataError(f"'{path}' has no categories.", _FORMAT)
    ordered = sorted(named, key=id_order)
    return tuple(named[identity] for identity in ordered), {each: label for label, each in enumerate(ordered)}


def _image(entry: Any, number: int, path: str) -> tuple[Any, str, tuple[int, int], str]:
    """Returns id, file name, (H, W), and why the image cannot be used ("" if it can)."""
    identity = identity_of(entry.get("id")) if isinstance(entry, dict) else None
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if identity is None or not isinstance(name, str) or not name:
        raise DataError(
            f"Image {number + 1} of '{path}' is {_shown(entry)}.", "Give every image an id and a file_name."
        )
    height, width = whole_number(entry.get("height")), whole_number(entry.get("width"))
    if height is None or width is None or not all(0 < side <= _MOST_SIDE for side in (height, width)):
        said = " x ".join(_shown(entry.get(side)) for side in ("width", "height"))
        return identity, name, (0, 0), f"its annotations say {said} pixels"
    if height * width > MAX_PIXELS:
        allowed = f"{MAX_PIXELS // 100_000 / 10} megapixels allowed"
        return identity, name, (0, 0), f"its annotations say {width} x {height} pixels, more than the {allowed}"
    if "://" in name:
        return identity, name.replace("\0", "?"), (height, width), "its file_name is an address, and none is fetched"
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        return identity, name.replace("\0", "?"), (height, width), "its file_name leads out of the folder of images"
    return identity, name, (height, width), ""


def _number_of(annotation: Any, number_of: dict[Any, int], path: str) -> int | None:
    if not isinstance(annotation, dict):
        raise DataError(f"'{path}' has the annotation {_shown(annotation)}.", _FORMAT)
    identity = identity_of(annotation.get("image_id"))
    return None if identity is None else number_of.get(identity)


def _object(
    annotation: Mapping[str, Any], label_of: dict[int | str, int], size: tuple[int, int], outlines: bool
) -> tuple[Any, ...]:
    """Returns x0, y0, x1, y1, label, crowd, area, and the instance mask or None. Raises BadImage."""
    category, crowd, box = (annotation.get(key) for key in ("category_id", "iscrowd", "bbox"))
    label = label_of.get(identity) if (identity := identity_of(category)) is not None else None
    if label is None:
        raise BadImage(f"category {_shown(category)} is none of the file's {len(label_of)}")
    if crowd not in (None, 0, 1):
        raise BadImage(f"iscrowd is {_shown(crowd)}, not 0 or 1")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise BadImage(f"its box is {_shown(box)}, not [x, y, width, height]")
    x, y, width, height = map(float, box)
    if width <= 0 or height <= 0:
        raise BadImage(f"its box {_shown(box)} has no area")
    rows, columns = size
    if min(x, y) < -_ROUNDING or x + width > columns + _ROUNDING or y + height > rows + _ROUNDING:
        raise BadImage(f"its box {_shown(box)} reaches beyond the image of {columns} x {rows} pixels")
    left, upper, right, lower = max(0.0, x), max(0.0, y), min(columns, x + width), min(rows, y + height)
    if np.float32(right) <= np.float32(left) or np.float32(lower) <= np.float32(upper):
        raise BadImage(f"its box {_shown(box)} has no area within the image of {columns} x {rows} pixels")
    area: Any = annotation.get("area")
    has_area = _is_number(area) and area > 0
    outline = outline_of(annotation.get("segmentation"), size, _ROUNDING) if outlines else None
    size_of_it = float(area) if has_area else width * height
    return left, upper, right, lower, label, bool(crowd), size_of_it, outline


def _joined(objects: list[tuple[Any, ...]], size: tuple[int, int], outlines: bool) -> BoxLabels:
    table = np.array([each[:7] for each in objects], np.float64).reshape(-1, 7)
    return BoxLabels(
        boxes=table[:, :4].astype(np.float32),
        labels=table[:, 4].astype(np.int64),
        crowd=table[:, 5] > 0,
        areas=table[:, 6],
        size=size,
        outlines=tuple(each[7] for each in objects) if outlines else None,
    )


def _is_number(value: Any) -> bool:
    """Whether it is a number below 1e12 in magnitude; NaN and infinity are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _shown(value: Any) -> str:
    return one_line(repr(value))
