"""Settings of `eval`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.common import MODEL_HELP, NORMALIZATION_HELP, POOL_SYNONYMS, Launched
from beitcli.config.data_formats import data_help
from beitcli.config.fields import Unused, option
from beitcli.config.predict import NO_SEGMENTER, Windows
from beitcli.errors import UsageError

_NO_PROBE = (Unused("protocol", "head"), Unused("protocol", "elbo"))
_NO_KNN, _NO_LINEAR = (*_NO_PROBE, Unused("protocol", "linear")), (*_NO_PROBE, Unused("protocol", "knn"))


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
    data: tuple[str, ...] = option((), data_help, argument=True, required=True, panel="Data", metavar="DATA")
    split: str | None = option(None, "Split of DATA to measure on; default val, or else test.", panel="Data")
    nul: bool = option(False, "Paths on stdin end with NUL (find -print0).", panel="Data", flags=("-0", "--nul"))
    protocol: Literal["head", "knn", "linear", "elbo"] = option(
        "head",
        "head: what it was finetuned for; knn, linear: frozen features of --train, measured on DATA; elbo: the "
        "variational bound of a pretrained run and its tokenizer (paper, 2.4), without labels.",
        panel="Options",
    )
    limit: int | None = option(
        None,
        "Use N images of DATA, and as many of --train, chosen by --seed, balanced over the classes.",
        panel="Data",
        metavar="N",
        ge=1,
    )
    train: str | None = option(
        None,
        "knn, linear: labelled images to learn from; elbo: images that the variance of pixels is fitted to, 1,024 "
        "without --limit. Default the train split of DATA.",
        panel="Probe",
        metavar="DATA",
    )
    layer: str = option(
        "-1",
        "knn, linear: block whose output to probe, counted from 1 as in the paper and in `embed` "
        "(`attn-map` counts from 0); -1: the last; sweep: all, and the best.",
        panel="Probe",
        metavar="N|sweep",
    )
    k: int = option(20, "knn: neighbours that vote.", panel="Probe", ge=1, unused=_NO_KNN)
    temperature: float = option(
        0.07, "knn: a vote weighs exp(cosine / temperature).", panel="Probe", gt=0, unused=_NO_KNN
    )
    probe_form: Literal["paper", "release"] = option(
        "paper",
        "linear: what --pool, --feature-norm, --augment and --probe-epochs default to. paper (appendix D): mean of the "
        "patches, 50 epochs; here normed, and without its augmentation unless --augment. release (run_linear_eval.py): "
        "cls+mean, no norm, augmented, 100 epochs; its weights begin at N(0, 0.01), not at 0, its bias decays, and "
        "its rate falls by the epoch. Both: AdamW, weight decay 1e-4, 4e-3 for 1024 images a step.",
        panel="Probe",
    )
    pool: Literal["mean", "cls", "cls+mean"] | None = option(
        None,
        "knn, linear: the mean of the patches, the class token (DINO's), or both side by side; default mean, of "
        "--probe-form release cls+mean.",
        panel="Probe",
        synonyms=POOL_SYNONYMS,
        unused=_NO_PROBE,
    )
    feature_norm: bool | None = option(
        None,
        "knn, linear: LayerNorm without gain and bias of each token of the block's output; default yes, of "
        "--probe-form release no.",
        panel="Probe",
        flags=("--feature-norm/--no-feature-norm",),
        unused=_NO_PROBE,
    )
    augment: bool | None = option(
        None,
        "linear: each epoch learns from new crops and flips of the images, as in the paper and the release; default "
        "of --probe-form release. Every epoch costs a forward pass of all images; without it, features are those of "
        "the center crop, computed once and kept.",
        panel="Probe",
        flags=("--augment/--no-augment",),
    )
    standardize: bool = option(
        False,
        "knn, linear: standardize each feature by its mean and deviation over --train (as MAE's probe).",
        panel="Probe",
        unused=_NO_PROBE,
    )
    probe_epochs: int | None = option(
        None,
        "linear: passes over the images; default 50, of --probe-form release 100.",
        panel="Probe",
        ge=1,
        unused=_NO_LINEAR,
    )
    probe_lr: float = option(
        4e-3, "linear: AdamW's learning rate, cosine to 0.", panel="Probe", gt=0, unused=_NO_LINEAR
    )
    probe_batch_size: int = option(1024, "linear: images per step.", panel="Probe", ge=1, unused=_NO_LINEAR)
    feature_cache: str | None = option(
        None,
        "knn, linear: folder to cache features in; default the program's cache.",
        panel="Probe",
        metavar="DIR",
        is_cache=True,
        unused=_NO_PROBE,
    )
    positions: Literal["hidden", "all"] = option(
        "hidden", "elbo: the patches whose tokens count: those hidden by the run's masks, or all.", panel="Bound"
    )
    samples: int = option(
        4, "elbo: samples of the tokenizer's q(z|x) an image; 0: its most likely tokens alone.", panel="Bound", ge=0
    )
    tokenizer: str | None = option(
        None,
        "elbo: the tokenizer that MODEL learned from, if MODEL does not name it.",
        panel="Bound",
        metavar="TOKENIZER",
    )
    size: tuple[int, int] | None = option(
        None,
        "Image size in pixels: side of a square, or height and width; default the model's own.",
        panel="Options",
        ge=1,
    )
    normalization: Literal["imagenet", "inception"] | None = option(None, NORMALIZATION_HELP, panel="Options")
    batch_size: int = option(128, "Images per forward pass.", panel="Machine", ge=1)
    max_bad: float = option(
        0.05, "Share of unreadable images (0-1) past which it stops with exit code 3.", panel="Data", ge=0, le=1
    )
    ignore_index: int | None = option(
        None,
        "Mask value to ignore in metrics; default: as trained.",
        ge=0,
        le=255,
        **NO_SEGMENTER,
    )
    reduce_zero_label: bool = option(
        False, "Mask value 0 is no class, and 1 the first class; default: as trained.", **NO_SEGMENTER
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer != "sweep" and (not self.layer.removeprefix("-").isdecimal() or int(self.layer) == 0):
            raise UsageError(
                f"--layer is '{self.layer}'.", "Give a block from 1, one from the last back (-1), or sweep."
            )
        self._check_bound()
        self._require_one_size(self.size)
        if self.layer != "-1" and self.protocol in ("head", "elbo"):
            raise UsageError(
                f"--layer is for probes, and --protocol is {self.protocol}.", "Add --protocol knn or linear."
            )
        if self.protocol != "linear" and (self.augment or self.probe_form != "paper"):
            said = "--augment" if self.augment else f"--probe-form {self.probe_form}"
            raise UsageError(
                f"{said} is for linear probes, and --protocol is {self.protocol}.", "Add --protocol linear."
            )
        if self.train is not None and self.protocol == "head":
            raise UsageError(
                "--train is for probes, and --protocol is head.", "Add --protocol knn or linear, or leave --train out."
            )

    def _check_bound(self) -> None:
        """Raises UsageError for settings of `elbo` beside another protocol, and the reverse."""
        if self.protocol == "elbo":
            if self.size is not None:
                raise UsageError("--size: the bound is measured at the size of pretraining.", "Leave --size out.")
            return
        given = {"--positions": self.positions != "hidden", "--samples": self.samples != 4}
        given["--tokenizer"] = self.tokenizer is not None
        for flag in (flag for flag, is_given in given.items() if is_given):
            raise UsageError(f"{flag} is for --protocol elbo, and it is {self.protocol}.", f"Leave {flag} out.")
