"""Settings of `train-tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from beitcli.config.common import MODEL_HELP, Previewed, in_memory_option
from beitcli.config.fields import Unused, option
from beitcli.config.registry import Registry

KINDS = Registry("beitcli.tokenizers.kinds", "KIND", "tokenizer kind")
_NO_PIXELS = (Unused("kind", "vqkd"),)
_NO_GUMBEL = (Unused("kind", "vq"), Unused("kind", "fsq"), Unused("kind", "vqkd"))  # have no distribution over codes


def _unused_by_vqkd(instead: str) -> tuple[Unused, ...]:
    """Of settings of stages; VQ-KD has Transformers."""
    return (Unused("kind", "vqkd", instead),)


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(Previewed):
    command: ClassVar[str] = "train-tokenizer"
    recipes_of: ClassVar[dict[str, dict[str, str]]] = {"kind": {"vqkd": "vqkd-small"}}
    recipe: str = option(
        "small",
        "Named settings: tiny, small, imagenet-8k; of --kind vqkd: vqkd-small, its default, and vqkd-base, the "
        "paper's.",
        panel="Run",
        metavar="NAME",
    )
    kind: str = option(
        "dvae",
        "dvae: a discrete VAE; strided-dvae: that of BEiT's own tokenizer; vq: a learned codebook (recipe small's); "
        "fsq: a fixed grid of codes; vqkd: a codebook of --teacher's features.",
        panel="Tokenizer",
        choices=KINDS.names,
    )
    kind_settings: tuple[str, ...] = option(
        (),
        "Setting of this --kind alone; repeatable.",
        panel="Tokenizer",
        flags=("--set",),
        metavar="NAME=VALUE",
        keyed=True,
    )
    teacher: str | None = option(
        None,
        f"Whose features --kind vqkd learns to predict. {MODEL_HELP}.",
        panel="Tokenizer",
        metavar="MODEL",
        may_change_on_resume=True,  # its weights may not
    )
    in_memory: bool = in_memory_option()
    min_crop: float = option(
        0.5, "Minimum area of the random crop, as a share of the image (0-1).", panel="Tokenizer", ge=0, le=1
    )
    vocab_size: int = option(1024, "Visual tokens in the codebook.", panel="Tokenizer", ge=2)
    size: int = option(32, "Side of the square training images, in pixels.", panel="Tokenizer", ge=1)
    width: int = option(
        32,
        "Channels of the first stage; each further stage doubles them, of strided-dvae none.",
        panel="Tokenizer",
        ge=1,
        unused=_unused_by_vqkd("--set width=N, of its encoder and decoder"),
    )
    groups: int = option(
        3,
        "Stages; every one after the first halves the resolution, of strided-dvae the first too.",
        panel="Tokenizer",
        ge=1,
        le=16,
        unused=_unused_by_vqkd("--set patch_size=N, the pixels of a token"),
    )
    blocks_per_group: int = option(
        1,
        "Residual blocks per stage.",
        panel="Tokenizer",
        ge=1,
        unused=_unused_by_vqkd("--set depth=N, the blocks of its encoder"),
    )
    reconstruction: Literal["mse", "logit-laplace"] = option(
        "mse", "Reconstruction loss.", panel="Discrete VAE", unused=_NO_PIXELS
    )
    kl_weight: float = option(
        5e-5, "Weight of KL(q || uniform) of each patch, after its rise.", panel="Discrete VAE", ge=0, unused=_NO_GUMBEL
    )
    usage_weight: float = option(
        3e-3,
        "Weight of KL(mean q of the batch || uniform), which keeps every code in use.",
        panel="Discrete VAE",
        ge=0,
        unused=_NO_GUMBEL,
    )
    temperature_end: float = option(
        0.0625,
        "Gumbel-softmax temperature from four fifths of the run on; it starts at 1.",
        panel="Discrete VAE",
        gt=0,
        unused=_NO_GUMBEL,
    )
