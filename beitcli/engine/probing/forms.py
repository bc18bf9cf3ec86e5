"""The two forms of a linear probe: the paper's (appendix D) and the release's (`run_linear_eval.py`).

Both train with AdamW (weight decay 1e-4) at 4e-3 on 1,024 images a step: the release's command gives 4e-3 to eight
processes of 128 images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from beitcli.config.common import FEATURE_POOLS
from beitcli.config.evaluate import EvalConfig


@dataclass(frozen=True, kw_only=True)
class ProbeForm:
    """Features of a probe and training of its heads.

    Attributes:
        pool: `mean` of the patches, `class` token, or `class+mean`.
        norm: Whether each token is normed before pooling.
        augment: Whether each epoch has its own crops and flips of the images.
        epochs: Passes over the images.
        weight_std: Standard deviation of the heads' initial weights; 0 for zeros.
        decays_bias: Whether weight decay applies to the heads' biases.
        anneals_by_epoch: Whether the learning rate is constant within an epoch.
    """

    pool: str = "mean"
    norm: bool = True
    augment: bool = False
    epochs: int = 50
    weight_std: float = 0.0
    decays_bias: bool = False
    anneals_by_epoch: bool = False


FORMS = {
    "paper": ProbeForm(),
    "release": ProbeForm(
        pool="class+mean",
        norm=False,
        augment=True,
        epochs=100,
        weight_std=0.01,
        decays_bias=True,
        anneals_by_epoch=True,
    ),
}


def form_of(config: EvalConfig) -> ProbeForm:
    """Returns the form of `--probe-form`, with what other options change of it."""
    given: dict[str, Any] = {
        "pool": FEATURE_POOLS[config.pool] if config.pool else None,
        "norm": config.feature_norm,
        "augment": config.augment,
        "epochs": config.probe_epochs,
    }
    return replace(FORMS[config.probe_form], **{name: value for name, value in given.items() if value is not None})
