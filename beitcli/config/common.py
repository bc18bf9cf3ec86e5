"""Settings shared by several commands, and checks of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from beitcli.config.data_formats import data_help
from beitcli.config.fields import check_bounds, option
from beitcli.config.intensity import HELP as INTENSITY_HELP
from beitcli.config.intensity import parse_intensity
from beitcli.config.registry import Registry
from beitcli.errors import UsageError

NORMALIZATION_HELP = "How images are normalized; default as the checkpoint says."
MASKING_NAMES = ("blockwise", "random")  # of `masking.MASKINGS`, whose import needs numpy
# Of --pool: the word of the class token that timm's and the paper's users know.
POOL_SYNONYMS = {"class": "cls", "class+mean": "cls+mean"}
FEATURE_POOLS = {"mean": "mean", "none": "none"} | {cls: name for name, cls in POOL_SYNONYMS.items()}  # in engine/
METRIC_WRITERS = Registry("beitcli.engine.trainer.metric_writers", "WRITER", "metric writer")
ALWAYS_ON = "jsonl"  # the writer of metrics.jsonl
MODEL_HELP = (
    "A run, a checkpoint, anyone's folder or file of weights (FILE#NAME: one of several networks), hf://OWNER/NAME or "
    "timm/NAME"
)


def overwrite_option() -> bool:
    """Returns the setting of every command that writes output files."""
    return option(False, "Overwrite existing output files; never inputs.", panel="Output")


def in_memory_option(**how: Any) -> Any:
    """Returns the setting of the trainings on images without masks or boxes."""
    return option(
        False,
        "Read training images once and keep their files in memory, at most half of what is free; for "
        "slow disks and networks. The run is the same.",
        panel="Data",
        saved=False,
        may_change_on_resume=True,
        **how,
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of every command that computes on images."""

    command: ClassVar[str] = ""
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "auto", "Device to compute on.", panel="Machine", may_change_on_resume=True, saved=False
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = option(
        "auto",
        "Arithmetic of the forward and backward pass; auto: bf16 on CUDA, else fp32. tf32, on CUDA only, is fp32 with "
        "coarser matrix products.",
        panel="Machine",
    )
    workers: int = option(
        -1,
        "Processes that load images; -1: as many as suit, 0: load in the main process.",
        panel="Machine",
        may_change_on_resume=True,
        saved=False,
        ge=-1,
    )
    gpus: int = option(
        1,
        "Processes; this command computes in one.",
        panel="Machine",
        may_change_on_resume=True,
        saved=False,
        hidden=True,
    )
    seed: int = option(0, "Seed of everything random.", panel="Machine", ge=0, le=2**63 - 1)
    limit: int | None = option(
        None, "Use N images of the data, chosen by --seed, balanced over the classes.", panel="Data", metavar="N", ge=1
    )
    intensity_range: str | None = option(None, INTENSITY_HELP, panel="Data", metavar="full|auto|LOW,HIGH")
    pages: Literal["first", "all"] = option(
        "first", "Pages to read of a multi-page TIFF: the first, or all, each as an image of its own.", panel="Data"
    )

    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # as of `Resolved`

    def __post_init__(self) -> None:
        check_bounds(self)
        parse_intensity(self.intensity_range)
        if self.gpus != 1 and not isinstance(self, Launched):
            raise UsageError(
                f"--gpus is {self.gpus}, but `beit {self.command}` computes in one process.", "Leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class Launched(Job):
    """Settings of commands that can run in several processes."""

    gpus: int = option(
        1,
        "Processes of all machines together, one a GPU; with --device cpu processes of this machine.",
        panel="Machine",
        may_change_on_resume=True,
        saved=False,
        ge=1,
    )
    nodes: int = option(1, "Machines that share --gpus.", panel="Machine", may_change_on_resume=True, saved=False, ge=1)
    rdzv_endpoint: str | None = option(
        None,
        "Where machines meet: the name of the first and a free port there.",
        panel="Machine",
        may_change_on_resume=True,
        saved=False,
        metavar="HOST:PORT",
    )
    rdzv_timeout: int = option(
        600,
        "Seconds that machines wait for one another.",
        panel="Machine",
        may_change_on_resume=True,
        saved=False,
        ge=1,
    )
    process_timeout: int = option(
        600,
        "Seconds without a sign of life after which a process counts as hung.",
        panel="Machine",
        may_change_on_resume=True,
        saved=False,
        ge=1,
    )
    max_restarts: int = option(
        3,
        "Restarts of the processes after one crashed, each from the last checkpoint.",
        panel="Machine",
        may_change_on_resume=True,
        saved=False,
        metavar="N",
        ge=0,
    )

    @property
    def starts_over(self) -> str:
        """Why a job that is started again cannot go on with what it left, to follow `as`; empty if it can."""
        return "" if getattr(self, "output", None) != "-" else "what is on stdout is out already; -o FILE goes on"


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """Options of commands that apply a model to each image of INPUT: `embed` and `predict`."""

    split: str | None = option(None, "Split to read, where the data has splits; default val.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Options")
    size: tuple[int, int] | None = option(
        None,
        "Image size in pixels: side of a square, or height and width; default the model's own.",
        panel="Options",
        ge=1,
    )
    batch_size: int = option(64, "Images per forward pass.", panel="Machine", ge=1)


@dataclass(frozen=True, kw_only=True)
class Training(Launched):
    """Settings of every training command."""

    data: tuple[str, ...] = option((), data_help, argument=True, required=True, panel="Data", metavar="DATA")
    split: str | None = option(None, "Split of DATA to train on, by any of its names; default train.", panel="Data")
    max_bad: float = option(
        0.05,
        "Share of unreadable images (0-1) past which the run stops with exit code 3.",
        panel="Data",
        may_change_on_resume=True,
        ge=0,
        le=1,
    )
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    out: str = option(
        "", "Run folder to create; default runs/COMMAND-DATE-TIME.", panel="Run", saved=False, metavar="RUN"
    )
    resume: bool = option(False, "Resume the run in --out; start it if there is none.", panel="Run", saved=False)
    config: str | None = option(None, "Settings from a TOML file.", panel="Run", saved=False, metavar="FILE.toml")
    dry_run: bool = option(False, "Print the plan, time a few steps, train nothing.", panel="Run", saved=False)
    save_every: int | None = option(
        None,
        "Optimizer steps between checkpoints; default a tenth of the run.",
        panel="Run",
        may_change_on_resume=True,
        metavar="STEPS",
        ge=1,
    )
    keep: int = option(
        2, "Number of newest checkpoints to keep.", panel="Run", may_change_on_resume=True, metavar="N", ge=1
    )
    measure_share: float = option(
        0.1,
        "Share of the run (0-1) that measuring held-out images may take before the last save, which always measures; "
        "1 measures at every save.",
        panel="Run",
        may_change_on_resume=True,
        metavar="SHARE",
        earlier=1.0,
        ge=0,
        le=1,
    )
    log_every: int | None = option(
        None,
        "Optimizer steps between lines of metrics.jsonl; default a hundredth of the run.",
        panel="Run",
        may_change_on_resume=True,
        metavar="STEPS",
        ge=1,
    )
    log_to: tuple[str, ...] = option(
        (),
        "Also send metrics to these services, beside metrics.jsonl; separated by commas.",
        panel="Run",
        flags=("--log-to", "--log"),
        may_change_on_resume=True,
        choices=lambda: tuple(name for name in METRIC_WRITERS.names() if name != ALWAYS_ON),
    )
    epochs: float | None = option(None, "Passes over the data.", panel="Schedule", gt=0)
    steps: int | None = option(None, "Optimizer steps, instead of --epochs.", panel="Schedule", ge=1)
    batch_size: int = option(64, "Images per optimizer step, over all devices.", panel="Schedule", ge=1)
    micro_batch: int | None = option(
        None,
        "Images per forward pass, accumulated to --batch-size; default the batch, at most 128; on one GPU what fits.",
        panel="Schedule",
        may_change_on_resume=True,
        ge=1,
    )
    lr: float = option(1.5e-3, "Peak learning rate.", panel="Schedule", gt=0)
    min_lr: float = option(1e-5, "Learning rate at the end of the cosine.", panel="Schedule", ge=0)
    warmup_epochs: float | None = option(None, "Epochs of linear warm-up.", panel="Schedule", ge=0)
    warmup_steps: int | None = option(
        None, "Steps of linear warm-up, instead of --warmup-epochs.", panel="Schedule", ge=0
    )
    weight_decay: float = option(0.05, "AdamW's weight decay, of matrices.", panel="Schedule", ge=0)
    beta2: float = option(0.999, "AdamW's decay of the second moment.", panel="Schedule", ge=0, le=0.999999)
    clip: float | None = option(None, "Clip the gradient norm to this.", panel="Schedule", gt=0)
    grad_compression: Literal["none", "bf16"] = option(
        "none",
        "Precision in which processes sum gradients: none: fp32; bf16: half the bytes, and rounded sums. "
        "No effect in one process.",
        panel="Machine",
    )

    @property
    def whole_epochs(self) -> float | None:
        """`--epochs`; None if the number of steps is given instead."""
        return self.epochs if self.steps is None else None

    def __post_init__(self) -> None:
        super().__post_init__()
        texts = [value if isinstance(value, tuple) else (value,) for value in vars(self).values()]
        for text in (each for value in texts for each in value if isinstance(each, str)):
            if not text.isascii() and text != text.encode(errors="replace").decode():
                raise UsageError(
                    f"The name {text!r} is not UTF-8, so config.toml cannot hold it.",
                    "Rename it, or give a link to it.",
                )
        if self.steps is None and self.epochs is None:
            raise UsageError("Neither --steps nor --epochs is set.", "Give one of them, or a --recipe.")


@dataclass(frozen=True, kw_only=True)
class Previewed(Training):
    """Settings of the commands whose models make pictures."""

    previews: int = option(
        4,
        "Number of held-out images to draw at each save, with the model's output, into RUN/previews; 0 = none.",
        panel="Run",
        may_change_on_resume=True,
        metavar="N",
        ge=0,
        le=16,
    )


@dataclass(frozen=True, kw_only=True)
class Sharded(Training):
    """Settings of the commands that train a BEiT, whose model may be sharded (FSDP2)."""

    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = option(
        "auto",
        "Arithmetic of the forward and backward pass; auto: bf16 on CUDA; on a CPU fp32, with training steps in bf16 "
        "where that is clearly faster. tf32, on CUDA only, is fp32 with coarser matrix products.",
        panel="Machine",
    )
    cpu_matmul: Literal["auto", "torch", "onednn"] = option(
        "auto",
        "Library of fp32 matrix products in training steps on a CPU: torch's own, or oneDNN; auto: what is faster here "
        "and as exact.",
        panel="Machine",
    )
    decay_bias_tables: bool = option(
        True,
        "Weight decay of the relative position bias tables, as in the release.",
        panel="Schedule",
        flags=("--decay-bias-tables/--no-decay-bias-tables",),
        earlier=False,
    )
    shard: bool = option(
        False,
        "Shard weights, gradients and optimizer state over the processes (FSDP2), for models that outgrow a GPU.",
        panel="Machine",
        may_change_on_resume=True,
        saved=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard and self.precision == "fp16":
            raise UsageError("--shard does not go with fp16, whose scaler looks at one process.", "Give bf16 or fp32.")
        if self.shard and self.grad_compression != "none":
            raise UsageError("--shard sums gradients in fp32, uncompressed.", "Leave --grad-compression out.")
