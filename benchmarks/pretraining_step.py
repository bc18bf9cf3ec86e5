"""Is a pretraining step faster than that of transformers' BeitForMaskedImageModeling, and does it take less memory?

Same size, batch, masks, tokens, precision, drop path, clipping and learning rate; one process, steps in turn. Ours
begins with uint8 images, the peer's with normalised floats. The peer's script: autocast, `backward`,
`clip_grad_norm_`, AdamW as constructed by default. "at its best" is the same with the fused AdamW, SDPA, the head at
the hidden patches only, and fp32 products by the library that `--cpu-matmul` says for ours too; `auto` is what a run
would choose here. With the same weights both give the same logits and loss, which the results tell, and what share of
the matrix rate of this machine each step reaches (model FLOPs: three forward passes). Memory: the peak of a process of
its own over three steps.
Where other work runs on the same cores, the processor seconds say more than those of the clock.

    python benchmarks/pretraining_step.py --batch 4 --rounds 7 -o benchmarks/results/pretraining_step.json
    OMP_NUM_THREADS=1 python benchmarks/pretraining_step.py --contestants "transformers, at its best" beit

`--former CHECKOUT` runs the step of another version beside it, in a process of its own that computes when it is asked:

    python benchmarks/pretraining_step.py --contestants beit --former ../former
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import gather_interleaved, report
from transformers import BeitConfig, BeitForMaskedImageModeling

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.mim.task import PretrainTask
from beitcli.engine.trainer.optimizer_step import optimizer_step
from beitcli.engine.trainer.plan import Plan
from beitcli.masking import make_masking
from beitcli.models.networks.beit import forward_flops
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.peak_flops import measure_matmul_flops

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
    compute = Compute(torch.device("cpu"), args.precision, **({"matmul": args.library} if args.library else {}))
    tokenizer: Any = SimpleNamespace(vocab_size=CODES)
    masking = make_masking("blockwise", (14, 14), MASKED, 16)
    held: Any = None
    task = PretrainTask(config, plan, tokenizer, masking, held, compute)
    task.model.train()
    scaler, sums = compute.scaler(), {}

    def step() -> None:
        with products_by(args.library):  # the step leaves its library set, for its backward pass
            optimizer_step(task, plan, batch, compute, scaler, sums)

    return step


def products_by(library: str) -> AbstractContextManager[object]:
    """Context with a library of fp32 products; "" changes nothing, as in versions that had no choice."""
    if not library:
        return nullcontext()
    from beitcli.runtime.compute.cpu_matmul import matmul_by

    return matmul_by(library)


def peer_config(args: argparse.Namespace) -> BeitConfig:
    shared = args.recipe == "base-22k"
    return BeitConfig(
        use_mask_token=True, use_absolute_position_embeddings=not shared, use_shared_relative_position_bias=shared,
        layer_scale_init_value=0.1 if shared else 0.0, drop_path_rate=DROP_PATH, vocab_size=CODES, layer_norm_eps=1e-6,
    )  # fmt: skip


def pixels_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (batch["images"].float() / 255 - 0.45) / 0.225


def masked_loss(model: BeitForMaskedImageModeling, pixels: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor):
    """The model's own loss, with its head at the hidden patches only."""
    features = model.layernorm(model.beit(pixels, bool_masked_pos=mask).last_hidden_state)[:, 1:]
    return F.cross_entropy(model.lm_head(features[mask]), tokens[mask])


