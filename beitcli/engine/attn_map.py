"""`beit attn-map`: attention maps of reference points (paper, section 3.4, Figure 2), one document per image in order.

Costs a forward pass up to the block. Attention rows are computed only for the points of the batch's images; an HTML
page needs every row of every block, and `--head rollout` those of the blocks up to its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from beitcli.config.attn_map import ATTENTION_SUFFIXES, ONE_OF_ALL, AttnMapConfig
from beitcli.config.intensity import with_models_intensity
from beitcli.data.sources.base import Source
from beitcli.engine.attention_files import AttentionFiles
from beitcli.engine.attention_mapper import AttentionMapper
from beitcli.engine.events import Drawn, OnEvent, Progress, downloads, ignore, warn
from beitcli.engine.io.inputs import image_groups, open_inputs
from beitcli.engine.io.outputs import finish, output_files
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.newest_run import newest_run
from beitcli.errors import DataError
from beitcli.models.checkpoints.build import open_backbone
from beitcli.runtime.compute.device import choose_compute
from beitcli.runtime.metric_text import counted


def attn_map(
    config: AttnMapConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields `{"path", "model", "layer", "grid", "output", "maps"}` or `{"path", "error"}` per image, in input order.

    `layer` counts from 0, whatever the sign of `--layer`. `maps` has one entry per point and head: `{"point": [x, y],
    "patch": [row, column], "head", "attention": (h, w), "cls"}`; `attention` and `cls` together sum to 1. Where one
    file holds all images, the documents come after it is written.

    Raises:
        UsageError: The model, block, head, point or output is not available.
        StorageError: The model cannot be read, or the output cannot be written.
        DataError: After the last image, if some could not be read.
    """
    reference = config.model or newest_run(on_event)
    compute = choose_compute(config.device, config.precision)
    model, checkpoint = open_backbone(reference, config.size, downloads(on_event))
    checkpoint = checkpoint.normalized(config.normalization)
    config = with_models_intensity(config, checkpoint.settings)
    warn(checkpoint.warnings, on_event)
    mapper = AttentionMapper(config, model.to(compute.device), checkpoint, compute, config.points)
    source = open_inputs(config, sample_size=max(model.architecture.image_size), stdin=stdin, on_event=on_event)
    outputs = None
    if config.output is not None:
        inputs = ProtectedInputs(config, source, models=[reference])
        outputs = output_files(
            config.output,
            source,
            ATTENTION_SUFFIXES,
            inputs,
            overwrite=config.overwrite,
            of_all=ONE_OF_ALL,
        )
    files = AttentionFiles(config, mapper, outputs)
    documents = _documents(config, mapper, files, source, on_event)
    if files.is_of_all:
        documents = iter(list(documents))
    bad = 0
    for document in documents:
        bad += "error" in document
        yield document
    finish(outputs)
    if bad:
        raise DataError(f"{bad} of {counted(len(source), 'image')} cannot be read.", "Their lines say why.")


def _documents(
    config: AttnMapConfig, mapper: AttentionMapper, files: AttentionFiles, source: Source, on_event: OnEvent
) -> Iterator[dict[str, Any]]:
    """Yields the documents, after the file of each is written or has taken its image."""
    for group in image_groups(source, config.batch_size):
        mapped = mapper.look([image for _, image in group if not isinstance(image, str)], files.explorer)
        for index, image in group:
            path = source.path(index)
            if isinstance(image, str):
                yield {"path": path, "error": image}
            else:
                maps = next(mapped)
                files.add(index, path, maps)
                if config.preview:
                    on_event(Drawn(files.panels(path, maps)))
                yield {
                    "path": path,
                    "model": mapper.checkpoint.reference,
                    "layer": mapper.layer,
                    "grid": list(mapper.model.architecture.grid),
                    "output": files.output(index),
                    "maps": maps.as_documents(mapper.names),
                }
            on_event(Progress("attn-map", index + 1, len(source), "image"))
    files.finish()
