"""Previews at each save: what is drawn, what is told where nothing is, and a run that is the same without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.data.transforms.base import fit_center
from beitcli.engine.events import Note, Warned
from beitcli.engine.pretrain import pretrain
from beitcli.engine.train_tokenizer import train_tokenizer

SHORT = {"steps": 4, "save_every": 2, "batch_size": 4, "log_every": 1, "workers": 0, "device": "cpu"}
SMALL = {"recipe": "tiny", "image_size": 32, "num_masked": 6, "limit": 20}


def pretrained(out: Path, data: Path, events: list[Any] | None = None, **more: Any) -> list[Path]:
    """Trains, and returns the previews."""
    flags = SHORT | SMALL | {"data": [str(data)], "target": "pixels", "out": str(out)} | more
    pretrain(resolve(PretrainConfig, flags).config, (events if events is not None else []).append)
    return sorted((out / "previews").glob("*")) if (out / "previews").exists() else []


def middle_of(folder: Path, side: int) -> list[Image.Image]:
    return [fit_center(Image.open(path).convert("RGB"), side) for path in sorted(folder.glob("*/*"))]


def is_within(preview: np.ndarray, images: np.ndarray) -> bool:
    """Whether the first picture of a preview is one of the images, each pixel 7 times as wide and high."""
    places = [(top, left) for top in range(64) for left in range(64)]
    shown = (preview[top : top + 224 : 7, left : left + 224 : 7] for top, left in places)
    return any(np.array_equal(each, image) for each in shown for image in images)


def test_a_preview_is_drawn_at_each_save_and_the_run_is_the_same_without(labelled_folder, tmp_path):
    drawn = pretrained(tmp_path / "with", labelled_folder, previews=3)
    assert [path.name for path in drawn] == ["step-0000002.png", "step-0000004.png"]
    first, last = (np.asarray(Image.open(path).convert("RGB")) for path in drawn)
    assert first.shape == last.shape
    assert (first != last).any()
    assert is_within(first, np.asarray(middle_of(labelled_folder, 32)))
    assert pretrained(tmp_path / "without", labelled_folder, previews=0) == []
    newest = "checkpoints/step-0000004/model.safetensors"
    assert (tmp_path / "with" / newest).read_bytes() == (tmp_path / "without" / newest).read_bytes()


def test_tokens_are_decoded_and_a_tokenizer_shows_its_reconstructions(labelled_folder, tokenizer_run, tmp_path):
    drawn = pretrained(tmp_path / "run", labelled_folder, target="tokens", tokenizer=str(tokenizer_run))
    assert len(drawn) == 2
    flags = SHORT | {"recipe": "tiny", "size": 16, "width": 8, "data": ["sample"], "limit": 80}
    train_tokenizer(resolve(TrainTokenizerConfig, flags | {"out": str(tmp_path / "tokenizer")}).config)
    reconstructions = sorted((tmp_path / "tokenizer" / "previews").iterdir())
    assert len(reconstructions) == 2
    with Image.open(reconstructions[0]) as preview:
        assert preview.width == 2 * 2 * 224 + 5 * 16  # two of the four images a row, each beside its reconstruction


def test_without_masks_it_is_said_once_that_there_is_nothing_to_draw(labelled_folder, tmp_path):
    events: list[Any] = []
    assert pretrained(tmp_path / "run", labelled_folder, events, mask=False, predict="all") == []
    said = [event.message for event in events if isinstance(event, Note) and "no previews" in event.message]
    assert len(said) == 1


def test_a_linked_folder_is_not_followed_and_ends_previews_not_the_run(labelled_folder, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pretrained(run, labelled_folder, steps=2)
    for path in (run / "previews").iterdir():
        path.unlink()
    (run / "previews").rmdir()
    (run / "previews").symlink_to(elsewhere)
    events: list[Any] = []
    (run / "config.toml").write_text((run / "config.toml").read_text().replace("steps = 2", "steps = 4"))
    pretrain(resolve(PretrainConfig, {"out": str(run), "resume": True, "workers": 0}).config, events.append)
    assert list(elsewhere.iterdir()) == []
    assert sum("is a link" in event.message for event in events if isinstance(event, Warned)) == 1
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


@pytest.mark.parametrize("previews", [-1, 17])
def test_the_number_of_previews_is_bounded(beit, previews):
    assert beit("pretrain", "sample", "--recipe", "tiny", "--previews", previews).code == 2
