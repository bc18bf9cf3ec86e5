"""Typed usage of the public API under `mypy --strict`. mypy checks this file with the package; it is never run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import beitcli
from beitcli.engine.events import Event


def on_event(event: Event) -> None: ...


def jobs(config: beitcli.PretrainConfig) -> None:
    assert_type(beitcli.pretrain("photos/", recipe="small", steps=100), beitcli.PretrainReport)
    assert_type(beitcli.pretrain([Path("a"), "b"], on_event=on_event).masked_accuracy, float | None)
    assert_type(beitcli.pretrain(config, progress=False).run, str)
    assert_type(beitcli.pretrain("photos/", dry_run=True), dict[str, Any])
    assert_type(beitcli.train_tokenizer(Path("photos")).codes_used, int)
    assert_type(beitcli.train_tokenizer(out="runs/a", resume=True), beitcli.TrainTokenizerReport)
    assert_type(
        beitcli.finetune("labelled/", init="runs/a"),
        beitcli.FinetuneReport | beitcli.SegmentReport | beitcli.DetectReport,
    )
    assert_type(beitcli.finetune("labelled/", init="runs/a").run, str)
    measured = beitcli.evaluate("runs/a", "held-out/")
    if isinstance(measured, beitcli.EvalReport):
        assert_type(measured.top1, float)
    assert_type(beitcli.predict("runs/a", ["a.jpg", Path("b.jpg")]), Iterator[dict[str, Any]])
    assert_type(beitcli.embed("runs/a", "photos/", layer=9), Iterator[dict[str, Any]])
    assert_type(beitcli.tokenize("photos/", tokenizer="dall-e"), Iterator[dict[str, Any]])


def wrong_calls(config: beitcli.FinetuneConfig) -> None:
    """Each line is a type error: `warn_unused_ignores` fails if mypy does not report it."""
    beitcli.pretrain(config)  # type: ignore[call-overload]
    beitcli.pretrain(1)  # type: ignore[call-overload]
    beitcli.pretrain("photos/", progress="bar")  # type: ignore[call-overload]
    beitcli.evaluate()  # type: ignore[call-arg]
    beitcli.load_model(None)  # type: ignore[arg-type]
    _ = beitcli.pretrian  # type: ignore[attr-defined]


def loaded(images: Any) -> None:
    model = beitcli.load_model("runs/a", device="cuda").eval()
    model(images)
    assert_type(model, beitcli.Model)
    assert_type(model.predict(["a.jpg", Path("b.jpg")])[0], dict[str, Any])
    assert_type(model.attention(images, points=[(3, 4)], layer=-2, head=1), dict[str, Any])
    assert_type(model.embed(images, pool="none").shape, tuple[Any, ...])
    model.embed(images, pool="max")  # type: ignore[arg-type]
    tokenizer = beitcli.load_tokenizer("dall-e")
    assert_type(tokenizer, beitcli.Tokenizer)
    assert_type(tokenizer.vocab_size, int)


def errors() -> str:
    try:
        beitcli.pretrain("sample")
    except beitcli.Stopped as stopped:
        return stopped.hint
    except beitcli.BeitError as error:
        return error.message
    return beitcli.__version__
