"""Rows of the plan of `beit pretrain`, and the arithmetic of its forward pass."""

from __future__ import annotations

from beitcli.config.pretrain import PretrainConfig
from beitcli.engine.mim.task import PretrainTask
from beitcli.engine.trainer.arithmetic import arithmetic_row
from beitcli.engine.trainer.model_card import TARGETS, aggregation_text
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.setup import checkpoint_bytes, describe_plan
from beitcli.models.networks.beit import forward_flops
from beitcli.models.networks.patch_aggregation import aggregation_flops
from beitcli.runtime.compute.device import describe
from beitcli.runtime.metric_text import size_text


def forward_flops_of(task: PretrainTask) -> float:
    """Returns FLOP of the forward pass of one image, head included."""
    architecture, hidden = task.model.architecture, task.masking.num_masked if task.masking else 0
    predicted = architecture.num_patches if task.config.predict == "all" else hidden
    flops, aggregation = forward_flops(architecture, predicted, task.target.outputs), task.config.aggregation
    if aggregation is None:
        return flops
    return flops + aggregation_flops(architecture, aggregation, predicted, task.target.outputs)


def plan_rows(task: PretrainTask, plan: Plan) -> dict[str, str]:
    architecture, masking, tokenizer = task.model.architecture, task.masking, task.tokenizer
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    hidden = masking.num_masked if masking else 0
    flops = forward_flops_of(task)
    height, width = architecture.image_size
    how = f", {task.config.masking}" if masking else ""
    return {
        "model": f"BEiT {task.config.model}, {parameters:,} parameters, {architecture.positions} positions",
        "images of": f"{height} x {width} pixels, {architecture.grid[0]} x {architecture.grid[1]} patches",
        **_aggregation_row(task.config),
        "hidden": f"{hidden} of {architecture.num_patches} patches{how}",
        "target": f"{TARGETS[task.config.target]} of {task.config.predict} patches",
        "tokenizer": f"{tokenizer.reference}, {tokenizer.vocab_size:,} codes" if tokenizer else "none",
        "compute": f"{flops / 1e9:.3g} GFLOP an image forward, {3 * flops / 1e9:.3g} forward and backward",
        **describe_plan(task, plan),
        "checkpoint size": size_text(checkpoint_bytes(task)),
        **_step_row(task),
        **arithmetic_row(task.compute),
        "hardware": describe(task.compute),
    }


def _aggregation_row(config: PretrainConfig) -> dict[str, str]:
    how = config.aggregation
    return {"patch aggregation": aggregation_text(how)} if how else {}


def _step_row(task: PretrainTask) -> dict[str, str]:
    """Returns a row with the settings of the step that are not the default."""
    config = task.config
    said = {
        "compiled": task.compiled is not None and task.compiled.is_compiled,
        "bf16 residual stream": config.residual == "bf16",
        "bf16 gradients between processes": config.grad_compression == "bf16" and task.compute.world.size > 1,
        "sharded": config.shard and task.compute.world.size > 1,
    }
    return {"step": ", ".join(name for name, holds in said.items() if holds)} if any(said.values()) else {}
