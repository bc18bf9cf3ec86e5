"""BEiT-B, compiled, with other micro-batches than the one of the `base` step; each is compiled anew."""

from __future__ import annotations

from gpu_steps.context import Context
from gpu_steps.setups import make_setup, speed


def run(context: Context) -> None:
    for images in (2,) if context.small else (512, 128):
        with context.attempt(str(images)):
            setup = make_setup(context, "base", images, compile_model=not context.small)
            context.record(str(images), speed(context, setup))
            del setup
