"""How images a second and memory go with the number of images, their size and the workers.

    python benchmarks/scaling.py --rounds 5 --output benchmarks/results/scaling.json

The data is drawn: 64 pictures as JPEG, again and again in a tar shard. Views are pretraining's fast ones, a token image
of half the size beside each. Speed: every case in turn, in one process, over all batches from before the workers are
started, for these read ahead while the first batch is awaited. Memory: a process a case and round; the most that all
its processes held at once, as resident sets (RSS, shared pages in each) and with shared pages counted once (PSS).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import report, spread
from PIL import Image

BATCH, PICTURES = 64, 64
Case = tuple[int, int, int]  # images, pixels a side, workers


def make_shard(path: Path, images: int, size: int) -> Path:
    contents = []
    for number in range(PICTURES):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size))
        pixels = np.asarray(coarse).astype(np.float64) + rng.normal(0, 12, (size, size, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    with tarfile.open(path, "w") as shard:
        for number in range(images):
            content = contents[number % PICTURES]
            member = tarfile.TarInfo(f"class{number % 100:03d}/{number:08d}.jpg")
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


def batches_of(shard: str, size: int, workers: int, seen: int, steps: int) -> Any:
    from beitcli.data.loading.batch_datasets import StreamPart
    from beitcli.data.loading.batches import training_batches
    from beitcli.data.sources.open_data import open_data
    from beitcli.data.transforms.pretraining import FastPretrainingTransform

    transform = FastPretrainingTransform(seed=0, image_size=size, token_size=size // 2)
    source = open_data([shard])
    part = StreamPart(seed=0, batch_size=BATCH, images_seen=seen, steps=steps)
    return training_batches(source, transform, part, workers=workers)


def speed(shard: str, size: int, workers: int, seen: int, steps: int) -> tuple[float, float]:
    """(images a second, seconds to the first batch)."""
    start = time.perf_counter()
    batches = batches_of(shard, size, workers, seen, steps)
    next(batches)
    first = time.perf_counter()
    for _ in batches:
        pass
    return BATCH * steps / (time.perf_counter() - start), first - start


def held() -> dict[str, float]:
    """MB of this process and its children; Linux only."""
    pids = [os.getpid(), *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]
    found = {"rss": 0.0, "pss": 0.0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for name in found:
            found[name] += sum(int(line.split()[1]) / 1024 for line in lines if line.lower().startswith(f"{name}:"))
    return found


def memory(shard: str, size: int, workers: int, steps: int) -> dict[str, float]:
    """The most that was held while batches were read."""
    import torch

    torch.set_num_threads(1)
    most = {"rss": 0.0, "pss": 0.0}
    for number, _ in enumerate(batches_of(shard, size, workers, 0, steps)):
        if number % 4 == 3:
            now = held()
            most = {name: max(most[name], now[name]) for name in most}
    return most


def memory_apart(shard: str, size: int, workers: int, steps: int) -> dict[str, float]:
    words = [sys.executable, __file__, "--one", shard, str(size), str(workers), str(steps)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-rounds", type=int, default=3)
    parser.add_argument("--seconds-of-work", type=float, default=0.6, help="of one case and round, about")
    parser.add_argument("--output")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        shard, size, workers, steps = given.one
        sys.stdout.write(json.dumps(memory(shard, int(size), int(workers), int(steps))))
        return
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BEIT_CACHE_DIR"] = f"{folder}/cache"
        shards = {
            (count, size): str(make_shard(Path(folder, f"{count}-{size}.tar"), count, size))
            for count in given.counts
            for size in given.sizes
        }
        time.sleep(2.5)  # what has changed just now is not indexed
        cases: list[Case] = [(*data, workers) for data in shards for workers in given.workers]
        rates: dict[Case, list[float]] = {case: [] for case in cases}
        starts: dict[Case, list[float]] = {case: [] for case in cases}
        steps = {
            size: 1
            + max(4, round(given.seconds_of_work * speed(shards[given.counts[0], size], size, 0, 0, 5)[0] / BATCH))
            for size in given.sizes
        }
        most: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
        for number in range(-1, given.rounds):
            turn = number % len(cases)
            for case in cases[turn:] + cases[:turn]:
                count, size, workers = case
                rate, start = speed(shards[count, size], size, workers, 997 * (number + 1), steps[size])
                if number >= 0:
                    rates[case].append(rate)
                    starts[case].append(start)
            if number >= 0:
                tell(rates, starts, most, given.output)
        for _ in range(given.memory_rounds):
            for case in cases:
                count, size, workers = case
                most[case].append(memory_apart(shards[count, size], size, workers, 16))
            tell(rates, starts, most, given.output)


def tell(
    rates: dict[Case, list[float]],
    starts: dict[Case, list[float]],
    most: dict[Case, list[dict[str, float]]],
    output: str | None,
) -> None:
    """What is known so far: rounds take long where other work runs."""
    first = {size: (count, size, workers) for count, size, workers in reversed(rates)}
    results = [
        {
            "images": case[0],
            "size": case[1],
            "workers": case[2],
            "images_per_second": spread(rates[case]),
            "times_the_first_case": spread([a / b for a, b in zip(rates[case], rates[first[case[1]]], strict=True)]),
            "seconds_to_the_first_batch": spread(starts[case]),
            "rss_mb": spread([each["rss"] for each in most[case]]) if most[case] else None,
            "pss_mb": spread([each["pss"] for each in most[case]]) if most[case] else None,
        }
        for case in rates
    ]
    report("How do speed and memory go with images, size and workers?", {"batch": BATCH, "cases": results}, output)


if __name__ == "__main__":
    main()
