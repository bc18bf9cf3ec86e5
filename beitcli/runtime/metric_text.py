"""Formats metrics for a person: which ones, in what order, with how many digits, by the words of their names.

A new metric of any task needs no entry here: `main_loss` and `loss_rpn` are losses, `lr` and `gradient_norm` describe
the state of training, `iou/NAME` belongs to one class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

HELD_OUT = "held_out_"
TRAIN_LABEL = "train:"  # of lines with metrics of training beside those of measured images
_FORMATS = {"loss": ".4f", "entropy": ".4f", "accuracy": ".3f", "lr": ".2e", "weight": ".2e", "norm": ".2f",
            "second": ".0f", "compiled": ".0f"}  # fmt: skip
_TOP = 5  # most likely classes, of `top5`
_SHARES = {"top1", "top5", "accuracy", "share", "miou", "iou", "ap", "ap50", "ap75", "f1"}  # words of their names
_ERROR = "_std_error"
_COUNTS = ("images", "codes_used")
_TITLES = {
    "loss_lead": "lead of the loss over guessing",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "miou": "mean IoU",
    "ap_small": "AP, small objects",
    "ap_medium": "AP, medium objects",
    "ap_large": "AP, large objects",
    "lr": "learning rate",
    "mae": "mean absolute error",
    "mae_normalized": "mean absolute error of pixels in [-1, 1]",
    "cosine": "cosine to the teacher's features",
    "commonest_share": "share of the most frequent code",
    "data_wait_share": "share of the time waiting for data",
    "images_per_second": "images per second",
    "baseline_accuracy": "accuracy of always the most frequent token",
    "baseline_loss": "loss of always the mean colour",
    "unigram_entropy": "entropy of the tokens",
}
_TITLE_WORDS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "iou": "IoU", "psnr": "PSNR", "f1": "F1"}
_STATE = {"lr", "norm", "weight", "temperature"}  # state of training: neither a loss nor a metric
_WHERE_IT_MATTERS: dict[str, Callable[[float], bool]] = {
    "skipped_steps": lambda steps: steps > 0,
    "compiled": lambda compiled: compiled == 0,
    "save_stall_seconds": lambda seconds: seconds >= 1,
    "data_wait_share": lambda share: False,  # beside the speed
    f"{HELD_OUT}images": lambda images: False,  # a count, not a metric
    "mae_normalized": lambda error: False,  # twice `mae`
    "masked_accuracy_std_error": lambda error: False,  # of the verdict
    "loss_lead_std_error": lambda error: False,  # too
    "measured_patches": lambda patches: False,  # counts too
    "measured_images": lambda images: False,
    "measured_tokens": lambda tokens: False,
}


def measured_images(number: int, *, on_training: bool) -> str:
    """Returns `3 held-out images`, or `3 training images` where there are too few to hold any out."""
    return counted(number, "training image" if on_training else "held-out image")


def measured_label(images: float | None = None, *, on_training: bool) -> str:
    """Returns what the metrics under `HELD_OUT` are of, as the label of a line: `12 held-out:`, `6 training images:`.

    Args:
        images: How many; None if that is not known.
    """
    if images is None:
        return "training images:" if on_training else "held-out:"
    return f"{counted(round(images), 'training image')}:" if on_training else f"{round(images):,} held-out:"


def is_idle(name: str, classes: int) -> bool:
    """Whether a metric is the same for any model of so many classes (0 if unknown): top-5 of five or fewer."""
    return name == "top5" and 0 < classes <= _TOP


def metric_texts(metrics: Mapping[str, float], classes: int = 0, *, on_training: bool = False) -> list[tuple[str, str]]:
    """Returns (name, value) of each metric to show on a line, the most important first.

    The order is the loss, the task's metrics, held-out metrics, further losses, the state of training, its speed;
    within these the task's order. Per-class metrics are only in the log and the report.

    Args:
        classes: Number of classes that are told apart; 0 if unknown.
        on_training: Whether the measured images are training images.
    """
    shown = [name for name, value in metrics.items() if _is_shown(name, value, classes)]
    return [
        (metric_label(name, on_training=on_training), metric_value(name, metrics[name]))
        for name in sorted(shown, key=_rank)
    ]


def key_figures(metrics: Mapping[str, float], prefix: str = "", *, with_guess: bool = False) -> list[str]:
    """Returns what says most of pretraining beside its baseline, such as `masked accuracy 4.2% = 11 x guessing`.

    Args:
        prefix: HELD_OUT for the metrics of held-out images.
        with_guess: Whether what guessing gives stands behind: `(0.38%)`.

    Returns:
        The accuracy as a multiple of that of the most frequent token, then the loss against the entropy of the tokens,
        or against that of the mean colour; none of another task.
    """
    accuracy, baseline, entropy, mean_colour = (
        metrics.get(prefix + name)
        for name in ("masked_accuracy", "baseline_accuracy", "unigram_entropy", "baseline_loss")
    )
    loss = metrics.get(f"{prefix}masked_loss", metrics.get(f"{prefix}loss"))
    texts = []
    if accuracy is not None and baseline:
        guess = f" ({percent(baseline)})" if with_guess else ""
        texts.append(f"masked accuracy {percent(accuracy)} = {accuracy / baseline:.1f} x guessing{guess}")
    if loss is not None and entropy is not None:
        side = "below" if loss <= entropy else "above"
        texts.append(f"loss {loss:.2f}, {abs(entropy - loss):.2f} {side} entropy {abs(entropy):.2f}")
    if loss is not None and mean_colour:
        texts.append(f"loss {loss:.4f} = {loss / mean_colour:.0%} of the mean colour's")
    return texts


_OF_KEY_FIGURES = ("loss", "masked_accuracy", "baseline_accuracy", "unigram_entropy", "baseline_loss")


def figure_texts(
    metrics: Mapping[str, float], classes: int = 0, *, on_training: bool = False, with_guess: bool = False
) -> list[str]:
    """Returns all figures of a line, the most important first: `key_figures`, then what they leave out.

    Args:
        classes: Number of classes that are told apart; 0 if unknown.
        on_training: Whether the measured images are training images.
        with_guess: As of `key_figures`.
    """
    trained = key_figures(metrics, with_guess=with_guess)
    held_out = key_figures(metrics, HELD_OUT, with_guess=with_guess)
    told = {name for found, prefix in ((trained, ""), (held_out, HELD_OUT)) if found for name in
            (prefix + each for each in _OF_KEY_FIGURES)}  # fmt: skip
    others = {name: value for name, value in metrics.items() if name not in told}
    rest = [f"{label} {value}" for label, value in metric_texts(others, classes, on_training=on_training)]
    kind = _kind(on_training=on_training)
    return [*trained, *(f"{kind} {text}" for text in held_out), *rest]


def frequent_token(accuracy: float) -> str:
    """Returns which token a fixed guess names, and why it is never right where it is not.

    Args:
        accuracy: Of the guess. It is 0 only where the token was counted on other patches than those measured.
    """
    return "the most frequent token" if accuracy else "the most frequent token of training, which no measured patch has"


def percent(share: float) -> str:
    """Formats a share in 0-1 with two significant digits, and one decimal from 10% on: `0.42%`, `4.2%`, `42.0%`."""
    value = 100 * share
    return f"{value:.2f}%" if 0 < value < 1 else f"{value:.1f}%"


def is_share(name: str) -> bool:
    """Whether a metric is a share in 0-1, which a page writes as a percentage: `top1`, `mask_ap50`, `iou/cat`."""
    words = name.partition("/")[0].split("_")
    return not _SHARES.isdisjoint(words) and "error" not in words


def size_text(number: float) -> str:
    """Formats a number of bytes with three significant digits: `635 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB" if number < 999.5 else f"{number:,.0f} TB"


def seconds_text(seconds: float) -> str:
    """Returns `12 s`, `3 min 12 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def metric_label(name: str, *, on_training: bool = False) -> str:
    """Returns `held-out top1` for `held_out_top1`, or `training-image top1` if the measured images are of training.

    It stands on a line of figures, where there is little room; `metric_title` is for all else.
    """
    return name.replace(HELD_OUT, f"{_kind(on_training=on_training)} ").replace("_", " ")


