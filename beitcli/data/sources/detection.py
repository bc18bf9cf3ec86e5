"""Opens detection datasets: COCO's layout, or `sample`, whose boxes are derived from its masks.

| layout | images | annotations |
|---|---|---|
| COCO | ROOT/train2017, ROOT/val2017, or train, val | ROOT/annotations/instances_train2017.json and so on |
| a folder | ROOT/images, or ROOT itself | ROOT/annotations.json, or the only file in ROOT/annotations |
| Roboflow | ROOT/train, ROOT/valid, ROOT/test | _annotations.coco.json beside the images |
| FiftyOne, Label Studio | ROOT/data, ROOT/images | ROOT/labels.json, ROOT/result.json |
| the same in splits | ROOT/train, ROOT/val, each as above | |

ROOT may lie below wrappers (`unwrapped`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from beitcli.data.annotations.boxes import BoxLabels, box_of_mask
from beitcli.data.annotations.instance_masks import Bitmap
from beitcli.data.sources.annotated import AnnotatedSource
from beitcli.data.sources.base import Source
from beitcli.data.sources.class_match import refuse_unknown
from beitcli.data.sources.coco import read_coco
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.files import sibling_names
from beitcli.data.sources.format import Request
from beitcli.data.sources.formats._sample_shapes import SHAPES
from beitcli.data.sources.formats._wrappers import unwrapped
from beitcli.data.sources.formats.list_file import ListSource
from beitcli.data.sources.formats.sample import SampleSource, open_sample
from beitcli.data.sources.splits import are_parts, canonical, choose_split, split_of
from beitcli.data.sources.subset import Subset
from beitcli.errors import BadImage, DataError

_LAYOUT = "Give annotations/instances_train.json beside train/, annotations.json beside images/, or `sample`."
# Annotations of a folder without splits, and its folder of images (ROOT itself if there is none).
_NAMES = {
    "annotations.json": "images",
    "_annotations.coco.json": "images",
    "labels.json": "data",
    "result.json": "images",
}
Files = tuple[str, str]  # the annotations, the folder of images


class DrawnBoxes:
    """Boxes of `sample`: one around the visible part of the shape, none if it is fully covered."""

    def __init__(self, drawn: SampleSource) -> None:
        self.drawn = drawn

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, index: int) -> BoxLabels:
        seen = self.drawn.segmentation(index)
        box = box_of_mask(seen > 0)
        number = 0 if box is None else 1
        return BoxLabels(
            boxes=np.array([box or ()], np.float32).reshape(number, 4),
            labels=np.full(number, self.drawn.label(index), np.int64),
            crowd=np.zeros(number, bool),
            areas=np.full(number, np.count_nonzero(seen), np.float64),
            size=(seen.shape[0], seen.shape[1]),
            outlines=(Bitmap.of(seen > 0),) * number,
        )


class DetectionSource(AnnotatedSource):
    """Images with annotated boxes, without image labels.

    Attributes:
        bad: (path, reason) of annotated images that cannot be used; they are left out.

    Args:
        boxes: Boxes of the images.
        names: Class names in label order.
        places: (n,) int64 indices of the images in `boxes`; None for all, in order.
    """

    def __init__(
        self,
        images: Source,
        boxes: Sequence[BoxLabels] | DrawnBoxes,
        names: tuple[str, ...],
        bad: Sequence[tuple[str, str]] = (),
        places: np.ndarray | None = None,
    ) -> None:
        super().__init__(images)
        self.marked, self.names, self.bad = boxes, names, tuple(bad)
        self.places = np.arange(len(images)) if places is None else places

    def boxes(self, index: int) -> BoxLabels:
        """Returns the boxes of an image."""
        return self.marked[int(self.places[index])]

    def subset(self, indices: np.ndarray) -> DetectionSource:
        """Returns a subset; global indices stay those of the whole."""
        return DetectionSource(Subset(self.images, indices), self.marked, self.names, (), self.places[indices])

    def renamed(self, names: tuple[str, ...], val: str = "") -> DetectionSource:
        """Returns the source with labels for `names`: other order, perhaps more classes.

        Args:
            val: In a finetuning what a message calls this data, such as `--val 'PATH'`.

        Raises:
            DataError: A class of this data is not in `names`.
        """
        if names == self.names:
            return self
        refuse_unknown(self.names, names, val or f"'{self.name}'", is_val=bool(val))
        label_of = np.array([names.index(name) for name in self.names], np.int64)
        remapped = [self.marked[place].remap_labels(label_of) for place in self.places.tolist()]
        return DetectionSource(self.images, remapped, names, self.bad)

    def pixels_and_labels(self, index: int) -> tuple[np.ndarray, BoxLabels]:
        """Returns (H, W, 3) uint8 and the boxes. Raises BadImage, also if the size differs from the annotations."""
        pixels, marked = self.pixels(index), self.boxes(index)
        if pixels.shape[:2] != marked.size:
            there, due = (f"{shape[1]} x {shape[0]}" for shape in (pixels.shape, marked.size))
            raise BadImage(f"it is {there} pixels, its annotations say {due}")
        return pixels, marked

    def fingerprint(self) -> str:
        """Returns the SHA-256 of paths and, except for `sample`, of boxes."""
        digest = hashlib.sha256(super().fingerprint().encode())
        if not isinstance(self.marked, DrawnBoxes):
            for index in range(len(self)):
                marked = self.boxes(index)
                digest.update(marked.boxes.tobytes() + marked.labels.tobytes() + marked.crowd.tobytes())
        return digest.hexdigest()


def open_detection(
    references: Sequence[str], request: Request | None = None, *, outlines: bool = False, **changes: Any
) -> DetectionSource:
    """Opens DATA references as images with boxes.

    Args:
        request: Options such as the split; the defaults if None.
        outlines: Whether to read instance masks.
        changes: Fields that replace those of `request`.

    Raises:
        DataError: Data, annotations or the split are missing, annotations are damaged, or categories differ.
    """
    request = replace(request or Request(), **changes)
    request.refuse_pages(" ".join(references))
    sources: list[DetectionSource] = []
    for reference in references:
        if reference == "sample":
            drawn = open_sample(request)
            sources.append(DetectionSource(drawn, DrawnBoxes(drawn), tuple(SHAPES)))
        elif os.path.isdir(reference):
            sources.append(_of_folder(reference, outlines, request))
        elif os.path.exists(reference):
            raise DataError(f"'{reference}' has no boxes.", _LAYOUT)
        else:
            raise DataError(f"'{reference}' does not exist.", _LAYOUT)
    source = sources[0] if len(sources) == 1 else _joined(sources)
    request.set_intensity(source)
    return source


def require_annotations(references: Sequence[str], request: Request) -> None:
    """Raises the DataError of `open_detection` for data without annotations; reads none, which may take a while."""
    request.refuse_pages(" ".join(references))
    for reference in references:
        if os.path.isdir(reference):
            _files(reference, request)
        elif reference != "sample":
            open_detection([reference], request)


def _of_folder(root: str, outlines: bool, request: Request) -> DetectionSource:
    (annotations, folder), splits = _files(root, request)
    if request.on_progress is not None:
        request.on_progress("annotations", 0, 0, "file")
    found = read_coco(annotations, outlines)
    for remark in found.remarks:
        request.say(remark)
    paths = [
        os.path.join(folder, each) if place in found.bad else _place(folder, each)
        for place, each in enumerate(found.names)
    ]
    bad = dict(found.bad)
    bad |= {place: "no such file" for place, path in enumerate(paths) if place not in bad and not os.path.exists(path)}
    good = np.array([place for place in range(len(paths)) if place not in bad], np.int64)
    shown = {place: paths[place].encode(errors="replace").decode() for place in bad}  # JSON may contain lone surrogates
    images = ListSource([b"?" if place in bad else os.fsencode(path) for place, path in enumerate(paths)], name=root)
    images.splits = splits
    left_out = [(shown[place], reason) for place, reason in sorted(bad.items())]
    return DetectionSource(Subset(images, good), found.boxes, found.classes, left_out, good)


def _joined(sources: Sequence[DetectionSource]) -> DetectionSource:
    first = sources[0]
    for other in sources[1:]:
        if set(other.names) != set(first.names):
            differ = sorted(set(other.names) ^ set(first.names))
            raise DataError(
                f"'{first.name}' and '{other.name}' have other categories (first: '{differ[0]}').",
                "Give data of the same categories.",
            )
    alike = [source.renamed(first.names) for source in sources]
    boxes = [source.boxes(index) for source in alike for index in range(len(source))]
    bad = [record for source in sources for record in source.bad]
    return DetectionSource(Concat([source.images for source in alike]), boxes, first.names, bad)


def _files(root: str, request: Request) -> tuple[Files, frozenset[str]]:
    """Returns the files to read, and the canonical names of all splits."""

    def holds_dataset(folder: str) -> bool:
        return _whole(folder) is not None or are_parts(_splits(folder), request.split)

    base = unwrapped(root, holds_dataset)
    splits, whole = _splits(base), _whole(base)
    if request.split is None and whole is not None:
        if splits:
            file, unused = os.path.relpath(whole[0], root), " and ".join(sorted(splits))
            request.say(f"'{root}': reading {file}, not split {unused}. --split reads another.")
        return whole, frozenset()
    if request.split is None and not splits:
        raise DataError(f"'{root}' has no annotations in COCO's layout.", _LAYOUT)
    (chosen,) = choose_split(root, splits, request)
    return splits[chosen], frozenset(splits)


def coco_files(root: str) -> list[str]:
    """Returns the annotations of a folder in one of the layouts; empty for a folder of images."""
    base = unwrapped(root, lambda folder: _whole(folder) is not None or bool(_splits(folder)))
    whole = _whole(base)
    return [file for file, _ in ([whole] if whole is not None else _splits(base).values())]


def _place(folder: str, name: str) -> str:
    """Returns the path of an image: below its folder, also if the name repeats that folder, or has `\\` for `/`."""
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        first, _, rest = written.partition("/")
        for each in (written, rest) if first == os.path.basename(folder) and rest else (written,):
            path = os.path.join(folder, each)
            if os.path.exists(path):
                return path
    return os.path.join(folder, name)


def _whole(root: str) -> Files | None:
    """Returns the files of a folder without splits: one of _NAMES, or the only file in annotations/; else None."""
    spelled = {name.lower(): name for name in reversed(sibling_names(root)) if name.lower() in _NAMES}
    for name, folder in _NAMES.items():
        annotations, below = os.path.join(root, spelled.get(name, name)), os.path.join(root, folder)
        if os.path.isfile(annotations):
            return annotations, below if os.path.isdir(below) else root
    images, files = os.path.join(root, "images"), _annotation_files(root)
    if len(files) == 1 and split_of(files[0]) is None and os.path.isdir(images):
        return os.path.join(root, "annotations", files[0]), images
    return None


def _annotation_files(root: str) -> list[str]:
    """Lists JSON files in ROOT/annotations: only `instances_*` if any, as COCO also has captions and keypoints."""
    files = [name for name in sibling_names(os.path.join(root, "annotations")) if name.lower().endswith(".json")]
    return [name for name in files if name.startswith("instances_")] or files


def _splits(root: str) -> dict[str, Files]:
    """Returns annotations and image folder of each split, by its canonical name."""
    folders = [name for name in sibling_names(root) if os.path.isdir(os.path.join(root, name))]
    found: dict[str, Files] = {}
    for name in folders:
        inner = _whole(os.path.join(root, name))
        if inner is not None:
            found.setdefault(canonical(name), inner)
    for name in _annotation_files(root):
        split = split_of(name)
        year = os.path.splitext(name)[0].rpartition("_")[2]
        images = _images_of(root, folders, year, split)
        if split is not None and images is not None:
            found.setdefault(split, (os.path.join(root, "annotations", name), images))
    return found


def _images_of(root: str, folders: list[str], name: str, split: str | None) -> str | None:
    """Returns the image folder with the name of the annotations (train2017) or of their split; else `images`."""
    inside = [os.path.join("images", each) for each in sibling_names(os.path.join(root, "images"))]
    below = [each for each in inside if os.path.isdir(os.path.join(root, each))]
    places = [each for each in (*folders, *below) if each != "annotations"]
    called = [each for each in places if os.path.basename(each) == name]
    of_split = [each for each in places if split_of(f"{os.path.basename(each)}/") == split]
    best = [*called, *of_split, *(["images"] if "images" in folders and not below else [])]
    return os.path.join(root, best[0]) if best else None
