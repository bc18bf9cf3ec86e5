"""Versions, GPU, cores, and which packages of the project are missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from measure import hardware

from gpu_steps.context import Context
from gpu_steps.parent import ROOT

_QUERIES = ("name,driver_version,memory.total", "clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,clocks.sm")
_SHARED_GIB = 2  # a batch of 256 at 224 pixels has 46 MB, and 15 workers hold a few each


def run(context: Context) -> None:
    compilers: dict[str, Any] = {name: shutil.which(name) for name in ("gcc", "g++", "clang", "nvcc", "ptxas")}
    compilers["Python.h"] = (Path(sysconfig.get_path("include")) / "Python.h").exists()
    shared = shutil.disk_usage("/dev/shm").total / 2**30 if Path("/dev/shm").is_dir() else 0.0
    if found := warnings(compilers, shared, is_cuda=context.is_cuda):
        context.record("warnings", found)
    machine = {name: each for name, each in hardware().items() if name != "versions"}  # they stand below
    context.record("machine", machine | {"all_cores": os.cpu_count(), "kernel": platform.release()})
    disk = shutil.disk_usage(context.scratch).free / 2**30
    context.record("storage", {"disk_free_gib": disk, "shm_gib": shared, "scratch": str(context.scratch)})
    context.record("compilers", compilers)
    context.record("torch", {"version": torch.__version__, "cuda": torch.version.cuda})
    context.record("packages", packages())
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


def warnings(compilers: dict[str, Any], shared: float, *, is_cuda: bool) -> list[str]:
    """What will fail or limp later, in sentences."""
    found = []
    if shared < _SHARED_GIB:
        found.append(f"/dev/shm has {shared:.2g} GiB: the loader's workers pass batches through it.")
    if is_cuda and not compilers["Python.h"]:
        found.append("Python.h is not there: Triton cannot build its launcher, so nothing will be compiled.")
    if is_cuda and not (compilers["gcc"] or compilers["clang"]):
        found.append("There is no C compiler: Triton cannot build its launcher, so nothing will be compiled.")
    return found


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
        "versions": ", ".join(f"{name} {version}" for name, version in found.items() if version),
        "missing": missing,
        "missing_required": [name for name in missing if name in required],
    }
