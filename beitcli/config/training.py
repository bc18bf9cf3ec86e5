"""The settings of the jobs that train, with their units and defaults; positional arguments first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.architecture import SIZES, Architecture, require_size
from beitcli.config.bounds import Bounds
from beitcli.config.common import MODEL_HELP, NORMALIZATION_HELP, Training
from beitcli.config.fields import option
from beitcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(Training):
    command: ClassVar[str] = "train-tokenizer"
    recipe: str = option("small", "Named settings: tiny, small.", panel="Run", metavar="NAME")
    vocab_size: int = option(1024, "Visual tokens in the codebook.", panel="Tokenizer", ge=2)
    size: int = option(32, "Side of the square images it learns from, in pixels.", panel="Tokenizer", ge=1)
    width: int = option(32, "Channels of the first stage; each further stage doubles them.", panel="Tokenizer", ge=1)
    groups: int = option(3, "Stages; every one after the first halves the resolution.", panel="Tokenizer", ge=1, le=16)
    blocks_per_group: int = option(1, "Residual blocks a stage.", panel="Tokenizer", ge=1)
    reconstruction: Literal["mse", "logit-laplace"] = option("mse", "Reconstruction loss.", panel="Tokenizer")
    kl_weight: float = option(
        5e-5, "Weight of KL(q || uniform) of each patch, after its rise.", panel="Tokenizer", ge=0
    )
    usage_weight: float = option(
        3e-3, "Weight of KL(mean q of the batch || uniform), which keeps every code in use.", panel="Tokenizer", ge=0
    )
    temperature_end: float = option(
        0.0625, "Gumbel-softmax temperature from four fifths of the run on; it starts at 1.", panel="Tokenizer", gt=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = 2 ** (self.groups - 1)
        if self.size < factor or self.size % factor:
            raise UsageError(
                f"--size {self.size} is not divided by {factor}, the factor of {self.groups} stages.",
                f"Give a multiple of {factor}.",
            )


@dataclass(frozen=True, kw_only=True)
class Sharded(Training):
    """What every command has that trains a model which may outgrow a GPU."""

    shard: bool = option(
        False,
        "Spread weights, gradients and moments over the processes (FSDP2), for models that outgrow a GPU.",
        panel="Machine",
        harmless=True,
        saved=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard and self.precision == "fp16":
            raise UsageError("--shard does not go with fp16, whose scaler looks at one process.", "Give bf16 or fp32.")
        if self.shard and self.grad_compression != "none":
            raise UsageError("--shard sums gradients in fp32, uncompressed.", "Leave --grad-compression out.")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Sharded):
    command: ClassVar[str] = "pretrain"
    recipe: str = option("base", "Named settings, listed at the top of this help.", panel="Run", metavar="NAME")
    model: str = option("base", "Size of the backbone: " + ", ".join(SIZES) + ".", panel="Model")
    image_size: tuple[int, int] = option(
        (224, 224), "The images in pixels: the side of a square, or height and width.", panel="Model", ge=1
    )
    patch_size: int = option(16, "Side of a patch, in pixels.", panel="Model", metavar="PX", ge=1)
    positions: Literal["absolute", "shared"] = option(
        "absolute", "absolute: the paper's; shared: the release's relative bias.", panel="Model"
    )
    layer_scale: float = option(0.0, "Initial LayerScale; 0 = none.", panel="Model", ge=0)
    drop_path: float = option(0.1, "Stochastic depth of the last block (0-1).", panel="Model", ge=0, le=1)
    tokenizer: str = option(
        "own",
        "dall-e; a folder with OpenAI's encoder.pkl; hf://OWNER/NAME; a run of train-tokenizer; `own`: train one on "
        "DATA first, into RUN/tokenizer; `pixels`: as --target pixels.",
        panel="Tokenizer",
        metavar="TOKENIZER",
    )
    tokenizer_recipe: str = option("small", "Recipe of the `own` tokenizer.", panel="Tokenizer", metavar="NAME")
    tokenizer_steps: int | None = option(
        None, "Optimizer steps of the `own` tokenizer; default its recipe's.", panel="Tokenizer", metavar="STEPS", ge=1
    )
    token_precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Arithmetic of the tokenizer's encoder, its logits always fp32; auto: fp32, on CUDA fp16.",
        panel="Tokenizer",
    )
    token_cache: str | None = option(
        None,
        "Keep tokens here, and take them from here where they are kept: the run is the same, without the encoder.",
        panel="Tokenizer",
        harmless=True,
        metavar="DIR",
    )
    target: Literal["tokens", "pixels"] = option(
        "tokens",
        "What to predict of a patch: its visual token, or its pixels, normalised as the images are, by mean squared "
        "error and without a tokenizer (Table 4's ablation).",
        panel="Tokenizer",
    )
    masking: str = option("blockwise", "blockwise or random (Table 4's ablation).", panel="Masking")
    ratio: float | None = option(
        None, "Share of patches to hide (0-1); 0.4 where nothing is given.", panel="Masking", gt=0, le=1
    )
    num_masked: int | None = option(None, "Patches to hide, instead of --ratio.", panel="Masking")
    min_block: int = option(16, "Fewest patches of a block.", panel="Masking", ge=1)
    predict: Literal["masked", "all"] = option(
        "masked", "Patches the loss is taken over (Table 4's ablation: all).", panel="Masking"
    )
    mask: bool = option(
        True, "Hide patches at all (Table 4's ablation: --no-mask).", panel="Masking", flags=("--mask/--no-mask",)
    )
    color_jitter: float = option(0.4, "Brightness, contrast and saturation (0-1).", panel="Data", ge=0, le=1)
    min_crop: float = option(
        0.08, "Least share of the area that the random crop keeps (0-1).", panel="Data", ge=0, le=1
    )
    views: Literal["fast", "reference"] = option(
        "fast",
        "fast: crop, resize, then jitter on the device; reference: the release's order, with Pillow. Equal draws.",
        panel="Data",
    )
    normalization: Literal["imagenet", "inception"] = option(
        "imagenet", "Of the images: ImageNet's mean and std, or 0.5 and 0.5 (the release's, on 22k).", panel="Data"
    )
    probe: str | None = option(
        None,
        "Labelled images to watch the features by at each save: probe_top1, nearest neighbours of a few hundred. "
        "Training is the same with and without.",
        panel="Data",
        harmless=True,
        metavar="DATA",
    )
    holdout: int = option(
        512, "Images kept out of training to measure on, a twentieth of the data at most.", panel="Data", ge=0
    )
    residual: Literal["fp32", "bf16"] = option(
        "fp32",
        "Residual stream between blocks; bf16 moves half the bytes and goes with --precision bf16.",
        panel="Machine",
    )
    compile: bool | None = option(
        None,
        "torch.compile the step; default on CUDA. The first step takes a minute longer; losses differ by rounding.",
        panel="Machine",
        harmless=True,
        flags=("--compile/--no-compile",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mask and self.predict == "masked":
            raise UsageError("--no-mask leaves no masked patch to predict.", "Add --predict all.")
        if self.tokenizer == "pixels":  # another way to say it
            object.__setattr__(self, "target", "pixels")
            object.__setattr__(self, "tokenizer", "own")
        require_size(self.model)
        self.architecture  # noqa: B018 - validates itself

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            image_size=self.image_size,
            patch_size=self.patch_size,
            positions=self.positions,
            layer_scale=self.layer_scale,
            **SIZES[self.model],
        )


HEADS_OF_TASK = {"classify": ("linear",), "segment": ("upernet", "setr-pup"), "detect": ("faster-rcnn", "mask-rcnn")}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Sharded):
    command: ClassVar[str] = "finetune"
    recipes_of: ClassVar[dict[str, dict[str, str]]] = {"task": {"segment": "base-ade20k", "detect": "base-coco"}}
    recipe: str = option("base", "Named settings, listed at the top of this help.", panel="Run", metavar="NAME")
    init: str = option("", f"Where to start. {MODEL_HELP}; or `random`.", panel="Model", required=True, metavar="MODEL")
    model: str = option("base", "Size of the backbone where --init is random.", panel="Model")
    task: Literal["classify", "segment", "detect"] = option(
        "classify", "What to learn: the class of an image or of every pixel, or boxes around objects.", panel="Model"
    )
    head: Literal["linear", "setr-pup", "upernet", "faster-rcnn", "mask-rcnn"] | None = option(
        None,
        "Over the backbone; default linear to classify, upernet to segment, faster-rcnn to detect "
        "(mask-rcnn: outlines too).",
        panel="Model",
    )
    size: tuple[int, int] | None = option(
        None,
        "The images in pixels: a square's side, or height and width; default the model's own.",
        panel="Model",
        ge=1,
    )
    patch_size: int = option(16, "Side of a patch where --init is random.", panel="Model", metavar="PX", ge=1)
    positions: Literal["absolute", "per-block"] = option("absolute", "Positions where --init is random.", panel="Model")
    layer_scale: float = option(0.0, "LayerScale where --init is random; 0 = none.", panel="Model", ge=0)
    drop_path: float = option(0.1, "Stochastic depth of the last block (0-1).", panel="Model", ge=0, le=1)
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Model")
    val: str | None = option(None, "Labelled images to measure on.", panel="Data", metavar="DATA")
    layer_decay: float = option(0.65, "Learning rate of a block over that of the next.", panel="Schedule", gt=0)
    ema: float = option(0.0, "Decay of the moving average of the weights; 0 = none.", panel="Schedule", ge=0, le=1)
    repeats: int = option(
        1,
        "Views of each image in a row, an epoch still as many views as there are images (DeiT: 3).",
        panel="Augmentation",
        ge=1,
    )
    mixup: float = option(0.8, "Alpha of mixup; 0 = none.", panel="Augmentation", ge=0, tasks=("classify",))
    cutmix: float = option(1.0, "Alpha of cutmix; 0 = none.", panel="Augmentation", ge=0, tasks=("classify",))
    smoothing: float = option(0.1, "Label smoothing (0-1).", panel="Augmentation", ge=0, le=1, tasks=("classify",))
    rand_augment: str = option(
        "rand-m9-mstd0.5-inc1", "timm's RandAugment policy; empty = none.", panel="Augmentation", tasks=("classify",)
    )
    erasing: float = option(
        0.25, "Probability of random erasing (0-1).", panel="Augmentation", ge=0, le=1, tasks=("classify",)
    )
    min_crop: float = option(
        0.08, "Least share of the area that a crop keeps (0-1).", panel="Augmentation", ge=0, le=1, tasks=("classify",)
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
        255, "Value in the masks that stands for no class.", panel="Segmentation", ge=0, le=255, tasks=("segment",)
    )
    reduce_zero_label: bool = option(
        False,
        "0 in the masks stands for no class, 1 for the first one (ADE20K).",
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
    head_width: int = option(
        256, "Channels of the pyramid that objects are looked for in.", panel="Detection", ge=4, tasks=("detect",)
    )
    regions: int = option(
        512,
        "Regions of an image that the box head learns from; twice as many are proposed.",
        panel="Detection",
        ge=4,
        tasks=("detect",),
    )
    compile: bool | None = option(
        None,
        "torch.compile the step; default on CUDA for --task classify. The first step takes a minute longer.",
        panel="Machine",
        harmless=True,
        flags=("--compile/--no-compile",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Bounds(ge=self.min_resize).require("--max-resize", self.max_resize)
        if self.head is not None and self.head not in HEADS_OF_TASK[self.task]:
            fitting = " or ".join(HEADS_OF_TASK[self.task])
            raise UsageError(f"--head {self.head} is no head of --task {self.task}.", f"Give {fitting}.")
        if self.shard and (self.ema or self.task != "classify"):
            raise UsageError("--shard is for classifiers without --ema.", "Leave one of them out.")
        require_size(self.model)
