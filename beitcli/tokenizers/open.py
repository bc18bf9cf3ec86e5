"""Opens a TOKENIZER reference: by the first of `pretrained/` that recognizes it, else as our own checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from beitcli.config.nearest import suggestion
from beitcli.config.train_tokenizer import KINDS
from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle, require_finite
from beitcli.models.checkpoints.open import expect_tokenizer, open_checkpoint
from beitcli.runtime.deferred_compiler import meta_device
from beitcli.runtime.hub.offline import cache_only
from beitcli.runtime.shortages import shortage
from beitcli.runtime.storage.checkpoint import SUMS
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.weight_files.file_sniffing import one_line
from beitcli.tokenizers.base import Tokenizer, TokenizerModel
from beitcli.tokenizers.pretrained import in_order, words

if TYPE_CHECKING:
    from beitcli.runtime.hub.download import OnProgress

DALLE_CODES = 8192
_MOST_RUNS = 16  # that name one another as their tokenizer


def open_tokenizer_of(
    checkpoint: CheckpointHandle,
    device: torch.device | None = None,
    on_progress: OnProgress | None = None,
    *,
    named_by: tuple[Path, ...] = (),
) -> Tokenizer:
    """Opens the tokenizer of a pretraining run: inside the run if it was trained there, else by its reference.

    Args:
        named_by: Runs that led here, each naming the next one as its tokenizer.

    Raises:
        StorageError: The run names none or itself, or the tokenizer at that reference has changed.
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
    run = checkpoint.run.resolve()
    if run in named_by or len(named_by) >= _MOST_RUNS:
        raise StorageError(
            f"'{checkpoint.reference}' names no tokenizer but itself: its runs lead to one another.",
            "Pass the tokenizer that it learned from as --tokenizer.",
        )
    with cache_only(f"Pass --tokenizer {reference} to have it downloaded: '{checkpoint.reference}' alone may not."):
        tokenizer = open_tokenizer(reference, device, on_progress, named_by=(*named_by, run))
    if tokenizer.sha256 != named["sha256"]:
        raise StorageError(
            f"Tokenizer '{reference}' is not the one that '{checkpoint.reference}' was trained with.",
            "Put that one back.",
        )
    return tokenizer


def open_tokenizer(
    reference: str,
    device: torch.device | None = None,
    on_progress: OnProgress | None = None,
    *,
    named_by: tuple[Path, ...] = (),
) -> Tokenizer:
    """Opens a tokenizer, frozen and in evaluation mode.

    Args:
        reference: `dall-e`, hf://OWNER/NAME, a folder of DALL-E's weights, a run of train-tokenizer or pretrain, ...
        named_by: As in `open_tokenizer_of`.

    Raises:
        UsageError: `pixels` is given, which is no tokenizer.
        StorageError: There is none of that name, it is not a tokenizer, is damaged, or cannot be downloaded.
    """
    if reference == "pixels":
        raise UsageError(
            "'pixels' is no tokenizer: it has no codes.", "`beit pretrain --target pixels` learns from pixels."
        )
    pretrained = next((each for each in in_order() if each.recognizes(reference)), None)
    if pretrained is not None:
        tokenizer = pretrained.open(reference, on_progress)
    else:
        meant = "" if "/" in reference else suggestion(reference, words())
        if not Path(reference).exists() and not reference.startswith("hf://"):
            hint = meant or "Give a run of `beit train-tokenizer`, or dall-e."
            raise StorageError(f"There is no tokenizer '{reference}'.", hint)
        tokenizer = _ours(reference, on_progress, named_by)
    require_finite(tokenizer.model.state_dict(), reference)
    tokenizer.model.requires_grad_(False).eval().to(device or torch.device("cpu"))
    return tokenizer


def _ours(reference: str, on_progress: OnProgress | None, named_by: tuple[Path, ...]) -> Tokenizer:
    inside = Path(reference) / "tokenizer"
    checkpoint = open_checkpoint(str(inside) if (inside / "config.toml").exists() else reference)
    if checkpoint.kind == "masked-image-model":
        return open_tokenizer_of(checkpoint, on_progress=on_progress, named_by=named_by)
    expect_tokenizer(checkpoint)
    tensors = checkpoint.tensors()
    with config_errors(checkpoint.reference):
        model, size = build_on_meta(checkpoint.settings, tensors, checkpoint.reference)
        model.load_state_dict(tensors, assign=True)
        model.float()
    sums = read_regular(checkpoint.weights.parent / SUMS).decode().splitlines()
    sha256 = next(line.split()[0] for line in sums if line.endswith("model.safetensors"))
    stored = checkpoint.settings.get("intensity_range")
    return Tokenizer(reference, model, size, sha256, checkpoint.warnings, intensity_range=stored)


def build_on_meta(settings: Mapping[str, Any], stored: Collection[str], reference: str) -> tuple[TokenizerModel, int]:
    """Returns the network that a checkpoint's settings describe, on the meta device, and its image size.

    Args:
        stored: Names of the checkpoint's tensors.

    Raises:
        StorageError: The settings are invalid, or the kind is not installed.
    """
    kind = _kind(settings)
    if kind not in KINDS.names():
        raise StorageError(
            f"Tokenizer '{reference}' is of kind {one_line(repr(kind))}, which is not installed.",
            f"Install the package that adds it. Installed: {', '.join(KINDS.names())}.",
        )
    with config_errors(reference):
        size = settings["size"]
        if type(size) is not int or not 1 <= size <= 100_000:
            raise ValueError(f"size {size!r}")
        with meta_device():
            return KINDS.load(kind).build(settings["architecture"], stored), size


def kind_name(settings: Mapping[str, Any]) -> str:
    """Returns what a tokenizer with these settings is called, such as "discrete VAE (dvae)"; its kind is installed."""
    kind = _kind(settings)
    return f"{KINDS.load(kind).title} ({kind})"


def _kind(settings: Mapping[str, Any]) -> Any:
    return settings.get("tokenizer_kind", "dvae")  # earlier versions do not store it


@contextmanager
def config_errors(reference: str) -> Iterator[None]:
    """Context that converts errors to a StorageError: config.json does not fit the weights."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, UsageError) as error:
        if not isinstance(error, UsageError) and (lacking := shortage(error)) is not None:
            raise lacking from None
        raise StorageError(
            f"Tokenizer '{reference}' does not fit its own config: {one_line(str(error), 200)}.", "Train it again."
        ) from None
