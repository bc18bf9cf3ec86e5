"""The model card of a run: RUN/README.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from beitcli import __version__
from beitcli.runtime.metric_text import metric_label, metric_value

if TYPE_CHECKING:
    from beitcli.config.finetune import FinetuneConfig
    from beitcli.config.pretrain import PretrainConfig
    from beitcli.config.train_tokenizer import TrainTokenizerConfig


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


def _further(report: Any) -> dict[str, str]:
    """Rows of the metrics that the report has no field for."""
    return {metric_label(name): metric_value(name, value) for name, value in report.further.items()}


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def tokenizer_card(config: TrainTokenizerConfig, title: str, report: Any, hardware: str) -> str:
    """`title` is that of the tokenizer's kind."""
    data, pictures, reconstruct = " ".join(config.data), {}, ""
    if report.psnr is not None:
        pictures = {f"PSNR ({report.measured_on})": f"{report.psnr:.2f} dB", "mean absolute error": f"{report.mae:.4f}"}
        reconstruct = " --reconstruct out/"
    return _card(
        f"A visual tokenizer ({title})",
        {"made by": f"beit {__version__} train-tokenizer, recipe {config.recipe}", "data": data, "hardware": hardware},
        {
            "steps": f"{report.steps:,} of {config.batch_size} images, {report.seconds:.0f} s",
            **pictures,
            "codes used": f"{report.codes_used} of {report.vocab_size}",
            "perplexity": f"{report.perplexity:.1f}",
            "share of the commonest code": f"{report.commonest_share:.3f}",
            **_further(report),
        },
        (
            f"beit tokenize photo.jpg --tokenizer {report.run}{reconstruct}",
            f"beit pretrain {data} --tokenizer {report.run}",
        ),
    )


TARGETS = {
    "tokens": "visual tokens",
    "pixels": "pixels, normalised as the images are,",
}


def pretraining_card(config: PretrainConfig, report: Any, tokenizer: str | None, hardware: str) -> str:
    """`tokenizer` is None where pixels are predicted."""
    data = " ".join(config.data)
    which = "hidden" if config.mask else "all"
    figures = {
        f"accuracy on {which} patches": report.masked_accuracy,
        "always guessing the commonest token": report.baseline_accuracy,
        "entropy of the tokens (loss of the best fixed guess), nats": report.unigram_entropy,
        "always guessing the mean colour (loss)": report.baseline_loss,
    }
    return _card(
        f"BEiT pretraining, {config.model}",
        {
            "made by": f"beit {__version__} pretrain, recipe {config.recipe}",
            "data": data,
            "images": f"{_pixels(config.image_size)}, normalised as of {config.normalization}",
            "target": f"{TARGETS[config.target]} of {config.predict} patches",
            "masking": config.masking if config.mask else "none",
            "tokenizer": tokenizer or "none",
            "hardware": hardware,
        },
        {
            "steps": _steps(report, config.batch_size),
            f"loss ({report.measured_on})": f"{report.loss:.4f}",
            **{name: f"{value:.4f}" for name, value in figures.items() if value is not None},
            **_further(report),
        },
        (
            f"beit mask-preview photo.jpg --model {report.run} -o masked.png",
            f"beit attn-map photo.jpg --model {report.run} -o attention.png",
            f"beit finetune LABELLED --init {report.run}",
        ),
    )


def segmentation_card(config: FinetuneConfig, report: Any, size: tuple[int, int], hardware: str) -> str:
    data = " ".join(config.data)
    return _card(
        "BEiT segmenter",
        {
            "made by": f"beit {__version__} finetune --task segment, recipe {config.recipe}, from {config.init}",
            "data": data,
            "crops": _pixels(size),
            "head": config.head or "upernet",
            "classes": report.classes,
            "hardware": hardware,
        },
        {
            "steps": _steps(report, config.batch_size),
            f"mIoU ({report.images} images: {report.measured_on})": f"{report.miou:.4f}",
            "pixel accuracy": f"{report.pixel_accuracy:.4f}",
            "mean accuracy": f"{report.mean_accuracy:.4f}",
            **_further(report),
            **{f"IoU, {name}": "-" if iou is None else f"{iou:.4f}" for name, iou in report.iou.items()},
        },
        (
            f"beit eval {report.run} {config.val or 'HELD-OUT'} --multi-scale --flip",
            f"beit predict {report.run} photo.jpg -o masks/ --overlay",
        ),
    )


def detection_card(config: FinetuneConfig, report: Any, size: tuple[int, int], hardware: str) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    return _card(
        "BEiT detector",
        {
            "made by": f"beit {__version__} finetune --task detect, recipe {config.recipe}, from {config.init}",
            "data": " ".join(config.data),
            "images": f"fitted into {_pixels(size)}",
            "head": config.head or "faster-rcnn",
            "classes": report.classes,
            "hardware": hardware,
        },
        {
            "steps": _steps(report, config.batch_size),
            f"AP ({report.images} images: {report.measured_on})": shown(report.ap),
            "AP at an overlap of 0.5": shown(report.ap50),
            "AP at an overlap of 0.75": shown(report.ap75),
            "AP of small, medium and large objects": ", ".join(
                map(shown, (report.ap_small, report.ap_medium, report.ap_large))
            ),
            **({"AP of masks": shown(report.mask_ap)} if config.head == "mask-rcnn" else {}),
            **_further(report),
            **{f"AP, {name}": shown(value) for name, value in report.ap_of_class.items()},
        },
        (f"beit eval {report.run} {config.val or 'HELD-OUT'}", f"beit predict {report.run} photo.jpg -o boxes/"),
    )


def finetuning_card(config: FinetuneConfig, report: Any, size: tuple[int, int], hardware: str) -> str:
    data = " ".join(config.data)
    return _card(
        "BEiT classifier",
        {
            "made by": f"beit {__version__} finetune, recipe {config.recipe}, from {config.init}",
            "data": data,
            "images": _pixels(size),
            "classes": report.classes,
            "hardware": hardware,
        },
        {
            "steps": _steps(report, config.batch_size),
            f"top-1 ({report.images} images: {report.measured_on})": f"{report.top1:.4f}",
            "top-5": f"{report.top5:.4f}",
            **_further(report),
        },
        (f"beit eval {report.run} {config.val or 'HELD-OUT'}", f"beit predict {report.run} photo.jpg"),
    )
