"""How an image of any shape becomes the model's (H, W) pixels in evaluation, in timm's terms (stdlib only).

| crop_mode | what is resized | then |
|---|---|---|
| center | both sides by one factor, until they cover (H, W) / crop_pct | the center crop |
| squash | each side to exactly H / crop_pct and W / crop_pct | the center crop |
| border | both sides by one factor, until they lie within (H, W) / crop_pct | the center crop, padded |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)  # in the order of Pillow's numbers


@dataclass(frozen=True, kw_only=True)
class EvalCrop:
    """Resizing and cropping in evaluation.

    Attributes:
        crop_pct: Side of the crop / resized side (0-1); None for the release's: 0.875 below 384 pixels, else 1.
        rounds_down: Whether half a pixel before the center crop is rounded down, as by transformers; by torchvision,
            timm and the release it is rounded to even.
    """

    crop_pct: float | None = None
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    rounds_down: bool = False

    def pct(self, size: tuple[int, int]) -> float:
        """Returns `crop_pct` at images of (H, W) pixels, the default resolved."""
        return self.crop_pct or (0.875 if min(size) < 384 else 1.0)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the sides, rounded as by timm, that are covered (center), exact (squash) or the bounds (border)."""
        height, width = (max(side, int(side / self.pct(size))) for side in size)
        return height, width

    def at_other_size(self) -> EvalCrop:
        """Returns the crop for images of another size: a center crop has the release's fraction there."""
        return replace(self, crop_pct=None) if self.crop_mode == "center" else self

    def settings(self) -> dict[str, Any]:
        """Returns what differs from the defaults, as config.json and the release's `args` hold it."""
        named = {"crop_share": self.crop_pct, "crop_mode": self.crop_mode, "interpolation": self.interpolation}
        defaults = {"crop_share": None, "crop_mode": "center", "interpolation": "bicubic"}
        differing = {name: value for name, value in named.items() if value != defaults[name]}
        return differing | ({"crop_rounds_down": True} if self.rounds_down else {})


RELEASED_CROP = EvalCrop()


def crop_of(settings: Mapping[str, Any], pct: str = "crop_pct") -> EvalCrop:
    """Reads timm's names, or this program's with `pct="crop_share"`.

    Raises:
        ValueError: A mode or interpolation is unknown.
    """
    mode: Any = settings.get("crop_mode") or "center"
    interpolation: Any = settings.get("interpolation") or "bicubic"
    interpolation = "bilinear" if interpolation == "random" else interpolation  # timm draws one in training only
    if mode not in get_args(CropMode) or interpolation not in INTERPOLATIONS:
        raise ValueError(f"crop mode {mode!r} with interpolation {interpolation!r}")
    return EvalCrop(
        crop_pct=settings.get(pct),
        crop_mode=mode,
        interpolation=interpolation,
        rounds_down=bool(settings.get("crop_rounds_down")),
    )


def margin(resized: int, crop: int, rounds_down: bool = False) -> int:
    """Returns the pixels before a center crop."""
    return (resized - crop) // 2 if rounds_down else round((resized - crop) / 2)


def pct_of_sides(crop: int, resized: int) -> float:
    """Returns the fraction from which `EvalCrop.resized` gives exactly `resized` for a crop of `crop` pixels."""
    pct = crop / resized
    return pct if int(crop / pct) == resized else crop / (resized + 0.5)
