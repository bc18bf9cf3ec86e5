"""How a TOKENIZER is opened."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import torch

from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import open_checkpoint
from beitcli.runtime.hub.download import OnProgress
from beitcli.runtime.storage.checkpoint import SUMS
from beitcli.runtime.weight_files.file_sniffing import one_line
from beitcli.tokenizers.base import Tokenizer
from beitcli.tokenizers.dalle import GRID, build, weight_files
from beitcli.tokenizers.dalle_cache import Opened, open_files, open_hub, open_named
from beitcli.tokenizers.dvae import DiscreteVAE, DVAEArchitecture

WORDS = ("dall-e", "pixels")  # references that name no file

DALLE_CODES = 8192


def open_tokenizer_of(
    checkpoint: CheckpointHandle, device: torch.device | None = None, on_progress: OnProgress | None = None
) -> Tokenizer:
    """The tokenizer that a pretraining run learned from: its own lies inside it, another where it was.

    Raises:
        StorageError: It names none, or what lies there is another tokenizer now.
    """
    named = checkpoint.settings.get("tokenizer")
    foreign = not checkpoint.settings and checkpoint.key_mapping is not None and not checkpoint.key_mapping.is_version_2
    if foreign and checkpoint.outputs == DALLE_CODES:
        tokenizer = open_tokenizer("dall-e", device, on_progress)
        assumed = f"'{checkpoint.reference}' does not name its tokenizer; assumed: DALL-E's, as of the release."
        return replace(tokenizer, notes=(*tokenizer.notes, assumed))
    if not named:
        raise StorageError(
            f"'{checkpoint.reference}' names no tokenizer that it learned from.", "Pass it as --tokenizer."
        )
    reference = str(checkpoint.run / "tokenizer") if named["reference"] == "own" else named["reference"]
    tokenizer = open_tokenizer(reference, device, on_progress)
    if tokenizer.sha256 != named["sha256"]:
        raise StorageError(
            f"Tokenizer '{reference}' is not the one that '{checkpoint.reference}' was trained with.",
            "Put that one back.",
        )
    return tokenizer


def open_tokenizer(
    reference: str, device: torch.device | None = None, on_progress: OnProgress | None = None
) -> Tokenizer:
    """`dall-e`, `hf://OWNER/NAME`, a folder with DALL-E's weights, a run of train-tokenizer or pretrain, a checkpoint.

    Raises:
        UsageError: There is none of that name.
        StorageError: It is something else, damaged, or cannot be fetched.
    """
    if reference == "pixels":
        raise UsageError(
            "'pixels' is no tokenizer: it has no codes.", "`beit pretrain --target pixels` learns from pixels."
        )
    path = Path(reference)
    if reference == "dall-e":
        return _dalle(reference, open_named(on_progress), device)
    if reference.startswith("hf://"):
        repo, _, revision = reference.removeprefix("hf://").partition("@")
        return _dalle(reference, open_hub(repo, revision or None, on_progress), device)
    if path.exists() and _looks_like_dalle(path):
        return _dalle(reference, open_files(path), device)
    near = [] if "/" in reference else difflib.get_close_matches(reference.lower(), WORDS, n=1)
    if near and not path.exists():
        raise UsageError(f"There is no tokenizer '{reference}'.", f"Did you mean '{near[0]}'?")
    return _ours(reference, device, on_progress)


def _looks_like_dalle(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    ours = any((folder / name).is_file() for name in (SUMS, "trainer.json"))
    return not ours and bool(weight_files(path))


def _dalle(reference: str, opened: Opened, device: torch.device | None) -> Tokenizer:
    encoder, decoder, notes = opened
    model = build(encoder, decoder)
    model.requires_grad_(False).eval().to(device or torch.device("cpu"))
    return Tokenizer(reference, model, GRID * model.downsample, encoder.sha256, notes=notes)


def _ours(reference: str, device: torch.device | None, on_progress: OnProgress | None) -> Tokenizer:
    inside = Path(reference) / "tokenizer"
    checkpoint = open_checkpoint(str(inside) if (inside / "config.toml").exists() else reference)
    if checkpoint.kind == "masked-image-model":
        return open_tokenizer_of(checkpoint, device, on_progress)
    if checkpoint.kind != "tokenizer":
        raise StorageError(
            f"'{reference}' is a {checkpoint.kind}, not a tokenizer.", "Give a run of `beit train-tokenizer`."
        )
    model = _model_of(checkpoint)
    sums = (checkpoint.weights.parent / SUMS).read_text().splitlines()
    sha256 = next(line.split()[0] for line in sums if line.endswith("model.safetensors"))
    model.requires_grad_(False).eval().to(device or torch.device("cpu"))
    return Tokenizer(reference, model, int(checkpoint.settings["size"]), sha256, checkpoint.warnings)


def _model_of(checkpoint: CheckpointHandle) -> DiscreteVAE:
    """The dVAE that the settings describe, with its weights; nothing is drawn for them to replace.

    Raises:
        StorageError: The settings describe another, or none.
    """
    tensors = checkpoint.tensors()
    try:
        architecture = DVAEArchitecture(**checkpoint.settings["architecture"])
        size = checkpoint.settings["size"]
        if type(size) is not int or not 1 <= size <= 100_000:
            raise ValueError(f"size {size!r}")
        if architecture.groups * architecture.blocks_per_group > len(tensors):  # before as many blocks are built
            raise ValueError(f"{architecture.groups} groups of {architecture.blocks_per_group} blocks")
        with torch.device("meta"):
            model = DiscreteVAE(architecture)
        model.load_state_dict(tensors, assign=True)
        model.float()
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, UsageError) as error:
        raise StorageError(
            f"Tokenizer '{checkpoint.reference}' does not fit its own config: {one_line(str(error), 200)}.",
            "Train it again.",
        ) from None
    return model
