"""Images a second of pretraining's loader, to the same product: normalised images and token images in [0, 1], floats.

python benchmarks/loader.py DATA --rounds 9 --output benchmarks/results/loader.json

The peer is the release's order written with torchvision's transforms: jitter of the whole image, flip, one box, two
resizes by Pillow, ToTensor. The fast views' colours are applied here on the CPU, as training does. timm's transform
makes one view of the two, for scale. One torch thread everywhere, so that workers are what is compared.

--packed DIR... adds the fast views, loader alone, from packs of the same images (`beit pack`), and --in-memory from
memory. --only packed leaves the other contestants but the fast views out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial

import torch
from measure import gather_interleaved, report, spread
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import training_batches
from beitcli.data.sources.base import Source
from beitcli.data.sources.files_in_memory import FilesInMemory
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import IMAGENET_MEAN, IMAGENET_STD, PretrainingTransform, TwoCropTransform, normalize
from beitcli.data.transforms.color_jitter import apply_color
from beitcli.data.transforms.pretraining import FastPretrainingTransform
from beitcli.tokenizers.base import to_unit

RELEASE, REFERENCE, FAST, TIMM = "release order, torchvision", "reference views", "fast views", "timm, one view"
ALONE = ", loader alone"
BATCH, SIZE, TOKEN_SIZE, JITTER = 50, 224, 112, 0.4


class Transformed(Dataset[tuple[torch.Tensor, ...]]):
    """The files of a source through a transform, as a training script of one's own would have it."""

    def __init__(
        self, source: Source, transform: Callable[[Image.Image], tuple[torch.Tensor, ...]], count: int
    ) -> None:
        self.paths = [source.path(index) for index in range(len(source))]
        self.transform, self.count = transform, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        with open(self.paths[index % len(self.paths)], "rb") as file:
            return self.transform(Image.open(file).convert("RGB"))


class ReleaseOrder:
    """Jitter, flip, one box, bicubic and Lanczos."""

    def __init__(self) -> None:
        self.colours = transforms.Compose(
            [transforms.ColorJitter(JITTER, JITTER, JITTER), transforms.RandomHorizontalFlip()]
        )
        self.normalize = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, ...]:
        image = self.colours(image)
        box = transforms.RandomResizedCrop.get_params(image, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        large = TF.resized_crop(image, *box, [SIZE, SIZE], InterpolationMode.BICUBIC)
        small = TF.resized_crop(image, *box, [TOKEN_SIZE, TOKEN_SIZE], InterpolationMode.LANCZOS)
        return self.normalize(TF.to_tensor(large)), TF.to_tensor(small)


class OneView:
    """timm's crop, jitter and flip."""

    def __init__(self) -> None:
        self.transform = create_transform(
            SIZE, is_training=True, scale=(0.08, 1.0), color_jitter=JITTER, interpolation="bicubic"
        )

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, ...]:
        return (self.transform(image),)


def batches_of(
    source: Source, kind: type[TwoCropTransform], count: int, workers: int
) -> Iterator[dict[str, torch.Tensor]]:
    transform = kind(seed=0, image_size=SIZE, token_size=TOKEN_SIZE, color_jitter=JITTER)
    part = StreamPart(seed=0, batch_size=BATCH, images_seen=0, steps=count // BATCH)
    return (batch.tensors for batch in training_batches(source, transform, part, workers=workers))


def load(source: Source, kind: type[TwoCropTransform], count: int, workers: int) -> None:
    for _ in batches_of(source, kind, count, workers):
        pass


def finish(source: Source, kind: type[TwoCropTransform], count: int, workers: int) -> None:
    """Loads, and does what the training step does to the views first."""
    for tensors in batches_of(source, kind, count, workers):
        if "color" in tensors:
            apply_color(tensors["images"], tensors["color"], IMAGENET_MEAN, IMAGENET_STD)
            apply_color(tensors["token_images"], tensors["color"])
        else:
            normalize(tensors["images"], IMAGENET_MEAN, IMAGENET_STD)
            to_unit(tensors["token_images"])


def transform(
    source: Source, make: Callable[[], Callable[[Image.Image], tuple[torch.Tensor, ...]]], count: int, workers: int
) -> None:
    for _ in DataLoader(Transformed(source, make(), count), BATCH, num_workers=workers):
        pass


def processor_seconds() -> float:
    """Of this process and of the workers that have ended."""
    return sum(os.times()[:4])


def counted(call: Callable[[], None], into: list[float]) -> Callable[[], None]:
    def run() -> None:
        before = processor_seconds()
        call()
        into.append(processor_seconds() - before)

    return run


def measured(
    source: Source, packed: dict[str, Source], count: int, workers: int, rounds: int, *, whole: bool
) -> dict[str, object]:
    """Wall and processor time of every contestant; where other work runs on the cores, the second says more.

    Args:
        packed: Other forms of the same images.
        whole: Whether to measure more than the fast views, loader alone.
    """
    given = {"count": count, "workers": workers}
    calls = {
        RELEASE: partial(transform, source, ReleaseOrder, **given),
        REFERENCE: partial(finish, source, PretrainingTransform, **given),
        FAST: partial(finish, source, FastPretrainingTransform, **given),
        TIMM: partial(transform, source, OneView, **given),
        REFERENCE + ALONE: partial(load, source, PretrainingTransform, **given),
        FAST + ALONE: partial(load, source, FastPretrainingTransform, **given),
    }
    if not whole:
        calls = {FAST + ALONE: calls[FAST + ALONE]}
    calls |= {f"{FAST} of {name}{ALONE}": partial(load, each, FastPretrainingTransform, **given)
              for name, each in packed.items()}  # fmt: skip
    processor: dict[str, list[float]] = {name: [] for name in calls}
    metrics = gather_interleaved(
        {name: counted(call, processor[name]) for name, call in calls.items()},
        rounds,
        peer=RELEASE if whole else FAST + ALONE,
    )
    for name, own in metrics.items():
        last = processor[name][-rounds:]
        own["images_per_second"] = {"median": count / own["seconds"]["median"]}
        own["processor_ms_an_image"] = spread([1000 * each / count for each in last])
        for peer in {RELEASE, REFERENCE, REFERENCE + ALONE, FAST + ALONE} & calls.keys():
            ratios = [theirs / ours for theirs, ours in zip(processor[peer][-rounds:], last, strict=True)]
            own[f"times_less_processor than {peer}"] = spread(ratios)
    return {"workers": workers, "contestants": metrics}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+")
    parser.add_argument("--images", type=int, default=400, help="a round, each photograph as often as it takes")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--packed", nargs="*", default=[], metavar="DIR", help="packs of DATA, by `beit pack`")
    parser.add_argument("--in-memory", action="store_true", help="DATA from memory, too")
    parser.add_argument("--only", choices=["packed"])
    parser.add_argument("--output")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = open_data(given.data)
    packed: dict[str, Source] = {os.path.basename(os.path.normpath(each)): open_data([each]) for each in given.packed}
    if given.in_memory:
        packed["memory"] = FilesInMemory(source)
    runs: list[dict[str, object]] = []
    results = {"photographs": len(source), "images_a_round": given.images, "runs": runs}
    for workers in given.workers:
        whole = given.only is None
        runs.append(measured(source, packed, given.images, workers, given.rounds, whole=whole))
        report("How many images a second does pretraining's loader give?", results, given.output)


if __name__ == "__main__":
    main()
