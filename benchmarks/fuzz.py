"""Fuzzes every reader of foreign bytes, coverage-guided (atheris), and counts what is neither read nor refused.

    pip install atheris
    python benchmarks/fuzz.py --seconds 3600 --out fuzz.json --work DIR     one process at a time

--seconds is processor time in all, shared out evenly over the targets. An outcome is right if the reader returns a
value or raises a BeitError. Everything else is a finding: another error, a crash, more than 10 s of processor time for
one input, more than 1 GB of memory. DIR keeps corpora and findings, and a second run goes on from them:

    python benchmarks/fuzz.py --work DIR --only TARGET --reproduce INPUT    one input again, with its traceback
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *sys.path[2:]])}
os.environ.setdefault("FUZZ_MEMORY", f"/dev/shm/beit-fuzz-{os.getpid()}" if Path("/dev/shm").is_dir() else "/tmp")
from fuzz_readers import containment  # noqa: E402

_COVERED = re.compile(rb"cov: (\d+) ft: (\d+) corp: (\d+)/(\d+)(\w+)")
_MOST_STARTS = 12  # of one target: each crash costs one


def targets() -> dict[str, Any]:
    from fuzz_readers import collections, hub, pictures, records, weights

    found = [*pictures.TARGETS, *collections.TARGETS, *weights.TARGETS, *records.TARGETS, *hub.TARGETS]
    return {target.name: target for target in found}


def make_models(folder: Path) -> None:
    """Makes small runs and weights to start from."""
    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    from tests.helpers.foreign_models import hf_classifier, timm_small

    hf_classifier(folder / "hf", hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    processor = {"do_center_crop": True, "crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 73}}
    processor |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "hf" / "preprocessor_config.json").write_text(json.dumps(processor))
    timm_small(folder / "timm", embed_dim=24, depth=2, num_heads=2)
    small = ["--device", "cpu", "--steps", "2", "--limit", "20", "--batch-size", "4", "--workers", "0", "--quiet"]
    tokenizer = folder / "tokenizer"
    commands = {
        "tokenizer": ["train-tokenizer", "sample", "--recipe", "tiny", *small],
        "pretrained": ["pretrain", "sample", "--recipe", "tiny", "--tokenizer", str(tokenizer), *small],
        "finetuned": ["finetune", "sample", "--recipe", "tiny", "--init", str(folder / "pretrained"), *small],
    }
    for name, words in commands.items():
        subprocess.run([sys.executable, "-m", "beitcli", *words, "--out", str(folder / name)], check=True)
    (folder / "done").touch()


def in_a_fork(log: Path, do: Callable[[], None]) -> int:
    """Returns the exit code of a forked process that does it, minus the signal's number; its output goes to a file."""
    pid = os.fork()
    if pid == 0:
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            do()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fuzz_one(target: Any, work: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Fuzzes one target for a time of its processor, and starts it again where an input ended it."""
    folder = work / target.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    total: dict[str, Any] = {"reads": target.reads, "runs": 0, "processor_seconds": 0.0, "edges": 0, "findings": []}
    found: dict[str, dict[str, Any]] = {}
    for attempt in range(_MOST_STARTS):
        left = seconds - total["processor_seconds"]
        if left < 1:
            break
        (folder / "report.json").unlink(missing_ok=True)
        drive = partial(containment.run, target, folder, work / "models", left, seed + attempt + 1)
        code = in_a_fork(folder / "log", drive)
        log_text = (folder / "log").read_bytes()
        told = json.loads((folder / "report.json").read_text()) if (folder / "report.json").exists() else {}
        total["runs"] += told.get("runs", 0)
        total["processor_seconds"] = round(total["processor_seconds"] + told.get("seconds", 0), 1)
        covered = _COVERED.findall(log_text)
        total["edges"] = max(total["edges"], int(covered[-1][0]) if covered else 0)
        total["corpus"] = int(covered[-1][2]) if covered else 0
        found |= told.get("findings", {})
        if code:
            kind = {79: "more than 1 GB", -27: "more than 10 s"}.get(code, f"ended by {code}")
            content = (folder / "input").read_bytes() if (folder / "input").exists() else bytes(8)
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
            found[f"{kind} {len(found)}"] = {"input": content.hex(), "told": log_text[-2000:].decode(errors="replace")}
            total["processor_seconds"] += 1  # a target that cannot start comes to its end too
    (folder / "findings").mkdir(exist_ok=True)
    for kind, finding in found.items():
        name = re.sub(r"\W+", "-", kind)
        (folder / "findings" / name).write_bytes(bytes.fromhex(finding["input"]))
        (folder / "findings" / f"{name}.txt").write_text(finding["told"])
        total["findings"].append({"kind": kind, "bytes": len(finding["input"]) // 2})
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--only", help="names of targets, with commas between")
    parser.add_argument("--work", type=Path, default=Path("fuzz"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reproduce", type=Path)
    asked = parser.parse_args()
    asked.work = asked.work.resolve()
    if not asked.reproduce:
        containment.import_instrumented()  # before anything imports it
    known, models = targets(), asked.work / "models"
    chosen = [known[name] for name in asked.only.split(",")] if asked.only else list(known.values())
    folder = asked.work / chosen[0].name.replace(" ", "-")
    if asked.reproduce:
        told = containment.reproduce(chosen[0], folder, models, asked.reproduce.resolve().read_bytes())
        sys.stdout.write(f"{told or 'as it should be'}\n")
        sys.exit(bool(told))
    make_models(models)
    begun, results = time.monotonic(), {}
    for target in chosen:
        results[target.name] = fuzz_one(target, asked.work, asked.seconds / len(chosen), asked.seed)
        shutil.rmtree(os.environ["FUZZ_MEMORY"], ignore_errors=True)
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {target.name}: {json.dumps(results[target.name])}\n")
        write(results, time.monotonic() - begun, asked.out)
    sys.exit(any(each["findings"] for each in results.values()))


def write(results: dict[str, Any], seconds: float, out: Path | None) -> None:
    from importlib import metadata

    from measure import hardware

    summed = {name: round(sum(each[name] for each in results.values()), 1) for name in ("runs", "processor_seconds")}
    versions = {name: metadata.version(name) for name in ("atheris", "pyarrow", "safetensors", "huggingface_hub")}
    document = {
        **summed,
        "findings": sum(len(each["findings"]) for each in results.values()),
        "seconds": round(seconds),
    }
    text = json.dumps(document | {"targets": results, "versions": versions, "hardware": hardware()}, indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text)


if __name__ == "__main__":
    main()
