"""Is a finetuning step faster than the one that a user of timm would write, and does it take less memory?

BEiT-B with a relative bias in each block, 1000 classes, mixup labels, drop path 0.1, layer decay; augmented images are
given to both. timm's way: `create_model`, `param_groups_layer_decay`, AdamW as constructed by default, autocast.

    python benchmarks/finetuning_step.py --batch 4 --rounds 5 -o benchmarks/results/finetuning_step.json
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import timm
import torch
from measure import gather_interleaved, report
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay

from beitcli.config.architecture import SIZES, Architecture
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.resolve import resolve
from beitcli.engine.classification.task import FinetuneTask
from beitcli.engine.trainer.optimizer_step import optimizer_step
from beitcli.engine.trainer.plan import Plan
from beitcli.models.networks.classifier import Classifier
from beitcli.runtime.compute.device import Compute

CLASSES = 1000


def ours(batch: dict[str, torch.Tensor], precision: str) -> Callable[[], None]:
    flags = {"recipe": "base", "data": ["none"], "init": "random", "device": "cpu", "mixup": 0, "cutmix": 0}
    config = resolve(FinetuneConfig, flags).config
    size = len(batch["images"])
    plan = Plan(
        seed=0, images=1000, steps=1000, batch_size=size, micro_batch=size, warmup_steps=0, clip=None, save_every=1000,
        log_every=1000, keep=1, max_bad=0, data_fingerprint="",
    )  # fmt: skip
    compute = Compute(torch.device("cpu"), precision)
    model = Classifier(Architecture(positions="per-block", layer_scale=0.1, **SIZES["base"]), CLASSES, 0.1)

    class NoImages:
        classes = None

    held: Any = NoImages()
    names = tuple(map(str, range(CLASSES)))
    task = FinetuneTask(config, plan, model, names, held, compute)
    task.model.train()
    scaler, sums = compute.scaler(), {}
    return lambda: optimizer_step(task, plan, batch, compute, scaler, sums)


def peer(batch: dict[str, torch.Tensor], precision: str, **adamw: Any) -> Callable[[], None]:
    model = timm.create_model("beit_base_patch16_224", num_classes=CLASSES, drop_path_rate=0.1).train()
    groups = param_groups_layer_decay(model, 0.05, layer_decay=0.65)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, **adamw)
    loss_of = SoftTargetCrossEntropy()
    around = {"fp32": nullcontext, "bf16": lambda: torch.autocast("cpu", torch.bfloat16)}[precision]

    def step() -> None:
        optimizer.zero_grad()
        with around():
            loss = loss_of(model(batch["images"]), batch["labels"])
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    torch.manual_seed(0)
    batch = {
        "images": torch.randn(args.batch, 3, 224, 224),
        "labels": torch.softmax(torch.randn(args.batch, CLASSES), dim=1),
    }
    results: dict[str, Any] = {"batch": args.batch, "load_average": os.getloadavg()}
    for precision in ("fp32", "bf16"):
        steps = {
            "timm": peer(batch, precision),
            "timm, fused AdamW": peer(batch, precision, fused=True),
            "beit": ours(batch, precision),
        }
        results[precision] = metrics = gather_interleaved(steps, args.rounds, peer="timm")
        for name, its in metrics.items():
            less = its["times_less_cpu"]
            sys.stderr.write(
                f"{precision} {name}: {its['seconds']['median']:.2f} s, {its['times_faster']['median']:.2f}x, "
                f"processor {its['cpu_seconds']['median']:.2f} s, {less['median']:.2f}x\n"
            )
    report("finetuning step against timm", results, args.output)


if __name__ == "__main__":
    main()
