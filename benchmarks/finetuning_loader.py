"""Images a second of finetuning's loader: normalised floats from the workers, against uint8 that the device normalises.

    python benchmarks/finetuning_loader.py DATA --rounds 7 --output benchmarks/results/finetuning_loader.json

Both draw alike: timm's random crop, flip, RandAugment and random erasing. "Finished" ends at the same product, floats
normalised and erased here on the CPU; "loader alone" ends at what goes to the device. One torch thread everywhere.
"""

from __future__ import annotations

import argparse
import random
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from loader import counted
from measure import gather_interleaved, report, spread
from PIL import Image
from timm.data import create_transform

from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import training_batches
from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import IMAGENET_MEAN, IMAGENET_STD, normalize
from beitcli.data.transforms.finetuning import FinetuningTransform, erase
from beitcli.runtime.compute.keyed_rng import keyed_integer

FLOATS, ALONE, FINISHED = "floats from the workers", "uint8, loader alone", "uint8, finished"
BATCH, SIZE, POLICY, ERASING = 50, 224, "rand-m9-mstd0.5-inc1", 0.25


class FloatView:
    """All of timm's augmentation at once."""

    bytes_per_image = 3 * SIZE**2 * 4

    @cached_property
    def transform(self) -> Any:
        settings: dict[str, Any] = {"interpolation": "bicubic", "re_prob": ERASING, "re_mode": "pixel"}
        transform = create_transform(SIZE, is_training=True, color_jitter=None, auto_augment=POLICY, **settings)
        ours = FinetuningTransform(seed=0, size=SIZE, rand_augment=POLICY)._transform
        for place, step in enumerate(ours.transforms):  # type: ignore[attr-defined]
            if hasattr(step, "ops"):
                transform.transforms[place] = step  # with the same guard against posterising to no bits
        return transform

    def __call__(self, image: Image.Image, epoch: int, index: int) -> dict[str, np.ndarray]:
        word = keyed_integer(0, "augmentation", epoch, index)
        random.seed(word)
        np.random.seed(word % (1 << 32))  # noqa: NPY002 - timm draws from it
        torch.manual_seed(word)
        return {"images": self.transform(image).numpy()}


def batches_of(source: Source, transform: Any, count: int, workers: int) -> Any:
    part = StreamPart(seed=0, batch_size=BATCH, images_seen=0, steps=count // BATCH)
    return (batch.tensors for batch in training_batches(source, transform, part, workers=workers))


def load(source: Source, transform: Any, count: int, workers: int) -> None:
    for _ in batches_of(source, transform, count, workers):
        pass


def finished(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    images = normalize(tensors["images"], IMAGENET_MEAN, IMAGENET_STD)
    return erase(images, tensors["erased"], tensors["noise"]) if "erased" in tensors else images


def finish(source: Source, transform: Any, count: int, workers: int) -> None:
    for tensors in batches_of(source, transform, count, workers):
        finished(tensors)


def difference(source: Source, old: Any, new: Any, count: int) -> dict[str, float]:
    """Between the two products, and the bytes of each."""
    largest, sizes = 0.0, [0, 0]
    for one, other in zip(batches_of(source, old, count, 0), batches_of(source, new, count, 0), strict=True):
        largest = max(largest, float((one["images"] - finished(dict(other))).abs().max()))
        for number, tensors in enumerate((one, other)):
            sizes[number] += sum(tensor.nbytes for tensor in tensors.values())
    return {
        "largest_difference": largest,
        "bytes_an_image_floats": sizes[0] / count,
        "bytes_an_image_uint8": sizes[1] / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = open_data(given.data)
    old, new = FloatView(), FinetuningTransform(seed=0, size=SIZE, rand_augment=POLICY, erasing=ERASING)
    results: dict[str, Any] = {"images_a_round": given.images, **difference(source, old, new, given.images), "runs": []}
    for workers in given.workers:
        rest = {"count": given.images, "workers": workers}
        calls = {
            FLOATS: partial(load, source, old, **rest),
            ALONE: partial(load, source, new, **rest),
            FINISHED: partial(finish, source, new, **rest),
        }
        processor: dict[str, list[float]] = {name: [] for name in calls}
        metrics = gather_interleaved(
            {n: counted(call, processor[n]) for n, call in calls.items()}, given.rounds, peer=FLOATS
        )
        for name, own in metrics.items():
            own["images_per_second"] = {"median": given.images / own["seconds"]["median"]}
            pairs = zip(processor[FLOATS][-given.rounds :], processor[name][-given.rounds :], strict=True)
            own["times_less_processor"] = spread([theirs / ours for theirs, ours in pairs])
        results["runs"].append({"workers": workers, "contestants": metrics})
    report("What does sending uint8 to the device save finetuning's loader?", results, given.output)


if __name__ == "__main__":
    main()
