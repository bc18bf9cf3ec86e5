"""The settings of the jobs that train, with their units and defaults; positional arguments first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.architecture import SIZES, Architecture
from beitcli.config.common import MODEL_HELP, NORMALIZATION_HELP, Training, above_zero, at_least, between
from beitcli.config.fields import option, suggestion
from beitcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(Training):
    command: ClassVar[str] = "train-tokenizer"
    recipe: str = option("small", "Named settings: tiny, small.", panel="Run", metavar="NAME")
    vocab_size: int = option(1024, "Visual tokens in the codebook.", panel="Tokenizer")
    size: int = option(32, "Side of the square images it learns from, in pixels.", panel="Tokenizer")
    width: int = option(32, "Channels of the first stage; each further stage doubles them.", panel="Tokenizer")
    groups: int = option(3, "Stages; every one after the first halves the resolution.", panel="Tokenizer")
    blocks_per_group: int = option(1, "Residual blocks a stage.", panel="Tokenizer")
    reconstruction: Literal["mse", "logit-laplace"] = option("mse", "Reconstruction loss.", panel="Tokenizer")
    kl_weight: float = option(5e-5, "Weight of KL(q || uniform) of each patch, after its rise.", panel="Tokenizer")
    usage_weight: float = option(
        3e-3, "Weight of KL(mean q of the batch || uniform), which keeps every code in use.", panel="Tokenizer"
    )
    temperature_end: float = option(
        0.0625, "Gumbel-softmax temperature from four fifths of the run on; it starts at 1.", panel="Tokenizer"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "width", "groups", "blocks_per_group"):
            at_least("--" + name.replace("_", "-"), getattr(self, name), 1)
        at_least("--vocab-size", self.vocab_size, 2)
        above_zero("--temperature-end", self.temperature_end)
        at_least("--kl-weight", self.kl_weight, 0)
        at_least("--usage-weight", self.usage_weight, 0)
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
        (224, 224), "The images in pixels: the side of a square, or height and width.", panel="Model"
    )
    patch_size: int = option(16, "Side of a patch, in pixels.", panel="Model", metavar="PX")
    positions: Literal["absolute", "shared"] = option(
        "absolute", "absolute: the paper's; shared: the release's relative bias.", panel="Model"
    )
    layer_scale: float = option(0.0, "Initial LayerScale; 0 = none.", panel="Model")
    drop_path: float = option(0.1, "Stochastic depth of the last block (0-1).", panel="Model")
    tokenizer: str = option(
        "own",
        "dall-e; a folder with OpenAI's encoder.pkl; hf://OWNER/NAME; a run of train-tokenizer; `own`: train one on "
        "DATA first, into RUN/tokenizer; `pixels`: as --target pixels.",
        panel="Tokenizer",
        metavar="TOKENIZER",
    )
    tokenizer_recipe: str = option("small", "Recipe of the `own` tokenizer.", panel="Tokenizer", metavar="NAME")
    tokenizer_steps: int | None = option(
        None, "Optimizer steps of the `own` tokenizer; default its recipe's.", panel="Tokenizer", metavar="STEPS"
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
    ratio: float | None = option(None, "Share of patches to hide (0-1); 0.4 where nothing is given.", panel="Masking")
    num_masked: int | None = option(None, "Patches to hide, instead of --ratio.", panel="Masking")
    min_block: int = option(16, "Fewest patches of a block.", panel="Masking")
    predict: Literal["masked", "all"] = option(
        "masked", "Patches the loss is taken over (Table 4's ablation: all).", panel="Masking"
    )
    mask: bool = option(
        True, "Hide patches at all (Table 4's ablation: --no-mask).", panel="Masking", flags=("--mask/--no-mask",)
    )
    color_jitter: float = option(0.4, "Brightness, contrast and saturation (0-1).", panel="Data")
    min_crop: float = option(0.08, "Least share of the area that the random crop keeps (0-1).", panel="Data")
    views: Literal["fast", "reference"] = option(
        "fast",
        "fast: crop, resize, then jitter on the device; reference: the release's order, with Pillow. Equal draws.",
        panel="Data",
    )
    normalization: Literal["imagenet", "inception"] = option(
        "imagenet",
        "Of the images: ImageNet's mean and std, or 0.5 and 0.5 (the release's, on 22k).",
        panel="Data",
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
        512, "Images kept out of training to measure on, a twentieth of the data at most.", panel="Data"
    )
    residual: Literal["fp32", "bf16"] = option(
        "fp32",
        "Residual stream between blocks; bf16 moves half the bytes and goes with --precision bf16.",
        panel="Machine",
    )
    compile: bool | None = option(
        None,
        "torch.compile the step; default on CUDA; its first step takes about a minute longer.",
        panel="Machine",
        harmless=True,
        flags=("--compile/--no-compile",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        between("--drop-path", self.drop_path, 0, 1)
        between("--min-crop", self.min_crop, 0, 1)
        between("--color-jitter", self.color_jitter, 0, 1)
        at_least("--layer-scale", self.layer_scale, 0)
        at_least("--holdout", self.holdout, 0)
        at_least("--tokenizer-steps", self.tokenizer_steps, 1)
        if not self.mask and self.predict == "masked":
            raise UsageError("--no-mask leaves no masked patch to predict.", "Add --predict all.")
        if self.tokenizer == "pixels":  # another way to say it
            object.__setattr__(self, "target", "pixels")
            object.__setattr__(self, "tokenizer", "own")
        if self.model not in SIZES:
            raise UsageError(
                f"There is no model '{self.model}'.", suggestion(self.model, SIZES) or f"Models: {', '.join(SIZES)}."
            )
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
        None, "The images in pixels: a square's side, or height and width; default the model's own.", panel="Model"
    )
    patch_size: int = option(16, "Side of a patch where --init is random.", panel="Model", metavar="PX")
    positions: Literal["absolute", "per-block"] = option("absolute", "Positions where --init is random.", panel="Model")
    layer_scale: float = option(0.0, "LayerScale where --init is random; 0 = none.", panel="Model")
    drop_path: float = option(0.1, "Stochastic depth of the last block (0-1).", panel="Model")
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Model")
    val: str | None = option(None, "Labelled images to measure on.", panel="Data", metavar="DATA")
    layer_decay: float = option(0.65, "Learning rate of a block over that of the next.", panel="Schedule")
    ema: float = option(0.0, "Decay of the moving average of the weights; 0 = none.", panel="Schedule")
    mixup: float = option(0.8, "Alpha of mixup; 0 = none.", panel="Augmentation")
    cutmix: float = option(1.0, "Alpha of cutmix; 0 = none.", panel="Augmentation")
    smoothing: float = option(0.1, "Label smoothing (0-1).", panel="Augmentation")
    rand_augment: str = option("rand-m9-mstd0.5-inc1", "timm's RandAugment policy; empty = none.", panel="Augmentation")
    repeats: int = option(
        1,
        "Views of each image in a row, an epoch still as many views as there are images (DeiT: 3).",
        panel="Augmentation",
    )
    erasing: float = option(0.25, "Probability of random erasing (0-1).", panel="Augmentation")
    min_crop: float = option(0.08, "Least share of the area that the random crop keeps (0-1).", panel="Augmentation")
    classes: str | None = option(
        None,
        "Class names, a line each in label order; default class-00 and so on.",
        panel="Segmentation",
        metavar="FILE",
    )
    ignore_index: int = option(255, "Value in the masks that stands for no class.", panel="Segmentation")
    reduce_zero_label: bool = option(
        False, "0 in the masks stands for no class, 1 for the first one (ADE20K).", panel="Segmentation"
    )
    short_side: int | None = option(
        None,
        "Shorter side that images are resized to, before the random factor; default that of --size; 0 keeps their own.",
        panel="Segmentation",
        metavar="PX",
    )
    min_resize: float = option(0.5, "Least random factor of the resize; to detect, too.", panel="Segmentation")
    max_resize: float = option(2.0, "Largest random factor of the resize; to detect, too.", panel="Segmentation")
    largest_share: float = option(
        0.75, "Share of a crop that one class may have (0-1), in 10 tries; 1 takes any crop.", panel="Segmentation"
    )
    photometric: bool = option(
        True,
        "Vary brightness, contrast, saturation and hue.",
        panel="Segmentation",
        flags=("--photometric/--no-photometric",),
    )
    head_width: int = option(256, "Channels of the pyramid that objects are looked for in.", panel="Detection")
    regions: int = option(
        512, "Regions of an image that the box head learns from; twice as many are proposed.", panel="Detection"
    )
    compile: bool | None = option(
        None,
        "torch.compile the step; default on CUDA for --task classify; its first step takes about a minute longer.",
        panel="Machine",
        harmless=True,
        flags=("--compile/--no-compile",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("head_width", "regions"):
            at_least("--" + name.replace("_", "-"), getattr(self, name), 4)
        between("--ignore-index", self.ignore_index, 0, 255)
        at_least("--short-side", self.short_side, 0)
        above_zero("--min-resize", self.min_resize)
        at_least("--max-resize", self.max_resize, self.min_resize)
        between("--largest-share", self.largest_share, 0, 1)
        if self.head is not None and self.head not in HEADS_OF_TASK[self.task]:
            fitting = " or ".join(HEADS_OF_TASK[self.task])
            raise UsageError(f"--head {self.head} is no head of --task {self.task}.", f"Give {fitting}.")
        for name in ("drop_path", "smoothing", "erasing", "min_crop"):
            between("--" + name.replace("_", "-"), getattr(self, name), 0, 1)
        between("--ema", self.ema, 0, 1)
        for name in ("mixup", "cutmix", "layer_scale"):
            at_least("--" + name.replace("_", "-"), getattr(self, name), 0)
        above_zero("--layer-decay", self.layer_decay)
        at_least("--repeats", self.repeats, 1)
        if self.shard and (self.ema or self.task != "classify"):
            raise UsageError("--shard is for classifiers without --ema.", "Leave one of them out.")
        if self.model not in SIZES:
            raise UsageError(
                f"There is no model '{self.model}'.", suggestion(self.model, SIZES) or f"Models: {', '.join(SIZES)}."
            )
