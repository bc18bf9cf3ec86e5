"""`beit mask-preview`: the masks of pretraining as pictures, as JSON, and as statistics."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from beitcli.config.fields import settings_of
from beitcli.config.intensity import with_models_intensity
from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.data.transforms.center import center_box, fit_center
from beitcli.engine.events import Drawn, OnEvent, Progress, ignore
from beitcli.engine.io.inputs import image_groups, open_inputs
from beitcli.engine.io.outputs import OutputFile, finish, is_stdout
from beitcli.engine.io.picture_outputs import picture_file, picture_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.errors import DataError, UsageError
from beitcli.masking import keyed_mask, make_masking, num_masked_from
from beitcli.masking.base import MaskGenerator
from beitcli.masking.statistics import mask_statistics
from beitcli.pictures.canvas import Panel, contact_sheet, sheet
from beitcli.pictures.mask_statistics import draw_mask_statistics
from beitcli.pictures.masks import Guesses, mask_panels

if TYPE_CHECKING:
    from beitcli.models.checkpoints.handle import CheckpointHandle

_PICTURE = 448
_ON_A_SHEET = 224  # width of a panel on a sheet of several images, in pixels


@dataclass(frozen=True)
class Preview:
    """Document of one image, and its pictures if `-o` or `--preview` is given.

    Attributes:
        panels: The image, what is hidden of it, and what a model makes of that.
    """

    document: dict[str, Any]
    panels: list[Panel] | None

    @property
    def picture(self) -> Image.Image | None:
        return sheet(self.panels) if self.panels else None


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
    guesser = None
    if config.model:
        from beitcli.engine.mask_guesses import open_guesser  # torch

        guesser = open_guesser(config, draws, on_event)
    if guesser is not None:
        config = with_models_intensity(config, guesser.checkpoint.settings)
    masking, seed = masking_of(config, guesser.checkpoint if guesser else None)
    if not config.inputs:
        raise UsageError("No image is given.", "Give images, `sample`, or --stats N.")
    source = open_inputs(config, role="train", sample_size=_PICTURE, stdin=stdin, seed=seed, on_event=on_event)
    if to_stdout and len(source) > 1:
        raise UsageError(f"-o {config.output} writes one picture, but {len(source)} images are given.", "Give -o DIR.")
    outputs, on_sheet = ([OutputFile(Path("-"))] if to_stdout else None), False
    if config.output and not to_stdout:
        inputs = ProtectedInputs(config, source)
        planned = picture_outputs(config.output, "-o", source, inputs, overwrite=config.overwrite)
        outputs, on_sheet = planned.files, planned.is_sheet
    together: list[list[Panel]] = []
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
                    width = _ON_A_SHEET if on_sheet else _PICTURE
                    panels = _panels(image, masks[index], guesses.get(index), source.path(index), width)
                if panels and config.preview:
                    on_event(Drawn(panels))
                if panels and on_sheet:
                    together.append(panels)
                elif panels and output is not None and not to_stdout:
                    output.save_picture(sheet(panels))
                place = output.path if output else None
                document = _document(source.path(index), masks[index], place, guesses.get(index))
                yield Preview(document, panels)
            on_event(Progress("mask-preview", index + 1, len(source), "image"))
    if together and outputs:
        outputs[0].save_picture(contact_sheet(together))
    finish(outputs)
    if bad:
        raise DataError(f"{bad} of {len(source)} images cannot be read.", "Their lines say why.")


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


def mask_preview_statistics(config: MaskPreviewConfig) -> dict[str, Any]:
    """Returns the summary of `--stats N`; with `-o` also draws it, as `"output"`.

    Raises:
        UsageError: Invalid settings, or `-o` is no picture or exists.
    """
    checkpoint = None
    if config.model:
        from beitcli.models.checkpoints.build import open_masked_image_model

        checkpoint = open_masked_image_model(config.model)[1]
    masking, seed = masking_of(config, checkpoint)
    output = None
    if config.output:
        output = picture_file(config.output, "-o", ProtectedInputs(config), overwrite=config.overwrite)
    statistics = mask_statistics(masking, config.stats or 1, seed, config.epoch)
    if output is None:
        return dict(statistics)
    output.save_picture(draw_mask_statistics(statistics))
    return {**statistics, "output": str(output.path)}


def masking_of(config: MaskPreviewConfig, checkpoint: CheckpointHandle | None) -> tuple[MaskGenerator, int]:
    """Returns the mask generator and its seed: those of the run or recipe, overridden by the command line.

    Without either the recipe is that of `pretrain` without one, so that the preview shows what it hides.
    """
    own = (checkpoint.settings.get("masking") if checkpoint else None) or {}
    if config.pretrain_recipe and checkpoint:
        raise UsageError("--recipe and --model both say what is hidden.", "Leave one of them out.")
    if checkpoint:
        grid = checkpoint.architecture.grid
    else:
        grid, own = _of_recipe(config.pretrain_recipe or settings_of(PretrainConfig)["recipe"].default, config.grid)
    if config.grid not in (None, grid):
        given = ",".join(map(str, config.grid or ()))
        raise UsageError(f"--grid is {given}, but the model's is {grid[0]},{grid[1]}.", "Leave --grid out.")
    count = config.num_masked
    if count is None and config.ratio is None:
        count = own.get("num_masked")
    masking = make_masking(
        config.masking or own.get("name", "blockwise"),
        grid,
        num_masked_from(config.ratio, count, grid),
        config.min_block if config.min_block is not None else own.get("min_block", 16),
    )
    return masking, config.seed if config.seed is not None else own.get("seed", 0)


def _of_recipe(name: str, grid: tuple[int, int] | None) -> tuple[tuple[int, int], dict[str, Any]]:
    """Returns the grid and the masking of a recipe of pretraining; its number of patches is of its own grid alone."""
    recipe = resolve(PretrainConfig, {"data": ("sample",), "recipe": name}).config
    if not recipe.mask:
        raise UsageError(f"Recipe {name} hides nothing.", "Give another --recipe, or --num-masked.")
    own = {"name": recipe.masking, "min_block": recipe.min_block}
    if grid in (None, recipe.architecture.grid):
        own["num_masked"] = num_masked_from(recipe.ratio, recipe.num_masked, recipe.architecture.grid)
    return grid or recipe.architecture.grid, own


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
