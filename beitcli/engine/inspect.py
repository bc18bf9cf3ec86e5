"""`beit inspect`: what a checkpoint is, from its header and settings alone; of a safetensors file no tensor is read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from beitcli.config.inspect_export import InspectConfig
from beitcli.config.tasks import task_of_kind
from beitcli.engine.events import OnEvent, Warned, downloads, ignore, warn
from beitcli.errors import StorageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import open_unverified
from beitcli.runtime.weight_files.reader import WeightFile

_NAMES = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L"}

Listed = dict[str, list[int]] | None  # name to shape


@dataclass(frozen=True)
class InspectReport:
    """A checkpoint.

    Attributes:
        format: `beit` (this program), `official`, `timm`, `hf` or `dall-e`.
        image_size: [H, W] in pixels; `grid` [h, w] in patches or tokens.
        vocab_size: Visual tokens of a masked image model or tokenizer.
        classes: Of a classifier, segmenter or detector.
        dropped: Tensors that have no place in a BEiT.
        assumed: What the file does not say.
        tensors: Name to shape, where asked for.
    """

    ref: str
    format: str
    kind: str
    architecture: dict[str, Any]
    parameters: int
    image_size: list[int]
    grid: list[int]
    vocab_size: int | None
    classes: int | None
    class_names: list[str]
    target: str | None
    normalization: dict[str, list[float]] | None
    file: str
    container: str
    bytes: int
    dropped: list[str]
    assumed: list[str]
    tensors: Listed


def inspect(config: InspectConfig, on_event: OnEvent = ignore) -> InspectReport:
    """Reads what `config.ref` names as far as its header; downloads it where it must.

    Raises:
        UsageError: There is nothing of that name.
        StorageError: It is nothing that this program knows.
    """
    if config.ref == "dall-e" or _looks_pickled(config.ref):
        return _dall_e_halves(config, on_event)
    checkpoint = open_unverified(config.ref, downloads(on_event))
    header = checkpoint.header
    assert header is not None  # of a file
    tensors = {name: list(shape) for name, shape in header.shapes.items()} if config.tensors else None
    if checkpoint.kind == "tokenizer":
        read = _own_tokenizer if checkpoint.format == "beit" else _dall_e
        return replace(read(checkpoint, header), tensors=tensors)
    key_mapping, architecture, outputs = checkpoint.key_mapping, checkpoint.architecture, checkpoint.outputs
    target = checkpoint.settings.get("target", "tokens") if checkpoint.kind == "masked-image-model" else None
    for what in checkpoint.assumed if key_mapping else ():
        on_event(Warned(f"The file does not say it; assumed: {what}."))
    mean, std = checkpoint.normalization
    return InspectReport(
        ref=config.ref,
        format=checkpoint.format,
        kind=checkpoint.kind,
        architecture=_architecture(checkpoint),
        parameters=checkpoint.parameters,
        image_size=list(architecture.image_size),
        grid=list(architecture.grid),
        vocab_size=outputs if target == "tokens" else None,
        classes=(outputs or None) if task_of_kind(checkpoint.kind) else None,
        class_names=list(checkpoint.classes),
        target=target,
        normalization={"mean": list(mean), "std": list(std)},
        file=str(checkpoint.weights),
        container=header.container,
        bytes=header.size,
        dropped=list(key_mapping.dropped) if key_mapping else [],
        assumed=list(checkpoint.assumed),
        tensors=tensors,
    )


def _architecture(checkpoint: CheckpointHandle) -> dict[str, Any]:
    architecture = checkpoint.architecture
    if checkpoint.key_mapping is None:  # a vision Transformer as timm describes it
        return {**architecture.as_dict(), "pooling": checkpoint.pooling}
    plain = asdict(architecture)
    del plain["image_size"]
    size = _NAMES.get((architecture.width, architecture.depth))
    name = f"BEiT-{size}/{architecture.patch_size}" if size else "BEiT"
    task = task_of_kind(checkpoint.kind)
    last = {"head": checkpoint.head} if task is not None and task.prefix else {"pooling": checkpoint.pooling}
    return {"name": name, **plain, "layer_scale": architecture.layer_scale > 0, **last}


def _own_tokenizer(checkpoint: CheckpointHandle, header: WeightFile) -> InspectReport:
    """A discrete VAE of `train-tokenizer`."""
    shape, size = checkpoint.settings["architecture"], checkpoint.settings["size"]
    parameters = sum(math.prod(each) for each in header.shapes.values())
    report = _tokenizer(checkpoint.reference, dict(shape), size, shape["groups"], parameters, [header.path])
    return replace(report, format="beit")


def _dall_e(checkpoint: CheckpointHandle, header: WeightFile) -> InspectReport:
    """DALL-E's encoder, from the header of its state dict."""
    ref = checkpoint.reference
    leaf = "weight" if "blocks.input.weight" in header.shapes else "w"
    try:
        width = header.shapes[f"blocks.input.{leaf}"][0]
        vocab_size = header.shapes[f"blocks.output.conv.{leaf}"][0]
    except KeyError as error:
        raise StorageError(f"'{ref}' looks like DALL-E's tokenizer, but lacks {error}.", "Download it again.") from None
    groups = len({name.split(".")[1] for name in header.shapes if name.startswith("blocks.group_")})
    shape = {"name": "DALL-E encoder", "vocab_size": vocab_size, "width": width, "groups": groups}
    parameters = sum(math.prod(each) for each in header.shapes.values())
    return _tokenizer(ref, shape, 112, groups, parameters, [header.path])


