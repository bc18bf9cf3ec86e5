"""What an image can be marked with, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass

from beitcli.engine.trainer.preflight.findings import Severity


@dataclass(frozen=True)
class Mark:
    """A kind of complaint about single images.

    Attributes:
        title: Of several such images.
        way_out: What this program does with them, or what to do.
    """

    severity: Severity
    title: str
    way_out: str

    @property
    def title_of_one(self) -> str:
        """The same of a single image."""
        for several, one in (("are ", "is "), ("have ", "has ")):
            if self.title.startswith(several):
                return one + self.title.removeprefix(several).replace(" by their ", " by its ")
        return self.title


LIST = "-o good.tsv"  # as an example
MARKS = {
    "unreadable": Mark("warning", "cannot be read", f"Replace what is damaged, or leave it out: {LIST}."),
    "misnamed": Mark("note", "are of another format than the name says", "Read as what the content is."),
    "one-colour": Mark("warning", "are of one colour", "A list without them: --drop one-colour."),
    "dark": Mark(
        "warning",
        "are nearly black: numbers of more than 8 bits that use little of their range",
        "--intensity-range auto stretches each over its own range, LOW,HIGH all alike.",
    ),
    "tiny": Mark("warning", "have fewer than 32 pixels on a side", "A list without them: --drop tiny."),
    "long": Mark("note", "are more than four times as long as wide", "Crops show a part of them."),
    "stack": Mark("warning", "have several pages (TIFF)", "The first page alone is used, or all: --pages all."),
    "animated": Mark("note", "are animated", "The first frame alone is used."),
    "deep": Mark("note", "have more than 8 bits", "Scaled to 8 bits."),
    "cmyk": Mark("note", "are in CMYK", "Converted to RGB without a colour profile."),
    "alpha": Mark("note", "have transparent parts", "These parts become white."),
    "rotated": Mark("note", "are rotated or mirrored by their EXIF orientation", "Read upright."),
}
NAMES = tuple(MARKS)


def bits_of(marks: tuple[str, ...]) -> int:
    """Packs marks into an integer, a bit each."""
    return sum(1 << NAMES.index(name) for name in marks)
