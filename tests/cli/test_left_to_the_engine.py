"""What the checks before torch is loaded leave to the engine, as it takes long or only the engine can tell."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from beitcli.cli.path_checks import check_command
from beitcli.config.attn_map import AttnMapConfig
from beitcli.config.embed import EmbedConfig
from beitcli.config.evaluate import EvalConfig
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.intensity import with_models_intensity
from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.config.resolve import resolve
from beitcli.config.tokenize import TokenizeConfig
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.open_data import open_data
from beitcli.engine.events import ignore
from beitcli.engine.io.eval_arguments import models_and_data
from beitcli.engine.io.unfinished_outputs import UnfinishedOutputs
from beitcli.errors import BeitError, DataError, StorageError, UsageError
from tests.conftest import save_picture

TRAINING = {"recipe": "tiny", "init": "random"}


@pytest.fixture
def flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with 4 images without labels in `flat`."""
    for number in range(4):
        save_picture(tmp_path / "flat" / f"{number}.png", (90, 40 * number, 20), seed=number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(kind: type, **settings: Any) -> BeitError | None:
    """Returns what the checks say of a command."""
    try:
        check_command(resolve(kind, settings).config, ignore)
    except BeitError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("kind", "option", "settings"),
    [
        (AttnMapConfig, "output", {"model": "random"}),
        (MaskPreviewConfig, "output", {"model": "random"}),
        (TokenizeConfig, "map", {"tokenizer": "dall-e"}),
        (TokenizeConfig, "reconstruct", {"tokenizer": "dall-e"}),
    ],
)
def test_unfinished_outputs_of_a_model_with_an_intensity_are(
    flat: Path, kind: type, option: str, settings: dict[str, Any]
) -> None:
    """The settings that the notes are of have the model's range of gray."""
    given = {"inputs": ["flat"], option: "new", **settings}
    folder = flat / "new"
    folder.mkdir()
    (folder / "0.png").touch()
    engine = with_models_intensity(resolve(kind, given).config, {"intensity_range": "0,4095"})
    (folder / "0.png").write_text("half of the job")
    assert isinstance(refusal(kind, **given), UsageError)
    UnfinishedOutputs(folder, engine).wrote(folder / "0.png")
    assert refusal(kind, **given) is None


def test_images_that_a_run_selects_are(flat: Path) -> None:
    """`--limit` goes by the seed of its masks, which need not be 0."""
    source = open_data(["flat"])
    (chosen,) = select_limit(source, 1, 0)
    (flat / "new").mkdir()
    (flat / "new" / Path(source.path(int(chosen))).name).write_text("kept")
    given = {"inputs": ["flat"], "model": "random", "limit": 1, "output": "new"}
    assert refusal(MaskPreviewConfig, **given) is None
    assert isinstance(refusal(MaskPreviewConfig, **given, seed=0), UsageError)


def test_outputs_that_may_be_replaced_are(flat: Path) -> None:
    """Each input would be looked at, whether it is one."""
    given = {"inputs": ["flat"], "model": "random", "output": "flat/0.png"}
    assert isinstance(refusal(AttnMapConfig, **given), UsageError)
    assert refusal(AttnMapConfig, **given, overwrite=True) is None
    blocked = {"inputs": ["flat"], "model": "random", "output": "flat/0.png/new.npy", "overwrite": True}
    assert isinstance(refusal(EmbedConfig, **blocked), StorageError)


def test_data_that_takes_long_to_open_is(flat: Path) -> None:
    def of(data: str, **settings: Any) -> BeitError | None:
        return refusal(FinetuneConfig, data=[data], **TRAINING, **settings)

    assert isinstance(of("flat"), DataError)
    assert of("flat", pages="all") is None
    assert isinstance(of("flat/*.png"), DataError)
    (flat / "many").mkdir()
    for number in range(1_001):
        (flat / "many" / f"{number}.png").touch()
    assert of("many/*.png") is None
    assert isinstance(of("absent/*.png"), DataError)
    (flat / "list.txt").write_text("flat/0.png\n" * 10)
    assert isinstance(of("list.txt"), DataError)
    (flat / "list.txt").write_text("flat/0.png\n" * 400_000)
    assert of("list.txt") is None
    (flat / "shards" / "data").mkdir(parents=True)
    shard = flat / "shards" / "data" / "0.parquet"
    shard.write_bytes(b"PAR1")
    assert isinstance(of(str(shard)), DataError)
    with shard.open("r+b") as file:
        file.truncate(5_000_000_000)  # bytes that no disk holds
    assert of(str(shard)) is None
    assert of("shards") is None


def test_arguments_of_an_evaluation_are_told_apart_once(flat: Path) -> None:
    config = EvalConfig(model="random", data=("flat",), protocol="knn")
    first = models_and_data(config)
    assert first.data == ("flat",)
    assert models_and_data(config) is first
    assert models_and_data(EvalConfig(model="random", data=("random", "flat"), protocol="knn")).data == ("flat",)


def test_words_are_no_folders_of_that_name(flat: Path, tokenizer_run: Path, pretrained_run: Path) -> None:
    for name in ("copy", "random"):
        shutil.copytree(tokenizer_run, flat / name)
    shutil.copytree(pretrained_run, flat / "random@random")
    given = {"data": ["sample"], "recipe": "tiny"}
    assert isinstance(refusal(FinetuneConfig, **given, init="copy"), StorageError)
    assert refusal(FinetuneConfig, **given, init="random") is None
    assert refusal(EvalConfig, model="random@random", data=["sample"], protocol="knn", train="sample") is None


def test_lists_without_a_file_are_opened_by_what_reports_each(flat: Path) -> None:
    (flat / "list.txt").write_text("a.png\nb.png\n")
    assert isinstance(refusal(EmbedConfig, model="random", inputs=["list.txt"]), DataError)
    assert refusal(EmbedConfig, model="random", inputs=["list.txt"], resume=True, output="x.npy") is None
    for on_bad in ("report", "skip"):
        assert refusal(TokenizeConfig, tokenizer="dall-e", inputs=["list.txt"], on_bad=on_bad) is None
    assert isinstance(refusal(TokenizeConfig, tokenizer="dall-e", inputs=["list.txt"], on_bad="fail"), DataError)
