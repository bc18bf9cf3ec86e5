"""What a format of DATA is, and how it is asked for. A format is a module of `formats/` with a `FORMAT`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from beitcli.data.sources.base import OnProgress, Source

Role = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is wanted of DATA.

    Attributes:
        name: DATA as it was given, for messages.
        split: `--split`; None for the role's own where the data has splits.
        role: What the images are for, which chooses the split.
        labelled: Whether every image must have a label.
        sample_size: Pixels a side of the images of `sample`.
        stdin: Where `-` reads paths; None for the process's own.
        nul_separated: `-0`: those paths end in NUL, not in newline.
        on_progress: Told how far looking through large data, or downloading it, is, and what a split leaves aside.
    """

    name: str = ""
    split: str | None = None
    role: Role = "train"
    labelled: bool = False
    sample_size: int = 64
    stdin: BinaryIO | None = None
    nul_separated: bool = False
    on_progress: OnProgress | None = None

    @classmethod
    def of(cls, config: Any, **others: Any) -> Request:
        """With the `--split` and `-0` of a command's settings, where it has them."""
        return cls(split=getattr(config, "split", None), nul_separated=getattr(config, "nul", False), **others)

    def say(self, remark: str) -> None:
        """Tells something in one line."""
        if self.on_progress is not None:
            self.on_progress(remark, 0, 0, "")


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of DATA.

    `looks`, `labels`, `words` and `rank` are written as literals: help reads them without importing the module.

    Attributes:
        looks: What such DATA looks like, in a few words for help and errors.
        open: The images of references of this format that stand side by side in DATA.
        rank: Its place in help, and among those who are asked whether a path is theirs: `folder` (10) is the first,
            `list_file` (80), which takes pipes, the last.
        recognizes: Whether a path that exists is of this format.
        words: References that name no file; one that ends in `/` is the beginning of such references.
        labels: Where its labels come from, in a few words; empty where there are none.
        finds_splits: Whether `open` chooses the split. Otherwise the files' names do, where `--split` is given.
    """

    looks: str
    open: Callable[[list[str], Request], list[Source]]
    rank: int
    recognizes: Callable[[str], bool] = lambda path: False
    words: tuple[str, ...] = ()
    labels: str = ""
    finds_splits: bool = False
