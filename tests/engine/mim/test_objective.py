"""The step as one compiled module: one graph, one compilation a run, the plain step's numbers, and failures told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from beitcli.config.normalization import IMAGENET
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.classification.task import FinetuneTask
from beitcli.engine.events import Note, Warned
from beitcli.engine.mim.objective import MaskedImageObjective
from beitcli.engine.mim.targets import PixelTarget, TokenTarget
from beitcli.engine.mim.task import PretrainTask
from beitcli.engine.pretrain import pretrain
from beitcli.engine.trainer.compile_ahead import compile_ahead
from beitcli.engine.trainer.optimizer_step import micro_batches, optimizer_step
from beitcli.engine.trainer.plan import Plan
from beitcli.masking import make_masking
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.runtime.compute.compile import CompiledModule
from beitcli.runtime.compute.device import Compute

pytestmark = pytest.mark.slow

CPU = Compute(torch.device("cpu"), "fp32")
CODES, MASKED = 16, 6


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    """Each test counts its own graphs."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def plan_of(batch_size: int, micro_batch: int) -> Plan:
    return Plan(
        seed=0, images=100, steps=50, batch_size=batch_size, micro_batch=micro_batch, warmup_steps=0, clip=1.0,
        save_every=50, log_every=50, keep=1, max_bad=0, data_fingerprint="",
    )  # fmt: skip


def make_task(batch_size: int = 10, micro_batch: int = 4, **flags: Any) -> PretrainTask:
    """`tiny` on 32 x 32 pixels, 4 x 4 patches; the compiler's kernels are left out, its graphs are real."""
    settings = {"recipe": "tiny", "data": ["none"], "device": "cpu", "image_size": 32, "num_masked": MASKED}
    config = resolve(PretrainConfig, settings | {"steps": 50, "drop_path": 0.3} | flags).config
    masking = make_masking("blockwise", (4, 4), MASKED, 4) if config.mask else None
    tokenizer: Any = SimpleNamespace(vocab_size=CODES) if config.target == "tokens" else None
    held: Any = None
    return PretrainTask(config, plan_of(batch_size, micro_batch), tokenizer, masking, held, CPU)