def _kind(*, on_training: bool) -> str:
    return "training-image" if on_training else "held-out"


def metric_title(name: str) -> str:
    """Returns what a metric is called in headings, tables and cards: `top-1 accuracy`, `mean IoU`, `mask AP50`."""
    held_out, own = name.startswith(HELD_OUT), name.removeprefix(HELD_OUT)
    if own.endswith(_ERROR):
        title = f"standard error of the {metric_title(own.removesuffix(_ERROR))}"
    elif own.startswith("probe_"):
        title = f"{metric_title(own.removeprefix('probe_'))} of the probe"
    else:
        kind, _, of = own.partition("/")
        title = _TITLES.get(kind) or " ".join(_TITLE_WORDS.get(word, word) for word in kind.split("_"))
        title += f", {of}" if of else ""
    return f"held-out {title}" if held_out else title


def figure_text(name: str, value: float) -> str:
    """Formats a figure for a page or a table: a share as a percentage, a count in full, else as `metric_value`."""
    if is_share(name):
        return percent(value)
    return f"{round(value):,}" if name in _COUNTS else metric_value(name, value)


def metric_value(name: str, value: float) -> str:
    """Formats a value with the digits of its kind; else with about four significant digits, and integers in full."""
    if name.endswith(_ERROR):
        return f"{value:.2g}"
    words = name.split("_")
    number_format = next((form for word, form in _FORMATS.items() if word in words), None)
    if number_format:
        return f"{value:{number_format}}"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if 0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.{next((4 - power for power in range(3) if size < 10**power), 1)}f}" + unit_of(name)


