"""The settings of the jobs that use a model or show what it sees; positional arguments first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.common import DATA_HELP, MODEL_HELP, NORMALIZATION_HELP, Job, Launched
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
        False, "torch.compile the tokenizer, where it is not fp32.", panel="Machine", flags=("--compile/--no-compile",)
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
        None,
        "Side of the square the image is cut to; default the tokenizer's own.",
        panel="Tokenizer",
        metavar="PX",
        ge=1,
    )
    batch_size: int = option(64, "Images at once.", panel="Machine", ge=1)
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
        if self.decode and self.gpus > 1:
            raise UsageError(f"--gpus is {self.gpus}, but --decode computes in one process.", "Leave it out.")


@dataclass(frozen=True, kw_only=True)
class MaskPreviewConfig(Job):
    command: ClassVar[str] = "mask-preview"
    batch_size: int = option(8, "Images at once through --model.", panel="Machine", ge=1)
    seed: int | None = option(  # type: ignore[assignment]
        None, "Everything random follows from it; default the run's, else 0.", panel="Machine", ge=0, le=2**63 - 1
    )
    inputs: tuple[str, ...] = option((), DATA_HELP, argument=True, panel="Data", metavar="INPUT")
    split: str | None = option(None, "Sub-folder to read, where the data has splits.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    masking: str | None = option(None, "blockwise (default) or random.", panel="Masking")
    ratio: float | None = option(
        None, "Share of patches to hide (0-1); 0.4 where nothing is given.", panel="Masking", gt=0, le=1
    )
    num_masked: int | None = option(None, "Patches to hide, instead of --ratio.", panel="Masking")
    min_block: int | None = option(None, "Fewest patches of a block; default 16.", panel="Masking", ge=1)
    grid: tuple[int, int] | None = option(
        None, "Patches down and across; default 14,14.", panel="Masking", metavar="H,W", example="14,14", ge=1
    )
    epoch: int = option(0, "The epoch whose masks are shown.", panel="Masking", ge=0)
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
    stats: int | None = option(
        None, "Statistics over N masks instead; needs no input.", panel="Output", metavar="N", ge=1
    )


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a segmenter looks at an image."""

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
class EvalConfig(Windows, Launched):
    command: ClassVar[str] = "eval"
    model: str = option(
        "",
        f"{MODEL_HELP}; with knn and linear also `random`. Several may be given before DATA: one that fails costs only "
        "its own report; with several --gpus it ends all.",
        argument=True,
        required=True,
        panel="Data",
        metavar="MODEL",
    )
    data: tuple[str, ...] = option((), DATA_HELP, argument=True, required=True, panel="Data", metavar="DATA")
    split: str | None = option(None, "Sub-folder of DATA to measure on, where it has splits (val).", panel="Data")
    protocol: Literal["head", "knn", "linear"] = option(
        "head",
        "head: what it was finetuned for; knn, linear: frozen features of --train, measured on DATA.",
        panel="Options",
    )
    train: str | None = option(
        None,
        "knn, linear: labelled images to learn from; default the train split of DATA.",
        panel="Probe",
        metavar="DATA",
    )
    layer: str = option(
        "-1",
        "knn, linear: the block whose output is probed, from 1 as in the paper, -1 the last; sweep: all, and the best.",
        panel="Probe",
        metavar="N|sweep",
    )
    k: int = option(20, "knn: neighbours that vote.", panel="Probe", ge=1)
    temperature: float = option(0.07, "knn: a vote weighs exp(cosine / temperature).", panel="Probe", gt=0)
    pool: Literal["mean", "class"] = option(
        "mean", "knn, linear: the mean of the patches, or the class token (DINO's).", panel="Probe"
    )
    standardize: bool = option(
        False,
        "knn, linear: take off each number's mean over --train and divide by its deviation (MAE's probe does so).",
        panel="Probe",
    )
    probe_epochs: int = option(50, "linear: passes over the features.", panel="Probe", ge=1)
    probe_lr: float = option(4e-3, "linear: AdamW's learning rate, cosine to 0.", panel="Probe", gt=0)
    probe_batch_size: int = option(1024, "linear: images of one step.", panel="Probe", ge=1)
    feature_cache: str | None = option(
        None, "knn, linear: where features are kept; default the program's cache.", panel="Probe", metavar="DIR"
    )
    size: tuple[int, int] | None = option(
        None,
        "The images in pixels: a square's side, or height and width; default the model's own.",
        panel="Options",
        ge=1,
    )
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Options")
    batch_size: int = option(128, "Images at once.", panel="Machine", ge=1)
    max_bad: float = option(
        0.05, "Share of unreadable images (0-1) past which it stops with exit code 3.", panel="Data", ge=0, le=1
    )
    ignore_index: int | None = option(
        None, "Value in the masks that stands for no class; default as trained.", panel="Segmentation", ge=0, le=255
    )
    reduce_zero_label: bool = option(
        False, "0 in the masks stands for no class, 1 for the first one; as trained, too.", panel="Segmentation"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer != "sweep" and (not self.layer.removeprefix("-").isdecimal() or int(self.layer) == 0):
            raise UsageError(
                f"--layer is '{self.layer}'.", "Give a block from 1, one from the last back (-1), or sweep."
            )
        if self.layer != "-1" and self.protocol == "head":
            raise UsageError("--layer is for probes, and --protocol is head.", "Add --protocol knn or linear.")
        if self.train is not None and self.protocol == "head":
            raise UsageError(
                "--train is for probes, and --protocol is head.", "Add --protocol knn or linear, or leave --train out."
            )


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Windows, Job):
    command: ClassVar[str] = "predict"
    model: str = option(
        "", f"A finetuned model. {MODEL_HELP}.", argument=True, required=True, panel="Data", metavar="MODEL"
    )
    inputs: tuple[str, ...] = option((), DATA_HELP, argument=True, required=True, panel="Data", metavar="INPUT")
    split: str | None = option(None, "Sub-folder to read, where the data has splits.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Options")
    top: int = option(5, "Best classes to list.", panel="Output", metavar="K", ge=1)
    size: tuple[int, int] | None = option(
        None,
        "The images in pixels: a square's side, or height and width; default the model's own.",
        panel="Options",
        ge=1,
    )
    batch_size: int = option(64, "Images at once.", panel="Machine", ge=1)
    score_threshold: float = option(
        0.5, "Least score of the boxes that a detector tells (0-1).", panel="Output", metavar="SCORE", ge=0, le=1
    )
    output: str | None = option(
        None,
        "Folder for a segmenter's masks, PNG with a palette, or for pictures with a detector's boxes.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="DIR",
    )
    overlay: bool = option(
        False, "A segmenter's masks over the images too, beside them; 0 is left as it is.", panel="Output"
    )


@dataclass(frozen=True, kw_only=True)
class AttnMapConfig(Job):
    command: ClassVar[str] = "attn-map"
    batch_size: int = option(8, "Images at once.", panel="Machine", ge=1)
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
        ge=1,
    )
    threshold: float | None = option(
        None, "Show only the patches that hold this share of the attention (0-1).", panel="Output", ge=0, le=1
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
        if self.head not in ("mean", "all") and not self.head.isdecimal():
            raise UsageError(f"--head is '{self.head}'.", "Give mean, all, or a number from 0.")
