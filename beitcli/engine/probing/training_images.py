"""The images that an evaluation learns from, beside those that it measures on: `eval --train`, or a split of DATA."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from beitcli.config.evaluate import EvalConfig
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.splits import canonical
from beitcli.data.sources.subset import Subset
from beitcli.engine.events import OnEvent, openings
from beitcli.errors import UsageError


def training_source(
    config: EvalConfig, splits: frozenset[str], size: int, on_event: OnEvent, *, labelled: bool = True
) -> tuple[Source, str]:
    """Returns the training images, cut to `--limit`, and their name.

    They are `--train`, or the train split of DATA if another split of it is evaluated.

    Args:
        splits: Splits of DATA.
        labelled: Whether every image must have a label.

    Raises:
        UsageError: There are none.
    """
    references = config.data if config.train is None else (config.train,)
    if config.train is not None:
        split, named = None, config.train
    elif "train" in splits and canonical(config.split or "val") != "train":
        split, named = "train", f"{' '.join(config.data)}, split train"
    else:
        needs = "learns from labelled images" if labelled else "fits the variance of pixels to training images"
        raise UsageError(f"--protocol {config.protocol} {needs}, and none are given.", "Add --train DATA.")
    request = replace(
        Request.of(config, labelled=labelled, sample_size=size, on_progress=openings(on_event)),
        split=split,
        nul_separated=False,
    )
    source = open_data(references, request)
    if config.limit is not None and config.limit < len(source):
        source = Subset(source, np.sort(select_limit(source, config.limit, config.seed)))
    return source, named
