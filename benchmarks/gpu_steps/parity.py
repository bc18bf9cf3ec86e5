"""Does the device compute what a CPU in fp32 computes? And the compiled step what the eager one does?"""

from __future__ import annotations

from typing import Any

import torch

from gpu_steps.context import Context, relative_error
from gpu_steps.setups import Setup, compile_evidence, make_setup

_STEPS = 20
_CPU = torch.device("cpu")


def run(context: Context) -> None:
    for recipe, images in (("small", 8), ("base", 4)):
        with context.attempt(recipe):
            context.record(recipe, gradients_against_cpu(context, recipe, 2 if context.small else images))
    with context.attempt("compiled"):
        context.record("compiled", compiled_against_eager(context))


def gradients_against_cpu(context: Context, recipe: str, images: int) -> dict[str, Any]:
    """Relative errors of loss and gradient of one batch, drop path included, from the same weights."""
    reference = make_setup(context, recipe, images, compile_model=False, device=_CPU, precision="fp32")
    loss, gradients = loss_and_gradients(reference)
    found: dict[str, Any] = {"images": images, "cpu_loss": loss}
    weights = reference.task.model.state_dict()
    for precision in ("fp32", "bf16"):
        setup = make_setup(context, recipe, images, compile_model=False, precision=precision)
        setup.task.model.load_state_dict(weights)
        own_loss, own = loss_and_gradients(setup)
        errors = {name: relative_error(own[name], gradient) for name, gradient in gradients.items()}
        worst = max(errors, key=lambda name: errors[name])
        found[precision] = {
            "loss": own_loss,
            "loss_error": abs(own_loss - loss) / abs(loss),
            "gradient_error": relative_error(flat(own), flat(gradients)),
            "worst_tensor_error": errors[worst],
            "worst_tensor": worst,
            "finite": all(bool(gradient.isfinite().all()) for gradient in own.values()),
        }
    return found


def loss_and_gradients(setup: Setup) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one forward and backward pass; gradients on the CPU, none where there is none."""
    setup.task.optimizer.zero_grad(set_to_none=True)
    with setup.compute.autocast():
        loss, _ = setup.task.loss(setup.batch)
    loss.backward()
    named = setup.task.model.named_parameters()
    return loss.item(), {name: p.grad.detach().cpu() for name, p in named if p.grad is not None}


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def compiled_against_eager(context: Context) -> dict[str, Any]:
    """Losses of 20 optimizer steps from the same weights, batch and drop paths, as runs are trained (bf16)."""
    recipe, images = ("base", 4) if context.small else ("small", 32)
    steps = 3 if context.small else _STEPS
    losses: dict[str, list[float]] = {}
    evidence: dict[str, Any] = {}
    for name in ("eager", "compiled"):
        setup = make_setup(context, recipe, images, compile_model=name == "compiled")
        losses[name] = [setup.loss_of_step() for _ in range(steps)]
        if name == "compiled":
            evidence = compile_evidence(setup.task)
    differences = [abs(a - b) for a, b in zip(losses["eager"], losses["compiled"], strict=True)]
    return {
        "steps": steps,
        "largest_difference": max(differences),
        "first_difference": differences[0],
        "losses": losses,
        "compile": evidence,
    }
