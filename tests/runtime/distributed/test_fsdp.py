"""A model spread over two processes, and gradients on their way between two, computed for real over gloo."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import nn

from beitcli.config.architecture import Architecture, Positions
from beitcli.engine.trainer.optimizer_step import _update
from beitcli.models.networks.classifier import Classifier
from beitcli.runtime.compute.optimizer import make_adamw, optimizer_tensors, parameter_groups
from beitcli.runtime.distributed.data_parallel import parallel
from beitcli.runtime.distributed.equal_weights import differing_ranks
from beitcli.runtime.distributed.fsdp import defer_reduction, full_tensor, is_sharded, shard, unsharded
from beitcli.runtime.distributed.world import DistributedContext, join, shutdown
from tests.helpers.forked import Child
from tests.helpers.processes import free_port

CPU = torch.device("cpu")
NONE = torch.amp.GradScaler("cpu", enabled=False)


def in_two(work: Callable[[DistributedContext], None]) -> None:
    """Does `work` in two processes, which have found one another."""
    port = free_port()

    def process(rank: int) -> None:
        places = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
        world = join(CPU, 2, 60.0)
        work(world)
        world.gather(None)  # neither goes before the other is through
        shutdown()

    children = [Child(lambda rank=rank: process(rank)) for rank in range(2)]  # type: ignore[misc]
    for ended in [child.ended(60) for child in children]:
        assert ended.code == 0, ended.err


def classifier(positions: Positions = "shared") -> Classifier:
    torch.manual_seed(0)
    architecture = Architecture(image_size=(32, 32), width=24, depth=2, heads=2, positions=positions, layer_scale=0.1)
    model = Classifier(architecture, 3)
    for bias in (model.rel_pos_bias, *(block.attn for block in model.blocks)):
        table = getattr(bias, "relative_position_bias_table", None)
        if table is not None:
            nn.init.normal_(table)
    return model


def images(step: int) -> torch.Tensor:
    """(4, 3, 32, 32), the first half the first process's."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))


