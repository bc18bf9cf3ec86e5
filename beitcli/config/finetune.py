"""Settings of `finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from beitcli.config.architecture import require_size
from beitcli.config.bounds import Bounds
from beitcli.config.common import MODEL_HELP, NORMALIZATION_HELP, Sharded, in_memory_option
from beitcli.config.data_formats import data_help
from beitcli.config.fields import Unused, option
from beitcli.config.tasks import DEFAULT_TASK, TASKS, all_heads
from beitcli.errors import UsageError

_ONE_CLASS = (Unused("problem", "multi-label"),)  # of settings for images of one class


def _data_help() -> str:
    return (
        f"{data_help()} A classifier learns from a folder for each class (FOLDER/CLASS/image.jpg), a segmenter from "
        "FOLDER/images and FOLDER/masks."
    )


def _head_help() -> str:
    heads = "; ".join(f"{name}: {', '.join(task.head_names())}" for name, task in TASKS.entries().items())
    return f"Head on the backbone; each task's default first: {heads}."


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Sharded):
    command: ClassVar[str] = "finetune"
    recipes_of: ClassVar[dict[str, dict[str, str]]] = {"init": {"random": "deit"}}
    instead_of_recipe: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {"init": {"random": {"layer_decay": 1.0}}}
    unused_with: ClassVar[dict[str, tuple[str, ...]]] = {"val": ("holdout",)}
    of_random_init: ClassVar[dict[str, tuple[str, ...]]] = {
        "init": ("model", "patch_size", "positions", "layer_scale"),
    }
    data: tuple[str, ...] = option((), _data_help, argument=True, required=True, panel="Data", metavar="DATA")
    recipe: str = option("base", "Named settings, listed at the top of this help.", panel="Run", metavar="NAME")
    init: str = option("", f"Where to start. {MODEL_HELP}; or `random`.", panel="Model", required=True, metavar="MODEL")
    model: str = option("base", "Size of the backbone where --init is random.", panel="Model")
    task: str = option(
        DEFAULT_TASK,
        "What to learn: the class of an image or of every pixel, or boxes around objects (mask-rcnn: outlines too).",
        panel="Model",
        choices=TASKS.names,
    )
    problem: Literal["single-label", "multi-label"] = option(
        "single-label",
        "classify: one class an image, or any number of labels, DATA then being a .csv or parquet with 0/1 columns; "
        "their loss is binary cross entropy, without mixup, CutMix and label smoothing.",
        panel="Model",
        tasks=("classify",),
        earlier="single-label",
    )
    in_memory: bool = in_memory_option(tasks=("classify",))
    head: str | None = option(None, _head_help, panel="Model", choices=all_heads)
    size: tuple[int, int] | None = option(
        None,
        "Image size in pixels: side of a square, or height and width; default the model's own.",
        panel="Model",
        ge=1,
    )
    resize_positions: Literal["release", "bilinear"] = option(
        "release",
        "How positions are resized where --size is not that of --init. release: bias tables by its cubic spline, "
        "absolute positions bicubic; bilinear: both (paper, Table 14).",
        panel="Model",
    )
    patch_size: int = option(16, "Side of a patch where --init is random.", panel="Model", metavar="PX", ge=1)
    positions: Literal["absolute", "per-block"] = option("absolute", "Positions where --init is random.", panel="Model")
    layer_scale: float = option(0.0, "LayerScale where --init is random; 0 = none.", panel="Model", ge=0)
    drop_path: float = option(0.1, "Stochastic depth of the last block (0-1).", panel="Model", ge=0, le=1)
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Model")
    limit: int | None = option(
        None,
        "Use N training images, chosen by --seed, balanced over the classes; evaluation images are all used.",
        panel="Data",
        metavar="N",
        ge=1,
    )
    val: str | None = option(
        None, "Labelled images to evaluate on; --limit does not apply to them.", panel="Data", metavar="DATA"
    )
    holdout: int = option(
        50,
        "Images of DATA to measure on instead of learning from them, where there is neither --val nor a validation "
        "split: at most a fifth of them, and at least a twentieth, or 1,024 (segment, detect: 512) where that is less.",
        panel="Data",
        metavar="N",
        ge=0,
        earlier=0,
    )
    layer_decay: float = option(
        0.65,
        "Layer-wise decay: learning rate of a block over that of the next; 1 with --init random, "
        "whatever the recipe says.",
        panel="Schedule",
        gt=0,
    )
    ema: float = option(
        0.0, "Decay of the exponential moving average of the weights; 0 = none.", panel="Schedule", ge=0, le=1
    )
    repeats: int = option(
        1,
        "Repeated augmentation: views of each image in a row; an epoch stays as long (DeiT: 3).",
        panel="Augmentation",
        ge=1,
    )
    mixup: float = option(
        0.8, "Alpha of mixup; 0 = none.", panel="Augmentation", ge=0, tasks=("classify",), unused=_ONE_CLASS
    )
    cutmix: float = option(
        1.0, "Alpha of cutmix; 0 = none.", panel="Augmentation", ge=0, tasks=("classify",), unused=_ONE_CLASS
    )
    mixup_group: int = option(
        128,
        "Images of a step that share a draw of mixup and cutmix (in the release: a device's batch); 0 = all.",
        panel="Augmentation",
        ge=0,
        tasks=("classify",),
        earlier=0,
        unused=_ONE_CLASS,
    )
    smoothing: float = option(
        0.1, "Label smoothing (0-1).", panel="Augmentation", ge=0, le=1, tasks=("classify",), unused=_ONE_CLASS
    )
    rand_augment: str = option(
        "rand-m9-mstd0.5-inc1", "timm's RandAugment policy; empty = none.", panel="Augmentation", tasks=("classify",)
    )
    erasing: float = option(
        0.25, "Probability of random erasing (0-1).", panel="Augmentation", ge=0, le=1, tasks=("classify",)
    )
    min_crop: float = option(
        0.08,
        "Minimum area of the random crop, as a share of the image (0-1).",
        panel="Augmentation",
        ge=0,
        le=1,
        tasks=("classify",),
    )
    min_resize: float = option(
        0.5, "Least random factor of the resize.", panel="Augmentation", gt=0, tasks=("segment", "detect")
    )
    max_resize: float = option(
        2.0, "Largest random factor of the resize.", panel="Augmentation", gt=0, tasks=("segment", "detect")
    )
    largest_share: float = option(
        0.75,
        "Share of a crop that one class may have (0-1), in 10 tries; 1 takes any crop.",
        panel="Augmentation",
        ge=0,
        le=1,
        tasks=("segment",),
    )
    photometric: bool = option(
        True,
        "Vary brightness, contrast, saturation and hue.",
        panel="Augmentation",
        flags=("--photometric/--no-photometric",),
        tasks=("segment",),
    )
    classes: str | None = option(
        None,
        "Class names, a line each in label order; default class-00 and so on.",
        panel="Segmentation",
        metavar="FILE",
        tasks=("segment",),
    )
    ignore_index: int = option(
        255, "Mask value to ignore in loss and metrics.", panel="Segmentation", ge=0, le=255, tasks=("segment",)
    )
    reduce_zero_label: bool = option(
        False,
        "Mask value 0 is no class, and 1 the first class (ADE20K).",
        panel="Segmentation",
        tasks=("segment",),
    )
    short_side: int | None = option(
        None,
        "Shorter side that images are resized to, before the random factor; default that of --size; 0 keeps their own.",
        panel="Segmentation",
        metavar="PX",
        ge=0,
        tasks=("segment",),
    )
    head_width: int = option(256, "Channels of the feature pyramid.", panel="Detection", ge=4, tasks=("detect",))
    regions: int = option(
        512,
        "Regions per image that the box head learns from; twice as many are proposed.",
        panel="Detection",
        ge=4,
        tasks=("detect",),
    )
    compile: bool | None = option(
        None,
        "torch.compile the step; default on CUDA for --task classify. The first step takes a minute longer.",
        panel="Machine",
        may_change_on_resume=True,
        flags=("--compile/--no-compile",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Bounds(ge=self.min_resize).require("--max-resize", self.max_resize, "Give --min-resize or more.")
        task = TASKS.load(self.task)
        if self.head is not None and self.head not in task.head_names():
            fitting = " or ".join(task.head_names())
            raise UsageError(f"--head {self.head} is no head of --task {self.task}.", f"Give {fitting}.")
        if self.shard and (self.ema or not task.shards):
            raise UsageError("--shard is for classifiers without --ema.", "Leave one of them out.")
        require_size(self.model)
