"""What a run has come to, in a sentence with the figures that it rests on: for the report and the model card.

| command | good | bad |
|---|---|---|
| pretrain, tokens | the 95% interval above the most frequent token's share, loss below the entropy | a code has 40% |
| pretrain, pixels | loss below 95% of that of the mean colour | |
| train-tokenizer | ln perplexity at least half of ln codes | perplexity below 2, or a code has 40% |
| finetune, top-1 | a tenth of the way from the most frequent class to 100%, its 95% interval above that class | |
| finetune, mean IoU | a tenth of the way from always that class to 100%, half of the classes found | |
| finetune, AP | 5% | |

What is neither is `early`: little or nothing yet. So is a pretraining on tokens of few codes, one whose lead on both
guesses is no more than the place of a patch may give, and one that few patches show to be better by its loss alone.

A loss of held-out images that is at its lowest before the last save is told, and so is one that still falls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from beitcli.engine.report.intervals import interval_of, loss_lead, share_interval
from beitcli.engine.tokenizer_verdict import COMMONEST_SHARE, ENTROPY_SHARE, TOKENS_PER_CODE
from beitcli.runtime.metric_text import is_share, percent

Grade = Literal["good", "early", "bad", "unknown"]
Measurings = Sequence[tuple[int, Mapping[str, float]]]
# Times guessing, and nats below the entropy. To know the place of a patch and not the image gives 1.34, 0.14 on 1,000
# photographs, 1.42, 0.22 on 1,000 drawn images (256 codes of a dVAE, 8 x 8 tokens, whole images; n = 1). On 101
# frames of one car's camera it gives 2.5, 1.36: there no threshold tells more.
_TIMES, _NATS = 1.5, 0.3
_OF_MEAN_COLOUR = 0.95  # of its error on pixels; the place of a patch gives 1.00, 0.98 and 0.68 on the same images
_HEADINGS = {"good": "good", "early": "not convincing yet", "bad": "not working", "unknown": "no verdict"}
OTHER_TOKENIZER = "Train another one first: beit train-tokenizer, until beit tokenize --stats says that it suits."
_MORE_STEPS = "Give more --tokenizer-steps, or train one first: beit train-tokenizer."
OF_OWN_TOKENIZER = "--tokenizer-steps"
_BY_HEART = "It may know by heart what it was measured on, its training images"
_STILL = 0.02  # share of all progress, made in the last fifth, that is still progress
_WORSE = 0.02  # of the loss itself: a rise that is more than noise
_FEW = 64  # images
_LITTLE = 0.1  # of the way from guessing to all right
_LITTLE_AP, _NOT_FOUND = 0.05, 0.005


@dataclass(frozen=True)
class Verdict:
    """A grade, and one to three short sentences: `what it is: the figures. The way out.`

    Attributes:
        needs_tokenizer: Whether the way out is another tokenizer.
        beats_guessing: False where a fixed guess is not shown to be worse.
        has_learnt_nothing: Whether the model is no better than a fixed guess.
    """

    grade: Grade
    text: str
    needs_tokenizer: bool = False
    beats_guessing: bool = True
    has_learnt_nothing: bool = False

    @property
    def heading(self) -> str:
        """The grade in two or three words."""
        return "nothing learnt yet" if self.has_learnt_nothing else _HEADINGS[self.grade]


@dataclass(frozen=True)
class Measured:
    """What a verdict rests on.

    Attributes:
        command: `pretrain`, `train-tokenizer` or `finetune`.
        measurings: (step, metrics of held-out images), in order.
        vocab_size: Codes of a tokenizer, or of that whose tokens are predicted; 0 if unknown.
        classes: Classes of a finetuned model; 0 if unknown.
        commonest: Share of the most frequent class among the images, or pixels, that were measured; 0 if unknown.
        labelled: Classes that occur among their labels; 0 if unknown.
        absent: Names of classes that do not.
        tokenizer: That of the tokenizer which a pretraining trained for itself; None without one.
        on_training: Whether the measured images are training images, too few to hold any out.
        length: The option of how long the training is.
    """

    command: str
    measurings: Measurings
    vocab_size: int = 0
    classes: int = 0
    commonest: float = 0.0
    labelled: int = 0
    absent: frozenset[str] = frozenset()
    tokenizer: Measured | None = None
    on_training: bool = False
    length: str = "--steps"

    @property
    def way_out(self) -> str:
        """What to do where little is learnt."""
        return f"Train longer ({self.length}), or on more images."


def verdict_of(measured: Measured) -> Verdict:
    """Returns the verdict on a run."""
    last = measured.measurings[-1][1] if measured.measurings else {}
    if not last:
        so_far = " but its tokenizer" if measured.tokenizer and measured.tokenizer.measurings else ""
        return Verdict("unknown", f"Nothing{so_far} was measured yet.")
    found = _judged(last, measured)
    if not measured.on_training:
        return found
    if found.grade == "good":  # which training images cannot show
        return Verdict("unknown", f"{_BY_HEART}: {found.text.partition(': ')[2]}")
    return replace(found, text=f"{found.text} Measured on training images.")


def _judged(last: Mapping[str, float], measured: Measured) -> Verdict:
    if "masked_accuracy" in last:
        return _tokens(last, measured)
    if measured.command == "pretrain":
        return _pixels(last, measured)
    if "perplexity" in last:
        return _tokenizer(last, measured)
    return _finetuned(last, measured)


def fixed_guess(measured: Measured, name: str) -> float:
    """Returns what always guessing the most frequent class gives of a metric of a finetuned model; 0 if unknown.

    The mean IoU is over the classes that are labelled or predicted: the IoU of that class is its share, that of every
    other labelled class 0.
    """
    if name in ("top1", "pixel_accuracy"):
        return measured.commonest
    return measured.commonest / measured.labelled if name == "miou" and measured.labelled else 0.0


def _tokens(last: Mapping[str, float], measured: Measured) -> Verdict:
    accuracy, guess = last["masked_accuracy"], last.get("baseline_accuracy", 0.0)
    entropy = last.get("unigram_entropy", 0.0)
    loss = last.get("masked_loss", last.get("loss", 0.0))
    images = int(last.get("measured_images", 0))
    interval, low = "", accuracy
    above = loss - entropy
    if (between := interval_of("masked_accuracy", last)) is not None:
        low = between[0]
        interval = f" (95%: {percent(low)} to {percent(between[1])})"
    times = (
        f", {accuracy / guess:.1f} times always guessing the most frequent token ({percent(guess)})" if guess else ""
    )
    figures = f"{percent(accuracy)} of the hidden tokens right{interval}{times}"
    few = _few(images) if images else ""
    poor = _poor_tokens(last, measured)
    if poor is not None:
        way_out = OTHER_TOKENIZER if measured.tokenizer is None else _MORE_STEPS
        return Verdict(poor.grade, f"The tokens say little: {poor.text}. {figures}. {way_out}", needs_tokenizer=True)
    if accuracy <= guess and above >= 0:
        return _nothing(figures, measured)
    if above >= 0:
        over = f"the loss {loss:.2f} is {above:.2f} nats above the entropy of the tokens"
        return Verdict("early", f"It has learnt little yet: {over}; {figures}. {measured.way_out}")
    if images == 1:
        return Verdict("unknown", f"One image does not tell whether it learns: {figures}. Give more images.")
    if low <= guess or accuracy <= guess:
        return _by_loss(last, loss, figures, measured)
    if accuracy < _TIMES * guess and -above < _NATS:
        return Verdict(
            "early",
            f"It is barely better than guessing: {figures}. The place of a patch may give as much. {measured.way_out}",
        )
    name = "masked_loss" if "masked_loss" in last else "loss"
    return Verdict("good", f"It is learning: {figures}.{_trend(measured, name)}{few}")


def _by_loss(last: Mapping[str, float], loss: float, figures: str, measured: Measured) -> Verdict:
    """Judges by the loss where the accuracy is not shown to be better than guessing, as of few patches.

    Even without the image, all codes alike give a loss of ln V: a guess by the tokens of training may be worse, where
    the measured ones differ.
    """
    codes = measured.vocab_size
    guess = min(last["unigram_entropy"], math.log(codes) if codes else math.inf)
    lead, between = guess - loss, loss_lead(last, guess - loss)
    few = _few(images) if (images := int(last.get("measured_images", 0))) else ""
    range_ = f" (95%: {between[0]:.2f} to {between[1]:.2f})" if between else ""
    below = f"{abs(lead):.2f} nats {'below' if lead >= 0 else 'above'} {guess:.2f}, that of a guess without the image"
    if between is None or between[0] <= 0:
        if last["masked_accuracy"] <= last.get("baseline_accuracy", 0.0) and (between or lead <= 0):
            return _nothing(f"{figures}; its loss is {loss:.2f}, {below}{range_}", measured, few)
        text = f"It is not shown to be better than guessing: {figures}; its loss is {loss:.2f}, {below}{range_}."
        return Verdict("early", f"{text} {measured.way_out}{few}")
    place = " The place of a patch may give as much." if lead < _NATS else ""
    return Verdict(
        "early",
        f"It has begun to learn, by its loss: {loss:.2f}, {below}{range_}.{place} Its accuracy is not shown to be "
        f"better than guessing: {figures}. {measured.way_out}{few}",
    )


def _poor_tokens(last: Mapping[str, float], measured: Measured) -> Verdict | None:
    """Returns what is wrong with the tokens that a run learns from, without a way out; None if nothing is.

    Their frequencies on this run's own images decide, and beside them the codes of the tokenizer that it trained.
    """
    guess, entropy = last.get("baseline_accuracy", 0.0), last.get("unigram_entropy", math.inf)
    possible = math.log(max(1, min(measured.vocab_size, int(last.get("measured_patches", 0)))))
    own = measured.tokenizer
    poor = _poor_codes(own.measurings[-1][1], own.vocab_size) if own is not None and own.measurings else None
    if guess > COMMONEST_SHARE[1]:
        return Verdict("bad", f"{percent(guess)} of those hidden are one and the same code")
    if poor is not None:
        return Verdict(poor.grade, f"in its tokenizer {poor.text}")
    if entropy < ENTROPY_SHARE[1] * possible:
        even = f"{math.exp(entropy):,.0f} codes used evenly, of {measured.vocab_size:,}"
        return Verdict("early", f"they are as varied as {even}")
    return None


def _pixels(last: Mapping[str, float], measured: Measured) -> Verdict:
    loss, guess = last.get("masked_loss", last.get("loss", 0.0)), last.get("baseline_loss", 0.0)
    figures = f"the error of the hidden pixels is {loss:.4f}"
    figures += f", {loss / guess:.0%} of that of the mean colour ({guess:.4f})" if guess else ""
    if guess and loss >= guess:
        return _nothing(figures, measured)
    if guess and loss > _OF_MEAN_COLOUR * guess:
        return Verdict("early", f"It is barely better than guessing: {figures}. {measured.way_out}")
    name = "masked_loss" if "masked_loss" in last else "loss"
    return Verdict("good", f"It is learning: {figures}.{_trend(measured, name)}")


def _tokenizer(last: Mapping[str, float], measured: Measured) -> Verdict:
    poor = _poor_codes(last, measured.vocab_size)
    if poor is not None:
        another = f"Train it longer ({measured.length}), or another --kind of it, such as vq."
        more = another if poor.grade == "bad" else measured.way_out
        return Verdict(poor.grade, f"{poor.text[0].upper()}{poor.text[1:]}. {more}")
    rising = next((name for name in ("psnr", "cosine") if name in last), "perplexity")
    trend = _trend(measured, rising, rising=True)
    return Verdict("good", f"The codebook is in use: {_code_use(last, measured.vocab_size)}{_fidelity(last)}.{trend}")


def poor_tokenizer(measured: Measured) -> str:
    """Returns what is wrong with how a tokenizer's run uses its codes; empty if nothing is, or nothing is known."""
    poor = _poor_codes(measured.measurings[-1][1], measured.vocab_size) if measured.measurings else None
    return poor.text if poor is not None else ""


