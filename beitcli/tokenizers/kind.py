"""Tokenizer kinds: how `train-tokenizer` builds and trains a network, and how `open_tokenizer` builds it again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from beitcli.config.fields import check_bounds, coerce, settings_of
from beitcli.config.train_tokenizer import KINDS, TrainTokenizerConfig
from beitcli.errors import UsageError
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.tokenizers.base import TokenizerModel


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Settings of a kind that needs only those of `TrainTokenizerConfig`."""


class Teacher(Protocol):
    """A frozen network whose features a tokenizer predicts.

    Attributes:
        width: Numbers of a patch's features.
        sha256: Of its weights.
    """

    width: int
    sha256: str

    def features(self, images: Tensor) -> Tensor:
        """Maps uint8 or [0, 1] float images (B, 3, H, W) to its features of their patches (B, N, width), no gradient.

        The patches are those of the tokenizer's grid, in row-major order.
        """


class Objective(ABC):
    """The training objective of a kind. All trained parameters belong to the network.

    Args:
        steps: Optimizer steps of the run, for schedules.
        world: For terms over the global batch, whose images are spread over ranks.
        teacher: That of `--teacher`, for a kind with `has_teacher` only.

    Attributes:
        purpose: Purpose of the keyed draw of the seeds that `loss` receives; None if it draws no random numbers.
    """

    purpose: str | None = None
    is_trial = False

    def __init__(
        self,
        model: TokenizerModel,
        config: TrainTokenizerConfig,
        steps: int,
        world: DistributedContext,
        teacher: Teacher | None = None,
    ) -> None:
        self.model, self.config, self.steps, self.world = model, config, steps, world
        if teacher is not None:
            self.teacher = teacher

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Marks losses that are only tried (`is_trial`): statistics that `after_step` uses must not include them."""
        self.is_trial = True
        try:
            yield
        finally:
            self.is_trial = False

    def before_step(self, step: int, images: Tensor, places: Tensor) -> None:  # noqa: B027 - not every kind needs it
        """Updates schedules, such as a temperature.

        Args:
            images: (b, 3, H, W) uint8, this rank's part of the batch.
            places: (b,) int64, the place of each image in the global batch.
        """

    def after_step(self, step: int) -> None:  # noqa: B027 - not every kind has such a state
        """Updates state after the optimizer step, such as an EMA codebook."""

    @abstractmethod
    def loss(
        self, forward: Callable[..., Any], images: Tensor, seeds: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean loss of a micro-batch, and detached scalars to log.

        Args:
            forward: The network's `forward`, wrapped by DDP in distributed training: call this, not the network.
            images: (B, 3, H, W) uint8.
            seeds: (B,) int64 on the CPU, independent of world size and micro-batch size; None without a `purpose`.
        """

    def log_metrics(self) -> dict[str, float]:
        """Returns the values set by `before_step`, for the log."""
        return {}

    def held_out_metrics(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Returns further metrics, (B,) each, to report as means over the held-out images.

        Args:
            images: (B, 3, H, W) in [0, 1].
            tokens: (B, N) int64.
        """
        return {}


@dataclass(frozen=True)
class TokenizerKind:
    """A tokenizer kind; its module defines it as `KIND`.

    Attributes:
        title: Name in plans and model cards, such as "discrete VAE".
        architecture: Returns the plain values that config.json stores, from the settings of `train-tokenizer`.
        build: Returns a network with random weights, drawn from torch's global generator. Takes `architecture` and, if
            that was read from a checkpoint, the names of its tensors: raise ValueError if they cannot fit, before
            anything large is built.
        objective: The training objective.
        settings: Frozen dataclass of the kind's own `option`s, given as `--set NAME=VALUE`.
        has_teacher: Whether it learns from `--teacher`; `build` then gets the width of its features as `target_width`.
    """

    title: str
    architecture: Callable[[TrainTokenizerConfig], dict[str, Any]]
    build: Callable[[Mapping[str, Any], Collection[str] | None], TokenizerModel]
    objective: type[Objective]
    settings: type = NoSettings
    has_teacher: bool = False


def kind_of(config: TrainTokenizerConfig) -> TokenizerKind:
    return KINDS.load(config.kind)


def check_teacher(config: TrainTokenizerConfig) -> None:
    """Raises UsageError if the kind needs a teacher and there is none, or the other way round."""
    has_teacher = kind_of(config).has_teacher
    if has_teacher and not config.teacher:
        raise UsageError(
            f"--kind {config.kind} learns from a teacher, and none is given.",
            "Add --teacher MODEL, such as timm/vit_base_patch16_224.dino, to `beit train-tokenizer`.",
        )
    if config.teacher and not has_teacher:
        raise UsageError(f"--kind {config.kind} has no use for --teacher.", "Leave it out, or give --kind vqkd.")


def architecture_of(config: TrainTokenizerConfig, teacher: Teacher | None = None) -> dict[str, Any]:
    """Returns the plain values that config.json stores."""
    architecture = kind_of(config).architecture(config)
    return architecture if teacher is None else {**architecture, "target_width": teacher.width}


def untrained(config: TrainTokenizerConfig, teacher: Teacher | None = None) -> TokenizerModel:
    """Returns the network with its initial weights. Raises UsageError if `config` does not describe one."""
    own_settings(config)  # unknown ones are an error even if the kind reads none
    return kind_of(config).build(architecture_of(config, teacher), None)


def own_settings(config: TrainTokenizerConfig) -> Any:
    """Returns the settings of `--set` as the kind's dataclass. Raises UsageError for unknown names and values."""
    kind = kind_of(config)
    settings_by_name, values = settings_of(kind.settings), {}
    for given in config.kind_settings:
        name, equals, text = given.partition("=")
        if not equals or name not in settings_by_name:
            has = "; ".join(f"{each.name}={each.default}: {each.option.help}" for each in settings_by_name.values())
            raise UsageError(
                f"--set '{given}' is no setting of tokenizer kind '{config.kind}'.", f"It has {has or 'none.'}"
            )
        values[name] = coerce(settings_by_name[name], text, f"--set {name}")
    settings = kind.settings(**values)
    check_bounds(settings)
    return settings
