"""`beit inspect`: what a checkpoint is, from its header and settings alone; of a safetensors file no tensor is read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from beitcli.config.weights import InspectConfig
from beitcli.engine.events import OnEvent, Warned, downloads, ignore
from beitcli.errors import StorageError
from beitcli.models.description import Description, describe
from beitcli.models.layouts import read_layout
from beitcli.models.locate import Located, format_of, locate
from beitcli.models.stated import stated_in
from beitcli.runtime.weight_files import WeightFile, read_header

_NAMES = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L"}


@dataclass(frozen=True)
class InspectReport:
    """A checkpoint.

    Attributes:
        format: `beit` (this program), `official`, `timm`, `hf` or `dall-e`.
        image_size: [H, W] in pixels; `grid` [h, w] in patches or tokens.
        vocab_size: Visual tokens of a masked image model or tokenizer.
        classes: Of a classifier.
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
    tensors: dict[str, list[int]] | None


def inspect(config: InspectConfig, on_event: OnEvent = ignore) -> InspectReport:
    """Reads what `config.ref` names as far as its header; downloads it where it must.

    Raises:
        UsageError: There is nothing of that name.
        StorageError: It is nothing that this program knows.
    """
    located = locate(config.ref, downloads(on_event))
    header = read_header(located.weights)
    section = located.settings.get("beit", {})
    tensors = {name: list(shape) for name, shape in header.shapes.items()} if config.tensors else None
    if section.get("kind") == "tokenizer":
        return _tokenizer(config.ref, located, header, section, tensors)
    layout = read_layout(header.shapes, config.ref)
    if layout.naming == "dall-e":
        return _tokenizer(config.ref, located, header, None, tensors)
    stated = stated_in(located.settings, located.preprocessing, header.about)
    found = describe(layout, header.shapes, stated, config.ref)
    architecture = found.architecture
    target = section.get("target", "tokens") if found.kind == "masked-image-model" else None
    for what in found.assumed:
        on_event(Warned(f"The file does not say it; assumed: {what}."))
    return InspectReport(
        ref=config.ref,
        format=format_of(layout, header, located),
        kind=found.kind,
        architecture=_architecture(found),
        parameters=found.parameters,
        image_size=list(architecture.image_size),
        grid=list(architecture.grid),
        vocab_size=found.outputs if target == "tokens" else None,
        classes=found.outputs if found.kind == "classifier" else None,
        class_names=list(found.classes),
        target=target,
        normalization={"mean": list(found.normalization[0]), "std": list(found.normalization[1])},
        file=str(located.weights),
        container=header.container,
        bytes=header.size,
        dropped=list(layout.dropped),
        assumed=list(found.assumed),
        tensors=tensors,
    )


def _architecture(found: Description) -> dict[str, Any]:
    architecture = found.architecture
    plain = asdict(architecture)
    del plain["image_size"]
    size = _NAMES.get((architecture.width, architecture.depth))
    name = f"BEiT-{size}/{architecture.patch_size}" if size else "BEiT"
    return {"name": name, **plain, "layer_scale": architecture.layer_scale > 0, "pooling": found.pooling}


def _tokenizer(
    ref: str,
    located: Located,
    header: WeightFile,
    section: dict[str, Any] | None,
    tensors: dict[str, list[int]] | None,
) -> InspectReport:
    """A discrete VAE: one of `train-tokenizer`, or DALL-E's encoder."""
    if section is not None:
        architecture = dict(section["architecture"])
        groups, vocab_size, size = architecture["groups"], architecture["vocab_size"], section["size"]
    else:
        groups, vocab_size, width = _dall_e(ref, header)
        size = 112
        architecture = {"name": "DALL-E encoder", "vocab_size": vocab_size, "width": width, "groups": groups}
    side = size // 2 ** (groups - 1)
    return InspectReport(
        ref=ref,
        format="beit" if section is not None else "dall-e",
        kind="tokenizer",
        architecture=architecture,
        parameters=sum(math.prod(shape) for shape in header.shapes.values()),
        image_size=[size, size],
        grid=[side, side],
        vocab_size=vocab_size,
        classes=None,
        class_names=[],
        target=None,
        normalization=None,
        file=str(located.weights),
        container=header.container,
        bytes=header.size,
        dropped=[],
        assumed=[],
        tensors=tensors,
    )


def _dall_e(ref: str, header: WeightFile) -> tuple[int, int, int]:
    """Groups, vocabulary and width of the encoder."""
    leaf = "weight" if "blocks.input.weight" in header.shapes else "w"
    try:
        width = header.shapes[f"blocks.input.{leaf}"][0]
        vocab_size = header.shapes[f"blocks.output.conv.{leaf}"][0]
    except KeyError as error:
        raise StorageError(f"'{ref}' looks like DALL-E's tokenizer, but lacks {error}.", "Download it again.") from None
    groups = {name.split(".")[1] for name in header.shapes if name.startswith("blocks.group_")}
    return len(groups), vocab_size, width
