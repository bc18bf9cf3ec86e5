"""`beit mask-preview`: the masks of pretraining as pictures, as JSON, and as statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.data.transforms.center import fit_center
from beitcli.engine.events import OnEvent, Progress, ignore
from beitcli.engine.io.inputs import image_groups, open_inputs
from beitcli.engine.io.outputs import OutputFile, is_stdout, output_files
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.errors import DataError, UsageError
from beitcli.masking import keyed_mask, make_masking, num_masked_from
from beitcli.masking.base import MaskGenerator
from beitcli.masking.statistics import mask_statistics
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.pictures.masks import mask_panel

_PICTURE = 448


@dataclass(frozen=True)
class Preview:
    """Document of one image, and its picture if `-o` is given.

    Attributes:
        to_stdout: Whether the picture goes to stdout, in place of the document.
    """

    document: dict[str, Any]
    picture: Image.Image | None
    to_stdout: bool = False


def mask_preview(
    config: MaskPreviewConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[Preview]:
    """Yields one preview per image, with the document `{"path", "grid", "num_masked", "mask", "output"}`.

    The mask is the one that `pretrain` draws for the image with the same index, DATA, seed and epoch.

    Raises:
        UsageError: Invalid settings, or several inputs while the picture goes to stdout.
        DataError: After the last image, if some could not be read.
    """
    to_stdout = is_stdout(config.output)
    pretrained = None
    if config.model:
        from beitcli.engine.mask_reconstruction import open_pretrained_run  # torch

        pretrained = open_pretrained_run(config, on_event)
    masking, seed = masking_of(config, pretrained.checkpoint if pretrained else None)
    if not config.inputs:
        raise UsageError("No image is given.", "Give images, `sample`, or --stats N.")
    source = open_inputs(config, role="train", sample_size=_PICTURE, stdin=stdin, seed=seed, on_event=on_event)
    several = len(source) > 1
    if to_stdout and several:
        raise UsageError(f"-o {config.output} writes one picture, but {len(source)} images are given.", "Give -o DIR.")
    outputs: list[OutputFile] | None = [OutputFile(Path("-"))] if to_stdout else None
    if config.output and not to_stdout:
        inputs = ProtectedInputs(config, source)
        outputs = output_files(config.output, source, (".png",), inputs, overwrite=config.overwrite)
    bad = 0
    for group in image_groups(source, config.batch_size if pretrained and outputs else 1):
        images = {index: image for index, image in group if not isinstance(image, str)}
        masks = {index: keyed_mask(masking, seed, config.epoch, source.global_index(index)) for index in images}
        rebuilt: dict[int, Image.Image] = {}
        if pretrained and outputs and images:
            pictures = pretrained.reconstruct(list(images.values()), list(masks.values()))
            rebuilt = dict(zip(images, pictures, strict=True))
        for index, image in group:
            if isinstance(image, str):
                bad += 1
                yield Preview({"path": source.path(index), "error": image}, None)
            else:
                output = outputs[index] if outputs else None
                picture = _picture(image, masks[index], rebuilt.get(index)) if output else None
                if picture is not None and output is not None and not to_stdout:
                    output.save_png(picture)
                place = output.path if output else None
                yield Preview(_document(source.path(index), masks[index], place), picture, to_stdout)
            on_event(Progress("mask-preview", index + 1, len(source), "image"))
    if bad:
        raise DataError(f"{bad} of {len(source)} images cannot be read.", "Their lines say why.")


def _document(path: str, mask: np.ndarray, output: Path | None) -> dict[str, Any]:
    return {
        "path": path,
        "grid": list(mask.shape),
        "num_masked": int(mask.sum()),
        "mask": mask.astype(int).tolist(),
        "output": str(output) if output else None,
    }


def mask_preview_statistics(config: MaskPreviewConfig) -> dict[str, Any]:
    """Returns the summary of `--stats N`."""
    checkpoint = None
    if config.model:
        from beitcli.models.checkpoints.build import open_masked_image_model

        checkpoint = open_masked_image_model(config.model)[1]
    masking, seed = masking_of(config, checkpoint)
    return dict(mask_statistics(masking, config.stats or 1, seed, config.epoch))


def masking_of(config: MaskPreviewConfig, checkpoint: CheckpointHandle | None) -> tuple[MaskGenerator, int]:
    """Returns the mask generator and its seed: those of the run, if any, overridden by the command line."""
    own = (checkpoint.settings.get("masking") if checkpoint else None) or {}
    grid = checkpoint.architecture.grid if checkpoint else config.grid or (14, 14)
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


def _picture(image: Image.Image, mask: np.ndarray, rebuilt: Image.Image | None) -> Image.Image:
    rows, columns = mask.shape
    a_patch = max(1, _PICTURE // max(rows, columns))
    size = (_PICTURE, _PICTURE) if rows == columns else (rows * a_patch, columns * a_patch)
    transform = fit_center(image, size)
    return mask_panel(transform, mask, rebuilt, min_width=min(_PICTURE, transform.width))
