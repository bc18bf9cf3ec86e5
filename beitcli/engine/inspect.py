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
from beitcli.models.checkpoints.config_readers import stated_in
from beitcli.models.checkpoints.key_mapping import read_layout
from beitcli.models.checkpoints.locate import Located, format_of, locate
from beitcli.models.checkpoints.metadata import Description, describe
from beitcli.models.checkpoints.timm_references import describe_foreign, is_foreign
from beitcli.runtime.weight_files.reader import WeightFile, read_header

_NAMES = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L"}

Listed = dict[str, list[int]] | None  # name to shape


@dataclass(frozen=True)
class InspectReport:
    """A checkpoint.

    Attributes:
        format: `beit` (this program), `official`, `timm`, `hf` or `dall-e`.
        image_size: [H, W] in pixels; `grid` [h, w] in patches or tokens.
        vocab_size: Visual tokens of a masked image model or tokenizer.
        classes: Of what was finetuned.
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
    located = locate(config.ref, downloads(on_event))
    header = read_header(located.weights)
    section = located.settings.get("beit", {})
    tensors = {name: list(shape) for name, shape in header.shapes.items()} if config.tensors else None
    if section.get("kind") == "tokenizer":
        return _own_tokenizer(config.ref, located, header, section, tensors)
    if is_foreign(located.settings):
        return _foreign(config.ref, located, header, tensors)
    layout = read_layout(header.shapes, config.ref)
    if layout.naming == "dall-e":
        return _dall_e(config.ref, header, tensors)
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
        classes=(found.outputs or None) if task_of_kind(found.kind) else None,
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


def _foreign(ref: str, located: Located, header: WeightFile, tensors: Listed) -> InspectReport:
    """A vision Transformer of timm's, described by timm itself."""
    found = describe_foreign(located.settings, header.shapes, ref)
    architecture = found.architecture
    return InspectReport(
        ref=ref,
        format="beit" if located.is_ours else "timm",
        kind=found.kind,
        architecture={**architecture.as_dict(), "pooling": found.pooling},
        parameters=found.parameters,
        image_size=list(architecture.image_size),
        grid=list(architecture.grid),
        vocab_size=None,
        classes=found.outputs or None,
        class_names=list(found.classes),
        target=None,
        normalization={"mean": list(found.normalization[0]), "std": list(found.normalization[1])},
        file=str(located.weights),
        container=header.container,
        bytes=header.size,
        dropped=[],
        assumed=list(found.assumed),
        tensors=tensors,
    )


def _architecture(found: Description) -> dict[str, Any]:
    architecture = found.architecture
    plain = asdict(architecture)
    del plain["image_size"]
    size = _NAMES.get((architecture.width, architecture.depth))
    name = f"BEiT-{size}/{architecture.patch_size}" if size else "BEiT"
    task = task_of_kind(found.kind)
    last = {"head": found.head} if task is not None and task.heads else {"pooling": found.pooling}
    return {"name": name, **plain, "layer_scale": architecture.layer_scale > 0, **last}


def _own_tokenizer(
    ref: str, located: Located, header: WeightFile, section: dict[str, Any], tensors: Listed
) -> InspectReport:
    """A discrete VAE of `train-tokenizer`."""
    shape = section["architecture"]
    parameters = sum(math.prod(each) for each in header.shapes.values())
    report = _tokenizer(ref, dict(shape), section["size"], shape["groups"], parameters, [located.weights])
    return replace(report, format="beit", tensors=tensors)


def _dall_e(ref: str, header: WeightFile, tensors: Listed) -> InspectReport:
    """DALL-E's encoder, by the header of a state dict."""
    leaf = "weight" if "blocks.input.weight" in header.shapes else "w"
    try:
        width = header.shapes[f"blocks.input.{leaf}"][0]
        vocab_size = header.shapes[f"blocks.output.conv.{leaf}"][0]
    except KeyError as error:
        raise StorageError(f"'{ref}' looks like DALL-E's tokenizer, but lacks {error}.", "Download it again.") from None
    groups = len({name.split(".")[1] for name in header.shapes if name.startswith("blocks.group_")})
    shape = {"name": "DALL-E encoder", "vocab_size": vocab_size, "width": width, "groups": groups}
    parameters = sum(math.prod(each) for each in header.shapes.values())
    return replace(_tokenizer(ref, shape, 112, groups, parameters, [header.path]), tensors=tensors)


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