def _dall_e_halves(config: InspectConfig, on_event: OnEvent) -> InspectReport:
    """DALL-E's tokenizer by its word, or as pickled modules, which have no header: they are read whole, guarded."""
    from beitcli.tokenizers.dalle_cache import open_files, open_named  # imports torch

    named = config.ref == "dall-e"
    encoder, decoder, notes = open_named(downloads(on_event)) if named else open_files(Path(config.ref))
    warn(notes, on_event)
    halves = [encoder, decoder] if decoder else [encoder]
    shape = {
        "name": "DALL-E " + " and ".join(half.kind for half in halves),
        "vocab_size": encoder.architecture.vocab_size,
        "width": encoder.architecture.width,
        "groups": encoder.architecture.groups,
    }
    entries = {f"{half.kind}.{name}": tensor for half in halves for name, tensor in half.tensors.items()}
    parameters = sum(tensor.numel() for tensor in entries.values())
    files = [half.path for half in halves]
    report = _tokenizer(config.ref, shape, 112, encoder.architecture.groups, parameters, files)
    listed = {name: list(tensor.shape) for name, tensor in entries.items()} if config.tensors else None
    return replace(report, tensors=listed)


def _looks_pickled(ref: str) -> bool:
    """Whether `ref` names DALL-E's two files, as released or as kept in the cache."""
    path = Path(ref)
    files = path.glob("encoder.*") if path.is_dir() else [path] if path.is_file() else []
    return any(file.stem in ("encoder", "decoder") for file in files)


def _tokenizer(
    ref: str, shape: dict[str, Any], size: int, groups: int, parameters: int, files: list[Path]
) -> InspectReport:
    side = size // 2 ** (groups - 1)
    return InspectReport(
        ref=ref,
        format="dall-e",
        kind="tokenizer",
        architecture=shape,
        parameters=parameters,
        image_size=[size, size],
        grid=[side, side],
        vocab_size=shape["vocab_size"],
        classes=None,
        class_names=[],
        target=None,
        normalization=None,
        file=", ".join(map(str, files)),
        container="safetensors" if all(file.suffix == ".safetensors" for file in files) else "torch",
        bytes=sum(file.stat().st_size for file in files),
        dropped=[],
        assumed=[],
        tensors=None,
    )
