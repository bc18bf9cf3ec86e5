"""How far do the losses of bf16, of bf16 with a bf16 residual stream, and of fp16 lie from that of fp32?

The same run of `pretrain DATA --recipe tiny` in each precision over its first steps: same tokenizer, images, masks,
order and initial weights. The band is the difference of the losses, smoothed over ten steps.

    python benchmarks/precision.py --steps 200 -o benchmarks/results/precision.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import report

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.engine.pretrain import pretrain
from beitcli.engine.train_tokenizer import train_tokenizer

SMOOTHED = 10  # steps


RESIDUAL = "bf16-residual"


def losses(folder: Path, data: list[str], precision: str, steps: int, seed: int) -> np.ndarray:
    run = folder / f"{precision}-{seed}"
    arithmetic = {"precision": "bf16", "residual": "bf16"} if precision == RESIDUAL else {"precision": precision}
    flags = {
        "recipe": "tiny", "data": data, "tokenizer": str(folder / "tokenizer"), "steps": steps, "device": "cpu",
        "log_every": 1, "save_every": steps, "workers": 0, "out": str(run), "seed": seed, "limit": 20_000,
    }  # fmt: skip
    flags |= arithmetic
    pretrain(resolve(PretrainConfig, flags).config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["sample"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--precisions", nargs="+", default=["bf16", RESIDUAL, "fp16"])
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        flags = {"recipe": "tiny", "data": args.data, "device": "cpu", "out": str(folder / "tokenizer"), "workers": 0}
        train_tokenizer(resolve(TrainTokenizerConfig, flags | {"steps": 100, "limit": 20_000}).config)
        results: dict[str, Any] = {"data": [Path(name).name for name in args.data], "steps": args.steps, "seeds": []}
        for seed in range(args.seeds):
            exact = losses(folder, args.data, "fp32", args.steps, seed)
            its: dict[str, Any] = {"fp32": {"first": exact[0], "last_smoothed": float(exact[-SMOOTHED:].mean())}}
            for precision in args.precisions:
                its[precision] = compared(losses(folder, args.data, precision, args.steps, seed), exact)
                sys.stderr.write(f"seed {seed}, {precision}: {its[precision]}\n")
            results["seeds"].append(its)
        report("loss of low precision against fp32", results, args.output)


def compared(its: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Nats, of a run's losses step by step against another's."""
    away = np.convolve(its - exact, np.ones(SMOOTHED) / SMOOTHED, mode="valid")
    return {
        "last_smoothed": float(its[-SMOOTHED:].mean()),
        "band_largest": float(np.abs(away).max()),
        "band_mean": float(np.abs(away).mean()),
        "single_step_largest": float(np.abs(its - exact).max()),
    }


if __name__ == "__main__":
    main()
