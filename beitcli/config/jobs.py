"""The settings of each job, with their units and defaults.

`python -c "from beitcli.config.jobs import PretrainConfig; PretrainConfig(data=('photos',))"` validates as the command
line does. Positional arguments come first, in the order of the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.architecture import SIZES, Architecture
from beitcli.config.fields import option, suggestion
from beitcli.errors import UsageError

DATA_HELP = "Images: folders, tar shards, lists, `-` for stdin, or `sample` (drawn here, needs no files)."


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every command that computes has."""

    command: ClassVar[str] = ""
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "auto", "Where to compute.", panel="Machine", harmless=True, saved=False
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "Arithmetic of the forward and backward pass; auto: bf16 on CUDA, else fp32.", panel="Machine"
    )
    workers: int = option(
        -1, "Processes that load images; -1 chooses, 0 loads in this one.", panel="Machine", harmless=True, saved=False
    )
    gpus: int = option(
        1, "Processes, one a GPU. This version computes in one.", panel="Machine", harmless=True, saved=False
    )
    seed: int = option(0, "Everything random follows from it.", panel="Machine")
    limit: int | None = option(
        None, "Take N images of the data, in keyed order, balanced over the classes.", panel="Data", metavar="N"
    )

    def __post_init__(self) -> None:
        at_least("--workers", self.workers, -1)
        at_least("--seed", self.seed, 0)
        at_least("--limit", self.limit, 1)
        if self.gpus != 1:
            raise UsageError(f"--gpus is {self.gpus}, but this version computes in one process.", "Leave --gpus out.")


