"""The arithmetic of a run's steps on a CPU: chosen by a benchmark when it begins, and the same whenever it goes on.

It is stored in the run folder when that is opened, and with every checkpoint. A run of an earlier version has none
stored: its steps were fp32 by torch's library, and stay that. What a run measures is computed in `--precision`, in
which `auto` is fp32 on a CPU, by torch's library.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from beitcli.config.architecture import Architecture
from beitcli.config.common import Sharded
from beitcli.engine.events import OnEvent, Warned
from beitcli.engine.trainer.plan import MOST_MICRO_BATCH
from beitcli.errors import StorageError, UsageError
from beitcli.runtime.compute.arithmetic_choice import choose_arithmetic, restored_arithmetic
from beitcli.runtime.compute.arithmetic_trial import BlockShape
from beitcli.runtime.compute.cpu_matmul import ONEDNN, TORCH, Arithmetic
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.storage.checkpoint import CheckpointFolder, step_folders
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.run_dir import RunFolder
from beitcli.runtime.storage.safe_json import dump_json, parse_json

ARITHMETIC = "arithmetic.json"

_PRECISIONS, _LIBRARIES = ("fp32", "bf16"), (TORCH, ONEDNN)


def with_step_arithmetic(
    config: Sharded, compute: Compute, architecture: Architecture, *, compiled: bool | None, on_event: OnEvent
) -> Compute:
    """Returns `compute` with the arithmetic of training steps; itself on a GPU, and in a low precision that is given.

    Rank 0 measures, and its choice is that of all ranks, which must all call this.

    Args:
        compiled: Whether the step is compiled. torch.compile refuses the switch that hands products to oneDNN.

    Raises:
        UsageError: oneDNN is asked for, and a compiled step.
    """
    if compute.device.type != "cpu" or config.precision not in ("auto", "fp32"):
        return compute
    if compiled and config.cpu_matmul == ONEDNN:
        raise UsageError("--cpu-matmul onednn does not go with --compile.", "Leave one of them out.")
    images = min(config.micro_batch or MOST_MICRO_BATCH, -(-config.batch_size // compute.world.size))
    shape = BlockShape(
        images=images,
        length=architecture.num_patches + 1,
        width=architecture.width,
        heads=architecture.heads,
        hidden=round(architecture.width * architecture.mlp_ratio),
    )
    is_sharded = config.shard and compute.world.size > 1
    steps = compute.world.run_on_rank_zero(
        lambda: _arithmetic(config, shape, is_compiled=bool(compiled), is_sharded=is_sharded)
    )
    if steps.note:
        on_event(Warned(steps.note))
    return replace(compute, steps=steps)


def _arithmetic(config: Sharded, shape: BlockShape, *, is_compiled: bool, is_sharded: bool) -> Arithmetic:
    stored = _stored(config)
    if stored is None:
        precision = "fp32" if is_sharded else config.precision  # weights are gathered in fp32, for evaluation too
        return choose_arithmetic(shape, precision, TORCH if is_compiled else config.cpu_matmul)
    if is_compiled and stored.matmul == ONEDNN:
        stored = replace(stored, matmul=TORCH)
    return restored_arithmetic(stored, shape)


def _stored(config: Sharded) -> Arithmetic | None:
    """Returns the arithmetic of the run to go on with; None if none is stored, or it was on another device."""
    if not config.resume or not config.out:
        return None
    record: Any = None
    for path in step_folders(Path(config.out) / "checkpoints"):  # all of a run have the same: no hash is verified here
        with suppress(StorageError):
            record = CheckpointFolder(path).trainer.get("arithmetic", {"device": "cpu"})
            break
    else:  # it was killed before its first save
        with suppress(OSError, ValueError):
            record = parse_json(read_regular(Path(config.out) / ARITHMETIC))
    if not isinstance(record, dict) or record.get("device") != "cpu":
        return None
    precision, matmul = record.get("precision", "fp32"), record.get("matmul", TORCH)
    if precision not in _PRECISIONS or matmul not in _LIBRARIES:
        return None
    return Arithmetic(precision if config.precision == "auto" else config.precision, matmul)


def store_arithmetic(run: RunFolder, compute: Compute) -> None:
    """Writes the chosen arithmetic into the run folder, for a run that is killed before its first checkpoint.

    Raises:
        StorageError: It cannot be written.
    """
    if compute.steps is not None:
        run.write_text(ARITHMETIC, dump_json(arithmetic_record(compute)) + "\n")


def arithmetic_record(compute: Compute) -> dict[str, Any]:
    """Returns what a run and its checkpoints store of the arithmetic of the steps."""
    steps = compute.training
    return {"device": compute.device.type, "precision": steps.precision, "matmul": steps.matmul}


def arithmetic_row(compute: Compute) -> dict[str, str]:
    """Returns the row of the plan that says in what a CPU computes; none where the precision says all."""
    steps = compute.steps
    if steps is None or (steps.precision, steps.matmul) == (compute.precision, TORCH):
        return {}
    return {"arithmetic": f"{steps.about}; measured in {compute.precision}"}
