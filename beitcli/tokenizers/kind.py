"""What `train-tokenizer` needs to make a tokenizer of some kind, and `open_tokenizer` to open it again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from beitcli.config.fields import check_bounds, coerce, settings_of
from beitcli.config.train_tokenizer import KINDS, TrainTokenizerConfig
from beitcli.errors import UsageError
from beitcli.runtime.distributed.world import World
from beitcli.tokenizers.base import TokenizerModel


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Of a kind that `train-tokenizer` has all settings of."""


class Objective(ABC):
    """How the network of a kind is trained; the parameters it learns are all the network's own.

    Args:
        steps: Of the whole run, for schedules.
        world: Where a term is of the whole batch, which other processes hold parts of.

    Attributes:
        purpose: Of the keyed draw that `loss` gets a seed an image of; None where it draws nothing.
    """

    purpose: str | None = None

    def __init__(self, model: TokenizerModel, config: TrainTokenizerConfig, steps: int, world: World) -> None:
        self.model, self.config, self.steps, self.world = model, config, steps, world

    def before_step(self, step: int) -> None:  # noqa: B027 - not every kind has a schedule
        """Sets what follows the step, such as a temperature."""

    def after_step(self, step: int) -> None:  # noqa: B027 - not every kind has such a state
        """Follows the optimizer, as a moving average of codes does."""

    @abstractmethod
    def loss(
        self, forward: Callable[..., Any], images: Tensor, seeds: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a micro-batch, and its parts, detached scalars to log.

        Args:
            forward: The network's `forward`, wrapped so that processes share gradients: what learns goes through it.
            images: (B, 3, H, W) uint8.
            seeds: (B,) int64 in the CPU's memory, which depend on neither processes nor micro-batches.
        """

    def schedules(self) -> dict[str, float]:
        """What `before_step` has set, for the log."""
        return {}

    def held_out_metrics(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """(B,) each, beside PSNR, MAE and the use of the codes; their means over held-out images are reported."""
        return {}


@dataclass(frozen=True)
class TokenizerKind:
    """The entry of a kind's module, `KIND`.

    Attributes:
        title: As people read it: "discrete VAE".
        architecture: Of the settings of `train-tokenizer`, plain values that config.json keeps.
        build: A network with fresh weights, drawn from torch's global generator, from `architecture`. Where that was
            read from a checkpoint, the names of its tensors come too: what cannot fit them is refused before anything
            large is built. Raises ValueError or UsageError.
        objective: Trains it.
        settings: A frozen dataclass of `option`s that the kind alone has: `--set NAME=VALUE`.
    """

    title: str
    architecture: Callable[[TrainTokenizerConfig], dict[str, Any]]
    build: Callable[[Mapping[str, Any], Collection[str] | None], TokenizerModel]
    objective: type[Objective]
    settings: type = NoSettings


def kind_of(config: TrainTokenizerConfig) -> TokenizerKind:
    return KINDS.load(config.kind)


def untrained(config: TrainTokenizerConfig) -> TokenizerModel:
    """The network that a training begins with. Raises UsageError where `config` describes none."""
    kind = kind_of(config)
    own_settings(config)  # refused even where the kind reads none
    return kind.build(kind.architecture(config), None)


def own_settings(config: TrainTokenizerConfig) -> Any:
    """What `--set` says, as the kind's dataclass.

    Raises:
        UsageError: The kind has no such setting, or not with such a value.
    """
    kind = kind_of(config)
    known, values = settings_of(kind.settings), {}
    for given in config.kind_settings:
        name, equals, text = given.partition("=")
        if not equals or name not in known:
            has = "; ".join(f"{each.name}={each.default}: {each.option.help}" for each in known.values())
            raise UsageError(
                f"--set '{given}' is no setting of tokenizer kind '{config.kind}'.", f"It has {has or 'none.'}"
            )
        values[name] = coerce(known[name], text, f"--set {name}")
    settings = kind.settings(**values)
    check_bounds(settings)
    return settings