def _poor_codes(last: Mapping[str, float], codes: int) -> Verdict | None:
    """Returns what is wrong with how codes are used, without a way out; None if nothing is, or nothing is known."""
    perplexity, common = last.get("perplexity"), last.get("commonest_share", 0.0)
    if perplexity is None:
        return None
    if perplexity < 2 or common > COMMONEST_SHARE[1]:
        return Verdict("bad", f"the codebook has collapsed ({_code_use(last, codes)})")
    possible = min(codes, int(last.get("measured_tokens", codes)))
    if possible and math.log(perplexity) < ENTROPY_SHARE[1] * math.log(possible):
        return Verdict("early", f"few of the codes carry the images ({_code_use(last, codes)})")
    return None


def _code_use(last: Mapping[str, float], codes: int) -> str:
    of, common = f" of {codes:,}" if codes else "", last.get("commonest_share", 0.0)
    tokens = int(last.get("measured_tokens", 0))
    among = f" among {tokens:,} tokens" if 0 < tokens < TOKENS_PER_CODE * codes else ""  # too few to show them all
    figures = f"{int(last.get('codes_used', 0)):,}{of} codes{among}, as many as {last['perplexity']:,.0f} used evenly"
    return figures + (f"; one has {percent(common)} of the tokens" if common > COMMONEST_SHARE[1] else "")


