"""Interface of DATA formats (`Format`), and the options for opening them (`Request`). `formats/` has one per module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from beitcli.config.intensity import FULL, IntensityRange, parse_intensity
from beitcli.data.sources.base import OnProgress, Source
from beitcli.errors import UsageError

Role = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options for opening DATA.

    Attributes:
        name: DATA as the user gave it, for messages.
        split: `--split`; None for the default split of the role, if the data has splits.
        role: Use of the images, which determines the default split.
        labelled: Whether every image must have a label.
        vectors: Whether an image has a number for each of several labels instead.
        sample_size: Side of the images of `sample` in pixels.
        stdin: Stream from which `-` reads paths; None for the process's stdin.
        nul_separated: `-0`: paths on stdin end in NUL instead of newline.
        on_progress: Receives the progress of indexing and downloads, and remarks such as unused splits.
        pages: Which pages of a TIFF are images.
        intensity: Range of gray of more than 8 bits.
        tells_splits: Whether splits that are not read are among the remarks.
        reports_missing: Whether files that a list names and that are not there are reported one by one; else a list
            without any is refused.
    """

    name: str = ""
    split: str | None = None
    role: Role = "train"
    labelled: bool = False
    vectors: bool = False
    sample_size: int = 64
    stdin: BinaryIO | None = None
    nul_separated: bool = False
    on_progress: OnProgress | None = None
    tells_splits: bool = True
    pages: Literal["first", "all"] = "first"
    intensity: IntensityRange = FULL
    reports_missing: bool = True

    @classmethod
    def of(cls, config: Any, **others: Any) -> Request:
        """Builds a request with `--split`, `-0`, `--pages` and `--intensity-range` of a config, if it has them.

        A job that goes on, or that reports or skips what it cannot read, takes a list without a file too.
        """
        goes_on = getattr(config, "resume", False) or getattr(config, "on_bad", "fail") != "fail"
        others.setdefault("reports_missing", goes_on)
        return cls(
            split=getattr(config, "split", None),
            nul_separated=getattr(config, "nul", False),
            pages=getattr(config, "pages", "first"),
            intensity=parse_intensity(getattr(config, "intensity_range", None)),
            **others,
        )

    def refuse_pages(self, name: str) -> None:
        """Raises UsageError if all pages are asked for of data whose annotations belong to files."""
        if self.pages == "all":
            raise UsageError(
                f"--pages all does not go with masks or boxes, as those of '{name}' belong to files.",
                "Leave it out, or save each page as a file.",
            )

    def set_intensity(self, source: Source) -> None:
        """Sets the range of gray of more than 8 bits in an opened source, and tells one that was chosen."""
        if self.intensity != FULL:
            source.use_intensity(self.intensity)
            self.say(f"Gray of more than 8 bits is scaled {self.intensity.words}.")

    def say(self, remark: str) -> None:
        """Reports a remark of one line."""
        if self.on_progress is not None:
            self.on_progress(remark, 0, 0, "")


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of DATA.

    `looks`, `labels`, `words` and `rank` must be literals: help reads them without importing the module.

    Attributes:
        looks: Short description of such DATA, for help and errors.
        open: Opens consecutive references of this format.
        rank: Order in help and in recognition: `folder` (10) is first; `list_file` (80), which accepts pipes, is the
            last that recognizes paths.
        recognizes: Whether an existing path has this format.
        words: References that are not files; one that ends in `/` is a prefix.
        labels: Short description of where labels come from; empty if there are none.
        finds_splits: Whether `open` selects the split. Otherwise `--split` selects files by name.
    """

    looks: str
    open: Callable[[list[str], Request], list[Source]]
    rank: int
    recognizes: Callable[[str], bool] = lambda path: False
    words: tuple[str, ...] = ()
    labels: str = ""
    finds_splits: bool = False
