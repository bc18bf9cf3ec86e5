"""How far the fast views are from the reference: grey levels of both images, and tokens of a TOKENIZER that agree.

python benchmarks/views.py DATA --tokenizer RUN --images 200 --image-size 224 --token-size 112 --output FILE
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from measure import report

from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import PretrainingTransform
from beitcli.data.transforms.color_jitter import apply_color
from beitcli.data.transforms.pretraining import FastPretrainingTransform
from beitcli.tokenizers.base import Tokenizer, to_unit
from beitcli.tokenizers.open import open_tokenizer


def levels(name: str, drawn: dict[str, np.ndarray]) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1], colours applied."""
    images = torch.from_numpy(drawn[name])[None]
    return apply_color(images, torch.from_numpy(drawn["color"])[None]) if "color" in drawn else to_unit(images)


def differences(
    source: Source, count: int, sizes: tuple[int, int], color_jitter: float, tokenizer: Tokenizer | None
) -> dict[str, object]:
    """Mean, 99th percentile and maximum of the absolute difference in grey levels, over all pixels of all images."""
    settings = {"seed": 0, "image_size": sizes[0], "token_size": sizes[1], "color_jitter": color_jitter}
    fast, reference = FastPretrainingTransform(**settings), PretrainingTransform(**settings)
    apart: dict[str, list[torch.Tensor]] = {"images": [], "token_images": []}
    signed: dict[str, list[float]] = {"images": [], "token_images": []}
    agreeing: list[torch.Tensor] = []
    for index in range(count):
        drawn = fast(source.pixels(index), 0, index), reference(source.image(index), 0, index)
        for name in apart:
            ours, theirs = (255 * levels(name, each) for each in drawn)
            signed[name].append(float((ours - theirs).mean()))
            apart[name].append((ours - theirs).abs().flatten())
        if tokenizer is not None:
            ours, theirs = (tokenizer.encode(levels("token_images", each)) for each in drawn)
            agreeing.append((ours == theirs).flatten())
    metrics: dict[str, object] = {"images_read": count, "color_jitter": color_jitter, "sizes": sizes}
    for name, parts in apart.items():
        values = torch.cat(parts)
        metrics[name] = {
            "mean": float(values.mean()),
            "mean_signed": float(np.mean(signed[name])),
            "percentile_99": float(np.percentile(values.numpy(), 99)),
            "max": float(values.max()),
        }
    if agreeing:
        metrics["tokens"] = sum(map(len, agreeing))
        metrics["token_agreement"] = float(torch.cat(agreeing).float().mean())
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--tokenizer")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--token-size", type=int, default=112)
    parser.add_argument("--output")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = open_data([given.data])
    tokenizer = open_tokenizer(given.tokenizer) if given.tokenizer else None
    count, sizes = min(given.images, len(source)), (given.image_size, given.token_size)
    results = {
        name: differences(source, count, sizes, strength, tokenizer)
        for name, strength in (("without_jitter", 0.0), ("with_jitter", 0.4))
    }
    report("How far are the fast views from the reference order?", results, given.output)


if __name__ == "__main__":
    main()
