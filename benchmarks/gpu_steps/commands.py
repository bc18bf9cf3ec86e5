"""Every command of `beit` on the device, as users start them: a process each, on the drawn images of `sample`.

What needs another's output waits for it; the others run at the same time, so no seconds here say anything of speed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_steps.context import Context
from gpu_steps.parent import ROOT

_AT_ONCE = 6
_TAIL_CHARACTERS = 600
_TEACHER = "timm/vit_tiny_patch16_224@random,depth=2"


@dataclass(frozen=True)
class Command:
    """One command line, without the program's name.

    Attributes:
        words: Split at spaces; `{name}` is the output of the command of that name, `{out}` its own, `{steps}` a few.
        has_device: Whether it takes `--device`.
    """

    name: str
    words: str
    has_device: bool = True

    def needs(self, names: set[str]) -> set[str]:
        return {name for name in names if "{" + name + "}" in self.words}


_SMALL = "--recipe tiny --limit 400 --steps {steps} --out {out}"
_SMALL_VQKD = "--set width=64 --set depth=2 --set heads=2 --set patch_size=4"
_PRETRAIN = f"pretrain sample {_SMALL} --save-every {{half}}"
_FINETUNE = "finetune sample --init {pretrain} --limit 400 --steps {steps} --batch-size 16 --out {out}"
COMMANDS = (
    Command("dvae", f"train-tokenizer sample --kind dvae {_SMALL}"),
    Command("vq", f"train-tokenizer sample --kind vq {_SMALL}"),
    Command("fsq", f"train-tokenizer sample --kind fsq {_SMALL}"),
    Command("vqkd", f"train-tokenizer sample --kind vqkd --teacher {_TEACHER} {_SMALL_VQKD} {_SMALL}"),
    Command("pretrain", f"{_PRETRAIN} --tokenizer {{dvae}}"),
    Command("bf16", f"{_PRETRAIN} --tokenizer {{vq}} --precision bf16 --no-compile"),
    Command("fp16", f"{_PRETRAIN} --tokenizer {{fsq}} --precision fp16 --no-compile"),
    Command("beitv2", f"{_PRETRAIN} --tokenizer {{vqkd}} --aggregate-after 2 --no-compile"),
    Command("pixels", f"{_PRETRAIN} --target pixels --no-compile"),
    Command("classify", f"{_FINETUNE} --recipe tiny"),
    Command("segment", f"{_FINETUNE} --recipe tiny-segment"),
    Command("detect", f"{_FINETUNE} --recipe tiny-detect"),
    Command("tokenize", "tokenize sample --limit 40 --tokenizer {dvae} -o {out}.jsonl"),
    Command("stats", "tokenize sample --limit 200 --tokenizer {vq} --stats --json"),
    Command("mask-preview", "mask-preview sample --limit 4 --model {pretrain} -o {out}"),
    Command("attn-map", "attn-map sample --limit 1 --model {pretrain} -o {out}.png"),
    Command("elbo", "eval {pretrain} sample --protocol elbo --limit 100 --train sample --json"),
    Command("knn", "eval {pretrain} sample --protocol knn --train sample --limit 200 --json"),
    Command("linear", "eval {pretrain} sample --protocol linear --train sample --limit 200 --json"),
    Command("eval-classify", "eval {classify} sample --limit 200 --json"),
    Command("eval-segment", "eval {segment} sample --limit 40 --multi-scale --flip --json"),
    Command("eval-detect", "eval {detect} sample --limit 40 --json"),
    Command("predict-classify", "predict {classify} sample --limit 40 -o {out}.jsonl"),
    Command("predict-segment", "predict {segment} sample --limit 8 -o {out} --overlay"),
    Command("predict-detect", "predict {detect} sample --limit 8 -o {out}"),
    Command("export", "export {classify} --to timm -o {out}", has_device=False),
)  # fmt: skip

# Of a CPU's small run: enough to show that this step works.
_SMALL_ONES = {"dvae", "pretrain", "mask-preview"}


def run(context: Context) -> None:
    folder = context.scratch / "commands"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ended: dict[str, dict[str, Any]] = {}
    for command, row in in_order(context, folder):
        ended[command.name] = row
        if row["exit_code"] != 0:
            context.errors[command.name] = f"exit code {row['exit_code']}: {row['output'][-_TAIL_CHARACTERS:]}"
        context.record("commands", ended)
    context.record("done", {"right": sum(row["exit_code"] == 0 for row in ended.values()), "of": len(COMMANDS)})


def in_order(context: Context, folder: Path) -> Iterator[tuple[Command, dict[str, Any]]]:
    """Each command and how it ended, as they end; one whose needs failed is not started."""
    chosen = [command for command in COMMANDS if not context.small or command.name in _SMALL_ONES]
    names = {command.name for command in chosen}
    waiting, right = list(chosen), set[str]()
    running: dict[Future[dict[str, Any]], Command] = {}
    with ThreadPoolExecutor(_AT_ONCE if context.is_cuda else 1) as pool:
        while waiting or running:
            for command in [each for each in waiting if each.needs(names) <= right]:
                waiting.remove(command)
                running[pool.submit(one, context, folder, command)] = command
            if not running:
                for command in waiting:
                    missing = ", ".join(sorted(command.needs(names) - right))
                    yield command, {"exit_code": None, "seconds": 0.0, "output": f"not started, needs {missing}"}
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                command, row = running.pop(done), done.result()
                if row["exit_code"] == 0:
                    right.add(command.name)
                yield command, row


def one(context: Context, folder: Path, command: Command) -> dict[str, Any]:
    """Runs it to its end; the end of what it printed, and the last object of its JSON."""
    steps = 2 if context.small else 20
    places = {each.name: folder / each.name for each in COMMANDS} | {"out": folder / command.name}
    text = command.words.format(**places, steps=steps, half=steps // 2)
    words = [sys.executable, "-m", "beitcli", *text.split()]
    if command.has_device:
        words += ["--device", context.device.type]
    start = time.perf_counter()
    ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    row: dict[str, Any] = {"exit_code": ended.returncode, "seconds": time.perf_counter() - start}
    if ended.returncode:
        return row | {"output": ended.stderr}
    return row | {"output": ended.stdout.strip()[-_TAIL_CHARACTERS:] if "--json" in text else ""}
