"""Settings of `predict`, and of sliding-window segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from beitcli.config.common import MODEL_HELP, Job, ModelInputs, overwrite_option
from beitcli.config.data_formats import data_help
from beitcli.config.fields import option


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Settings of sliding-window segmentation."""

    window: int | None = option(
        None,
        "Side of the square that a segmenter sees at once, sliding over larger images; default the model's size.",
        panel="Segmentation",
        metavar="PX",
        ge=1,
    )
    stride: int | None = option(
        None, "Pixels between windows; default two thirds of one.", panel="Segmentation", metavar="PX", ge=1
    )
    short_side: int | None = option(
        None,
        "Shorter side that images are resized to first; default as trained; 0 keeps their own.",
        panel="Segmentation",
        metavar="PX",
        ge=0,
    )
    multi_scale: bool = option(False, "Mean over the scales 0.5, 0.75, 1, 1.25, 1.5 and 1.75.", panel="Segmentation")
    flip: bool = option(False, "Mean over the image and its mirror image.", panel="Segmentation")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ModelInputs, Windows, Job):
    command: ClassVar[str] = "predict"
    model: str = option(
        "", f"A finetuned model. {MODEL_HELP}.", argument=True, required=True, panel="Data", metavar="MODEL"
    )
    inputs: tuple[str, ...] = option((), data_help, argument=True, required=True, panel="Data", metavar="INPUT")
    top: int = option(5, "Best classes to list.", panel="Output", metavar="K", ge=1)
    score_threshold: float = option(
        0.5,
        "Least score of a detector's boxes, and of a multi-label classifier's labels (0-1).",
        panel="Output",
        metavar="SCORE",
        ge=0,
        le=1,
    )
    output: str | None = option(
        None,
        "Folder for a segmenter's masks, PNG with a palette, or for pictures with a detector's boxes.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="DIR",
    )
    overwrite: bool = overwrite_option()
    overlay: bool = option(
        False,
        "A segmenter's masks over the images too, beside them, with a legend; a background is left as it is.",
        panel="Output",
    )
    preview: bool = option(False, "Draw images with what was found in them in the terminal, on stderr.", panel="Output")