def _fidelity(last: Mapping[str, float]) -> str:
    if "psnr" in last:
        return f"; its pictures have {last['psnr']:.1f} dB"
    return f"; cosine {last['cosine']:.3f} to its teacher's features" if "cosine" in last else ""


def _finetuned(last: Mapping[str, float], measured: Measured) -> Verdict:
    images, classes = int(last.get("images", 0)), measured.classes
    if "top1" in last:
        low, high = share_interval(last["top1"], images)
        guess = fixed_guess(measured, "top1") or (1 / classes if classes else 0.0)
        what = "most frequent class" if measured.commonest else "same class, were all as common"
        figures = f"{percent(last['top1'])} of {images:,} images right (95%: {percent(low)} to {percent(high)}); "
        figures += f"always guessing the {what}: {percent(guess)}"
        if images and low <= guess:
            text = f"It is not shown to be better than a fixed guess: {figures}.{_few(images)}"
            return Verdict("early", text, beats_guessing=False)
        trend = "" if images < _FEW else _trend(measured, "top1", rising=True)
        if last["top1"] - guess < _LITTLE * (1 - guess):
            text = f"It has begun to tell the classes apart: {figures}.{trend or f' {measured.way_out}'}{_few(images)}"
            return Verdict("early", text)
        return Verdict("good", f"It tells the classes apart: {figures}.{trend}{_few(images)}")
    for name, words in (("miou", "mean IoU"), ("ap", "AP"), ("mean_ap", "mAP")):
        if name in last:
            return _by_metric(last, measured, name, words)
    name, value = next(((n, v) for n, v in last.items() if n != "images"), ("", 0.0))
    return Verdict("unknown", f"{name.replace('_', ' ')} {value:.4g} on {images:,} images." if name else "No figures.")


