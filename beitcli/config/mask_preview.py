"""Settings of `mask-preview`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from beitcli.config.common import MASKING_NAMES, MODEL_HELP, Job, overwrite_option
from beitcli.config.data_formats import data_help
from beitcli.config.fields import option

_OF_IMAGES = ("inputs", "limit", "preview", "split", "nul", "pages", "intensity_range", "tokenizer", "batch_size")
_OF_MASKS = (
    "stats",
    "model",
    "pretrain_recipe",
    "masking",
    "ratio",
    "num_masked",
    "min_block",
    "grid",
    "epoch",
    "seed",
)


@dataclass(frozen=True, kw_only=True)
class MaskPreviewConfig(Job):
    command: ClassVar[str] = "mask-preview"
    unused_with: ClassVar[dict[str, tuple[str, ...]]] = {"animate": (*_OF_IMAGES, *_OF_MASKS), "stats": _OF_IMAGES}
    unused_without: ClassVar[dict[str, tuple[str, ...]]] = {"model": ("tokenizer",)}
    batch_size: int = option(8, "Images per forward pass of --model.", panel="Machine", ge=1)
    seed: int | None = option(  # type: ignore[assignment]
        None, "Seed of everything random; default the run's, else 0.", panel="Machine", ge=0, le=2**63 - 1
    )
    inputs: tuple[str, ...] = option((), data_help, argument=True, panel="Data", metavar="INPUT")
    split: str | None = option(None, "Split to read, where the data has splits; default train.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    pretrain_recipe: str | None = option(
        None,
        "Recipe of `beit pretrain` to take grid and masks from, where --model does not say them; default "
        "base, as there.",
        panel="Masking",
        flags=("--recipe",),
        metavar="NAME",
    )
    masking: str | None = option(None, "blockwise (default) or random.", panel="Masking", offered=MASKING_NAMES)
    ratio: float | None = option(
        None,
        "Share of hidden patches (0-1), instead of --num-masked.",
        panel="Masking",
        gt=0,
        le=1,
    )
    num_masked: int | None = option(
        None, "Hidden patches; default the run's or the recipe's, of another --grid 0.4 of them.", panel="Masking"
    )
    min_block: int | None = option(None, "Minimum patches of a block; default 16.", panel="Masking", ge=1)
    grid: tuple[int, int] | None = option(
        None, "Patches down and across; default 14,14.", panel="Masking", metavar="H,W", example="14,14", ge=1
    )
    epoch: int = option(0, "Epoch whose masks to show.", panel="Masking", ge=0)
    output: str | None = option(
        None,
        "Picture to write (.png, .jpg, .webp); - is stdout. Several inputs: a folder, or one sheet with all. With "
        "--stats: their charts; with --animate .gif, .webp or .png.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="OUT",
        suffixes=(".png", ".jpg", ".jpeg", ".webp", ".gif"),
    )
    preview: bool = option(False, "Draw it in the terminal, on stderr.", panel="Output")
    animate: str | None = option(
        None, "Animate the previews that a run drew at its saves instead, into -o.", panel="Output", metavar="RUN"
    )
    model: str | None = option(
        None,
        f"A pretrained model, whose masks and guesses of what is hidden to draw. {MODEL_HELP}.",
        panel="Model",
        metavar="MODEL",
    )
    tokenizer: str | None = option(
        None,
        "Tokenizer that --model learned from, if it is not where the run says.",
        panel="Model",
        metavar="TOKENIZER",
    )
    overwrite: bool = overwrite_option()
    stats: int | None = option(
        None, "Print statistics over N masks instead; needs no INPUT.", panel="Output", metavar="N", ge=1
    )
