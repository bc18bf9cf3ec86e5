"""Do two versions of this program give the same numbers? Runs both and compares every bit.

    python benchmarks/compare_versions.py OLD NEW [--work DIR] [--keep]

OLD and NEW are checkouts. Each runs tiny commands on `sample` as `python -m beitcli` in child processes, on a CPU with
one thread. NEW resumes a pretraining run that OLD left in the middle of an epoch, trains everything anew, opens the
models of OLD, and takes the tokens that OLD kept. Weights, optimizer states, metrics and outputs must be equal to the
last bit; only times and speeds may differ. It takes about four minutes. Exit code 0: equal; 1: a difference; 2: a
command of either version failed, or a folder is no checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

STEPS, STOPPED_AT, SAVE_EVERY = 24, 15, 5
TIMED = {"seconds", "images_per_second", "data_wait_share", "save_stall_seconds"}
_ON_CPU = "--device cpu --workers 0 --quiet"
_FINETUNE = (
    f"{_ON_CPU} --limit 48 --size 32 --batch-size 8 --micro-batch 4 --log-every 1 --drop-path 0.1 --warmup-epochs 0.5"
)
_SCHEDULE = f"--steps {STEPS} --save-every {SAVE_EVERY} --keep 99"
TOKENIZER = (
    f"train-tokenizer sample --recipe tiny --limit 64 --size 16 --width 8 --vocab-size 16 --batch-size 8 "
    f"--micro-batch 4 {_SCHEDULE} --log-every 1 {_ON_CPU}"
)
PRETRAIN = (
    f"pretrain sample --recipe tiny --limit 100 --image-size 32 --num-masked 6 --batch-size 7 --micro-batch 4 "
    f"--drop-path 0.2 --color-jitter 0.4 --probe sample {_SCHEDULE} --log-every 1 {_ON_CPU}"
)
FINETUNE = {
    "classifier": f"finetune sample --recipe tiny {_FINETUNE} --steps 6 --save-every 3 --ema 0.9 --mixup 0.8 "
    "--cutmix 1.0 --rand-augment rand-m9-mstd0.5-inc1 --erasing 0.25",
    "segmenter": f"finetune sample --recipe tiny-segment {_FINETUNE} --steps 6 --save-every 3",
    "detector": f"finetune sample --recipe tiny-detect {_FINETUNE} --steps 30 --save-every 30 --regions 16",
}
OUTPUTS = {  # {models}: the folder of OLD's runs; {out}: one of the version's own, which is compared too
    "eval classifier": "eval {models}/classifier sample --limit 40 --json --batch-size 16",
    "eval segmenter": "eval {models}/segmenter sample --limit 40 --json --batch-size 16",
    "eval detector": "eval {models}/detector sample --limit 40 --json --batch-size 16",
    "eval, nearest neighbours": "eval {models}/whole sample --protocol knn --limit 40 --json",
    "predict segmenter": "predict {models}/segmenter sample --limit 4 --json -o {out}",
    "predict detector": "predict {models}/detector sample --limit 4 --json --score-threshold 0",
    "tokenize": "tokenize sample --tokenizer {models}/tokenizer --limit 40 --workers 0",
    "mask-preview": "mask-preview sample --limit 4 --model {models}/whole --json -o {out}",
    "mask-preview --stats": "mask-preview --stats 500 --num-masked 75 --json",
    "attn-map": "attn-map {models}/picture.png --model {models}/whole --json -o {out}/attention.png",
}


class Refusal(Exception):
    """Nothing can be compared."""


@dataclass(frozen=True)
class Version:
    """A checkout, and where its runs go."""

    name: str
    checkout: Path
    runs: Path

    def python(self, *words: str) -> bytes:
        """What a child process with this version's package writes to stdout.

        Raises:
            Refusal: It failed.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BEIT_")}
        own = {"PYTHONPATH": str(self.checkout), "XDG_CACHE_HOME": str(self.runs / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        done = subprocess.run([sys.executable, *words], cwd=self.runs, env=kept | own | threads, capture_output=True)
        if done.returncode != 0:
            end = "\n".join(done.stderr.decode(errors="replace").splitlines()[-15:])
            raise Refusal(f"{self.name} failed with exit code {done.returncode}: {' '.join(words)}\n{end}")
        return done.stdout

    def beit(self, line: str, *more: object) -> bytes:
        return self.python("-m", "beitcli", *line.split(), *map(str, more))

    def train(self, line: str, run: str, *more: object) -> Path:
        """The folder of a training run, `run` below this version's."""
        self.beit(line, *more, "--out", self.runs / run)
        return self.runs / run

    def check(self) -> None:
        """Refuses a folder whose package would not be the one that runs."""
        found = self.python("-c", "import beitcli; print(beitcli.__file__)").decode().strip()
        if not Path(found).resolve().is_relative_to(self.checkout.resolve()):
            raise Refusal(f"{self.name}: {self.checkout} is no checkout; beitcli would come from {found}.")


# Comparisons: each says where two things differ first, or "" where they do not


def tensor_difference(old: Path, new: Path) -> str:
    """Of two safetensors files, in names, shapes, types and bits."""
    tensors, others = load_file(old), load_file(new)
    if set(tensors) != set(others):
        return f"only in one: {', '.join(sorted(set(tensors) ^ set(others))[:3])}"
    for name, tensor in sorted(tensors.items()):
        other = others[name]
        if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            return f"{name}: {tensor.dtype} {tensor.shape}, {other.dtype} {other.shape}"
        bits = [np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (tensor, other)]
        if not np.array_equal(*bits):
            apart = np.abs(tensor.astype(np.float64) - other.astype(np.float64))
            return f"{name}: {np.count_nonzero(apart)} of {tensor.size} numbers, by {np.nanmax(apart):.3g} at most"
    return "" if old.read_bytes() == new.read_bytes() else "the files' headers"


def json_difference(old: Any, new: Any, place: str = "") -> str:
    """Of two JSON documents, but for the names of TIMED."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted((old.keys() | new.keys()) - TIMED):
            if name not in old or name not in new:
                return f"{place}{name}: only in one"
            if found := json_difference(old[name], new[name], f"{place}{name}."):
                return found
        return ""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return next((found for i, (a, b) in pairs if (found := json_difference(a, b, f"{place}{i}."))), "")
    return "" if repr(old) == repr(new) else f"{place.rstrip('.')}: {str(old)[:60]}, {str(new)[:60]}"


def lines_difference(old: Path, new: Path) -> str:
    """Of two JSON Lines files, but for the names of TIMED."""
    documents = ([json.loads(line) for line in path.read_text().splitlines()] for path in (old, new))
    return json_difference(*documents, "line ")


def folder_difference(old: Path, new: Path) -> str:
    """Of all files below two folders, byte for byte."""
    files, others = ({str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()} for root in (old, new))
    if set(files) != set(others):
        return f"only in one: {', '.join(sorted(set(files) ^ set(others))[:3])}"
    return next((name for name in sorted(files) if files[name].read_bytes() != others[name].read_bytes()), "")


def state_of(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Size and time of the last writing of every file below a folder."""
    found = {str(path): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


def last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def run_differences(old: Path, new: Path, name: str) -> Iterator[tuple[str, str]]:
    """(check, difference) of two finished training runs."""
    before, after = last_checkpoint(old), last_checkpoint(new)
    yield f"{name}: last step", "" if before.name == after.name else f"{before.name}, {after.name}"
    yield f"{name}: weights", tensor_difference(before / "model.safetensors", after / "model.safetensors")
    yield f"{name}: optimizer", tensor_difference(before / "trainer.safetensors", after / "trainer.safetensors")
    for file in ("config.json", "trainer.json"):
        found = json_difference(json.loads((before / file).read_text()), json.loads((after / file).read_text()))
        yield f"{name}: {file}", found
    yield f"{name}: metrics.jsonl", lines_difference(old / "metrics.jsonl", new / "metrics.jsonl")


def stop_in_an_epoch(run: Path, stopped: Path) -> None:
    """Makes of a finished run's copy one that was stopped at STOPPED_AT."""
    shutil.copytree(run, stopped)
    for later in (stopped / "checkpoints").glob("step-*"):
        if int(later.name.removeprefix("step-")) > STOPPED_AT:
            shutil.rmtree(later)
    left = last_checkpoint(stopped).name
    (stopped / "checkpoints" / "latest").write_text(f"{left}\n")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (epoch,) = (line["epoch"] for line in lines if line["step"] == STOPPED_AT)
    if left != f"step-{STOPPED_AT:07d}" or float(epoch).is_integer():
        raise Refusal(f"The stopped run is not in the middle of an epoch: {left}, epoch {epoch}.")


# The work


def runs_of(version: Version, old: Version) -> None:
    """What a version trains; it starts from OLD's tokenizer and backbone, so that one difference is told once."""
    version.train(TOKENIZER, "tokenizer")
    tokenizer = old.runs / "tokenizer"
    run = version.train(PRETRAIN, "whole", "--tokenizer", tokenizer)
    if version is old:
        stop_in_an_epoch(run, version.runs / "stopped")
        version.train(PRETRAIN, "kept", "--tokenizer", tokenizer, "--token-cache", version.runs / "tokens")
    for name, line in FINETUNE.items():
        version.train(line, name, "--init", old.runs / "whole")


def outputs_of(version: Version, models: Path) -> dict[str, bytes]:
    """stdout of each command of OUTPUTS; the version's own folder stands as OUT in it."""
    found = {}
    for name, line in OUTPUTS.items():
        out = version.runs / "outputs" / name.replace(" ", "-")
        out.mkdir(parents=True)
        printed = version.beit(f"{line.format(models=models, out=out)} --device cpu --quiet")
        found[name] = printed.replace(str(out).encode(), b"OUT")
    return found


def differences(old: Version, new: Version) -> Iterator[tuple[str, str]]:
    """(check, where they differ or "") as they become known."""
    from PIL import Image

    runs_of(old, old)
    ramp = np.arange(48 * 64 * 3, dtype=np.uint32).reshape(48, 64, 3) * 2654435761 >> 24
    Image.fromarray(ramp.astype(np.uint8)).save(old.runs / "picture.png")
    printed = outputs_of(old, old.runs)
    kept = state_of(old.runs / "tokens")
    if not any(name.endswith(".rows") for name in kept):
        raise Refusal("OLD kept no tokens.")

    resumed = Path(shutil.copytree(old.runs / "stopped", new.runs / "stopped"))
    new.beit(f"pretrain --resume {_ON_CPU} --out", resumed)
    yield from run_differences(old.runs / "whole", resumed, "OLD's stopped run, resumed")
    runs_of(new, old)
    for name in ("tokenizer", "whole", *FINETUNE):
        yield from run_differences(old.runs / name, new.runs / name, f"trained anew, {name}")
    run = new.train(PRETRAIN, "kept", "--tokenizer", old.runs / "tokenizer", "--token-cache", old.runs / "tokens")
    yield from run_differences(old.runs / "whole", run, "with OLD's token cache")
    changed = sorted(dict(state_of(old.runs / "tokens").items() ^ kept.items()))
    yield "OLD's token cache: nothing written", ", ".join(changed[:2])
    for name, text in outputs_of(new, old.runs).items():
        lines = [[json.loads(line) for line in each.splitlines()] for each in (printed[name], text)]
        found = json_difference(*lines, "line ")
        if not found and printed[name] != text:
            found = "the bytes of stdout"
        folder = name.replace(" ", "-")
        yield name, found or folder_difference(old.runs / "outputs" / folder, new.runs / "outputs" / folder)


def compare(checkouts: tuple[Path, Path], work: Path) -> int:
    """Prints the table; returns the number of differences."""
    old, new = (Version(n, c, work / n.lower()) for n, c in zip(("OLD", "NEW"), checkouts, strict=True))
    for version in (old, new):
        version.runs.mkdir(parents=True)
        version.check()
    results = []
    for name, found in differences(old, new):
        results.append(found)
        print(f"{name:52}  {f'DIFFERENT  {found}' if found else 'equal'}", flush=True)
    apart = sum(bool(found) for found in results)
    print(f"{len(results)} checks, {apart} of them DIFFERENT" if apart else f"{len(results)} checks, all equal")
    return apart


def main() -> int:
    parser = argparse.ArgumentParser(description="Do two versions of this program give the same numbers?")
    parser.add_argument("old", type=Path, metavar="OLD", help="a checkout")
    parser.add_argument("new", type=Path, metavar="NEW", help="a checkout")
    parser.add_argument("--work", type=Path, help="where the runs go: a folder that is not there yet")
    parser.add_argument("--keep", action="store_true", help="keep the runs, also those of a temporary folder")
    given = parser.parse_args()
    if given.work is not None and given.work.exists():
        parser.error(f"{given.work} is there already")
    work = (given.work or Path(tempfile.mkdtemp(prefix="compare-versions-"))).resolve()
    try:
        return int(compare((given.old.resolve(), given.new.resolve()), work) > 0)
    except Refusal as refusal:
        print(f"compare_versions: {refusal}", file=sys.stderr)
        return 2
    finally:
        if given.keep:
            print(f"The runs are in {work}.", file=sys.stderr)
        else:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
