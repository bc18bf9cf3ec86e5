"""`beit embed`: features of images in input order, into a file or as documents; with `--query` its neighbours.

The features are those of `eval --protocol knn` and `linear`: the same blocks, norm, pooling and crop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from beitcli.config.common import FEATURE_POOLS
from beitcli.config.embed import EmbedConfig
from beitcli.config.intensity import parse_intensity, with_models_intensity
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.engine.events import Note, OnEvent, Progress, downloads, ignore, warn
from beitcli.engine.io.feature_files import FeatureFile, open_feature_file, require_writable_features
from beitcli.engine.io.features.npy import sidecar
from beitcli.engine.io.features.stored import FeatureKind
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.neighbours import neighbours
from beitcli.engine.probing.feature_extraction import FeatureExtractor, Part
from beitcli.engine.resumed_output import remaining_images
from beitcli.errors import DataError, UsageError
from beitcli.models.checkpoints.build import Preprocessing, open_backbone, preprocessing
from beitcli.models.networks.pooled_features import (
    SupportsBlockOutputs,
    chosen_layer,
    feature_shape,
    has_class_token,
    weights_digest,
)
from beitcli.runtime.compute.device import Compute, choose_workers, join_compute
from beitcli.runtime.metric_text import counted

_SAME = 0.02  # largest relative distance of features of one image by one model, in any precision
Document = dict[str, Any]


def embed(config: EmbedConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None) -> Iterator[Document]:
    """Yields `{"path", "features"}` or `{"path", "error"}` per image, in input order, with `label` where there is one.

    Features are (D,) or (N, D) float32 arrays; `with_numbers` converts those that are told in full. With an output file
    they are written there and not yielded.
    With `query` one document is yielded: `{"query", "neighbours": [{"path", "similarity"}, ...], "output"}`. Of several
    ranks only rank 0 yields and writes.

    Raises:
        UsageError: The layer, the class token or the output is not available, or FILE holds other features.
        StorageError: The model cannot be read, or the output cannot be written.
        DataError: After the last image, if some could not be read.
    """
    model, checkpoint = open_backbone(config.model, config.size, downloads(on_event), seed=config.seed)
    checkpoint = checkpoint.normalized(config.normalization)
    config = with_models_intensity(config, checkpoint.settings)
    compute = join_compute(config, checkpoint.compute(config.device, config.precision))
    world, on_event = compute.world, compute.world.rank_zero_only(on_event)
    warn(checkpoint.warnings, on_event)
    extractor = extractor_of(config, model.to(compute.device), preprocessing(checkpoint, model), compute)
    if config.query:
        yield from neighbours(config, extractor, lambda: kind_of(config, extractor), on_event, stdin)
        return
    size = max(model.architecture.image_size)
    source = world.rank_zero_first(lambda: open_inputs(config, sample_size=size, stdin=stdin, on_event=on_event))
    yield from _embed(config, extractor, source, on_event)


def extractor_of(
    config: EmbedConfig, model: SupportsBlockOutputs, transform: Preprocessing, compute: Compute
) -> FeatureExtractor:
    """Returns the extractor of the requested features. Raises UsageError if the model does not have them."""
    layer = chosen_layer(config.layer, model.architecture.depth)
    if "cls" in config.pool and not has_class_token(model):
        raise UsageError(f"'{config.model}' has no class token, which --pool {config.pool} reads.", "Give --pool mean.")
    return FeatureExtractor(
        model=model,
        transform=transform,
        compute=compute,
        weights="",
        layers=[layer],
        pool=FEATURE_POOLS[config.pool],
        norm=config.feature_norm,
        batch_size=config.batch_size,
        workers=choose_workers(config.workers, compute.device, compute.world),
    )


def kind_of(config: EmbedConfig, extractor: FeatureExtractor) -> FeatureKind:
    """Returns what the features are, to be told and compared; without the weights where the output is .jsonl.

    Lines do not say what the features are, and to hash the weights of a BEiT-B takes 0.5 s.
    """
    architecture, transform = extractor.model.architecture, extractor.transform
    return FeatureKind(
        model=config.model,
        weights="" if _is_lines(config) else weights_digest(extractor.model),  # type: ignore[arg-type]
        layer=extractor.layers[0],
        pool=config.pool,
        norm=config.feature_norm,
        size=architecture.image_size,
        view=transform.crop.settings()
        | {"normalization": transform.normalization, "intensity": str(parse_intensity(config.intensity_range))},
        dtype=config.dtype,
        shape=feature_shape(architecture, extractor.pool),
    )


def _embed(config: EmbedConfig, extractor: FeatureExtractor, source: Source, on_event: OnEvent) -> Iterator[Document]:
    world, opened = extractor.compute.world, list[FeatureFile]()
    file: FeatureFile | None = None
    done, missing = False, source
    try:
        if config.output != "-":
            held, first = world.run_on_rank_zero(lambda: _open(opened, config, kind_of(config, extractor), source))
            file = opened[0] if opened else None
            if held:
                _require_same(Path(config.output), first, source, extractor)
                missing = remaining_images(source, held, on_event)
        bad = 0
        for document in documents(extractor, missing, on_event, file):
            bad += "error" in document
            if file is not None:
                file.add(document)
            elif config.output == "-" and world.is_rank_zero:
                yield document
        done = True
    finally:
        if file is not None:
            file.close(done=done)
    if file is not None:
        on_event(Note(_said(config, file.kind, file.rows)))
    if bad:
        where = "Their lines say why." if config.output == "-" or _is_lines(config) else _NAMED
        raise DataError(f"{bad} of {counted(len(source), 'image')} cannot be read.", where)


_NAMED = "They have no row in the file; a .jsonl, or no -o, says why of each."


def _is_lines(config: EmbedConfig) -> bool:
    return config.output.lower().endswith(".jsonl")


def documents(
    extractor: FeatureExtractor, source: Source, on_event: OnEvent = ignore, file: FeatureFile | None = None
) -> Iterator[Document]:
    """Yields a document per image, in order, on all ranks; features are (D,) or (N, D) float32 arrays.

    Args:
        file: Is flushed after each batch.
    """
    done = 0
    for part in extractor.parts(source, extractor.view) if len(source) else ():
        yield from of_part(part, source)
        if file is not None:
            file.flush()
        done += part.images
        on_event(Progress("embed", done, len(source), "image"))


def of_part(part: Part, source: Source) -> list[Document]:
    """Returns the documents of a batch, in the order of the source."""
    found: dict[int, Document] = {index: {"path": path, "error": reason} for index, path, reason in part.bad}
    for index, label, features in zip(part.indices, part.labels.tolist(), part.features[0], strict=True):
        named = {"label": source.classes[label]} if source.classes and label >= 0 else {}
        found[index] = {"path": source.path(index), "features": features} | named
    return [found[index] for index in sorted(found)]


@dataclass(frozen=True)
class _First:
    """The first row of a file that does not say what its features are."""

    path: str
    features: np.ndarray


def _open(
    opened: list[FeatureFile], config: EmbedConfig, kind: FeatureKind, source: Source
) -> tuple[set[str], _First | None]:
    """Appends the output file to `opened`; returns the paths that it contains, and its first row."""
    path = Path(config.output)
    require_writable_features(config, ProtectedInputs(config, source))
    opened.append(open_feature_file(path, kind, config.resume))
    first = opened[0].first
    return opened[0].held, None if first is None else _First(*first)


def _require_same(path: Path, first: _First | None, source: Source, extractor: FeatureExtractor) -> None:
    """Raises UsageError if an image of both has other features in the file; says nothing of an image that is gone."""
    if first is None:
        return
    index = next((index for index in range(len(source)) if source.path(index) == first.path), None)
    if index is None:
        return
    for part in extractor.parts(Subset(source, np.array([index])), extractor.view):
        for own in part.features[0]:
            if np.linalg.norm(own - first.features) > _SAME * np.linalg.norm(own):
                raise UsageError(
                    f"'{path}' holds other features of '{first.path}' than this model gives with these settings.",
                    "Give the model, layer and pooling that it was made with, or another -o FILE.",
                )


def _said(config: EmbedConfig, kind: FeatureKind, rows: int) -> str:
    shape = " x ".join(f"{side:,}" for side in (rows, *kind.shape))
    numbers = "text" if _is_lines(config) else kind.dtype
    of = {"mean": "mean of the patches", "cls": "class token", "none": "every patch"}.get(kind.pool, kind.pool)
    beside = f" Names of the rows: '{sidecar(Path(config.output))}'." if config.output.lower().endswith(".npy") else ""
    return f"Made '{config.output}': {shape}, {numbers}; block {kind.layer}, {of}.{beside}"
