"""The model card of a run: RUN/README.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from beitcli import __version__

if TYPE_CHECKING:
    from beitcli.config.training import FinetuneConfig, PretrainConfig, TrainTokenizerConfig


def _card(title: str, facts: dict[str, Any], figures: dict[str, str], then: Iterable[str]) -> str:
    lines = [
        f"# {title}",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "| figure | value |",
        "|---|---|",
    ]
    lines += [f"| {name} | {value} |" for name, value in figures.items()]
    lines += ["", "Every setting is in `config.toml`, the curve in `metrics.jsonl`.", "", "## Next", "", "```"]
    return "\n".join([*lines, *then, "```", ""])


def _steps(report: Any, batch_size: int) -> str:
    return f"{report.step:,} of {batch_size} images ({report.epoch:.2f} epochs), {report.seconds:.0f} s"


def tokenizer_card(config: TrainTokenizerConfig, report: Any, hardware: str) -> str:
    data = " ".join(config.data)
    return _card(
        "A visual tokenizer (discrete VAE)",
        {"made by": f"beit {__version__} train-tokenizer, recipe {config.recipe}", "data": data, "hardware": hardware},
        {
            "steps": f"{report.steps:,} of {config.batch_size} images, {report.seconds:.0f} s",
            f"PSNR ({report.measured_on})": f"{report.psnr:.2f} dB",
            "mean absolute error": f"{report.mae:.4f}",
            "codes used": f"{report.codes_used} of {report.vocab_size}",
            "perplexity": f"{report.perplexity:.1f}",
            "share of the commonest code": f"{report.commonest_share:.3f}",
        },
        (
            f"beit tokenize photo.jpg --tokenizer {report.run} --reconstruct out/",
            f"beit pretrain {data} --tokenizer {report.run}",
        ),
    )


def pretraining_card(config: PretrainConfig, report: Any, tokenizer: str, hardware: str) -> str:
    data = " ".join(config.data)
    return _card(
        f"BEiT pretraining, {config.model}",
        {
            "made by": f"beit {__version__} pretrain, recipe {config.recipe}",
            "data": data,
            "tokenizer": tokenizer,
            "hardware": hardware,
        },
        {
            "steps": _steps(report, config.batch_size),
            f"loss ({report.measured_on})": f"{report.loss:.4f}",
            "accuracy on hidden patches": f"{report.masked_accuracy:.4f}",
            "always guessing the commonest token": f"{report.baseline_accuracy:.4f}",
            "entropy of the tokens (loss of the best fixed guess)": f"{report.unigram_entropy:.4f} nats",
        },
        (
            f"beit mask-preview photo.jpg --model {report.run} -o masked.png",
            f"beit attn-map photo.jpg --model {report.run} -o attention.png",
            f"beit finetune LABELLED --init {report.run}",
        ),
    )


def finetuning_card(config: FinetuneConfig, report: Any, hardware: str) -> str:
    data = " ".join(config.data)
    return _card(
        "BEiT classifier",
        {
            "made by": f"beit {__version__} finetune, recipe {config.recipe}, from {config.init}",
            "data": data,
            "classes": report.classes,
            "hardware": hardware,
        },
        {
            "steps": _steps(report, config.batch_size),
            f"top-1 ({report.images} images: {report.measured_on})": f"{report.top1:.4f}",
            "top-5": f"{report.top5:.4f}",
        },
        (f"beit eval {report.run} {config.val or data}", f"beit predict {report.run} photo.jpg"),
    )
