"""Settings of `predict`, and of sliding-window segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from beitcli.config.common import MODEL_HELP, Job, ModelInputs, overwrite_option
from beitcli.config.data_formats import data_help
from beitcli.config.fields import Unused, option
from beitcli.errors import UsageError

NO_SEGMENTER: dict[str, Any] = {
    "panel": "Segmentation",
    "unused_by": ("classify", "detect"),
    "unused": (Unused("protocol", "knn"), Unused("protocol", "linear"), Unused("protocol", "elbo")),
}


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Settings of sliding-window segmentation."""

    window: int | None = option(
        None,
        "Side of the square that a segmenter sees at once, sliding over larger images; default the model's size.",
        metavar="PX",
        ge=1,
        **NO_SEGMENTER,
    )
    stride: int | None = option(
        None, "Pixels between windows; default two thirds of one.", metavar="PX", ge=1, **NO_SEGMENTER
    )
    short_side: int | None = option(
        None,
        "Shorter side that images are resized to first; default as trained; 0 keeps their own.",
        metavar="PX",
        ge=0,
        **NO_SEGMENTER,
    )
    multi_scale: bool = option(False, "Mean over the scales 0.5, 0.75, 1, 1.25, 1.5 and 1.75.", **NO_SEGMENTER)
    flip: bool = option(False, "Mean over the image and its mirror image.", **NO_SEGMENTER)

    def _require_one_size(self, size: tuple[int, int] | None) -> None:
        """Raises UsageError if the windows' side is given twice."""
        if size is not None and self.window is not None:
            raise UsageError(
                f"--window {self.window} is the size that a segmenter sees, and --size is given beside it.",
                "Leave one of them out.",
            )


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ModelInputs, Windows, Job):
    command: ClassVar[str] = "predict"
    model: str = option(
        "", f"A finetuned model. {MODEL_HELP}.", argument=True, required=True, panel="Data", metavar="MODEL"
    )
    inputs: tuple[str, ...] = option((), data_help, argument=True, required=True, panel="Data", metavar="INPUT")
    top: int = option(
        5,
        "Number of best classes to list.",
        panel="Output",
        metavar="K",
        ge=1,
        unused_by=("segment", "detect", "regression"),
    )
    score_threshold: float = option(
        0.5,
        "Minimum score of a detector's boxes, and of a multi-label classifier's labels (0-1).",
        panel="Output",
        metavar="SCORE",
        ge=0,
        le=1,
        unused_by=("segment", "single-label", "regression"),
    )
    output: str | None = option(
        None,
        "Folder for a segmenter's masks (PNG with a palette) or for pictures with a detector's boxes; "
        "for a classifier a .jsonl file of its lines.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="OUT",
    )
    overwrite: bool = overwrite_option()
    overlay: bool = option(
        False,
        "Also draw a segmenter's masks over the images, with a legend; a background is left as it is.",
        panel="Output",
        unused_by=("classify", "detect"),
    )
    preview: bool = option(False, "Draw images with their predictions in the terminal, on stderr.", panel="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_one_size(self.size)