def with_backend(task: PretrainTask, backend: str | Callable[..., Any] = "aot_eager") -> PretrainTask:
    """The task compiled, its graphs handed to `backend` in place of Inductor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        task.wrap_parallel(CPU, task.objective, compile_step=True)
    return task


def a_batch(images: int, *, mask: bool = True, tokens: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masking = make_masking("blockwise", (4, 4), MASKED, 4)
    masks = [masking(np.random.default_rng(100 * seed + number)).reshape(-1) for number in range(images)]
    batch = {
        "images": torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator),
        "color": torch.tensor([1.2, -0.5, 0, 255, 0.9, 0.1, 4, 0, 250]).repeat(images, 1),
        "uniforms": torch.rand(images, 8, generator=generator),
    }
    if mask:
        batch["mask"] = torch.from_numpy(np.stack(masks))
    if tokens:
        batch["visual_tokens"] = torch.randint(0, CODES, (images, 16), generator=generator)
    return batch


def gradients(task: PretrainTask, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    task.optimizer.zero_grad()
    loss, _ = task.loss(batch)
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}


def assert_near(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=2e-6, rtol=1e-4, msg=lambda text, name=name: name + text)


VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "shared bias and LayerScale": {"positions": "shared", "layer_scale": 0.1},
    "pixels": {"target": "pixels"},
    "all patches": {"predict": "all"},
    "no mask": {"mask": False, "predict": "all"},
}


@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS)
def test_the_compiled_step_is_one_graph_with_the_plain_loss_and_gradients(flags):
    task = make_task(**flags)
    batch = a_batch(6, mask=flags.get("mask", True), tokens=flags.get("target") != "pixels")
    task.model.train()
    with torch.no_grad():  # LayerScale and drop path matter more than at the start
        for parameter in task.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    plain_loss, plain = gradients(task, batch)
    loss, compiled = gradients(with_backend(task), batch)
    assert dict(counters["graph_break"]) == {}
    assert counters["stats"]["unique_graphs"] == 1
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    assert_near(compiled, plain)


def test_fifty_uneven_steps_with_measurements_between_compile_once():
    task = with_backend(make_task(batch_size=10, micro_batch=4))
    task.model.train()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(50):
            batch = a_batch(10, seed=step)
            assert [len(part["images"]) for part, _ in micro_batches(task, task.plan, batch, CPU.world)] == [4, 4, 4]
            optimizer_step(task, task.plan, batch, CPU, CPU.scaler(), {})
            if step % 20 == 10:
                task.model.eval()
                with torch.no_grad():
                    task.forward_with_targets(a_batch(7))
                task.model.train()
    assert task.compiled is not None
    assert not task.compiled.failure
    assert counters["stats"]["unique_graphs"] == 1
    assert dict(counters["graph_break"]) == {}


def test_filled_micro_batches_give_the_plain_gradient_metrics_and_counts():
    results = []
    for compiled in (False, True):
        task = make_task(batch_size=10, micro_batch=4)
        task.optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
        task.model.train()
        if compiled:
            with_backend(task)
        sums: dict[str, torch.Tensor] = {}
        optimizer_step(task, task.plan, a_batch(10), CPU, CPU.scaler(), sums)
        results.append((task, {name: float(value) for name, value in sums.items()}))
    (plain, plain_sums), (filled, filled_sums) = results
    assert filled_sums == pytest.approx(plain_sums, abs=1e-5)
    assert isinstance(plain.target, TokenTarget)
    assert isinstance(filled.target, TokenTarget)
    assert torch.equal(filled.target.local_counts, plain.target.local_counts)
    assert int(plain.target.local_counts.sum()) == 10 * MASKED
    for (name, ours), theirs in zip(filled.model.named_parameters(), plain.model.parameters(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-6, name


def test_even_micro_batches_are_not_filled():
    task = with_backend(make_task(batch_size=8, micro_batch=4))
    parts = micro_batches(task, task.plan, a_batch(8), CPU.world)
    assert [len(part["images"]) for part, _ in parts] == [4, 4]
    assert all("valid" not in part for part, _ in parts)


def test_compiling_ahead_leaves_everything_as_it_was_and_tells_its_time():
    task, events = with_backend(make_task()), []
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    task.model.train()
    compile_ahead(task, task.plan, a_batch(10), CPU, events.append)
    assert counters["stats"]["unique_graphs"] == 1
    assert isinstance(task.target, TokenTarget)
    assert int(task.target.local_counts.sum()) == 0
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())
    begun, told = events
    assert "compiling the step" in begun.message
    assert isinstance(told, Note)
    assert "the step is compiled" in told.message
    with torch._dynamo.config.patch(error_on_recompile=True):
        optimizer_step(task, task.plan, a_batch(10, seed=1), CPU, CPU.scaler(), {})
    assert counters["stats"]["unique_graphs"] == 1


def _fails_backward(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def no_backward(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        raise NotImplementedError("no kernel for this backward pass")

    forward_only = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph), bw_compiler=no_backward)
    return forward_only(graph, inputs)


def _fails(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
    raise NotImplementedError("no kernel for this graph")


@pytest.mark.parametrize("backend", [_fails, _fails_backward], ids=["forward", "backward"])
def test_a_failing_compiler_is_told_and_the_step_runs_eagerly(backend):
    task, twin, events = with_backend(make_task(), backend), make_task(), []
    for each in (task, twin):
        each.model.train()
    compile_ahead(task, task.plan, a_batch(10), CPU, events.append)
    begun, told = events
    assert "compiling the step" in begun.message
    assert isinstance(told, Warned)
    assert "is not compiled and runs eagerly" in told.message
    assert "no kernel for this" in told.message
    assert "pass --no-compile" in told.message
    assert task.compiled is not None
    assert not task.compiled.is_compiled
    for each in (task, twin):
        optimizer_step(each, each.plan, a_batch(10), CPU, CPU.scaler(), {})
    for (name, ours), theirs in zip(task.model.named_parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_an_error_of_the_module_itself_is_raised():
    class Wrong(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images @ images  # (3, 4) @ (3, 4)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        CompiledModule(Wrong(), enabled=True)(torch.zeros(3, 4))


def test_the_classifier_s_step_is_one_graph_for_labels_and_mixed_labels():
    from beitcli.engine.classification.task import ClassificationObjective
    from beitcli.models.networks.classifier import Classifier

    torch.manual_seed(0)
    config = make_task().config
    objective = ClassificationObjective(Classifier(config.architecture, 5, 0.3), 0.1)
    images, uniforms = torch.randn(4, 3, 32, 32), torch.rand(4, 8)
    labels = torch.tensor([0, 4, 2, 1])
    for each in (labels, torch.rand(4, 5).softmax(dim=1)):
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(objective.forward, backend="aot_eager", dynamic=False, fullgraph=True)
        plain = objective(images, each, uniforms)
        assert compiled(images, each, uniforms).item() == pytest.approx(plain.item(), abs=1e-5)
        assert counters["stats"]["unique_graphs"] == 1
        padded = torch.cat((images, images[-1:])), torch.cat((each, each[-1:])), torch.cat((uniforms, uniforms[-1:]))
        valid = torch.tensor([True] * 4 + [False])
        assert objective(*padded, valid).item() == pytest.approx(plain.item(), abs=1e-6)
    assert FinetuneTask.takes_padding


@pytest.mark.parametrize("target", ["tokens", "pixels"])
def test_the_step_of_a_gpu_has_static_shapes_and_asks_the_host_for_nothing(target):
    """Tensors of the meta device hold no data: what a size or a branch hangs on would raise."""
    config = resolve(PretrainConfig, {"recipe": "base", "data": ["none"], "steps": 1}).config
    architecture = config.architecture
    model = MaskedImageModel(architecture, 768 if target == "pixels" else 8192, 0.1, torch.bfloat16)
    which: Any = PixelTarget(16)
    if target == "tokens":
        tokenizer: Any = SimpleNamespace(vocab_size=8192)
        which = TokenTarget(tokenizer, torch.device("meta"))
    objective = MaskedImageObjective(model, which, IMAGENET, 75, predict_all=False).to("meta")
    with torch.device("meta"):
        images, color = torch.empty(8, 3, 224, 224, dtype=torch.uint8), torch.empty(8, 9)
        mask, tokens = torch.empty(8, 196, dtype=torch.bool), torch.empty(8, 196, dtype=torch.int64)
        uniforms = torch.empty(8, 24)
    (outputs,), targets = objective.forward_with_targets(
        images, tokens if target == "tokens" else None, mask, color, uniforms
    )
    assert outputs.shape == (8 * 75, 768 if target == "pixels" else 8192)
    assert len(targets) == 8 * 75
    loss, metrics = objective(images, tokens if target == "tokens" else None, mask, color, uniforms)
    assert loss.shape == ()
    assert set(metrics) == ({"masked_accuracy"} if target == "tokens" else set())
    loss.backward()
    gradient = model.patch_embed.proj.weight.grad
    assert gradient is not None
    assert gradient.shape == (768, 3, 16, 16)


def test_a_compiled_run_equals_an_eager_one_but_for_rounding(tmp_path: Path, labelled_folder, tokenizer_run):
    """The whole command through torch's own compiler: 24 images, batches of 10 in uneven micro-batches, two saves."""
    lines: dict[bool, list[dict[str, float]]] = {}
    for compiled in (False, True):
        run = tmp_path / f"compiled-{compiled}"
        flags = {
            "recipe": "tiny", "data": [str(labelled_folder)], "tokenizer": str(tokenizer_run), "image_size": 32,
            "num_masked": MASKED, "device": "cpu", "workers": 0, "log_every": 1, "steps": 6, "save_every": 3,
            "batch_size": 10, "micro_batch": 4, "drop_path": 0.3, "compile": compiled, "out": str(run),
        }  # fmt: skip
        pretrain(resolve(PretrainConfig, flags).config)
        lines[compiled] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert counters["stats"]["unique_graphs"] == 1
    assert [line["compiled"] for line in lines[True]] == [1.0] * 6
    assert "compiled" not in lines[False][0]
    for ours, theirs in zip(lines[True], lines[False], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["masked_accuracy"] == theirs["masked_accuracy"]
        assert ours["baseline_accuracy"] == theirs["baseline_accuracy"]
