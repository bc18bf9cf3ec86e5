"""Images a second of pretraining with tokens encoded in each step, being kept, and kept before.

    python benchmarks/token_cache.py DATA --rounds 5 --output benchmarks/results/token_cache.json

`pretrain --recipe small` on images of 64 pixels with a `small` tokenizer of few steps (a tokenizer's speed does not
depend on what it has learned). Every contestant is a run of its own of the same steps, in turn; images a second are the
run's own, from the second step on, without starting and measuring.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import report, spread

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.engine.events import Event, Progress
from beitcli.engine.pretrain import pretrain
from beitcli.engine.train_tokenizer import train_tokenizer

Metrics = tuple[float, float]
ONLINE, FILLING, KEPT = "encoded in each step", "encoded and kept", "kept before"


def rate(data: list[str], folder: Path, tokenizer: Path, cache: Path | None, given: argparse.Namespace) -> Metrics:
    """Images a second, and milliseconds of processor time an image, between the ends of the first and the last step."""
    ends: list[tuple[float, float]] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "pretrain" and event.unit == "step":
            ends.append((time.perf_counter(), time.process_time()))

    flags: dict[str, Any] = {
        "recipe": "small", "data": data, "image_size": 64, "tokenizer": str(tokenizer), "device": "cpu",
        "workers": given.workers, "steps": given.steps, "batch_size": given.batch, "log_every": 1,
        "save_every": given.steps, "holdout": 0, "out": str(folder / f"run-{time.monotonic_ns()}"),
        "precision": given.precision, "limit": given.limit,
    }  # fmt: skip
    if cache is not None:
        flags["token_cache"] = str(cache)
    config = resolve(PretrainConfig, flags).config
    pretrain(config, on_event)
    shutil.rmtree(config.out)
    # the last step's end is told after a save and a measurement
    images = given.batch * (given.steps - 2)
    seconds, processor = (ends[given.steps - 2][number] - ends[0][number] for number in (0, 1))
    return images / seconds, 1000 * processor / images


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output")
    given = parser.parse_args()
    rates: dict[str, list[Metrics]] = {name: [] for name in (ONLINE, FILLING, KEPT)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        flags = {"recipe": "small", "data": given.data, "limit": 200, "steps": 2, "batch_size": 8, "device": "cpu"}
        flags |= {"workers": 0, "out": str(folder / "tokenizer")}
        train_tokenizer(resolve(TrainTokenizerConfig, flags).config)
        kept, names = folder / "kept", list(rates)
        rate(given.data, folder, folder / "tokenizer", kept, given)
        for number in range(given.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                cache = {ONLINE: None, FILLING: folder / f"filling-{number}", KEPT: kept}[name]
                rates[name].append(rate(given.data, folder, folder / "tokenizer", cache, given))
            tell(rates, given)


def tell(rates: dict[str, list[Metrics]], given: argparse.Namespace) -> None:
    """What is known so far: rounds take long where other work runs."""
    results = {
        name: {
            "images_per_second": spread([each for each, _ in own]),
            "times_online": spread([a / b for (a, _), (b, _) in zip(own, rates[ONLINE], strict=True)]),
            "processor_ms_an_image": spread([each for _, each in own]),
            "times_less_processor": spread([b / a for (_, a), (_, b) in zip(own, rates[ONLINE], strict=True)]),
        }
        for name, own in rates.items()
    }
    settings = {name: getattr(given, name) for name in ("steps", "batch", "workers", "limit", "precision")}
    report("What do kept tokens save a step of pretraining?", {"settings": settings, **results}, given.output)


if __name__ == "__main__":
    main()
