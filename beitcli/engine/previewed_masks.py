"""The masks that `beit mask-preview` shows: their generator, and the statistics of `--stats`, which need no image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beitcli.config.fields import settings_of
from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.errors import UsageError
from beitcli.masking import make_masking, num_masked_from
from beitcli.masking.base import MaskGenerator
from beitcli.masking.statistics import mask_statistics

if TYPE_CHECKING:
    from beitcli.models.checkpoints.handle import CheckpointHandle


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
        from beitcli.engine.io.picture_outputs import picture_file
        from beitcli.engine.io.protected_inputs import ProtectedInputs

        output = picture_file(config.output, "-o", ProtectedInputs(config), overwrite=config.overwrite)
    statistics = mask_statistics(masking, config.stats or 1, seed, config.epoch)
    if output is None:
        return dict(statistics)
    from beitcli.pictures.mask_statistics import draw_mask_statistics

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
