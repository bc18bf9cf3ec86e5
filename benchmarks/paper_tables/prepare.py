"""Lays out the data of the tables, as links: training images, those that choose learning rates, those that measure.

    train                  all train-*.tar but the last
    search                 the last train-*.tar, `measured` images of it
    val                    val-*.tar, `measured` images of them
    segmentation           the given folder
    segmentation_search    its training images alone: every eighth is `val`, the others are `train`; frames of one
                           drive, so it serves the choice of a rate only

`search` and `val` are packs, because `finetune --val` measures on all images that it is given.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from paper_tables.budgets import BUDGETS
from paper_tables.cells import Failure
from paper_tables.child import environment


def lay_out(work: Path, data: Path, segmentation: Path | None, budget: str) -> dict[str, Path]:
    """Returns the folder of each name; what is there is not made again. Raises Failure."""
    root = work / "data"
    train = sorted(data.glob("train-*.tar"))
    if len(train) < 2 or not any(data.glob("val-*.tar")):
        raise Failure(f"'{data}' needs two or more train-*.tar and a val-*.tar.")
    for file in train[:-1]:
        _link(root / "train" / file.name, file)
    _link(root / "search-all" / train[-1].name, train[-1])
    for file in sorted(data.glob("val-*.tar")):
        _link(root / "val-all" / file.name, file)
    measured = BUDGETS[budget].measured
    folders = {"train": root / "train", "features": work / "features"}
    for name, split in (("search", "train"), ("val", "val")):
        folders[name] = root / f"{name}-{measured}"
        _pack(root / f"{name}-all", split, measured, folders[name])
    if segmentation is not None:
        folders["segmentation"] = segmentation
        folders["segmentation_search"] = _split_masks(segmentation, root / "segmentation-search")
    return folders


def _pack(source: Path, split: str, images: int, folder: Path) -> None:
    if (folder / "pack.json").exists():
        return
    words = ["pack", str(source), "--split", split, "--limit", str(images), "--encode", "raw", "--workers", "0"]
    command = [sys.executable, "-m", "beitcli", *words, "-o", str(folder), "--quiet"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"beit {' '.join(words)}: {done.stderr}")


def _split_masks(segmentation: Path, folder: Path) -> Path:
    images = sorted((segmentation / "train" / "images").iterdir())
    masks = {file.stem: file for file in (segmentation / "train" / "masks").iterdir()}
    for number, image in enumerate(images):
        split = "val" if number % 8 == 7 else "train"
        for kind, file in (("images", image), ("masks", masks[image.stem])):
            _link(folder / split / kind / file.name, file)
    return folder


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(target.resolve())
