"""The public functions, through real tiny runs: settings, reports, progress and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import beitcli
from beitcli.config.resolve import resolve
from beitcli.engine.events import Event, Progress, Warned
from tests.documents.reading import ROOT

QUICK = {"device": "cpu", "workers": 0, "steps": 2, "batch_size": 4, "log_every": 1}
SMALL = QUICK | {"recipe": "tiny", "image_size": 32, "num_masked": 6}


def metrics_of(report: Any) -> dict[str, Any]:
    """A report without what differs from run to run."""
    timed = ("seconds", "measuring_seconds", "tokenizer_seconds", "total_seconds", "images_per_second")
    return {k: v for k, v in vars(report).items() if k not in ("run", "checkpoint", *timed)}


def test_pretrain_by_keyword_equals_pretrain_by_config(
    labelled_folder: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    settings = SMALL | {"tokenizer": tokenizer_run}
    by_keyword = beitcli.pretrain(labelled_folder, out=tmp_path / "keyword", progress=False, **settings)
    flags = settings | {
        "data": [str(labelled_folder)],
        "tokenizer": str(tokenizer_run),
        "out": str(tmp_path / "config"),
    }
    by_config = beitcli.pretrain(resolve(beitcli.PretrainConfig, flags).config, progress=False)
    assert isinstance(by_keyword, beitcli.PretrainReport)
    assert metrics_of(by_keyword) == metrics_of(by_config)
    weights = [(Path(report.checkpoint) / "model.safetensors").read_bytes() for report in (by_keyword, by_config)]
    assert weights[0] == weights[1]


def test_a_run_goes_on_without_data(labelled_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"vocab_size": 16, "size": 16, "width": 8, "recipe": "tiny"} | QUICK
    first = beitcli.train_tokenizer([labelled_folder], out=run, progress=False, **settings)
    again = beitcli.train_tokenizer(out=run, resume=True, progress=False, device="cpu", workers=0)
    assert (first.steps, metrics_of(first)) == (2, metrics_of(again))


def test_what_a_file_may_not_set_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('token_cache = "elsewhere"\n')
    seen: list[Event] = []
    with pytest.raises(beitcli.DataError):
        beitcli.pretrain(tmp_path / "none", config=file, tokenizer="dall-e", on_event=seen.append)
    assert isinstance(seen[0], Warned)
    assert "token_cache = 'elsewhere'" in seen[0].message


def test_finetune_and_evaluate_return_the_reports_of_their_kind(
    labelled_folder: Path, pretrained_run: Path, tmp_path: Path
) -> None:
    settings = QUICK | {"recipe": "tiny", "size": 32, "init": pretrained_run, "out": tmp_path / "run"}
    report = beitcli.finetune(labelled_folder, progress=False, **settings)
    assert isinstance(report, beitcli.FinetuneReport)
    measured = beitcli.evaluate(report.run, labelled_folder, device="cpu", workers=0, progress=False)
    assert isinstance(measured, beitcli.EvalReport)
    assert measured.images == 24


def test_predict_and_tokenize_give_a_document_an_image(
    labelled_folder: Path, finetuned_run: Path, tokenizer_run: Path
) -> None:
    images = sorted((labelled_folder / "red").iterdir())[:3]
    predicted = list(beitcli.predict(finetuned_run, images, device="cpu", top=1, progress=False))
    assert [each["path"] for each in predicted] == [str(path) for path in images]
    assert all(each["top"][0][0] in ("blue", "green", "red") for each in predicted)
    tokens = list(beitcli.tokenize(images[0], tokenizer=tokenizer_run, device="cpu", progress=False))
    assert [(len(each["tokens"]), each["grid"]) for each in tokens] == [(16, [4, 4])]


def test_dry_run_returns_the_plan_and_makes_nothing(
    labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = beitcli.train_tokenizer(labelled_folder, dry_run=True, progress=False, **QUICK, recipe="tiny", size=16)
    assert isinstance(plan, dict)
    assert list(tmp_path.iterdir()) == []


def test_environment_variables_set_nothing(
    labelled_folder: Path, tokenizer_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = sorted((labelled_folder / "red").iterdir())[0]
    monkeypatch.setenv("BEIT_SIZE", "32")
    monkeypatch.setenv("BEIT_NONSENSE", "1")
    (document,) = beitcli.tokenize(image, tokenizer=tokenizer_run, device="cpu", progress=False)
    assert document["grid"] == [4, 4]  # of its own 16 pixels


def test_progress_goes_to_stderr_by_default(
    labelled_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"vocab_size": 16, "size": 16, "width": 8, "recipe": "tiny"} | QUICK
    beitcli.train_tokenizer(labelled_folder, out=tmp_path / "shown", **settings)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Data: 24 images of 3 classes" in shown.err
    assert "tokenizer: step" in shown.err
    events: list[Event] = []
    beitcli.train_tokenizer(labelled_folder, out=tmp_path / "own", on_event=events.append, **settings)
    assert {event.done for event in events if isinstance(event, Progress) and event.unit == "step"} >= {1, 2}
    beitcli.train_tokenizer(labelled_folder, out=tmp_path / "silent", progress=False, **settings)
    assert capsys.readouterr() == ("", "")


def _config(kind: Any, **settings: Any) -> Any:
    return resolve(kind, {"data": ["sample"], "recipe": "tiny"} | settings).config


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        (lambda: beitcli.pretrain("sample", stpes=3), "pretrain has no setting 'stpes'.", "Did you mean 'steps'?"),
        (lambda: beitcli.pretrain("sample", steps=3, epochs=1.0), "exclude one another", "Give one of them."),
        (lambda: beitcli.pretrain(), "DATA is missing.", "Write `beit pretrain DATA...`"),
        (lambda: beitcli.finetune("sample"), "--init is missing.", "(--init, where to start."),
        (lambda: beitcli.tokenize([], tokenizer="dall-e"), "inputs is empty.", "'-'"),
        (lambda: beitcli.predict("runs/a"), "INPUT is missing.", "(INPUT, images: a folder"),
        (
            lambda: beitcli.pretrain("sample", gpus=2),
            "gpus is 2, and a call from Python starts no processes.",
            "torchrun",
        ),
        (
            lambda: beitcli.pretrain(_config(beitcli.PretrainConfig), steps=3),
            "PretrainConfig holds every setting, and steps is given beside it.",
            "dataclasses.replace",
        ),
        (
            lambda: beitcli.pretrain(_config(beitcli.TrainTokenizerConfig)),  # type: ignore[call-overload]
            "TrainTokenizerConfig is given, and PretrainConfig is needed.",
            "Give a PretrainConfig.",
        ),
        (
            lambda: beitcli.pretrain(replace(_config(beitcli.PretrainConfig), dry_run=True)),
            "The config asks for a dry run.",
            "dry_run=True",
        ),
    ],
)
def test_usage_errors_name_the_way_out_in_their_notes(call: Callable[[], Any], message: str, hint: str) -> None:
    with pytest.raises(beitcli.UsageError) as raised:
        call()
    assert message in str(raised.value)
    assert hint in "".join(raised.value.__notes__)
    assert isinstance(raised.value, beitcli.BeitError)


def test_an_unreadable_image_ends_predict_with_its_error_and_hint(finetuned_run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    documents = beitcli.predict(finetuned_run, tmp_path / "broken.jpg", device="cpu", progress=False)
    assert "error" in next(documents)
    with pytest.raises(beitcli.DataError) as raised:
        next(documents)
    assert raised.value.__notes__ == [raised.value.hint]


def test_a_misspelt_setting_has_the_nearest_one_as_its_hint() -> None:
    """In the words of docs/python.md."""
    with pytest.raises(beitcli.UsageError) as raised:
        beitcli.pretrain("sample", stepz=100)
    text = (ROOT / "docs/python.md").read_text()
    assert f"`{raised.value}`, `{raised.value.hint}`" in text
    assert raised.value.hint == "Did you mean 'steps'?"


def test_the_hint_of_a_method_is_a_note_once(pretrained_run: Path) -> None:
    model = beitcli.load_model(pretrained_run, progress=False)
    with pytest.raises(beitcli.UsageError) as raised:
        model.embed("photo.jpg", pool="max")  # type: ignore[arg-type]
    assert raised.value.__notes__ == ["One of: mean, cls, cls+mean, none."]
