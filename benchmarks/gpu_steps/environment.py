"""Versions, GPU, cores, and which packages of the project are missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import torch
from measure import hardware

from gpu_steps.context import Context
from gpu_steps.parent import ROOT

_QUERIES = ("name,driver_version,memory.total", "clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,clocks.sm")


def run(context: Context) -> None:
    context.record("machine", hardware())
    context.record("packages", packages())
    context.record("compilers", {name: shutil.which(name) for name in ("gcc", "g++", "clang", "nvcc", "ptxas")})
    context.record("disk_free_gib", shutil.disk_usage(context.scratch).free / 2**30)
    context.record("shm_free_gib", shutil.disk_usage("/dev/shm").free / 2**30 if Path("/dev/shm").is_dir() else None)
    context.record("torch", {"version": torch.__version__, "cuda": torch.version.cuda, "kernel": platform.release()})
    context.record("threads", {"torch": torch.get_num_threads(), "cores": os.cpu_count()})
    if shutil.which("nvidia-smi"):
        for name, query in zip(("nvidia-smi", "nvidia-smi clocks"), _QUERIES, strict=True):
            with context.attempt(name):
                words = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
                done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
                first = done.stdout.strip().splitlines()[0].split(", ")
                context.record(name, dict(zip(query.split(","), first, strict=False)))
    if context.is_cuda:
        with context.attempt("cuda"):
            properties = torch.cuda.get_device_properties(0)
            context.record(
                "gpu",
                {
                    "name": properties.name,
                    "memory_gib": properties.total_memory / 2**30,
                    "multiprocessors": properties.multi_processor_count,
                    "capability": f"{properties.major}.{properties.minor}",
                    "l2_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
                    "cudnn": torch.backends.cudnn.version(),
                    "nccl": ".".join(map(str, torch.cuda.nccl.version())),
                    "arch_list": torch.cuda.get_arch_list(),
                    "bf16": torch.cuda.is_bf16_supported(),
                },
            )
            context.record("sum_on_device", float(torch.ones(1000, device="cuda").sum()))


def packages() -> dict[str, object]:
    """Of the project's dependencies and of its test extra: versions, and those that are missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    named = {"required": project["dependencies"], "test": optional["test"], "detect": optional["detect"]}
    found: dict[str, str | None] = {}
    for requirement in [each for part in named.values() for each in part] + ["torchvision", "triton"]:
        name = re.split(r"[<>=!~ \[]", requirement)[0]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    required = {re.split(r"[<>=!~ \[]", each)[0] for each in named["required"]}
    missing = sorted(name for name, version in found.items() if version is None)
    return {
        "versions": found,
        "missing": missing,
        "missing_required": [name for name in missing if name in required],
    }
