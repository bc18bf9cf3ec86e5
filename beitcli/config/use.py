"""The settings of the jobs that use a model or show what it sees; positional arguments first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.common import DATA_HELP, MODEL_HELP, NORMALIZATION_HELP, Job, Launched, at_least, between
from beitcli.config.fields import option
from beitcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig(Launched):
    command: ClassVar[str] = "tokenize"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Arithmetic of the tokenizer; auto: fp32. Others are faster where the processor has them, and change some "
        "tokens: --stats says how many.",
        panel="Machine",
    )
    compile: bool = option(
        False,
        "torch.compile the tokenizer, where it is not fp32.",
        panel="Machine",
        flags=("--compile/--no-compile",),
    )
    inputs: tuple[str, ...] = option((), DATA_HELP, argument=True, panel="Data", metavar="INPUT")
    tokenizer: str = option(
        "",
        "dall-e; a folder with OpenAI's encoder.pkl; hf://OWNER/NAME; a run of train-tokenizer or pretrain.",
        panel="Tokenizer",
        required=True,
        metavar="TOKENIZER",
    )
    split: str | None = option(None, "Sub-folder to read, where the data has splits.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    output: str = option(
        "-",
        "Where the tokens go: .jsonl, .npz, .safetensors, .parquet; - is stdout.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="FILE",
    )
    size: int | None = option(
        None, "Side of the square the image is cut to; default the tokenizer's own.", panel="Tokenizer", metavar="PX"
    )
    batch_size: int = option(64, "Images at once.", panel="Machine")
    on_bad: Literal["report", "skip", "fail"] = option("report", "What an unreadable image does.", panel="Data")
    resume: bool = option(False, "Skip what FILE already holds.", panel="Output")
    reconstruct: str | None = option(
        None, "Write a PNG of the decoded tokens beside each image there.", panel="Output", metavar="DIR"
    )
    decode: bool = option(
        False, "The other way: token lines in (INPUT or stdin), PNG files out, into -o DIR.", panel="Output"
    )
    stats: bool = option(False, "One summary document instead of tokens.", panel="Output")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--batch-size", self.batch_size, 1)
        at_least("--size", self.size, 1)


@dataclass(frozen=True, kw_only=True)
class MaskPreviewConfig(Job):
    command: ClassVar[str] = "mask-preview"
    batch_size: int = option(8, "Images at once through --model.", panel="Machine")
    seed: int | None = option(  # type: ignore[assignment]
        None, "Everything random follows from it; default the run's, else 0.", panel="Machine"
    )
    inputs: tuple[str, ...] = option((), DATA_HELP, argument=True, panel="Data", metavar="INPUT")
    split: str | None = option(None, "Sub-folder to read, where the data has splits.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    masking: str | None = option(None, "blockwise (default) or random.", panel="Masking")
    ratio: float | None = option(None, "Share of patches to hide (0-1); 0.4 where nothing is given.", panel="Masking")
    num_masked: int | None = option(None, "Patches to hide, instead of --ratio.", panel="Masking")
    min_block: int | None = option(None, "Fewest patches of a block; default 16.", panel="Masking")
    grid: tuple[int, int] | None = option(
        None, "Patches down and across; default 14,14.", panel="Masking", metavar="H,W", example="14,14"
    )
    epoch: int = option(0, "The epoch whose masks are shown.", panel="Masking")
    output: str | None = option(
        None,
        "Picture to write; - is stdout. Several inputs: a folder.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="OUT.png",
    )
    model: str | None = option(
        None,
        f"A masked image model: its masks, what it makes of the hidden patches. {MODEL_HELP}.",
        panel="Model",
        metavar="MODEL",
    )
    tokenizer: str | None = option(
        None, "The tokenizer that --model learned from, where it lies elsewhere.", panel="Model", metavar="TOKENIZER"
    )
    stats: int | None = option(None, "Statistics over N masks instead; needs no input.", panel="Output", metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--batch-size", self.batch_size, 1)
        at_least("--epoch", self.epoch, 0)
        at_least("--stats", self.stats, 1)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Launched):
    command: ClassVar[str] = "eval"
    model: str = option("", f"A classifier. {MODEL_HELP}.", argument=True, required=True, panel="Data", metavar="MODEL")
    data: tuple[str, ...] = option((), DATA_HELP, argument=True, required=True, panel="Data", metavar="DATA")
    split: str | None = option(None, "Sub-folder of DATA to measure on, where it has splits (val).", panel="Data")
    protocol: Literal["head"] = option("head", "head: the classifier it was finetuned with.", panel="Options")
    size: tuple[int, int] | None = option(
        None, "The images in pixels: a square's side, or height and width; default the model's own.", panel="Options"
    )
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Options")
    batch_size: int = option(128, "Images at once.", panel="Machine")
    max_bad: float = option(
        0.05, "Share of unreadable images (0-1) past which it stops with exit code 3.", panel="Data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--batch-size", self.batch_size, 1)
        between("--max-bad", self.max_bad, 0, 1)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Job):
    command: ClassVar[str] = "predict"
    model: str = option("", f"A classifier. {MODEL_HELP}.", argument=True, required=True, panel="Data", metavar="MODEL")
    inputs: tuple[str, ...] = option((), DATA_HELP, argument=True, required=True, panel="Data", metavar="INPUT")
    split: str | None = option(None, "Sub-folder to read, where the data has splits.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Options")
    top: int = option(5, "Best classes to list.", panel="Output", metavar="K")
    size: tuple[int, int] | None = option(
        None, "The images in pixels: a square's side, or height and width; default the model's own.", panel="Options"
    )
    batch_size: int = option(64, "Images at once.", panel="Machine")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--batch-size", self.batch_size, 1)
        at_least("--top", self.top, 1)


@dataclass(frozen=True, kw_only=True)
class AttnMapConfig(Job):
    command: ClassVar[str] = "attn-map"
    batch_size: int = option(8, "Images at once.", panel="Machine")
    inputs: tuple[str, ...] = option((), DATA_HELP, argument=True, required=True, panel="Data", metavar="IMAGE")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    model: str | None = option(
        None, f"{MODEL_HELP}; default the newest run under runs/.", panel="Options", metavar="MODEL"
    )
    point: tuple[str, ...] = option(
        (), "Reference point in pixels of the upright image; repeatable.", panel="Options", metavar="X,Y"
    )
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Options")
    layer: int = option(-1, "Block to look into; -1 is the last.", panel="Options")
    head: str = option("mean", "mean, all, or the number of a head.", panel="Options")
    size: tuple[int, int] | None = option(
        None,
        "What the image is cut to, in pixels: a square's side, or height and width; default the model's own.",
        panel="Options",
    )
    threshold: float | None = option(
        None, "Show only the patches that hold this share of the attention (0-1).", panel="Output"
    )
    output: str | None = option(
        None,
        "Picture (.png), page (.html) or array (.npy). Several inputs: a folder.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="OUT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--batch-size", self.batch_size, 1)
        if self.threshold is not None:
            between("--threshold", self.threshold, 0, 1)
        if self.head not in ("mean", "all") and not self.head.isdecimal():
            raise UsageError(f"--head is '{self.head}'.", "Give mean, all, or a number from 0.")