def learn(model: nn.Module, batch: torch.Tensor, dtype: torch.dtype, factor: float = 1.0) -> torch.Tensor:
    """The loss of a batch, of which gradients are left."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss = model(batch).float().square().mean()
    (loss * factor).backward()
    return loss.detach()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return make_adamw(parameter_groups(model, 0.05), 0.01, (0.9, 0.999), CPU)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = dict(model.state_dict()) | optimizer_tensors(model, optimizer)
    return {name: full_tensor(tensor).clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("positions", ["absolute", "shared", "per-block"])
def test_bf16_blocks_travel_in_bf16_and_give_the_loss_and_gradients_of_autocast(positions: Positions) -> None:
    def work(world: DistributedContext) -> None:
        plain, spread = classifier(positions), classifier(positions)
        shard(spread, spread.blocks, world, torch.bfloat16)
        seen: dict[str, torch.dtype] = {}

        def note(module: nn.Module, given: object) -> None:
            block = spread.blocks[0]
            for name in ("attn.qkv.weight", "mlp.fc1.weight", "norm1.weight", "gamma_1"):
                seen[name] = block.get_parameter(name).dtype
            seen["cls_token"] = spread.cls_token.dtype

        spread.blocks[0].mlp.fc1.register_forward_pre_hook(note)
        batch = images(1)
        expected = learn(plain, batch, torch.bfloat16)
        found = learn(spread, batch, torch.bfloat16)  # of the whole batch in both: the mean is that of one
        bf16, fp32 = torch.bfloat16, torch.float32
        assert list(seen.values()) == [bf16, bf16, fp32, fp32, fp32]
        assert torch.equal(found, expected)
        for (name, mine), its in zip(spread.named_parameters(), plain.parameters(), strict=True):
            gradient = full_tensor(mine.grad)
            assert mine.dtype == gradient.dtype == fp32
            # the table of a block sums its gradient in bf16
            near = 2e-2 * float(its.grad.abs().max()) if "blocks.0.attn.relative" in name or "1.attn.rel" in name else 0
            torch.testing.assert_close(gradient, its.grad, rtol=0, atol=near, msg=name)

    in_two(work)


def test_bf16_gradients_of_micro_batches_are_added_in_fp32() -> None:
    def work(world: DistributedContext) -> None:
        plain, spread = classifier(), classifier()
        shard(spread, spread.blocks, world, torch.bfloat16)
        parts = images(1).chunk(2)
        for model in (plain, spread):
            with defer_reduction(model):
                learn(model, parts[0], torch.bfloat16)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                model(parts[1]).float().square().mean().backward()
        for mine, its in zip(spread.parameters(), plain.parameters(), strict=True):
            assert torch.equal(full_tensor(mine.grad), its.grad)

    in_two(work)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_skipped_step_of_a_spread_model_changes_nothing_and_nothing_waits_for_the_decision(dtype) -> None:
    """With `found_inf`, by which the optimizer's kernel decides: as on a GPU."""

    def work(world: DistributedContext) -> None:
        plain, spread = classifier(), classifier()
        shard(spread, spread.blocks, world, dtype)
        optimizers = [optimizer_of(plain), optimizer_of(spread)]
        for step, factor in enumerate((1.0, float("nan"), 1.0, float("inf"))):
            before = state_of(spread, optimizers[1])
            for model, optimizer in zip((plain, spread), optimizers, strict=True):
                learn(model, images(step), dtype, factor)
                norm = full_tensor(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
                _update(optimizer, NONE, ~norm.isfinite(), on_device=model is spread)
            after = state_of(spread, optimizers[1])
            if factor == 1:
                assert not torch.equal(after["head.weight"], before["head.weight"])
            else:
                assert all(torch.equal(after[name], before[name]) for name in after.keys() | before.keys())
            torch.testing.assert_close(after, state_of(plain, optimizers[0]), rtol=1e-5, atol=1e-6)
            assert after["head.weight/step"] == (1 if step < 2 else 2)

    in_two(work)


def test_a_bf16_model_is_measured_whole_and_spread_again() -> None:
    def work(world: DistributedContext) -> None:
        plain, spread = classifier().eval(), classifier().eval()
        shard(spread, spread.blocks, world, torch.bfloat16)
        assert is_sharded(spread)
        with unsharded(spread), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            if world.is_rank_zero:  # as often as each likes
                assert torch.equal(spread(images(2)), plain(images(2)))
            assert torch.equal(spread(images(3)), plain(images(3)))
        for (name, mine), its in zip(spread.state_dict().items(), plain.state_dict().values(), strict=True):
            assert torch.equal(full_tensor(mine), its), name

    in_two(work)


def test_compressed_gradients_are_rounded_alike_in_all_processes() -> None:
    def work(world: DistributedContext) -> None:
        exact, rounded = (parallel(classifier(), world, compression=compression) for compression in ("none", "bf16"))
        for model in (exact, rounded):
            with model.no_sync():
                learn(model, images(1)[2 * world.rank :][:2], torch.float32)
            model(images(2)[2 * world.rank :][:2]).square().mean().backward()
        pairs = list(zip(exact.parameters(), rounded.parameters(), strict=True))
        for left, right in pairs:
            assert right.grad.dtype == torch.float32
            assert torch.equal(right.grad, right.grad.bfloat16().float())
            torch.testing.assert_close(right.grad, left.grad, rtol=2e-2, atol=2e-2 * float(left.grad.abs().max()))
        assert any(not torch.equal(left.grad, right.grad) for left, right in pairs)
        assert differing_ranks(world, [right.grad for _, right in pairs]) == []

    in_two(work)


def test_a_number_is_agreed_on_while_other_things_are() -> None:
    def work(world: DistributedContext) -> None:
        later = world.all_reduce_max_async(7 * world.rank)
        assert world.gather(world.rank) == [0, 1]
        assert float(world.all_reduce_sum(torch.tensor(2.0))) == 4
        last = world.all_reduce_max_async(3 - world.rank)
        assert (later(), last()) == (7, 3)

    in_two(work)
    assert DistributedContext().all_reduce_max_async(5)() == 5
