"""`beit inspect`: facts about a checkpoint, from header and settings only; no tensor of a safetensors file is read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from beitcli.config.inspect_export import InspectConfig
from beitcli.config.tasks import task_of_kind
from beitcli.engine.events import OnEvent, Warned, downloads, ignore, warn
from beitcli.errors import StorageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import open_unverified
from beitcli.runtime.weight_files.reader import WeightFile
from beitcli.tokenizers.pretrained import TokenizerFacts, in_order

_NAMES = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L"}


@dataclass(frozen=True)
class InspectReport:
    """Facts about a checkpoint.

    Attributes:
        format: `beit` (this program), `official`, `timm`, `hf` or `dall-e`; of a plain vision Transformer `dino`,
            `moco-v3`, `mae`, or `vit` for DeiT's and bare weights.
        image_size: [H, W] in pixels; `grid` [h, w] in patches or tokens.
        vocab_size: Number of visual tokens of a masked image model or tokenizer.
        classes: Number of classes of a classifier, segmenter or detector.
        problem: Of a classifier: single-label, multi-label or regression.
        preprocessing: Resizing and cropping in evaluation, in timm's terms.
        dropped: Tensors that have no counterpart in a BEiT or vision Transformer.
        assumed: What the file does not say.
        tensors: Shapes by name, if requested.
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
    problem: str | None
    target: str | None
    preprocessing: dict[str, Any] | None
    normalization: dict[str, list[float]] | None
    file: str
    container: str
    bytes: int
    dropped: list[str]
    assumed: list[str]
    tensors: dict[str, list[int]] | None


def inspect(config: InspectConfig, on_event: OnEvent = ignore) -> InspectReport:
    """Reads the checkpoint `config.ref` as far as its header; downloads it if necessary.

    Raises:
        UsageError: Nothing has that name.
        StorageError: It is not a checkpoint that this program knows.
    """
    for pretrained in in_order():
        facts = pretrained.facts(config.ref, downloads(on_event))
        if facts is not None:
            warn(facts.notes, on_event)
            return _tokenizer(config, facts)
    checkpoint = open_unverified(config.ref, downloads(on_event))
    header = checkpoint.header
    assert header is not None  # there is one for every file
    if checkpoint.kind == "tokenizer":
        read = _own_tokenizer if checkpoint.format == "beit" else _dall_e
        return _tokenizer(config, read(checkpoint, header))
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
        problem=checkpoint.problem if checkpoint.kind == "classifier" else None,
        target=target,
        preprocessing={
            "crop_mode": checkpoint.crop.crop_mode,
            "crop_pct": checkpoint.crop.pct(architecture.image_size),
            "interpolation": checkpoint.crop.interpolation,
        },
        normalization={"mean": list(mean), "std": list(std)},
        file=str(checkpoint.weights),
        container=header.container,
        bytes=header.size,
        dropped=list(key_mapping.dropped) if key_mapping else [],
        assumed=list(checkpoint.assumed),
        tensors=_shapes(header) if config.tensors else None,
    )


def _architecture(checkpoint: CheckpointHandle) -> dict[str, Any]:
    architecture = checkpoint.architecture
    task = task_of_kind(checkpoint.kind)
    last: dict[str, Any] = {"pooling": checkpoint.pooling}
    if task is not None and task.prefix:
        last = {"head": checkpoint.head}
    if checkpoint.segmenter is not None:
        last |= {"blocks": list(checkpoint.segmenter.out_indices), **checkpoint.segmenter.head}
    if checkpoint.key_mapping is None or not checkpoint.key_mapping.is_beit:  # as timm describes it
        return {**architecture.as_dict(), **last}
    plain = asdict(architecture)
    del plain["image_size"]
    size = _NAMES.get((architecture.width, architecture.depth))
    name = f"BEiT-{size}/{architecture.patch_size}" if size else "BEiT"
    aggregation = {"aggregation": checkpoint.aggregation.as_dict()} if checkpoint.aggregation else {}
    return {"name": name, **plain, "layer_scale": architecture.layer_scale > 0, **last, **aggregation}


def _own_tokenizer(checkpoint: CheckpointHandle, header: WeightFile) -> TokenizerFacts:
    """Facts of a tokenizer trained by `train-tokenizer`."""
    from beitcli.tokenizers.open import build_on_meta, kind_name  # imports torch

    model, size = build_on_meta(checkpoint.settings, header.shapes, checkpoint.reference)
    weights = _weights(header) | {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    return TokenizerFacts(
        format="beit",
        architecture={"name": kind_name(checkpoint.settings), **checkpoint.settings["architecture"]},
        vocab_size=model.vocab_size,
        size=size,
        downsample=model.downsample,
        **weights,
    )


def _dall_e(checkpoint: CheckpointHandle, header: WeightFile) -> TokenizerFacts:
    """Facts of DALL-E's encoder, from the header of its state dict."""
    ref = checkpoint.reference
    leaf = "weight" if "blocks.input.weight" in header.shapes else "w"
    try:
        width = header.shapes[f"blocks.input.{leaf}"][0]
        vocab_size = header.shapes[f"blocks.output.conv.{leaf}"][0]
    except KeyError as error:
        raise StorageError(f"'{ref}' looks like DALL-E's tokenizer, but lacks {error}.", "Download it again.") from None
    groups = len({name.split(".")[1] for name in header.shapes if name.startswith("blocks.group_")})
    shape = {"name": "DALL-E encoder", "vocab_size": vocab_size, "width": width, "groups": groups}
    return TokenizerFacts("dall-e", shape, vocab_size, 112, 2 ** (groups - 1), **_weights(header))


def _weights(header: WeightFile) -> dict[str, Any]:
    """Parameters, file and shapes of a weights file, from its header."""
    return {
        "parameters": sum(math.prod(shape) for shape in header.shapes.values()),
        "files": [header.path],
        "shapes": _shapes(header),
    }


def _shapes(header: WeightFile) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in header.shapes.items()}


def _tokenizer(config: InspectConfig, facts: TokenizerFacts) -> InspectReport:
    side = facts.size // facts.downsample
    return InspectReport(
        ref=config.ref,
        format=facts.format,
        kind="tokenizer",
        architecture=facts.architecture,
        parameters=facts.parameters,
        image_size=[facts.size, facts.size],
        grid=[side, side],
        vocab_size=facts.vocab_size,
        classes=None,
        class_names=[],
        problem=None,
        target=None,
        preprocessing=None,
        normalization=None,
        file=", ".join(map(str, facts.files)),
        container="safetensors" if all(file.suffix == ".safetensors" for file in facts.files) else "torch",
        bytes=sum(file.stat().st_size for file in facts.files),
        dropped=[],
        assumed=[],
        tensors=facts.shapes if config.tensors else None,
    )
