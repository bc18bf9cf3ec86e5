"""Attention maps of one opened image, as the document of `beit attn-map`."""

from __future__ import annotations

from typing import Any

from beitcli.config.attn_map import AttnMapConfig
from beitcli.data.sources.base import Source
from beitcli.data.transforms.reference_points import Pixel
from beitcli.engine.attention_mapper import AttentionMapper
from beitcli.errors import BadImage, DataError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.classifier import ImageClassifier
from beitcli.runtime.compute.device import Compute


def attention_document(
    config: AttnMapConfig,
    model: ImageClassifier,
    checkpoint: CheckpointHandle,
    compute: Compute,
    points: list[Pixel],
    source: Source,
) -> dict[str, Any]:
    """Returns the document of the first image of a source.

    Raises:
        UsageError: The block, head or point is not available.
        DataError: The image cannot be read.
    """
    try:
        image = source.image(0)
    except BadImage as error:
        raise DataError(f"'{source.path(0)}' cannot be read: {error.message}.") from None
    mapper = AttentionMapper(config, model, checkpoint, compute, points)
    (maps,) = mapper.look([image])
    return {
        "path": source.path(0),
        "model": checkpoint.reference,
        "layer": mapper.layer,
        "grid": list(model.architecture.grid),
        "output": None,
        "maps": maps.as_documents(mapper.names),
    }
