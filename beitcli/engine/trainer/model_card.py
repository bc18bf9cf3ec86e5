"""The model card of a run: RUN/README.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beitcli import __version__
from beitcli.config.architecture import Aggregation
from beitcli.config.tasks import TASKS
from beitcli.engine.report.front_matter import FEATURES, PIPELINES, UNKNOWN_LICENSE, HubFacts, front_matter
from beitcli.engine.report.next_steps import next_commands
from beitcli.engine.report.run_time import RunTime
from beitcli.escaping import markdown, shell_line
from beitcli.runtime.metric_text import epochs_text, frequent_token, metric_title, metric_value

if TYPE_CHECKING:
    from beitcli.config.common import Training
    from beitcli.config.finetune import FinetuneConfig
    from beitcli.config.pretrain import PretrainConfig
    from beitcli.config.train_tokenizer import TrainTokenizerConfig


def _card(title: str, facts: dict[str, Any], metrics: dict[str, str], then: Iterable[Sequence[object]]) -> str:
    """Builds a card.

    Args:
        then: Commands to go on with, as words.
    """
    lines = [
        f"# {markdown(title)}",
        "",
        *(f"- {markdown(name)}: {markdown(str(value))}" for name, value in facts.items()),
        "",
        "| figure | value |",
        "|---|---|",
    ]
    lines += [f"| {markdown(name)} | {markdown(value)} |" for name, value in metrics.items()]
    lines += ["", "Every setting is in `config.toml`, the curve in `metrics.jsonl`, and `report.html` shows them."]
    lines += ["", "## Next", "", "```"]
    return "\n".join([*lines, *map(shell_line, then), "```", ""])


@dataclass(frozen=True)
class CardHead:
    """What stands before the facts of a card: the header for model hubs, and the verdict.

    Attributes:
        kind: Of the checkpoints of the run.
        config: Settings of the run.
        run: Its folder.
        metrics: Of held-out images.
    """

    kind: str
    config: Training
    run: Path
    metrics: Mapping[str, float]
    verdict: str


def headed(card: str, head: CardHead) -> str:
    """Returns a card with the header for model hubs, and with the verdict below its title."""
    pipeline = PIPELINES.get(head.kind, FEATURES)
    masked = ["masked-image-modeling"] if head.kind == "masked-image-model" else []
    named = getattr(head.config, "val", None)
    facts = HubFacts(
        library="beit",
        pipeline=pipeline,
        name=head.run.resolve().name,
        tags=["beit", "vision", pipeline, *masked],
        license=UNKNOWN_LICENSE,
        metrics=head.metrics,
        data=", ".join(map(_data_name, (named,) if named else head.config.data)),
    )
    title, _, rest = card.partition("\n")
    return "\n".join([*front_matter(facts), "", title, "", markdown(head.verdict), rest])


def _named(config: TrainTokenizerConfig | PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """Returns the settings that the commands to go on with repeat."""
    return {"data": config.data, "recipe": config.recipe}


def _data_name(reference: str) -> str:
    return reference if "://" in reference else Path(reference).name or reference


def _steps(report: Any, config: Training) -> str:
    passes = epochs_text(report.epoch, config.whole_epochs)
    return f"{report.step:,} of {config.batch_size:,} images ({passes})"


def _time(report: Any) -> str:
    own = getattr(report, "tokenizer_seconds", 0.0)
    return str(RunTime(own, report.seconds, report.measuring_seconds))


def _further(report: Any) -> dict[str, str]:
    """Returns rows for the metrics that have no field in the report."""
    return {metric_title(name): metric_value(name, value) for name, value in report.further.items()}


def pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def tokenizer_card(config: TrainTokenizerConfig, title: str, report: Any, hardware: str) -> str:
    """Returns the card of a trained tokenizer; `title` is that of its kind."""
    data, pictures = " ".join(config.data), {}
    if report.psnr is not None:
        pictures = {
            f"PSNR ({report.measured_on})": f"{report.psnr:.2f} dB",
            "mean absolute error": f"{report.mae:.4f}",
        }
    return _card(
        f"A visual tokenizer ({title})",
        {"made by": f"beit {__version__} train-tokenizer, recipe {config.recipe}", "data": data, "hardware": hardware},
        {
            "steps": f"{report.steps:,} of {config.batch_size:,} images",
            "time": _time(report),
            **pictures,
            "codes used": f"{report.codes_used:,} of {report.vocab_size:,}",
            "perplexity": f"{report.perplexity:.1f}",
            "share of the most frequent code": f"{report.commonest_share:.3f}",
            **_further(report),
        },
        next_commands("train-tokenizer", _named(config), report.run, decodes=report.psnr is not None),
    )


TARGETS = {
    "tokens": "visual tokens",
    "pixels": "pixels, normalised as the images are,",
}


def aggregation_text(how: Aggregation) -> str:
    """Describes patch aggregation in a plan and a card."""
    head = "the same head" if how.head == "shared" else "a head of their own"
    return f"patches of block {how.after}, {how.blocks} more blocks, {head}"


def pretraining_card(config: PretrainConfig, report: Any, tokenizer: str | None, hardware: str) -> str:
    """Returns the card of a pretrained model; `tokenizer` is None if the targets are pixels."""
    data = " ".join(config.data)
    which = "hidden" if config.mask else "all"
    loss = "loss, the sum of both predictions" if config.aggregation else "loss"
    metrics = {
        f"accuracy on {which} patches": report.masked_accuracy,
        f"always guessing {frequent_token(report.baseline_accuracy or 0.0)}": report.baseline_accuracy,
        "entropy of the tokens (loss of the best fixed guess), nats": report.unigram_entropy,
        "always guessing the mean colour (loss)": report.baseline_loss,
    }
    return _card(
        f"BEiT pretraining, {config.model}",
        {
            "made by": f"beit {__version__} pretrain, recipe {config.recipe}",
            "data": data,
            "images": f"{pixels(config.image_size)}, normalised as of {config.normalization}",
            "target": f"{TARGETS[config.target]} of {config.predict} patches",
            "masking": config.masking if config.mask else "none",
            "tokenizer": tokenizer or "none",
            **({"patch aggregation": aggregation_text(config.aggregation)} if config.aggregation else {}),
            "hardware": hardware,
        },
        {
            "steps": _steps(report, config),
            "time": _time(report),
            f"{loss} ({report.measured_on})": f"{report.loss:.4f}",
            **{name: f"{value:.4f}" for name, value in metrics.items() if value is not None},
            **_further(report),
        },
        next_commands("pretrain", _named(config), report.run),
    )


@dataclass(frozen=True, kw_only=True)
class FinetunedCard:
    """Contents of a model card that are specific to the task.

    Attributes:
        facts: Entries above the table.
        metrics: Rows of the table, by name.
        by_class: Rows for the metrics of each class.
    """

    title: str
    facts: dict[str, str]
    metrics: dict[str, str]
    by_class: dict[str, str] = field(default_factory=dict)


def finetuning_card(config: FinetuneConfig, report: Any, own: FinetunedCard, hardware: str) -> str:
    return _card(
        own.title,
        {
            "made by": f"beit {__version__} {TASKS.load(config.task).command}, recipe {config.recipe}, "
            f"from {config.init}",
            "data": " ".join(config.data),
            **own.facts,
            "classes": report.classes,
            "hardware": hardware,
        },
        {"steps": _steps(report, config), "time": _time(report), **own.metrics, **_further(report), **own.by_class},
        next_commands("finetune", _named(config) | {"val": config.val, "task": config.task}, report.run),
    )
