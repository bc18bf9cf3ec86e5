"""Opens INPUT or DATA for a command that uses a model, limited to `--limit` images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from PIL import Image

from beitcli.config.intensity import parse_intensity
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Request, Role
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.subset import Subset
from beitcli.engine.events import OnEvent, ignore, openings
from beitcli.errors import BadImage, UsageError

if TYPE_CHECKING:  # a command imports its own
    from beitcli.config.attn_map import AttnMapConfig
    from beitcli.config.embed import EmbedConfig
    from beitcli.config.evaluate import EvalConfig
    from beitcli.config.mask_preview import MaskPreviewConfig
    from beitcli.config.predict import PredictConfig
    from beitcli.config.tokenize import TokenizeConfig

    ImagesConfig = AttnMapConfig | EmbedConfig | EvalConfig | MaskPreviewConfig | PredictConfig | TokenizeConfig


def open_inputs(
    config: ImagesConfig,
    *,
    role: Role = "eval",
    sample_size: int,
    stdin: BinaryIO | None = None,
    labelled: bool | Literal["vectors"] = False,
    seed: int | None = None,
    on_event: OnEvent = ignore,
) -> Source:
    """Returns the images of a job; without any reference, those of the paths on stdin.

    Args:
        role: "train" or "eval": the split to read if DATA has splits and `--split` is not given.
        sample_size: Side of the images of `sample`, in pixels.
        stdin: Where `-` reads paths; None for the process's own.
        labelled: Whether every image must have a label; `vectors` for a number for each of several labels.
        seed: Seed of the selection by `--limit`; default the config's.

    Raises:
        DataError: Missing, unreadable or empty data, or `-` while stdin is closed.
        UsageError: `-` twice, or an unsupported format.
    """
    references = getattr(config, "data", ()) or getattr(config, "inputs", ()) or ("-",)  # `eval` names them data
    told = openings(on_event)
    kind: dict[str, Any] = {"role": role, "labelled": labelled is True, "vectors": labelled == "vectors"}
    request = Request.of(config, **kind, sample_size=sample_size, stdin=stdin, on_progress=told)
    source = open_data(references, request)
    if config.limit is None or config.limit >= len(source):
        return source
    return Subset(source, select_limit(source, config.limit, seed if seed is not None else config.seed or 0))


def open_query(config: EmbedConfig, size: int, stdin: BinaryIO | None, on_event: OnEvent) -> Source:
    """Returns the image of `--query` as a source of one. Raises UsageError if it is several, or stdin twice."""
    assert config.query is not None
    if config.query == "-" and "-" in config.inputs:
        raise UsageError("- is given as --query and as INPUT, but stdin can be read once only.", "Give - once.")
    intensity = parse_intensity(config.intensity_range)
    request = Request(role="eval", sample_size=size, stdin=stdin, intensity=intensity, on_progress=openings(on_event))
    source = open_data([config.query], request)
    if len(source) != 1:
        raise UsageError(f"--query '{config.query}' is {len(source):,} images.", "Name one image.")
    return source


def image_groups(source: Source, size: int) -> Iterator[list[tuple[int, Image.Image | str]]]:
    """Yields groups of `size` images with their indices, in order; an unreadable image is replaced by the reason."""
    for first in range(0, len(source), size):
        group: list[tuple[int, Image.Image | str]] = []
        for index in range(first, min(first + size, len(source))):
            try:
                group.append((index, source.image(index)))
            except BadImage as error:
                group.append((index, error.message))
        yield group
