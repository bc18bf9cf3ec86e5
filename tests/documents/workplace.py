"""A folder with all that the guides name, small: images of each kind, and a tiny run of each training command.

`make` fills it once; a test works in a copy, where its lines find what they read, and nothing that they write.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.documents.reading import ROOT
from tests.helpers.coco_folder import save_rectangles
from tests.helpers.scenes import NAMES, save_scene

SMALL = {  # makes any recipe small, as variables win over recipes; what a line gives wins over them
    "BEIT_DEVICE": "cpu", "BEIT_WORKERS": "0", "BEIT_STEPS": "2", "BEIT_BATCH_SIZE": "4", "BEIT_LOG_EVERY": "1",
    "BEIT_SAVE_EVERY": "1", "BEIT_NUM_MASKED": "6", "BEIT_IMAGE_SIZE": "32", "BEIT_PATCH_SIZE": "8", "BEIT_SIZE": "32",
    "BEIT_HEAD_WIDTH": "8", "BEIT_TOKENIZER_STEPS": "2", "BEIT_REGIONS": "8", "BEIT_PREVIEWS": "2",
    "BEIT_WARMUP_STEPS": "1",
}  # fmt: skip
TRAINED = {  # name below runs/: how it is made
    "tokenizer": "train-tokenizer photos --recipe tiny --vocab-size 16 --size 16 --width 8",
    "mine": "pretrain photos --recipe tiny --tokenizer runs/tokenizer",
    "classifier": "finetune labelled --recipe tiny --init runs/mine",
    "segmenter": "finetune street --recipe tiny-segment --init random --head setr-pup",
    "detector": "finetune coco --recipe tiny-detect --init random",
}
ALSO_CALLED = {  # in the guides
    "first": "mine", "photos": "mine", "cells": "mine", "probed": "mine", "a": "mine", "b": "mine",
    "first-classifier": "classifier", "photos-classifier": "classifier", "scratch": "classifier",
    "classifier-1": "classifier", "cell-tokenizer": "tokenizer",
}  # fmt: skip
NEEDED = {"mine": "tokenizer"}  # by a run that goes on


def make(root: Path, labelled: Path) -> None:
    """Fills ROOT; `labelled` has three classes of eight images."""
    for name in ("labelled", "held-out", "labelled-cells", "imagenet/train", "imagenet/val"):
        shutil.copytree(labelled, root / name)
    shutil.copytree(labelled, root / "photos", dirs_exist_ok=True)
    shutil.copy(labelled / "red" / "00.jpg", root / "photo.jpg")
    for number, image in enumerate(sorted(labelled.rglob("*.jpg"))[:4]):
        shutil.copy(image, root / "photos" / f"{number}.jpg")
    for number in range(14):
        save_scene(root / "street" / ("train" if number < 10 else "val"), f"{number:02d}", number, ignore=255)
    (root / "names.txt").write_text("\n".join(NAMES) + "\n")
    for split, count in (("train2017", 8), ("val2017", 4)):
        save_rectangles(root / "coco", split, count, seed=count)
    paths = sorted(str(path.relative_to(root)) for path in (root / "labelled").rglob("*.*"))
    rows = [f"{path},{index % 2},{index // 2 % 2}" for index, path in enumerate(paths)]
    (root / "labels.csv").write_text("\n".join(["path,sky,water", *rows]) + "\n")
    _save_cells(root)
    for name, line in TRAINED.items():
        ended = run(f"beit {line} --out runs/{name} -q", root)
        assert ended.returncode == 0, ended.stderr
    ended = run("beit embed runs/mine photos -o features.npy -q", root)
    assert ended.returncode == 0, ended.stderr


def _save_cells(root: Path) -> None:
    """12-bit images in 16-bit files, and stacks of three of them."""
    rng = np.random.default_rng(0)
    for folder in ("cells", "stacks"):
        (root / folder).mkdir()
    for number in range(24):
        pages = [Image.fromarray(rng.integers(0, 4096, (40, 40), dtype=np.uint16)) for _ in range(3)]
        pages[0].save(root / "cells" / f"{number:02d}.tif")
        pages[0].save(root / "stacks" / f"{number:02d}.tif", save_all=True, append_images=pages[1:])


def copy(root: Path, to: Path, script: str) -> None:
    """Copies the images, and those runs that the script names but does not make."""
    made = ["features.*"] if "-o features" in script else []
    shutil.copytree(root, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs", *made))
    (to / "runs").mkdir()
    own = set(re.findall(r"--out runs/([\w-]+)", script)) if "--resume" not in script else set()
    kinds = {name: ALSO_CALLED.get(name, name) for name in set(re.findall(r"\bruns/([\w-]+)", script)) - own}
    kinds |= {NEEDED[kind]: NEEDED[kind] for kind in kinds.values() if kind in NEEDED}
    for name, kind in kinds.items():
        if (root / "runs" / kind).exists():  # else the script makes it
            shutil.copytree(root / "runs" / kind, to / "runs" / name)
    if "runs/segmenter" in script:  # what is held out is then of its kind
        shutil.rmtree(to / "held-out")
        shutil.copytree(to / "street" / "val", to / "held-out")


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs lines of a shell in a folder, with this checkout's `beit` and small settings."""
    bin = folder / ".bin"
    bin.mkdir(exist_ok=True)
    program = bin / "beit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m beitcli "$@"\n')
    program.chmod(0o755)
    own = {"PATH": f"{bin}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "BEIT_CACHE_DIR": str(folder / ".cache")}
    shell = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(
        shell,
        cwd=folder,
        env=os.environ | SMALL | own,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
