"""Settings of `pack`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.common import overwrite_option
from beitcli.config.data_formats import data_help
from beitcli.config.fields import Unused, check_bounds, option
from beitcli.config.intensity import HELP_WITHOUT_MODEL as INTENSITY_HELP
from beitcli.config.intensity import parse_intensity
from beitcli.config.output_formats import require_folder_name
from beitcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    command: ClassVar[str] = "pack"
    data: tuple[str, ...] = option((), data_help, argument=True, required=True, panel="Data", metavar="DATA")
    split: str | None = option(None, "Split of DATA to pack; default all.", panel="Data")
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
    max_bad: float = option(
        0.05,
        "Share of unreadable images (0-1) past which it stops with exit code 3; up to it they are left out.",
        panel="Data",
        ge=0,
        le=1,
    )
    encode: Literal["jpeg", "raw"] = option(
        "jpeg",
        "jpeg: files that are JPEG and keep their size are copied byte for byte, others encoded. raw: the decoded "
        "pixels (PPM), about five times the bytes and no decoding.",
        panel="Images",
    )
    short_side: int | None = option(
        None, "Shrink images whose shorter side is longer; default every image keeps its size.", panel="Images",
        metavar="PX", ge=16,
    )  # fmt: skip
    quality: int = option(
        95, "JPEG quality of what is encoded.", panel="Images", ge=1, le=100, unused=(Unused("encode", "raw"),)
    )
    shard_images: int | None = option(
        None,
        "Images per shard; default 64 shards a split, of 250 to 5,000 images. A stopped pack goes on behind the last "
        "that is finished.",
        panel="Output",
        metavar="N",
        ge=1,
    )
    output: str = option(
        "", "Folder to create; new or empty.", panel="Output", flags=("-o", "--output"), metavar="DIR", required=True
    )
    overwrite: bool = overwrite_option()
    workers: int = option(
        -1, "Processes, each with a shard; -1: one per core, 0: the main process alone.", panel="Machine", ge=-1
    )
    seed: int = option(0, "Seed of what --limit chooses.", panel="Machine", ge=0, le=2**63 - 1)

    def __post_init__(self) -> None:
        check_bounds(self)
        parse_intensity(self.intensity_range)
        if self.output == "-":
            raise UsageError("-o '-' is stdout, and shards need a folder.", "Give -o DIR.")
        require_folder_name(self.output)
