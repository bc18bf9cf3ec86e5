"""`beit env`: what a bug report needs to say of a machine and its packages."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from beitcli import __version__
from beitcli.config.about import EnvConfig
from beitcli.errors import BeitError
from beitcli.runtime.distributed.cores import available_cores
from beitcli.runtime.extras import EXTRAS

_SECRET = re.compile(r"TOKEN(?!IZER|_CACHE|_PRECISION)|KEY|SECRET|PASSWORD", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/@\s]+@")  # of an address
_VARIABLES = re.compile(r"BEIT_|HF_|CUDA_VISIBLE_DEVICES$|OMP_|GOMP_|NCCL_|TORCH|PYTORCH|XDG_CACHE_HOME$")
_REQUIREMENT_NAME = re.compile(r"[\w.-]+")
# Used where they are there, beside the libraries of the extras.
_OPTIONAL = ("transformers", "datasets", "torchvision", "triton", "playwright")


def describe_environment(config: EnvConfig) -> dict[str, Any]:
    """Returns facts by name: versions, machine, GPUs, cache, variables. Values of variables that may be secret are not
    told, and nothing is sent anywhere."""
    return {
        "beit": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cpu_cores": len(available_cores()),
        "memory_gib": _memory(),
        **_torch(),
        "packages": _packages(),
        **_storage(),
        "variables": {
            name: "(set)" if _SECRET.search(name) else _USER.sub("", value)
            for name, value in sorted(os.environ.items())
            if _VARIABLES.match(name)
        },
    }


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError and others, and is what this report is for
        return {"torch": f"cannot be imported: {type(error).__name__}: {error}"}
    from beitcli.runtime.compute.cpu_matmul import has_bf16_units, has_onednn_route

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "cpu_bf16": has_bf16_units(),
        "cpu_onednn_fp32": has_onednn_route(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cuda_available": torch.cuda.is_available(),
        "mps_available": torch.backends.mps.is_available(),
    }
    if torch.cuda.is_available():
        found |= {
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_available() else None,
        }
    return found


def _packages() -> dict[str, str]:
    """Returns the versions of the packages that this one requires, and of the optional ones that are installed."""
    try:
        requirements = [each for each in metadata.requires("beit-cli") or [] if "extra" not in each]
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        requirements = ["torch", "timm", "numpy", "pillow", "safetensors", "huggingface_hub", "typer", "rich"]
    required, of_extras = _names(requirements), _names([each for extra in EXTRAS.values() for each in extra])
    found = {}
    for name in dict.fromkeys((*required, *of_extras, *_OPTIONAL)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in required:
                found[name] = "missing"
    return found


def _names(requirements: Iterable[str]) -> list[str]:
    """Returns the package of each requirement, such as `onnx` of `onnx>=1.18`."""
    return [found[0] for each in requirements if (found := _REQUIREMENT_NAME.match(each))]


def _storage() -> dict[str, Any]:
    from beitcli.runtime.storage.cache_folder import cache_folder

    try:
        cache = cache_folder()
        there = next(path for path in (cache, *cache.parents) if path.exists())
        return {"cache": str(cache), "cache_free_gib": round(shutil.disk_usage(there).free / 2**30, 1)}
    except (BeitError, OSError, RuntimeError, StopIteration) as error:  # no home, no permission
        return {"cache": f"none: {error}"}
