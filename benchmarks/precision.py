"""How far do the losses of bf16 and fp16 lie from that of fp32 over a run's first steps?

The same run of `pretrain sample --recipe tiny` in each precision: same tokenizer, images, masks, order and initial
weights. The band is the difference of the losses, smoothed over ten steps.

    python benchmarks/precision.py --steps 200 -o benchmarks/results/precision.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import report

from beitcli.config.resolve import resolve
from beitcli.config.training import PretrainConfig, TrainTokenizerConfig
from beitcli.engine.pretrain import pretrain
from beitcli.engine.train_tokenizer import train_tokenizer

SMOOTHED = 10  # steps


def losses(folder: Path, precision: str, steps: int) -> np.ndarray:
    run = folder / precision
    flags = {
        "recipe": "tiny", "data": ["sample"], "tokenizer": str(folder / "tokenizer"), "steps": steps, "device": "cpu",
        "log_every": 1, "save_every": steps, "workers": 0, "precision": precision, "out": str(run),
    }  # fmt: skip
    pretrain(resolve(PretrainConfig, flags).config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp16"])
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        flags = {"recipe": "tiny", "data": ["sample"], "device": "cpu", "out": str(folder / "tokenizer"), "workers": 0}
        train_tokenizer(resolve(TrainTokenizerConfig, flags | {"steps": 100}).config)
        exact = losses(folder, "fp32", args.steps)
        results = {"steps": args.steps, "fp32": {"first": exact[0], "last_smoothed": float(exact[-SMOOTHED:].mean())}}
        for precision in args.precisions:
            its = losses(folder, precision, args.steps)
            away = np.convolve(its - exact, np.ones(SMOOTHED) / SMOOTHED, mode="valid")
            results[precision] = {
                "last_smoothed": float(its[-SMOOTHED:].mean()),
                "band_largest": float(np.abs(away).max()),
                "band_mean": float(np.abs(away).mean()),
                "single_step_largest": float(np.abs(its - exact).max()),
            }
            sys.stderr.write(f"{precision}: {results[precision]}\n")
    report("loss of low precision against fp32", results, args.output)


if __name__ == "__main__":
    main()
