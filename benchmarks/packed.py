"""What a pack changes: pixels of both pretraining views, and tokens, against the views of the files with equal draws.

python benchmarks/packed.py DATA --packed raw-256/ jpeg-320/ --tokenizer RUN --images 200 --output FILE

A crop box is drawn in shares of the image, so the box of a shrunk image shows the same part, but for rounding.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from measure import report, spread

from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.pretraining import FastPretrainingTransform
from beitcli.tokenizers.base import Tokenizer, to_unit
from beitcli.tokenizers.open import open_tokenizer

VIEWS = ("images", "token_images")


def differences(
    files: Source, packed: Source, count: int, sizes: tuple[int, int], tokenizer: Tokenizer | None
) -> dict[str, object]:
    """Mean absolute difference of each image's views in levels of 255, and the share of its tokens that change.

    Without colour jitter, which enlarges or shrinks a difference alike.
    """
    transform = FastPretrainingTransform(seed=0, image_size=sizes[0], token_size=sizes[1], color_jitter=0.0)
    levels: dict[str, list[float]] = {name: [] for name in VIEWS}
    changed: list[float] = []
    for index in range(count):
        own, other = (transform(source.pixels(index), 0, index) for source in (packed, files))
        for name in VIEWS:
            levels[name].append(float(np.abs(own[name].astype(np.int16) - other[name]).mean()))
        if tokenizer is not None:
            tokens = [tokenizer.encode(to_unit(torch.from_numpy(each["token_images"])[None])) for each in (own, other)]
            changed.append(float((tokens[0] != tokens[1]).float().mean()))
    metrics: dict[str, object] = {
        name: spread(values) | {"mean": float(np.mean(values))} for name, values in levels.items()
    }
    if changed:
        metrics["tokens_changed"] = spread(changed) | {"mean": float(np.mean(changed))}
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--packed", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--tokenizer")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--token-size", type=int, default=112)
    parser.add_argument("--output")
    given = parser.parse_args()
    torch.set_num_threads(1)
    files = open_data([given.data])
    tokenizer = open_tokenizer(given.tokenizer) if given.tokenizer else None
    count, sizes = min(given.images, len(files)), (given.image_size, given.token_size)
    packs: dict[str, object] = {}
    results = {"images_read": count, "sizes": sizes, "packs": packs}
    for folder in given.packed:
        packed = open_data([folder])
        if len(packed) != len(files):
            raise SystemExit(f"{folder} holds {len(packed)} images, {given.data} {len(files)}.")
        stored = sum(packed.stored_bytes(index) or 0 for index in range(len(packed)))
        packs[os.path.basename(os.path.normpath(folder))] = {"bytes_an_image": stored / len(packed)} | differences(
            files, packed, count, sizes, tokenizer
        )
    report("What does a pack change?", results, given.output)


if __name__ == "__main__":
    main()
