"""What the tests share: a small labelled folder, and one tiny run of each training command, made once a session.

The runs are read-only by agreement: a test that changes one copies it first (`shutil.copytree`).
"""

from __future__ import annotations

import io
import json
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beitcli.cli.app import main
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.engine.finetune import finetune
from beitcli.engine.pretrain import pretrain
from beitcli.engine.train_tokenizer import train_tokenizer
from tests.helpers.scenes import NAMES, save_scene

_CACHE = tempfile.TemporaryDirectory(prefix="beit-tests-")
CLASSES = {"blue": (40, 70, 210), "green": (50, 180, 60), "red": (220, 60, 40)}
IMAGES_PER_CLASS = 8


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """`pytest` without a path shares the tests out to one process a core, where pytest-xdist is there.

    A path on the command line, which mostly means few tests or a GPU, and `-n 0` keep them in this process.
    """
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    in_worker = "PYTEST_XDIST_WORKER" in os.environ
    if whole and not in_worker and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses = "auto"
        if config.option.dist == "no":
            config.option.dist = "worksteal"  # parts of neighbours: few module fixtures are made twice


def pytest_configure() -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    # A shell's background jobs ignore the one and nohup's the other, and so would the processes that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in [name for name in os.environ if name.startswith("BEIT_")]:
        del os.environ[name]  # settings of the person at the keyboard are none of the tests'
    os.environ["BEIT_CACHE_DIR"] = _CACHE.name  # nor is what that person has cached


def save_picture(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 36)) -> Path:
    """A coloured picture with stripes and noise of its own, so that no two are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    width, height = size
    pixels = np.full((height, width, 3), colour, dtype=np.float64)
    pixels[:, :: 2 + seed % 5] *= 0.6
    pixels += generator.normal(0, 25, pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images, PNG and JPEG, in three class folders: blue, green, red."""
    root = tmp_path_factory.mktemp("labelled")
    for number, (name, colour) in enumerate(CLASSES.items()):
        for index in range(IMAGES_PER_CLASS):
            suffix = "png" if index % 2 else "jpg"
            save_picture(root / name / f"{index:02d}.{suffix}", colour, seed=100 * number + index)
    return root


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 images to train on and 4 to measure on."""
    root = tmp_path_factory.mktemp("scenes")
    for number in range(14):
        save_scene(root / ("train" if number < 10 else "val"), f"{number:02d}", number)
    (root / "names.txt").write_text("\n".join(NAMES) + "\n")
    return root


@pytest.fixture(scope="session")
def tokenizer_run(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path) -> Path:
    """4 steps of a dVAE: 16 x 16 pixels to 4 x 4 tokens of 16 codes; checkpoints of steps 2 and 4."""
    run = tmp_path_factory.mktemp("runs") / "tokenizer"
    flags = {"recipe": "tiny", "vocab_size": 16, "size": 16, "width": 8, "steps": 4, "batch_size": 8, "save_every": 2}
    train_tokenizer(resolve(TrainTokenizerConfig, flags | _common(labelled_folder, run)).config)
    return run


@pytest.fixture(scope="session")
def pretrained_run(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path, tokenizer_run: Path) -> Path:
    """4 steps of `tiny` on 32 x 32 pixels, 4 x 4 patches, 6 hidden; checkpoints of steps 2 and 4."""
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    flags = {"recipe": "tiny", "image_size": 32, "num_masked": 6, "tokenizer": str(tokenizer_run)}
    flags |= {"steps": 4, "batch_size": 8, "save_every": 2}
    pretrain(resolve(PretrainConfig, flags | _common(labelled_folder, run)).config)
    return run


@pytest.fixture(scope="session")
def finetuned_run(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path, pretrained_run: Path) -> Path:
    """4 steps of a classifier of blue, green and red from `pretrained_run`; checkpoints of steps 2 and 4."""
    run = tmp_path_factory.mktemp("runs") / "finetuned"
    flags = {"recipe": "tiny", "init": str(pretrained_run), "size": 32, "steps": 4, "batch_size": 8, "save_every": 2}
    finetune(resolve(FinetuneConfig, flags | _common(labelled_folder, run)).config)
    return run


def _common(data: Path, run: Path) -> dict[str, object]:
    return {"data": [str(data)], "out": str(run), "device": "cpu", "workers": 0, "log_every": 1}


@dataclass(frozen=True)
class Ended:
    """How a command line ended: exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """stdout as JSON Lines; anything else on it fails the test."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def beit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`beit(*argv, stdin=b"")` in this process, streams captured as in a pipe."""

    def run(*argv: object, stdin: bytes = b"") -> Ended:
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in argv])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """`picture("name.png")`: one more picture, below the test's own folder."""

    def make(name: str, seed: int = 1, size: tuple[int, int] = (40, 36)) -> Path:
        return save_picture(tmp_path / name, (120, 130, 90), seed, size)

    return make
