"""Is a pretraining step faster than that of transformers' BeitForMaskedImageModeling, and does it take less memory?

Same size, batch, masks, tokens, precision, drop path, clipping and learning rate; one process, steps in turn. Ours
begins with uint8 images, the peer's with normalised floats. The peer's script: autocast, `backward`,
`clip_grad_norm_`, AdamW as constructed by default; a second one has the fused AdamW. Memory: the peak of a process of
its own over three steps.
Where other work runs on the same cores, the processor seconds say more than those of the clock.

    python benchmarks/pretraining_step.py --batch 4 --rounds 7 -o benchmarks/results/pretraining_step.json

`--former CHECKOUT` runs the step of another version beside it, in a process of its own that computes when it is asked:

    python benchmarks/pretraining_step.py --contestants beit --former ../former
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measure import gather_interleaved, report
from transformers import BeitConfig, BeitForMaskedImageModeling

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.mim.task import PretrainTask
from beitcli.engine.trainer.optimizer_step import optimizer_step
from beitcli.engine.trainer.plan import Plan
from beitcli.masking import make_masking
from beitcli.runtime.compute.device import Compute

MASKED, CODES, CLIP, DROP_PATH = 75, 8192, 3.0, 0.1


def a_batch(images: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    masking = make_masking("blockwise", (14, 14), MASKED, 16)
    masks = [masking(np.random.default_rng(number)).reshape(-1) for number in range(images)]
    return {
        "images": torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8, generator=generator),
        "mask": torch.from_numpy(np.stack(masks)),
        "visual_tokens": torch.randint(0, CODES, (images, 196), generator=generator),
    }


def ours(batch: dict[str, torch.Tensor], args: argparse.Namespace, **settings: Any) -> Callable[[], None]:
    """The engine's own task and step; the tokens are given, as the peer's are."""
    flags = {"recipe": args.recipe, "data": ["none"], "device": "cpu", "precision": args.precision, "steps": 1000}
    config = resolve(PretrainConfig, flags | settings).config
    size = len(batch["images"])
    plan = Plan(
        seed=0, images=1000, steps=1000, batch_size=size, micro_batch=size, warmup_steps=0, clip=CLIP, save_every=1000,
        log_every=1000, keep=1, max_bad=0, data_fingerprint="",
    )  # fmt: skip
    compute = Compute(torch.device("cpu"), args.precision)
    tokenizer: Any = SimpleNamespace(vocab_size=CODES)
    masking = make_masking("blockwise", (14, 14), MASKED, 16)
    held: Any = None
    task = PretrainTask(config, plan, tokenizer, masking, held, compute)
    task.model.train()
    scaler, sums = compute.scaler(), {}
    return lambda: optimizer_step(task, plan, batch, compute, scaler, sums)


def peer(batch: dict[str, torch.Tensor], args: argparse.Namespace, **adamw: Any) -> Callable[[], None]:
    """As a user of transformers would write it."""
    shared = args.recipe == "base-22k"
    config = BeitConfig(
        use_mask_token=True, use_absolute_position_embeddings=not shared, use_shared_relative_position_bias=shared,
        layer_scale_init_value=0.1 if shared else 0, drop_path_rate=DROP_PATH, vocab_size=CODES, layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BeitForMaskedImageModeling(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05, **adamw)
    pixels = (batch["images"].float() / 255 - 0.45) / 0.225
    mask, tokens = batch["mask"], batch["visual_tokens"]
    precision = {"fp32": nullcontext, "bf16": lambda: torch.autocast("cpu", torch.bfloat16)}[args.precision]

    def step() -> None:
        optimizer.zero_grad()
        with precision():
            loss = model(pixel_values=pixels, bool_masked_pos=mask, labels=tokens[mask]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


MAKERS: dict[str, Callable[..., Callable[[], None]]] = {
    "transformers": peer,
    "transformers, fused AdamW": lambda batch, args: peer(batch, args, fused=True),
    "beit": ours,
    "beit --compile": lambda batch, args: ours(batch, args, compile=True),
}


@contextmanager
def former(checkout: str, args: argparse.Namespace) -> Iterator[Callable[[], float]]:
    """Another version's step: a child that computes one for each line it reads, and answers with its processor
    seconds."""
    words = ["--batch", str(args.batch), "--precision", args.precision, "--recipe", args.recipe, "--serve"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((checkout, str(Path(__file__).parent)))}
    with subprocess.Popen(
        [sys.executable, __file__, *words], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def step() -> float:
            stdin.write("step\n")
            stdin.flush()
            answer = stdout.readline()
            if not answer:
                raise RuntimeError(f"The version in {checkout} ended.")
            return float(answer)

        yield step
        stdin.close()


def serve(step: Callable[[], None]) -> None:
    for _ in sys.stdin:
        begun = time.process_time()
        step()
        sys.stdout.write(f"{time.process_time() - begun}\n")
        sys.stdout.flush()


def peak_bytes(name: str, args: argparse.Namespace) -> int:
    """Of three steps in a process of their own, in excess of the imports and the batch."""
    words = ["--batch", str(args.batch), "--precision", args.precision, "--recipe", args.recipe, "--memory", name]
    done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def resident_peak() -> int:
    """Of this process; getrusage's would be that of the one it was forked from."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16", "both"], default="both")
    parser.add_argument("--recipe", choices=["base", "base-22k"], default="base-22k")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contestants", nargs="+", default=["transformers", "transformers, fused AdamW", "beit"])
    parser.add_argument("--former", metavar="CHECKOUT", help="a folder with another version, to run beside this one")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    batch = a_batch(args.batch)
    if args.serve:
        serve(ours(batch, args))
        return
    if args.memory:
        before = resident_peak()
        step = MAKERS[args.memory](batch, args)
        for _ in range(3):
            step()
        sys.stdout.write(json.dumps(resident_peak() - before))
        return
    results: dict[str, Any] = {"batch": args.batch, "recipe": args.recipe, "load_average": os.getloadavg()}
    for precision in ("fp32", "bf16") if args.precision == "both" else (args.precision,):
        args.precision = precision
        steps = {name: MAKERS[name](batch, args) for name in args.contestants}
        with former(args.former, args) if args.former else nullcontext() as its:
            steps |= {"former": its} if its else {}
            metrics: dict[str, Any] = gather_interleaved(steps, args.rounds, peer=next(iter(steps)))
        del steps
        for name in args.contestants:
            metrics[name]["peak_bytes"] = peak_bytes(name, args)
        results[precision] = metrics
        for name, its in metrics.items():
            seconds, ratio, less = its["seconds"], its["times_faster"], its["times_less_cpu"]
            memory = f", {its['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in its else ""
            sys.stderr.write(
                f"{precision} {name}: {seconds['median']:.2f} s, {ratio['median']:.2f}x "
                f"({ratio['low']:.2f}-{ratio['high']:.2f}), "
                f"processor {its['cpu_seconds']['median']:.2f} s, {less['median']:.2f}x "
                f"({less['low']:.2f}-{less['high']:.2f}){memory}\n"
            )
    report("pretraining step against transformers.BeitForMaskedImageModeling", results, args.output)


if __name__ == "__main__":
    main()
