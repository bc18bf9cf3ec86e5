"""`beit embed --query IMAGE`: the images that are nearest to one, by the cosine of their features.

Exact: every image is compared, batch by batch, and memory holds the k best. INPUT is images, whose features are
computed, or one file of features that `beit embed` wrote.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from beitcli.config.embed import EmbedConfig
from beitcli.data.decode import decode_rgb
from beitcli.data.sources.base import Source
from beitcli.data.sources.files import read_file
from beitcli.engine.events import Drawn, OnEvent, Progress
from beitcli.engine.io.feature_files import require_writable_features
from beitcli.engine.io.features.formats import is_feature_file, read_features
from beitcli.engine.io.features.stored import FeatureKind, StoredFeatures
from beitcli.engine.io.inputs import open_inputs, open_query
from beitcli.engine.io.output_paths import is_stream, make_folder
from beitcli.engine.io.outputs import OutputFile
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.probing.feature_extraction import FeatureExtractor
from beitcli.errors import BadImage, DataError, UsageError
from beitcli.pictures.canvas import Panel
from beitcli.pictures.contact_sheet import contact_sheet, square_cell

_SIMILARITY_DIGITS = 6
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True)
class Found:
    """The nearest rows so far.

    Attributes:
        similarities: (k,) float32, largest first.
        rows: (k,) int64.
    """

    similarities: np.ndarray
    rows: np.ndarray

    def with_block(self, query: np.ndarray, block: np.ndarray, rows: np.ndarray, k: int) -> Found:
        """Compares a block of features (b, D) with `query`, (D,) of length 1; equal ones keep their order."""
        block = block.astype(np.float32)
        lengths = np.maximum(np.linalg.norm(block, axis=1), np.finfo(np.float32).tiny)
        similarities = np.concatenate([self.similarities, block @ query / lengths])
        rows = np.concatenate([self.rows, rows])
        best = np.argsort(-similarities, kind="stable")[:k]
        return Found(similarities[best], rows[best])


def nothing_found() -> Found:
    return Found(np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64))


def neighbours(
    config: EmbedConfig,
    extractor: FeatureExtractor,
    kind: Callable[[], FeatureKind],
    on_event: OnEvent,
    stdin: BinaryIO | None,
) -> Iterator[dict[str, Any]]:
    """Yields `{"query", "neighbours": [{"path", "similarity"}, ...], "output"}` on rank 0.

    The query itself is none of its neighbours, where it is one of the images by its file.

    Args:
        kind: Computes what the features are; called only to compare it with that of a file.

    Raises:
        UsageError: The query is no single image, or a file holds features of another kind.
        DataError: The query cannot be read; after the document, if some images could not be read.
    """
    world = extractor.compute.world
    size = max(extractor.model.architecture.image_size)
    query_source = world.rank_zero_first(lambda: open_query(config, size, stdin, on_event))
    query = _feature_of(query_source, extractor)
    stored: StoredFeatures | None = None
    if len(config.inputs) == 1 and is_feature_file(config.inputs[0]):
        stored = world.rank_zero_first(lambda: _open_stored(Path(config.inputs[0]), kind))
    source = None
    if stored is None:
        source = world.rank_zero_first(lambda: open_inputs(config, sample_size=size, stdin=stdin, on_event=on_event))
    if config.output != "-":
        inputs = ProtectedInputs(config, source, images=[query_source.path(0)])
        world.run_on_rank_zero(lambda: require_writable_features(config, inputs))
    bad = 0
    if stored is not None:
        found = _among_stored(config, stored, query, query_source.path(0))
        path_of: Callable[[int], str] = stored.paths.__getitem__
        picture_of: Callable[[int], Image.Image | None] = lambda row: _opened(path_of(row))  # noqa: E731
    else:
        assert source is not None
        found, bad = _among_images(config, extractor, source, query, query_source.path(0), on_event)
        path_of, picture_of = source.path, source.image
    if world.is_rank_zero:
        if config.output != "-" or config.preview:
            _show(config, query_source, found, path_of, picture_of, on_event)
        yield {
            "query": query_source.path(0),
            "neighbours": [
                {"path": path_of(row), "similarity": round(similarity, _SIMILARITY_DIGITS)}
                for similarity, row in zip(found.similarities.tolist(), found.rows.tolist(), strict=True)
            ],
            "output": None if config.output == "-" else config.output,
        }
    if bad:
        raise DataError(f"{bad:,} of {len(source or ()):,} images cannot be read.", "They are compared with nothing.")


def _feature_of(source: Source, extractor: FeatureExtractor) -> np.ndarray:
    """Returns the feature of the single image of a source, (D,) of length 1."""
    (part,) = extractor.parts(source, extractor.view)
    for _, path, reason in part.bad:
        raise DataError(f"'{path}' cannot be read: {reason}.", "Give another --query.")
    feature: np.ndarray = part.features[0, 0]
    return feature / max(float(np.linalg.norm(feature)), float(np.finfo(np.float32).tiny))


def _open_stored(path: Path, kind: Callable[[], FeatureKind]) -> StoredFeatures:
    stored = read_features(path)
    if stored.kind is not None:
        kind().require(path, stored.kind, beside=("dtype",))
    return stored


def _among_stored(config: EmbedConfig, stored: StoredFeatures, query: np.ndarray, query_path: str) -> Found:
    found, first, path = nothing_found(), 0, config.inputs[0]
    for block in stored.blocks():
        if block.shape[1:] != query.shape:
            held, made = (" x ".join(map(str, each)) for each in (block.shape[1:], query.shape))
            raise UsageError(f"'{path}' holds features of {held} numbers, not {made}.", "Give --pool as it was made.")
        rows = np.arange(first, first + len(block))
        first += len(block)
        others = [not _is_query(query_path, stored.paths[row]) for row in rows]
        found = found.with_block(query, block[others], rows[others], config.k)
    return found


def _among_images(
    config: EmbedConfig,
    extractor: FeatureExtractor,
    source: Source,
    query: np.ndarray,
    query_path: str,
    on_event: OnEvent,
) -> tuple[Found, int]:
    """Returns the nearest images, and how many could not be read."""
    found, bad, done = nothing_found(), 0, 0
    for part in extractor.parts(source, extractor.view):
        rows = np.array(part.indices, dtype=np.int64)
        others = np.array([not _is_query(query_path, source.path(row)) for row in part.indices], dtype=bool)
        found = found.with_block(query, part.features[0][others], rows[others], config.k)
        bad, done = bad + len(part.bad), done + part.images
        on_event(Progress("embed", done, len(source), "image"))
    return found, bad


def _is_query(query_path: str, path: str) -> bool:
    """Whether an image is the file of the query; names are compared first, as asking the disk costs more."""
    if os.path.basename(path) != os.path.basename(query_path):
        return False
    try:
        return os.path.samefile(path, query_path)
    except (OSError, ValueError):
        return False


def _show(
    config: EmbedConfig,
    query_source: Source,
    found: Found,
    path_of: Callable[[int], str],
    picture_of: Callable[[int], Image.Image | None],
    on_event: OnEvent,
) -> None:
    """Shows the query and its neighbours: in the terminal for `--preview`, as a contact sheet for `-o`."""
    pictures = [query_source.image(0), *(picture_of(row) for row in found.rows.tolist())]
    captions = [
        f"{similarity:.3f}  {os.path.basename(path_of(row))}"
        for similarity, row in zip(found.similarities.tolist(), found.rows.tolist(), strict=True)
    ]
    name = os.path.basename(query_source.path(0))
    captions.insert(0, f"query  {name}")
    if config.preview:
        on_event(Drawn([Panel(square_cell(each), text) for each, text in zip(pictures, captions, strict=True)]))
    if config.output != "-":
        _write_sheet(config, contact_sheet(pictures, captions))


def _write_sheet(config: EmbedConfig, sheet: Image.Image) -> None:
    how = _FORMATS[Path(config.output).suffix.lower()]
    if not is_stream(Path(config.output)):
        make_folder(Path(os.path.realpath(config.output)).parent)
    OutputFile(Path(config.output), is_named=True).write(lambda file: sheet.save(file, format=how))


def _opened(path: str) -> Image.Image | None:
    """Returns the image of a stored path; None if it is no file now, as in a shard."""
    try:
        return decode_rgb(read_file(path))
    except BadImage:
        return None