def unit_of(name: str) -> str:
    """Returns the unit that a number of a metric is followed by, with its space: ` dB`; empty of most."""
    return " dB" if "psnr" in name.split("_") else ""


def counted(number: int, noun: str) -> str:
    """Returns `1 step`, or `1,200 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def none_of(number: int, noun: str, name: str, has: str, has_not: str) -> str:
    """Returns `None of 3 images of 'NAME' has a box`, or of a single one `The only image of 'NAME' has no box`.

    Args:
        noun: In the singular.
        name: Of the data; empty for none.
        has: What none does: `has a box`, `can be read`.
        has_not: The same denied.
    """
    of = f" of '{name}'" if name else ""
    return f"The only {noun}{of} {has_not}" if number == 1 else f"None of {number:,} {noun}s{of} {has}"


def epochs_text(passes: float, epochs: float | None, *, with_unit: bool = True) -> str:
    """Returns `1 epoch`, or `4 epochs, rounded to whole steps: 4.267`, as every step is a whole batch.

    Args:
        passes: Over the images, by the number of steps.
        epochs: `--epochs`; None if the number of steps was given.
        with_unit: Whether `epochs` stands behind the first number.
    """
    taken = f"{passes:.4g}"
    asked = taken if epochs is None else f"{epochs:.4g}"
    unit = " epoch" if asked == "1" else " epochs"
    return asked + unit * with_unit + ("" if asked == taken else f", rounded to whole steps: {taken}")


def extra_metrics(measured: Mapping[str, float], named: Iterable[str]) -> dict[str, float]:
    """Returns the metrics that a report has no field for, except per-class ones.

    Args:
        named: The report's fields.
    """
    reported = set(named)
    return {name: value for name, value in measured.items() if name not in reported and "/" not in name}


def _is_shown(name: str, value: float, classes: int) -> bool:
    of_training = name.removeprefix(HELD_OUT)
    matters = _WHERE_IT_MATTERS.get(name) or _WHERE_IT_MATTERS.get(of_training)
    return "/" not in name and not is_idle(of_training, classes) and (matters is None or matters(value))


def _rank(name: str) -> int:
    words = set(name.removeprefix(HELD_OUT).split("_"))
    held_out = name.startswith(HELD_OUT)
    if name == "loss":
        return 0
    if name in _WHERE_IT_MATTERS or words & {"second", "seconds"}:
        return 6
    if words & _STATE:
        return 5
    if "loss" in words:
        return 3 + held_out
    return 1 + held_out
