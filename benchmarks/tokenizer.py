"""The tokenizer beside transformers' FlavaImageCodebook, which computes the same: images a second, tokens, memory.

    python benchmarks/tokenizer.py DATA --threads 2 -o benchmarks/results/tokenizer.json

Both hold the same full-size DALL-E weights, drawn at random: the release's are no test's to download. The peer's best
setting is bf16 autocast with its weights and images in channels-last order. Agreement in low precision depends on the
weights, so `--tokenizer` measures it on a trained one too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import gather_interleaved, report
from PIL import Image

from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import CenterTransform
from beitcli.tokenizers.base import Tokenizer
from beitcli.tokenizers.open import open_tokenizer

PEERS = ("peer fp32", "peer bf16 autocast", "peer bf16 autocast, channels last")
OURS = ("ours fp32", "ours bf16", "ours bf16 compiled")


def photographs(data: str, count: int, size: int) -> torch.Tensor:
    """(count, 3, size, size) in [0, 1], spread over the data."""
    source = open_data((data,), split=None, role="any", labelled=False, sample_size=size)
    transform = CenterTransform(size=size, filter=Image.Resampling.LANCZOS)
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    images = np.stack([transform(source.image(int(index)))["images"] for index in chosen])
    return torch.from_numpy(images).float() / 255


def peer_of(folder: str) -> torch.nn.Module:
    from transformers import FlavaImageCodebook

    return FlavaImageCodebook.from_pretrained(folder).eval()


def encoder(name: str, folder: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """(B, 3, H, W) in [0, 1] to (B, N) tokens, the way that `name` says."""
    if name in PEERS:
        peer = peer_of(folder)
        layout = torch.channels_last if name.endswith("channels last") else torch.contiguous_format
        peer = peer.to(memory_format=layout)

        @torch.no_grad()
        def encode(images: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name != "peer fp32"):
                mapped = (0.8 * images + 0.1).contiguous(memory_format=layout)
                return peer(mapped).argmax(dim=1).flatten(1)

        return encode
    tokenizer = open_tokenizer(folder)
    if name != "ours fp32":
        tokenizer = tokenizer.in_precision("bf16")
    if name.endswith("compiled"):
        tokenizer = required(*tokenizer.compiled((tokenizer.size, tokenizer.size)))
    return tokenizer.encode


def required(tokenizer: Tokenizer, failure: str) -> Tokenizer:
    if failure:
        raise RuntimeError(failure)
    return tokenizer


def tokens_of(encode: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, batch: int) -> torch.Tensor:
    return torch.cat([encode(part) for part in images.split(batch)])


def agreements(folder: str, names: tuple[str, ...], images: torch.Tensor, batch: int) -> dict[str, Any]:
    """The share of tokens that are the first name's."""
    found = {name: tokens_of(encoder(name, folder), images, batch) for name in names}
    reference = found[names[0]]
    shares = {name: float((tokens == reference).float().mean()) for name, tokens in found.items()}
    return {"tokens": reference.numel(), "codes": len(reference.unique()), "agreement": shares}


def portion_times(folder: str, images: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Encoding 64 images in portions of 8, as `encode_batch_invariant` does, and at once."""
    tokenizer, batch = open_tokenizer(folder), images[:64]
    ways = {
        "portions of 8": lambda: [tokenizer.encode(part) for part in batch.split(8)],
        "batch invariant": lambda: tokenizer.encode_batch_invariant(batch),
        "at once": lambda: tokenizer.encode(batch),
    }
    return gather_interleaved(ways, rounds, peer="portions of 8")


def peak_memory(name: str, folder: str, arguments: argparse.Namespace) -> float:
    """MiB at most of a process that encodes two batches; the interpreter and torch are about 400 of them."""
    words = [sys.executable, __file__, arguments.data, "--peak-of", name, "--weights", folder]
    words += ["--batch", str(arguments.batch), "--threads", str(arguments.threads)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak_mib"]


def encode_and_tell_peak(arguments: argparse.Namespace) -> None:
    encode = encoder(arguments.peak_of, arguments.weights)
    images = photographs(arguments.data, arguments.batch, 112)
    for _ in range(2):
        encode(images)
    # getrusage would tell the peak of the process that started this one, where that is higher
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    sys.stdout.write(json.dumps({"peak_mib": round(peak / 1024)}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="photographs")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compared", type=int, default=32, help="images that agreement is of")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokenizer", help="a trained one, for agreement")
    parser.add_argument("-o", "--output")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        encode_and_tell_peak(arguments)
        return
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    with tempfile.TemporaryDirectory() as folder:
        os.environ["BEIT_CACHE_DIR"] = folder
        torch.manual_seed(0)
        FlavaImageCodebook(FlavaImageCodebookConfig()).save_pretrained(f"{folder}/peer")
        weights = f"{folder}/peer"
        images = photographs(arguments.data, arguments.compared, 112)
        names = PEERS + OURS
        encoders = {name: encoder(name, weights) for name in names}
        batch = images[: arguments.batch]
        timed = gather_interleaved(
            {name: lambda encode=encode: encode(batch) for name, encode in encoders.items()},
            arguments.rounds,
            peer="peer fp32",
        )
        del encoders
        results: dict[str, Any] = {
            "images": [*batch.shape],
            "contestants": timed,
            "random weights": agreements(weights, names, images, arguments.batch),
            "peak_mib": {name: peak_memory(name, weights, arguments) for name in names},
        }
    if arguments.tokenizer:
        size = open_tokenizer(arguments.tokenizer).size
        own = photographs(arguments.data, 4 * arguments.compared, size)
        results["trained tokenizer"] = agreements(arguments.tokenizer, OURS, own, arguments.batch)
        results["portions"] = portion_times(arguments.tokenizer, own, arguments.rounds)
    report("Encoding images of 112 x 112 with a tokenizer of DALL-E's size", results, arguments.output)


if __name__ == "__main__":
    main()
