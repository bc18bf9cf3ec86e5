"""Settings of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.common import overwrite_option
from beitcli.config.data_formats import data_help
from beitcli.config.fields import check_bounds, option
from beitcli.config.intensity import HELP_WITHOUT_MODEL as INTENSITY_HELP
from beitcli.config.intensity import parse_intensity

LISTS, PAGE = (".tsv", ".txt"), ".html"
DROPS = ("unreadable", "duplicates", "near-duplicates", "overlap", "one-colour", "dark", "tiny")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    command: ClassVar[str] = "doctor"
    data: tuple[str, ...] = option((), data_help, argument=True, required=True, panel="Data", metavar="DATA")
    split: str | None = option(None, "Split of DATA to check; default all, and what they share.", panel="Data")
    val: str | None = option(
        None, "Evaluation images: checked too, and compared with DATA.", panel="Data", metavar="DATA"
    )
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    limit: int | None = option(
        None,
        "Use N images of each split, chosen by --seed, balanced over the classes.",
        panel="Data",
        metavar="N",
        ge=1,
    )
    pages: Literal["first", "all"] = option(
        "first", "Pages to read of a multi-page TIFF: the first, or all, each as an image of its own.", panel="Data"
    )
    intensity_range: str | None = option(None, INTENSITY_HELP, panel="Data", metavar="full|auto|LOW,HIGH")
    output: tuple[str, ...] = option(
        (),
        "A page with pictures (.html), or a list of the images that are good (.tsv with labels, .txt without), which "
        "every command takes as DATA; repeatable.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="FILE",
        offered=(PAGE, *LISTS),
    )
    drop: tuple[str, ...] = option(
        ("unreadable", "duplicates", "overlap"),
        "What to leave out of the list, separated by commas; of duplicates all but the first.",
        panel="Output",
        choices=lambda: DROPS,
    )
    overwrite: bool = overwrite_option()
    workers: int = option(
        -1, "Processes that read images; -1: one per core, 0: read in the main process.", panel="Machine", ge=-1
    )
    seed: int = option(0, "Seed of what --limit chooses.", panel="Machine", ge=0, le=2**63 - 1)

    def __post_init__(self) -> None:
        check_bounds(self)
        parse_intensity(self.intensity_range)