def _nothing(figures: str, measured: Measured, more: str = "") -> Verdict:
    text = f"It has learnt nothing yet: {figures}. {measured.way_out}{more}"
    return Verdict("early", text, beats_guessing=False, has_learnt_nothing=True)


def _by_metric(last: Mapping[str, float], measured: Measured, name: str, words: str) -> Verdict:
    images, value = int(last.get("images", 0)), last[name]
    of = f" of {measured.classes:,} classes" if measured.classes else ""
    figures = f"{words} {percent(value)} on {images:,} images{of}"
    if name == "mean_ap":  # of random scores it is the share of positives, which is not known here
        return Verdict("unknown", f"It has {figures}.{_few(images)}")
    guess = 0.0
    if name == "miou" and (measured.labelled or measured.classes):
        known = fixed_guess(measured, name)
        guess = known or 1 / (measured.labelled or measured.classes) ** 2
        what = "most frequent class" if known else "same class, were all as common"
        figures += f"; always guessing the {what}: {percent(guess)}"
    of_class = {name.partition("/")[2]: score for name, score in last.items() if name.startswith(("iou/", "ap/"))}
    by_class = [score for name, score in of_class.items() if name not in measured.absent]
    if missed := sum(score < _NOT_FOUND for score in by_class):
        figures += f"; {missed:,} of {len(by_class):,} classes not found at all"
    if value <= max(guess, _NOT_FOUND):
        return _nothing(figures, measured, _few(images))
    trend = "" if images < _FEW else _trend(measured, name, rising=True)
    little = value < _LITTLE_AP if name == "ap" else value - guess < _LITTLE * (1 - guess) or 2 * missed > len(by_class)
    if little:
        text = f"It has learnt little yet: {figures}.{trend or f' {measured.way_out}'}{_few(images)}"
        return Verdict("early", text)
    return Verdict("good", f"It has learnt: {figures}.{trend}{_few(images)}")


def _few(images: int) -> str:
    return f" {images:,} images are too few to compare runs by." if images < _FEW else ""


def _trend(measured: Measured, name: str, rising: bool = False) -> str:
    """Returns a sentence: whether the metric still improves, is level, or was better before; empty of few values.

    Args:
        rising: Whether more is better.
    """
    sign = -1.0 if rising else 1.0
    values = [(step, sign * metrics[name]) for step, metrics in measured.measurings if name in metrics]
    if len(values) < 3:
        return ""
    words, first, (end, last) = name.replace("_", " "), values[0][1], values[-1]
    best_step, best = min(values, key=lambda pair: pair[1])
    if last - best > _WORSE * abs(best) and best_step < end:
        then, now = (percent(abs(v)) if is_share(name) else f"{abs(v):.4g}" for v in (best, last))
        return f" But the {words} was better at step {best_step:,} ({then}; now {now}): more images, or fewer epochs."
    before = next(value for step, value in reversed(values) if step <= 0.8 * end or step == values[0][0])
    if first > last and before - last > _STILL * (first - last):
        if measured.length == OF_OWN_TOKENIZER:  # the pretraining that follows says how it fares
            return ""
        return f" The {words} was still {'rising' if rising else 'falling'}: more {measured.length} may get further."
    return f" The {words} is level at the end."
