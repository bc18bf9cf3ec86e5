"""`beit env`."""

from __future__ import annotations

from typing import Any

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.about import EnvConfig

_TITLES = {  # of fields whose names in JSON say less
    "cpu_cores": "CPU cores",
    "memory_gib": "memory",
    "cpu_instructions": "CPU instructions",
    "cpu_bf16": "bf16 units of the CPU",
    "cpu_onednn_fp32": "fp32 products by oneDNN",
    "cuda": "CUDA",
    "cuda_available": "CUDA available",
    "mps_available": "MPS available",
    "gpus": "GPUs",
    "cudnn": "cuDNN",
    "nccl": "NCCL",
    "cache": "cache folder",
    "cache_free_gib": "free space there",
    "variables": "environment variables",
}


def _run(config: EnvConfig, console: CommandConsole) -> None:
    from beitcli.engine.environment import describe_environment

    found = describe_environment(config)
    if not console.wants_json:
        found = {_TITLES.get(name, name): _words(value, name) for name, value in found.items()}
    console.print_metrics(found)


def _words(value: Any, name: str) -> Any:
    if name.endswith("_gib") and value is not None:
        return f"{value:g} GiB"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items()) or None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else value


DECLARATION = Declaration(
    config=EnvConfig,
    examples=("beit env --json > environment.json",),
    run=_run,
)
