"""`beit eval`: the figures of a finetuned model, by its kind. A new kind is a new file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beitcli.config.use import EvalConfig
from beitcli.engine.evaluate_classify import evaluate_classifier
from beitcli.engine.evaluate_detect import evaluate_detector
from beitcli.engine.evaluate_segment import evaluate_segmenter
from beitcli.engine.events import OnEvent, downloads, ignore
from beitcli.engine.probing import probe
from beitcli.models.references import OpenedModel, expect, open_model

_KINDS: dict[str, Callable[[EvalConfig, OpenedModel, OnEvent], Any]] = {
    "classifier": evaluate_classifier,
    "segmenter": evaluate_segmenter,
    "detector": evaluate_detector,
}


def evaluate(config: EvalConfig, on_event: OnEvent = ignore) -> Any:
    """Measures `config.model` on `config.data`; returns the report of its kind.

    Raises:
        StorageError: The model is of a kind that has no figures.
    """
    if config.protocol != "head":
        return probe(config, on_event)
    found = open_model(config.model, downloads(on_event))
    expect(found, *_KINDS, or_else="--protocol knn or linear measures the features of any.")
    return _KINDS[found.kind](config, found, on_event)
