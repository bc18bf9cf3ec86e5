"""Settings of `attn-map`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from beitcli.config.common import MODEL_HELP, NORMALIZATION_HELP, Job, overwrite_option
from beitcli.config.data_formats import data_help
from beitcli.config.fields import option
from beitcli.errors import UsageError

ATTENTION_SUFFIXES = (".png", ".html", ".npy", ".svg", ".pdf")
ONE_OF_ALL = (".png", ".html", ".svg", ".pdf")  # one file for all images
_POINT = re.compile(r"\s*(-?[0-9]{1,9})\s*,\s*(-?[0-9]{1,9})\s*")


@dataclass(frozen=True, kw_only=True)
class AttnMapConfig(Job):
    command: ClassVar[str] = "attn-map"
    batch_size: int = option(8, "Images per forward pass.", panel="Machine", ge=1)
    inputs: tuple[str, ...] = option((), data_help, argument=True, required=True, panel="Data", metavar="IMAGE")
    split: str | None = option(None, "Split to read, where the data has splits; default val.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    model: str | None = option(
        None, f"{MODEL_HELP}; default the newest run under runs/.", panel="Options", metavar="MODEL"
    )
    point: tuple[str, ...] = option(
        (), "Reference point in pixels of the upright image; repeatable.", panel="Options", metavar="X,Y"
    )
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Options")
    layer: int = option(
        -1,
        "Block to look into, counted from 0 (`embed` and `eval` count from 1: 8 here is 9 there); -1: the last.",
        panel="Options",
    )
    head: str = option(
        "mean", "mean, all, the number of a head, or rollout: the layers up to --layer, multiplied.", panel="Options"
    )
    size: tuple[int, int] | None = option(
        None,
        "Image size in pixels, after a central crop: side of a square, or height and width; default the model's own.",
        panel="Options",
        ge=1,
    )
    threshold: float | None = option(
        None, "Show only the patches that hold this share of the attention (0-1).", panel="Output", ge=0, le=1
    )
    smooth: bool = option(False, "Interpolate between patches instead of drawing blocks.", panel="Output")
    figure: bool = option(
        False,
        "Use the layout of the paper's Figure 2, a row for each image: .png, .svg or .pdf, without "
        "words. The last two, and several images in one .png, have it always, with words.",
        panel="Output",
    )
    page_mb: float = option(
        12.0, "Megabytes of attention in a page; what does not fit is left out, heads first.", panel="Output", gt=0
    )
    output: str | None = option(
        None,
        "Picture (.png), page (.html), figure (.svg, .pdf) or array (.npy). Several inputs: one picture, page or "
        "figure of all, or a folder.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="OUT",
        suffixes=ATTENTION_SUFFIXES,
    )
    overwrite: bool = overwrite_option()
    preview: bool = option(False, "Draw the maps in the terminal, on stderr.", panel="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head not in ("mean", "all", "rollout") and not self.head.isdecimal():
            raise UsageError(f"--head is '{self.head}'.", "Give mean, rollout, all, or a number from 0.")
        if self.threshold == 0:
            raise UsageError("--threshold 0 shows no patch.", "Give a share above 0, such as 0.6.")
        if self.figure and Path(self.output or "").suffix.lower() in (".html", ".npy"):
            raise UsageError(
                f"--figure with -o '{self.output}': there is no such figure.", "Give a .png, .svg or .pdf."
            )
        self.points  # noqa: B018 - raises for what is no point

    @property
    def points(self) -> list[tuple[int, int]]:
        """The (x, y) of `--point`."""
        return [parse_point(text) for text in self.point]


def parse_point(text: str) -> tuple[int, int]:
    """Parses `X,Y` as whole pixels; raises UsageError for anything else."""
    found = _POINT.fullmatch(text)
    if not found:
        raise UsageError(f"--point is '{text}'.", "Give two whole numbers of pixels, X,Y, as in --point 120,80.")
    return int(found[1]), int(found[2])
