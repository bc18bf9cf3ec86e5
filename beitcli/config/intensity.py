"""`--intensity-range`: which numbers of a gray image of more than 8 bits become black and white.

| range | black | white |
|---|---|---|
| full | 0 | the greatest number that the bits hold; of floats 1 or 255, or the image's own range beyond these |
| auto | the image's own 0.1% percentile | its 99.9% percentile |
| LOW,HIGH | LOW | HIGH |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from beitcli.errors import UsageError

_OF_IMAGE = (
    "Gray of more than 8 bits: full maps all its bits to black and white, auto each image's own range (0.1% to 99.9%), "
    "LOW,HIGH these numbers; default "
)
HELP = f"{_OF_IMAGE}the model's own, else full."
HELP_WITHOUT_MODEL = f"{_OF_IMAGE}full."


def _plain(number: float) -> str:
    """Returns a number with all its digits, a whole one without a point."""
    return str(int(number)) if number == int(number) else repr(number)


@dataclass(frozen=True)
class IntensityRange:
    """How numbers of more than 8 bits become 8 bits.

    Attributes:
        low, high: Of `fixed`.
    """

    kind: Literal["full", "auto", "fixed"] = "full"
    low: float = 0.0
    high: float = 0.0

    def __str__(self) -> str:
        return f"{_plain(self.low)},{_plain(self.high)}" if self.kind == "fixed" else self.kind

    @property
    def words(self) -> str:
        """What is done, for a remark."""
        if self.kind == "fixed":
            return f"from {self.low:g} (black) to {self.high:g} (white)"
        return "each over its own range (0.1% to 99.9%)" if self.kind == "auto" else "over all numbers of their bits"


FULL = IntensityRange()


def parse_intensity(text: str | None) -> IntensityRange:
    """Parses a setting; None is `full`.

    Raises:
        UsageError: It is no range.
    """
    if text is None or text == "full":
        return FULL
    if text == "auto":
        return IntensityRange("auto")
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"--intensity-range is '{text}'.", "Give full, auto, or two numbers, the lower one first, such as 0,4095."
        )
    return IntensityRange("fixed", low, high)


def with_models_intensity(config: Any, settings: dict[str, Any]) -> Any:
    """Returns a config that takes the range that a model was trained with, unless one is given.

    Args:
        settings: Of the model's checkpoint.
    """
    stored = settings.get("intensity_range")
    if config.intensity_range is not None or not isinstance(stored, str):
        return config
    return replace(config, intensity_range=stored)


def intensity_entry(config: Any) -> dict[str, str]:
    """Returns the entry of a checkpoint's settings; none for `full`, as of runs before there was a choice."""
    intensity = parse_intensity(config.intensity_range)
    return {} if intensity == FULL else {"intensity_range": str(intensity)}
