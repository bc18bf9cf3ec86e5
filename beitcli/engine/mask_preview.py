"""`beit mask-preview`: the masks of pretraining as pictures and as JSON."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from beitcli.config.intensity import with_models_intensity
from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.data.transforms.center import center_box, fit_center
from beitcli.engine.events import Drawn, Note, OnEvent, Progress, ignore
from beitcli.engine.io.inputs import image_groups, open_inputs
from beitcli.engine.io.output_paths import is_stdout
from beitcli.engine.io.outputs import OutputFile, finish
from beitcli.engine.io.picture_outputs import picture_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.previewed_masks import masking_of
from beitcli.errors import DataError, UsageError
from beitcli.masking import keyed_mask
from beitcli.pictures.canvas import Panel, contact_sheet, sheet
from beitcli.pictures.masks import Guesses, mask_panels
from beitcli.runtime.metric_text import counted

_PICTURE = 448
_OF_TRAINING = "images of the model's training data"
_ON_A_SHEET = 224  # width of a panel on a sheet of several images, in pixels


@dataclass(frozen=True)
class Preview:
    """Document of one image, and its pictures if `-o` or `--preview` is given.

    Attributes:
        panels: The image, what is hidden of it, and what a model makes of that.
        legend: What stands once beneath them.
    """

    document: dict[str, Any]
    panels: list[Panel] | None
    legend: tuple[str, ...] = ()

    @property
    def picture(self) -> Image.Image | None:
        return sheet(self.panels, notes=self.legend) if self.panels else None


def mask_preview(
    config: MaskPreviewConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[Preview]:
    """Yields one preview per image, with the document `{"path", "grid", "num_masked", "mask", "output"}`.

    The mask is the one that `pretrain` draws for the image with the same index, DATA, seed and epoch. An image that is
    the whole DATA, which nothing is pretrained on, has a mask of its own: it follows from its bytes. With tokens
    guessed by a model the document has `"masked_accuracy"` too.

    Raises:
        UsageError: Invalid settings, or several inputs while the picture goes to stdout.
        DataError: After the last image, if some could not be read.
    """
    to_stdout = is_stdout(config.output)
    draws = bool(config.output) or config.preview
    guesser, trained_on = None, False
    if config.model:
        from beitcli.engine.mask_guesses import learned_from, open_guesser  # torch

        guesser, trained_on = open_guesser(config, draws, on_event), learned_from(config)
    if guesser is not None:
        config = with_models_intensity(config, guesser.checkpoint.settings)
    masking, seed = masking_of(config, guesser.checkpoint if guesser else None)
    if not config.inputs:
        raise UsageError("No image is given.", "Give images, `sample`, or --stats N.")
    source = open_inputs(config, role="train", sample_size=_PICTURE, stdin=stdin, seed=seed, on_event=on_event)
    if to_stdout and len(source) > 1:
        number = counted(len(source), "image")
        raise UsageError(f"-o {config.output} writes one picture, but {number} are given.", "Give -o DIR.")
    outputs, on_sheet = ([OutputFile(Path("-"))] if to_stdout else None), False
    if config.output and not to_stdout:
        inputs = ProtectedInputs(config, source)
        planned = picture_outputs(config.output, "-o", source, inputs, overwrite=config.overwrite)
        outputs, on_sheet = planned.files, planned.is_sheet
    if trained_on and draws:
        held_out = "a twentieth at most was held out"
        other = "; --split val shows others" if "validation" in source.splits else ""
        on_event(Note(f"'{config.model}' learned from DATA of this name: its training images ({held_out}){other}."))
    together: list[list[Panel]] = []
    legend: tuple[str, ...] = ()
    bad = 0
    for group in image_groups(source, config.batch_size if guesser and draws else 1):
        images = {index: image for index, image in group if not isinstance(image, str)}
        masks = {index: keyed_mask(masking, seed, config.epoch, mask_index(source, index)) for index in images}
        guesses: dict[int, Guesses] = {}
        if guesser and draws and images:
            guesses = dict(zip(images, guesser.guess(list(images.values()), list(masks.values())), strict=True))
        for index, image in group:
            if isinstance(image, str):
                bad += 1
                yield Preview({"path": source.path(index), "error": image}, None)
            else:
                output, panels = outputs[index] if outputs else None, None
                if draws:
                    legend = guesses[index].legend if index in guesses else ()
                    legend += (_OF_TRAINING,) if trained_on else ()
                    width = _ON_A_SHEET if on_sheet else _PICTURE
                    panels = _panels(image, masks[index], guesses.get(index), source.path(index), width)
                if panels and config.preview:
                    on_event(Drawn(panels, legend))
                if panels and on_sheet:
                    together.append(panels)
                elif panels and output is not None and not to_stdout:
                    output.save_picture(sheet(panels, notes=legend))
                place = output.path if output else None
                document = _document(source.path(index), masks[index], place, guesses.get(index))
                yield Preview(document, panels, legend)
            on_event(Progress("mask-preview", index + 1, len(source), "image"))
    if together and outputs:
        outputs[0].save_picture(contact_sheet(together, notes=legend))
    finish(outputs)
    if bad:
        raise DataError(f"{bad} of {counted(len(source), 'image')} cannot be read.", "Their lines say why.")


def mask_index(source: Source, index: int) -> int:
    """Returns the index that keys the mask of an image: its place in DATA, or of an only image its content."""
    if len(source) > 1 or isinstance(source, Subset):
        return source.global_index(index)
    return int.from_bytes(hashlib.sha256(source.read(index)).digest()[:8], "big") >> 1


def _document(path: str, mask: np.ndarray, output: Path | None, guesses: Guesses | None) -> dict[str, Any]:
    document = {
        "path": path,
        "grid": list(mask.shape),
        "num_masked": int(mask.sum()),
        "mask": mask.astype(int).tolist(),
        "output": str(output) if output else None,
    }
    if guesses is None or guesses.right is None:
        return document
    return document | {"masked_accuracy": float(guesses.right[mask].mean())}


def _panels(image: Image.Image, mask: np.ndarray, guesses: Guesses | None, path: str, width: int) -> list[Panel]:
    rows, columns = mask.shape
    a_patch = max(1, width // max(rows, columns))
    size = (width, width) if rows == columns else (rows * a_patch, columns * a_patch)
    shown = fit_center(image, size)
    return mask_panels(shown, mask, guesses, os.path.basename(path), _crop(image, size), min(width, shown.width))


def _crop(image: Image.Image, size: tuple[int, int]) -> str:
    """Says what part of an image is shown; empty if it is the whole."""
    left, upper, right, lower = center_box(*image.size, size)
    across, down = round(right - left), round(lower - upper)
    if size[0] == size[1]:  # rounding of the crop's sides apart
        across = down = min(across, down)
    if (across, down) == image.size:
        return ""
    return f"the middle {across} x {down} of {image.width} x {image.height} pixels"
