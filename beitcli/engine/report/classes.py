"""Figures of each class of a finetuned model, its confusions and its worst images, from evaluation.json and metrics."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from beitcli.engine.report.intervals import wilson
from beitcli.engine.report.record import RunRecord

MATRIX = 30  # classes at most in a whole confusion matrix
_PAIRS = 20
_PREFIXES = {"iou/": "IoU", "ap/": "AP"}


def class_tables(record: RunRecord) -> dict[str, Any]:
    """Returns `{"rows": [...], "matrix": ..., "pairs": [...], "worst": [...]}` as far as the run has them.

    Numbers of evaluation.json that are not what a run writes leave the tables out.
    """
    evaluation = record.evaluation
    with suppress(KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
        if evaluation.get("task") == "classify":
            return _classified(evaluation)
        if evaluation.get("task") == "segment":
            return _segmented(evaluation, record.held_out)
    for prefix, words in _PREFIXES.items():
        own = {name.removeprefix(prefix): v for name, v in record.held_out.items() if name.startswith(prefix)}
        if own:
            rows = [{"class": name, "value": value} for name, value in own.items()]
            return {"metric": words, "rows": sorted(rows, key=lambda row: row["value"])}
    return {}


def _classified(evaluation: dict[str, Any]) -> dict[str, Any]:
    classes = [str(name) for name in evaluation["classes"]]
    confusion = [(int(t), int(p), int(count)) for t, p, count in evaluation["confusion"]]
    images, right = [0] * len(classes), [0] * len(classes)
    guessed = [0] * len(classes)
    for t, p, count in confusion:
        images[t] += count
        guessed[p] += count
        right[t] += count if t == p else 0
    if "labelled" in evaluation:  # of many classes the rarest confusions are left out
        images, guessed = ([int(count) for count in evaluation[name]] for name in ("labelled", "predicted"))
    rows = [
        {
            "class": name,
            "images": images[number],
            "right": right[number],
            "value": right[number] / images[number],
            "interval": list(wilson(right[number], images[number])),
            "precision": right[number] / guessed[number] if guessed[number] else None,
        }
        for number, name in enumerate(classes)
        if images[number]
    ]
    wrong = sorted((each for each in confusion if each[0] != each[1]), key=lambda each: -each[2])
    return {
        "metric": "accuracy",
        "rows": sorted(rows, key=lambda row: (row["value"], row["class"])),
        "matrix": _matrix(classes, confusion) if len(classes) <= MATRIX else None,
        "pairs": [[classes[t], classes[p], count, images[t]] for t, p, count in wrong[:_PAIRS]],
        "worst": _worst(evaluation),
        "commonest": max(images) / max(1, sum(images)),
    }


def _matrix(classes: list[str], confusion: list[tuple[int, int, int]]) -> dict[str, Any]:
    counts = [[0] * len(classes) for _ in classes]
    for t, p, count in confusion:
        counts[t][p] += count
    return {"classes": classes, "counts": counts}


def _segmented(evaluation: dict[str, Any], held_out: dict[str, float]) -> dict[str, Any]:
    classes = [str(name) for name in evaluation["classes"]]
    labelled, predicted, hits = ([int(n) for n in evaluation[key]] for key in ("labelled", "predicted", "hits"))
    pixels = max(1, sum(labelled))
    rows = [
        {
            "class": name,
            "share": labelled[number] / pixels,
            "value": hits[number] / (labelled[number] + predicted[number] - hits[number]),
            "recall": hits[number] / labelled[number] if labelled[number] else None,
        }
        for number, name in enumerate(classes)
        if labelled[number] + predicted[number]
    ]
    pairs = [(int(t), int(p), int(count)) for t, p, count in evaluation["confusion"]]
    return {
        "metric": "IoU",
        "rows": sorted(rows, key=lambda row: (row["value"], row["class"])),
        "pairs": [[classes[t], classes[p], count, labelled[t]] for t, p, count in pairs[:_PAIRS]],
        "worst": _worst(evaluation),
        "commonest": max(labelled) / pixels,
    }


def _worst(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the worst images; a picture that is no JPEG of ours is left out."""
    start = "data:image/jpeg;base64,"
    shown = []
    for each in evaluation.get("worst", []):
        picture = str(each["picture"])
        if picture.startswith(start):
            facts = {str(name): value for name, value in each.items() if name != "picture"}
            shown.append({**facts, "picture": picture})
    return shown