def peer(
    batch: dict[str, torch.Tensor], args: argparse.Namespace, *, best: bool = False, **adamw: Any
) -> Callable[[], None]:
    """As a user of transformers would write it; at its best, as one who knows how would."""
    torch.manual_seed(0)
    model = BeitForMaskedImageModeling._from_config(
        peer_config(args), attn_implementation="sdpa" if best else None
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05, **adamw)
    pixels = pixels_of(batch)
    mask, tokens = batch["mask"], batch["visual_tokens"]
    precision = {"fp32": nullcontext, "bf16": lambda: torch.autocast("cpu", torch.bfloat16)}[args.precision]

    def step() -> None:
        with products_by(args.library if best else "torch" if args.library else ""):
            own_step()

    def own_step() -> None:
        optimizer.zero_grad()
        with precision():
            if best:
                loss = masked_loss(model, pixels, mask, tokens)
            else:
                loss = model(pixel_values=pixels, bool_masked_pos=mask, labels=tokens[mask]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


MAKERS: dict[str, Callable[..., Callable[[], None]]] = {
    "transformers": peer,
    "transformers, fused AdamW": lambda batch, args: peer(batch, args, fused=True),
    "transformers, at its best": lambda batch, args: peer(batch, args, best=True, fused=True),
    "beit": ours,
    "beit --compile": lambda batch, args: ours(batch, args, compile=True),
}


@torch.no_grad()
def agreement(batch: dict[str, torch.Tensor], args: argparse.Namespace) -> dict[str, float]:
    """How far our logits and loss of the hidden patches are from the peer's, with the peer's weights, in fp32."""
    from beitcli.models.checkpoints.build import masked_image_model_of
    from beitcli.models.checkpoints.open import open_model

    torch.manual_seed(0)
    model = BeitForMaskedImageModeling(peer_config(args)).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        checkpoint = open_model(folder)
        own = masked_image_model_of(checkpoint, checkpoint.tensors()).eval()
    pixels, mask, tokens = pixels_of(batch), batch["mask"], batch["visual_tokens"]
    with products_by(args.library):
        theirs = model(pixel_values=pixels, bool_masked_pos=mask).logits[mask]
        ours_ = own(pixels, mask)
    away = [float(F.cross_entropy(logits, tokens[mask])) for logits in (ours_, theirs)]
    return {
        "logits_relative": float((ours_ - theirs).norm() / theirs.norm()),
        "loss": away[0],
        "loss_difference": abs(away[0] - away[1]),
    }


def flops_of(args: argparse.Namespace) -> float:
    """FLOP of an image, forward and backward."""
    flags = {"recipe": args.recipe, "data": ["none"], "device": "cpu", "steps": 1000}
    return 3 * forward_flops(resolve(PretrainConfig, flags).config.architecture, MASKED, CODES)


def chosen_library(args: argparse.Namespace) -> tuple[str, str]:
    """The library of fp32 products, and what is to be said of it."""
    from beitcli.runtime.compute.arithmetic_choice import choose_arithmetic
    from beitcli.runtime.compute.arithmetic_trial import BlockShape

    chosen = choose_arithmetic(BlockShape(args.batch, 197, 768, 12, 3072), "fp32", args.cpu_matmul)
    return chosen.matmul, chosen.note or chosen.about


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
    words += ["--library", args.library]
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
    parser.add_argument("--contestants", nargs="+", default=["transformers", "transformers, at its best", "beit"])
    parser.add_argument("--cpu-matmul", choices=["auto", "torch", "onednn"], default="auto")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--former", metavar="CHECKOUT", help="a folder with another version, to run beside this one")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--library", default="", help=argparse.SUPPRESS)
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
    args.library, said = chosen_library(args)
    results: dict[str, Any] = {
        "batch": args.batch,
        "recipe": args.recipe,
        "load_average": os.getloadavg(),
        "fp32_library": args.library,
        "chosen": said,
        "same_weights": agreement(batch, args),
    }
    sys.stderr.write(f"{said}; with the same weights: {results['same_weights']}\n")
    flops = args.batch * flops_of(args)
    for precision in ("fp32", "bf16") if args.precision == "both" else (args.precision,):
        args.precision = precision
        steps = {name: MAKERS[name](batch, args) for name in args.contestants}
        with former(args.former, args) if args.former else nullcontext() as its:
            steps |= {"former": its} if its else {}
            metrics: dict[str, Any] = gather_interleaved(steps, args.rounds, peer=next(iter(steps)))
        del steps
        rate = measure_matmul_flops(Compute(torch.device("cpu"), precision, matmul=args.library))
        for name in args.contestants:
            metrics[name]["utilisation"] = flops / metrics[name]["seconds"]["median"] / rate
            if not args.no_memory:
                metrics[name]["peak_bytes"] = peak_bytes(name, args)
        results[precision] = metrics | {"matmul_gflops": rate / 1e9}
        for name, its in metrics.items():
            seconds, ratio, less = its["seconds"], its["times_faster"], its["times_less_cpu"]
            memory = f", {its['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in its else ""
            memory += f", {its['utilisation']:.0%} of the matrix rate" if "utilisation" in its else ""
            sys.stderr.write(
                f"{precision} {name}: {seconds['median']:.2f} s, {ratio['median']:.2f}x "
                f"({ratio['low']:.2f}-{ratio['high']:.2f}), "
                f"processor {its['cpu_seconds']['median']:.2f} s, {less['median']:.2f}x "
                f"({less['low']:.2f}-{less['high']:.2f}){memory}\n"
            )
    report("pretraining step against transformers.BeitForMaskedImageModeling", results, args.output)


if __name__ == "__main__":
    main()