@dataclass(frozen=True, kw_only=True)
class Training(Job):
    """What every command that trains has."""

    data: tuple[str, ...] = option((), DATA_HELP, argument=True, required=True, panel="Data", metavar="DATA...")
    split: str | None = option(None, "Sub-folder of DATA to train on, where it has splits (train).", panel="Data")
    max_bad: float = option(
        0.05, "Share of unreadable images (0-1) past which the run stops with exit code 3.", panel="Data"
    )
    out: str = option("", "Run folder to make; default runs/COMMAND-DATE-TIME.", panel="Run", saved=False, metavar="RUN")
    resume: bool = option(False, "Go on with the run in --out; begins it where there is none.", panel="Run", saved=False)
    config: str | None = option(None, "Settings from a TOML file.", panel="Run", saved=False, metavar="FILE.toml")
    dry_run: bool = option(
        False, "Print the plan, time a few steps, train nothing.", panel="Run", saved=False
    )
    save_every: int | None = option(
        None, "Optimizer steps between checkpoints; default a tenth of the run.", panel="Run", harmless=True, metavar="STEPS"
    )
    keep: int = option(2, "Newest checkpoints to keep.", panel="Run", harmless=True, metavar="N")
    log_every: int | None = option(
        None, "Optimizer steps between lines of metrics.jsonl; default a hundredth of the run.", panel="Run", harmless=True,
        metavar="STEPS",
    )
    epochs: float | None = option(None, "Passes over the data.", panel="Schedule")
    steps: int | None = option(None, "Optimizer steps, instead of --epochs.", panel="Schedule")
    batch_size: int = option(64, "Images of one optimizer step, all devices together.", panel="Schedule")
    micro_batch: int | None = option(
        None, "Images of one forward pass; smaller ones accumulate to --batch-size.", panel="Schedule"
    )
    lr: float = option(1.5e-3, "Peak learning rate.", panel="Schedule")
    min_lr: float = option(1e-5, "Learning rate at the end of the cosine.", panel="Schedule")
    warmup_epochs: float | None = option(None, "Epochs of linear warm-up.", panel="Schedule")
    warmup_steps: int | None = option(None, "Steps of linear warm-up, instead of --warmup-epochs.", panel="Schedule")
    weight_decay: float = option(0.05, "AdamW's decay of matrices.", panel="Schedule")
    beta2: float = option(0.999, "AdamW's second moment.", panel="Schedule")
    clip: float | None = option(None, "Largest gradient norm.", panel="Schedule")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_size", "micro_batch", "save_every", "log_every", "keep"):
            at_least("--" + name.replace("_", "-"), getattr(self, name), 1)
        for name in ("epochs", "lr", "clip"):
            above_zero("--" + name, getattr(self, name))
        between("--max-bad", self.max_bad, 0, 1)
        if self.steps is None and self.epochs is None:
            raise UsageError("Neither --steps nor --epochs is set.", "Give one of them, or a --recipe.")


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(Training):
    command: ClassVar[str] = "train-tokenizer"
    recipe: str = option("small", "Named settings: tiny, small.", panel="Run", metavar="NAME")
    vocab_size: int = option(1024, "Visual tokens in the codebook.", panel="Tokenizer")
    size: int = option(32, "Side of the square images it learns from, in pixels.", panel="Tokenizer")
    width: int = option(64, "Channels of the first stage; each further stage doubles them.", panel="Tokenizer")
    groups: int = option(3, "Stages; every one after the first halves the resolution.", panel="Tokenizer")
    blocks_per_group: int = option(2, "Residual blocks a stage.", panel="Tokenizer")
    reconstruction: Literal["mse", "logit-laplace"] = option("mse", "Reconstruction loss.", panel="Tokenizer")
    kl_weight: float = option(1e-3, "Weight of KL(q || uniform) at the end of its schedule.", panel="Tokenizer")
    temperature_end: float = option(0.0625, "Gumbel-softmax temperature at the end; it starts at 1.", panel="Tokenizer")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "width", "groups", "blocks_per_group"):
            at_least("--" + name.replace("_", "-"), getattr(self, name), 1)
        at_least("--vocab-size", self.vocab_size, 2)
        above_zero("--temperature-end", self.temperature_end)
        factor = 2 ** (self.groups - 1)
        if self.size < factor or self.size % factor:
            raise UsageError(
                f"--size {self.size} is not divided by {factor}, the factor of {self.groups} stages.",
                f"Give a multiple of {factor}.",
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Training):
    command: ClassVar[str] = "pretrain"
    recipe: str = option("base", "Named settings: tiny, small, base, large.", panel="Run", metavar="NAME")
    model: str = option("base", "Size of the backbone: " + ", ".join(SIZES) + ".", panel="Model")
    image_size: int = option(224, "Side of the square images, in pixels.", panel="Model", metavar="PX")
    patch_size: int = option(16, "Side of a patch, in pixels.", panel="Model", metavar="PX")
    positions: Literal["absolute", "shared"] = option(
        "absolute", "absolute: the paper's; shared: the release's relative bias.", panel="Model"
    )
    layer_scale: float = option(0.0, "Initial LayerScale; 0 = none.", panel="Model")
    drop_path: float = option(0.1, "Stochastic depth of the last block (0-1).", panel="Model")
    tokenizer: str = option(
        "own", "A run of train-tokenizer, or `own`: train one on DATA first, into RUN/tokenizer.", panel="Tokenizer",
        metavar="TOKENIZER",
    )
    tokenizer_recipe: str = option("small", "Recipe of the `own` tokenizer.", panel="Tokenizer", metavar="NAME")
    masking: str = option("blockwise", "blockwise or random.", panel="Masking")
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
    holdout: int = option(512, "Images kept out of training to measure on, a twentieth of the data at most.", panel="Data")
    compile: bool = option(False, "torch.compile the model.", panel="Machine", harmless=True, flags=("--compile/--no-compile",))

    def __post_init__(self) -> None:
        super().__post_init__()
        between("--drop-path", self.drop_path, 0, 1)
        between("--min-crop", self.min_crop, 0, 1)
        at_least("--holdout", self.holdout, 0)
        if not self.mask and self.predict == "masked":
            raise UsageError("--no-mask leaves no masked patch to predict.", "Add --predict all.")
        if self.model not in SIZES:
            raise UsageError(
                f"There is no model '{self.model}'.", suggestion(self.model, SIZES) or f"Models: {', '.join(SIZES)}."
            )
        self.architecture  # noqa: B018 - validates itself

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            image_size=(self.image_size, self.image_size),
            patch_size=self.patch_size,
            positions=self.positions,
            layer_scale=self.layer_scale,
            **SIZES[self.model],  # type: ignore[arg-type]
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Training):
    command: ClassVar[str] = "finetune"
    recipe: str = option("base", "Named settings: tiny, small, base, large.", panel="Run", metavar="NAME")
    init: str = option("", "Where to start: a run, a checkpoint, or `random`.", panel="Model", required=True, metavar="MODEL")
    model: str = option("base", "Size of the backbone where --init is random.", panel="Model")
    size: int | None = option(None, "Side of the square images; default the model's own.", panel="Model", metavar="PX")
    patch_size: int = option(16, "Side of a patch where --init is random.", panel="Model", metavar="PX")
    positions: Literal["absolute", "per-block"] = option(
        "absolute", "Positions where --init is random.", panel="Model"
    )
    layer_scale: float = option(0.0, "LayerScale where --init is random; 0 = none.", panel="Model")
    drop_path: float = option(0.1, "Stochastic depth of the last block (0-1).", panel="Model")
    val: str | None = option(None, "Labelled images to measure on.", panel="Data", metavar="DATA")
    layer_decay: float = option(0.65, "Learning rate of a block over that of the next.", panel="Schedule")
    ema: float = option(0.0, "Decay of the moving average of the weights; 0 = none.", panel="Schedule")
    mixup: float = option(0.8, "Alpha of mixup; 0 = none.", panel="Augmentation")
    cutmix: float = option(1.0, "Alpha of cutmix; 0 = none.", panel="Augmentation")
    smoothing: float = option(0.1, "Label smoothing (0-1).", panel="Augmentation")
    rand_augment: str = option("rand-m9-mstd0.5-inc1", "timm's RandAugment policy; empty = none.", panel="Augmentation")
    erasing: float = option(0.25, "Probability of random erasing (0-1).", panel="Augmentation")
    min_crop: float = option(0.08, "Least share of the area that the random crop keeps (0-1).", panel="Augmentation")
    compile: bool = option(False, "torch.compile the model.", panel="Machine", harmless=True, flags=("--compile/--no-compile",))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("drop_path", "smoothing", "erasing", "min_crop"):
            between("--" + name.replace("_", "-"), getattr(self, name), 0, 1)
        between("--ema", self.ema, 0, 1)
        above_zero("--layer-decay", self.layer_decay)
        if self.model not in SIZES:
            raise UsageError(
                f"There is no model '{self.model}'.", suggestion(self.model, SIZES) or f"Models: {', '.join(SIZES)}."
            )


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig(Job):
    command: ClassVar[str] = "tokenize"
    inputs: tuple[str, ...] = option((), DATA_HELP, argument=True, panel="Data", metavar="[INPUT...]")
    tokenizer: str = option("", "A run of train-tokenizer.", panel="Tokenizer", required=True, metavar="TOKENIZER")
    split: str | None = option(None, "Sub-folder to read, where the data has splits.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    output: str = option("-", "Where the tokens go: .jsonl, .npz, .safetensors; - is stdout.", panel="Output", flags=("-o", "--output"), metavar="FILE")
    size: int | None = option(None, "Side of the square the image is cut to; default the tokenizer's own.", panel="Tokenizer", metavar="PX")
    batch_size: int = option(64, "Images at once.", panel="Machine")
    on_bad: Literal["report", "skip", "fail"] = option("report", "What an unreadable image does.", panel="Data")
    resume: bool = option(False, "Skip what FILE already holds.", panel="Output")
    reconstruct: str | None = option(None, "Write a PNG of the decoded tokens beside each image there.", panel="Output", metavar="DIR")
    decode: str | None = option(None, "The other way: token lines in (INPUT or stdin), PNG files out.", panel="Output", metavar="DIR")
    stats: bool = option(False, "One summary document instead of tokens.", panel="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--batch-size", self.batch_size, 1)
        at_least("--size", self.size, 1)


@dataclass(frozen=True, kw_only=True)
class MaskPreviewConfig(Job):
    command: ClassVar[str] = "mask-preview"
    inputs: tuple[str, ...] = option((), DATA_HELP, argument=True, panel="Data", metavar="[INPUT...]")
    split: str | None = option(None, "Sub-folder to read, where the data has splits.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    masking: str | None = option(None, "blockwise (default) or random.", panel="Masking")
    ratio: float | None = option(None, "Share of patches to hide (0-1); 0.4 where nothing is given.", panel="Masking")
    num_masked: int | None = option(None, "Patches to hide, instead of --ratio.", panel="Masking")
    min_block: int | None = option(None, "Fewest patches of a block; default 16.", panel="Masking")
    grid: str | None = option(None, "Patches down and across; default 14,14.", panel="Masking", metavar="H,W")
    epoch: int = option(0, "The epoch whose masks are shown.", panel="Masking")
    output: str | None = option(None, "Picture to write; - is stdout. Several inputs: a folder.", panel="Output", flags=("-o", "--output"), metavar="OUT.png")
    model: str | None = option(None, "A pretraining run: its masks and what it makes of the hidden patches.", panel="Model", metavar="RUN")
    stats: int | None = option(None, "Statistics over N masks instead; needs no input.", panel="Output", metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--epoch", self.epoch, 0)
        at_least("--stats", self.stats, 1)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Job):
    command: ClassVar[str] = "eval"
    model: str = option("", "A finetuned run or checkpoint.", argument=True, required=True, panel="Data", metavar="MODEL")
    data: tuple[str, ...] = option((), DATA_HELP, argument=True, required=True, panel="Data", metavar="DATA...")
    split: str | None = option(None, "Sub-folder of DATA to measure on, where it has splits (val).", panel="Data")
    protocol: Literal["head"] = option("head", "head: the classifier it was finetuned with.", panel="Options")
    size: int | None = option(None, "Side of the square images; default the model's own.", panel="Options", metavar="PX")
    batch_size: int = option(128, "Images at once.", panel="Machine")
    max_bad: float = option(0.05, "Share of unreadable images (0-1) past which it stops with exit code 3.", panel="Data")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--batch-size", self.batch_size, 1)
        between("--max-bad", self.max_bad, 0, 1)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Job):
    command: ClassVar[str] = "predict"
    model: str = option("", "A finetuned run or checkpoint.", argument=True, required=True, panel="Data", metavar="MODEL")
    inputs: tuple[str, ...] = option((), DATA_HELP, argument=True, required=True, panel="Data", metavar="INPUT...")
    split: str | None = option(None, "Sub-folder to read, where the data has splits.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    top: int = option(5, "Best classes to list.", panel="Output", metavar="K")
    size: int | None = option(None, "Side of the square images; default the model's own.", panel="Options", metavar="PX")
    batch_size: int = option(64, "Images at once.", panel="Machine")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--batch-size", self.batch_size, 1)
        at_least("--top", self.top, 1)


@dataclass(frozen=True, kw_only=True)
class AttnMapConfig(Job):
    command: ClassVar[str] = "attn-map"
    inputs: tuple[str, ...] = option((), DATA_HELP, argument=True, required=True, panel="Data", metavar="IMAGE...")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    model: str | None = option(None, "A run or checkpoint; default the newest run under runs/.", panel="Options", metavar="MODEL")
    point: tuple[str, ...] = option((), "Reference point in pixels of the upright image; repeatable.", panel="Options", metavar="X,Y")
    layer: int = option(-1, "Block to look into; -1 is the last.", panel="Options")
    head: str = option("mean", "mean, all, or the number of a head.", panel="Options")
    size: int | None = option(None, "Side of the square the image is cut to; default the model's own.", panel="Options", metavar="PX")
    threshold: float | None = option(None, "Show only the patches that hold this share of the attention (0-1).", panel="Output")
    output: str | None = option(None, "Picture (.png), page (.html) or array (.npy). Several inputs: a folder.", panel="Output", flags=("-o", "--output"), metavar="OUT")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--size", self.size, 1)
        if self.threshold is not None:
            between("--threshold", self.threshold, 0, 1)
        if self.head not in ("mean", "all") and not self.head.isdecimal():
            raise UsageError(f"--head is '{self.head}'.", "Give mean, all, or a number from 0.")


def at_least(flag: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise UsageError(f"{flag} is {value}; it must be at least {least}.", f"Give {flag} {least} or more.")


def above_zero(flag: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise UsageError(f"{flag} is {value}; it must be above 0.", f"Give {flag} a positive number.")


def between(flag: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{flag} is {value}; it must lie between {low} and {high}.", f"Give {flag} such a number.")
