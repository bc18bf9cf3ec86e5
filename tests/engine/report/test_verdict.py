"""Every outcome of a verdict, and the figures that its sentence names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from beitcli.engine.report.intervals import interval_of, share_interval, student_95, wilson
from beitcli.engine.report.verdict import Measured, Verdict, verdict_of
from beitcli.engine.segmentation.metrics import metrics_of

TOKENS = {"masked_accuracy": 0.042, "baseline_accuracy": 0.00382, "loss": 5.52, "unigram_entropy": 6.83}
CODES = {"psnr": 20.69, "codes_used": 1007, "perplexity": 804.4, "commonest_share": 0.0049}


def test_none_right_is_not_learning_though_no_guess_is_right_either():
    for patches in (75, 150, 300):
        none = {"masked_accuracy": 0.0, "masked_accuracy_std_error": 0.0, "baseline_accuracy": 0.0, "loss": 6.9}
        none |= {"unigram_entropy": 7.0, "measured_patches": patches, "measured_images": 4}
        grade, text = judged(none, vocab_size=2048)
        assert grade == "early", text
        assert "not shown to be better than guessing" in text


def test_images_that_tie_are_counted_as_images():
    """Two images with 10 of 75 patches right each tell no more than two with 11 and 9."""
    tied = {"masked_accuracy": 10 / 75, "masked_accuracy_std_error": 0.0, "measured_patches": 150, "measured_images": 2}
    assert interval_of("masked_accuracy", tied) == share_interval(10 / 75, 2)
    for right, ends in ((0.0, (0.0, wilson(0, 150)[1])), (1.0, (wilson(150, 150)[0], 1.0))):
        assert interval_of("masked_accuracy", tied | {"masked_accuracy": right}) == ends


def judged(last: dict[str, float], command: str = "pretrain", **more: object) -> tuple[str, str]:
    found = verdict_of(Measured(command, [(100, last)], **more))  # type: ignore[arg-type]
    return found.grade, found.text


def test_tokens_that_are_learnt_are_a_multiple_of_the_baseline() -> None:
    assert judged(TOKENS) == (
        "good",
        "It is learning: 4.2% of the hidden tokens right, 11.0 times always guessing the most frequent token (0.38%).",
    )


def test_accuracy_of_the_baseline_is_nothing_learnt() -> None:
    grade, text = judged(TOKENS | {"masked_accuracy": 0.00382, "loss": 6.9})
    assert grade == "early"
    assert text.startswith("It has learnt nothing yet: 0.38% of the hidden tokens right, 1.0 times")


def test_a_loss_above_the_entropy_is_little_learnt() -> None:
    text = judged(TOKENS | {"loss": 6.9})[1]
    assert text.startswith("It has learnt little yet: the loss 6.90 is 0.07 nats above the entropy of the tokens; 4.2%")


def test_tokens_of_one_code_are_no_feat() -> None:
    grade, text = judged(TOKENS | {"baseline_accuracy": 0.9, "masked_accuracy": 0.91, "unigram_entropy": 0.4})
    assert grade == "bad"
    assert "90.0% of those hidden are one and the same code" in text


FEW = {"psnr": 14.1, "codes_used": 24.0, "perplexity": 7.3, "commonest_share": 0.32}
COLLAPSED = {"masked_accuracy": 0.44, "baseline_accuracy": 0.36, "loss": 1.7, "unigram_entropy": 1.9}


def test_tokens_of_a_collapsed_tokenizer_are_told_beside_what_is_learnt() -> None:
    own = Measured("train-tokenizer", [(6, FEW)], vocab_size=256)
    grade, text = judged(COLLAPSED, vocab_size=256, tokenizer=own)
    assert grade == "early"
    assert text == (
        "The tokens say little: in its tokenizer few of the codes carry the images (24 of 256 codes, as many as 7 used "
        "evenly). 44.0% of the hidden tokens right, 1.2 times always guessing the most "
        "frequent token (36.0%). Give more --tokenizer-steps, or train one first: beit train-tokenizer."
    )
    collapsed = Measured("train-tokenizer", [(6, FEW | {"commonest_share": 0.6})], vocab_size=256)
    assert judged(COLLAPSED, vocab_size=256, tokenizer=collapsed)[0] == "bad"
    used = Measured("train-tokenizer", [(6, CODES)], vocab_size=1024)
    assert judged(TOKENS, vocab_size=1024, tokenizer=used)[0] == "good"


def test_tokens_of_another_run_are_judged_by_their_frequencies_here() -> None:
    """exp(1.9) = 6.7 codes used evenly, of 256: 1.9 / ln 256 = 34% of the entropy; of 30 tokens, 1.9 / ln 30 = 56%."""
    grade, text = judged(COLLAPSED | {"measured_patches": 250}, vocab_size=256)
    assert grade == "early"
    assert text.startswith("The tokens say little: they are as varied as 7 codes used evenly, of 256. 44.0% of the")
    assert text.endswith(
        "Train another one first: beit train-tokenizer, until beit tokenize --stats says that it suits."
    )
    for patches, codes in ((30, 256), (250, 8), (0, 256)):
        measured = COLLAPSED | {"measured_patches": patches, "masked_accuracy_std_error": 0.01}
        grade, text = judged(measured, vocab_size=codes)
        assert text.startswith("It is barely better than guessing: "), (patches, codes)


def test_an_accuracy_within_its_error_of_guessing_is_not_learning() -> None:
    barely = TOKENS | {"masked_accuracy": 0.0044, "loss": 6.8}
    grade, text = judged(barely | {"masked_accuracy_std_error": 0.0005})
    assert grade == "early"
    assert text.startswith(
        "It is not shown to be better than guessing: 0.44% of the hidden tokens right (95%: 0.34% to 0.54%), 1.2 times"
    )
    grade, text = judged(barely | {"masked_accuracy_std_error": 0.0001})
    assert (grade, text[:35]) == ("early", "It is barely better than guessing: ")
    assert "Train longer (--steps), or on more images." in text
    assert judged(TOKENS | {"masked_accuracy_std_error": 0.002})[0] == "good"
    grade, text = judged(TOKENS | {"measured_patches": 75, "measured_images": 1})
    assert grade == "unknown"
    assert text.startswith("One image does not tell whether it learns: 4.2% of the hidden tokens ")


FEW_PATCHES = {
    "masked_accuracy": 0.004, "masked_accuracy_std_error": 0.004, "baseline_accuracy": 0.0, "loss": 6.301,
    "unigram_entropy": 6.742, "measured_patches": 250, "measured_images": 10,
}  # fmt: skip


def test_where_few_patches_leave_the_accuracy_open_the_loss_is_told() -> None:
    """0.441 nats, and Student's t of 9 degrees of freedom is 2.262."""
    right = "0.40% of the hidden tokens right (95%: 0.0% to 1.3%)"
    end = " Train longer (--steps), or on more images. 10 images are too few to compare runs by."
    below = "6.30, 0.44 nats below 6.74, that of a guess without the image"
    shown = "It has begun to learn, by its loss: {}. Its accuracy is not shown to be better than guessing: {}."
    assert judged(FEW_PATCHES | {"loss_lead_std_error": 0.05}, vocab_size=1024) == (
        "early", shown.format(f"{below} (95%: 0.33 to 0.55)", right) + end,
    )  # fmt: skip
    neither = "It is not shown to be better than guessing: {}; its loss is {}."
    assert judged(FEW_PATCHES | {"loss_lead_std_error": 0.2}, vocab_size=1024) == (
        "early", neither.format(right, f"{below} (95%: -0.01 to 0.89)") + end,
    )  # fmt: skip
    assert judged(FEW_PATCHES, vocab_size=1024) == ("early", neither.format(right, below) + end)  # of earlier runs
    little = judged(FEW_PATCHES | {"loss": 6.6, "loss_lead_std_error": 0.05}, vocab_size=1024)[1]
    assert "0.14 nats below 6.74" in little
    assert "(95%: 0.03 to 0.26). The place of a patch may give as much. Its accuracy" in little


def test_none_right_is_nothing_learnt_only_where_the_loss_is_not_shown_to_be_better() -> None:
    none = FEW_PATCHES | {"masked_accuracy": 0.0, "masked_accuracy_std_error": 0.0}
    for error, heading in ((0.05, "not convincing yet"), (0.2, "nothing learnt yet")):
        found = verdict_of(Measured("pretrain", [(100, none | {"loss_lead_std_error": error})], vocab_size=1024))
        assert found.heading == heading
        assert "0.44 nats below 6.74" in found.text


def test_a_loss_above_that_of_all_codes_alike_is_no_lead() -> None:
    """ln 1,024 = 6.93: of other tokens than those of training, the guess by these is worse than that."""
    other = FEW_PATCHES | {"unigram_entropy": 7.4, "loss": 7.0, "loss_lead_std_error": 0.01}
    assert (
        "its loss is 7.00, 0.07 nats above 6.93, that of a guess without the image" in judged(other, vocab_size=1024)[1]
    )


@pytest.mark.parametrize(("images", "low", "high"), [(2, 0.0, 16.9), (5, 1.4, 7.0), (1000, 2.2, 6.2)])
def test_the_interval_of_few_images_is_students(images: int, low: float, high: float) -> None:
    text = judged(TOKENS | {"masked_accuracy_std_error": 0.01, "measured_images": images})[1]
    assert f"(95%: {low:.1f}% to {high:.1f}%)" in text
    assert ("are too few to compare runs by" in text) == (images < 64)


def test_students_quantiles() -> None:
    known = {1: 12.706, 2: 4.303, 5: 2.571, 6: 2.447, 10: 2.228, 30: 2.042, 1000: 1.962}
    assert all(abs(student_95(freedom) - value) < 0.003 for freedom, value in known.items())


def test_codes_are_judged_by_as_many_tokens_as_were_measured() -> None:
    few = {"perplexity": 12.0, "codes_used": 16, "commonest_share": 0.1, "psnr": 20.0}
    assert judged(few, "train-tokenizer", vocab_size=256)[0] == "early"
    assert judged(few | {"measured_tokens": 64}, "train-tokenizer", vocab_size=256)[0] == "good"


def test_with_patch_aggregation_the_masked_loss_counts() -> None:
    assert judged(TOKENS | {"loss": 11.0, "masked_loss": 5.5})[0] == "good"
    assert judged(TOKENS | {"loss": 11.0, "masked_loss": 7.5})[0] == "early"


def test_pixels_are_compared_with_the_mean_colour() -> None:
    assert judged({"loss": 0.8, "baseline_loss": 1.0}) == (
        "good",
        "It is learning: the error of the hidden pixels is 0.8000, 80% of that of the mean colour (1.0000).",
    )
    assert judged({"loss": 1.0, "baseline_loss": 1.0})[0] == "early"
    grade, text = judged({"loss": 0.97, "baseline_loss": 1.0})
    assert (grade, text[:35]) == ("early", "It is barely better than guessing: ")


@pytest.mark.parametrize(
    ("losses", "end"),
    [
        ((6.5, 6.2, 6.0, 5.9, 5.52), " The loss was still falling: more --steps may get further."),
        ((6.5, 5.53, 5.52, 5.52, 5.52), " The loss is level at the end."),
        ((6.5, 5.1, 5.3, 5.4, 5.52), " But the loss was better at step 20 (5.1; now 5.52): more images, or fewer "
         "epochs."),
    ],
    ids=["falling", "level", "risen"],
)  # fmt: skip
def test_the_end_of_the_curve_is_told(losses: tuple[float, ...], end: str) -> None:
    measurings = [(10 * place, TOKENS | {"loss": loss}) for place, loss in enumerate(losses, start=1)]
    assert verdict_of(Measured("pretrain", measurings)).text.endswith(f"token (0.38%).{end}")


def test_what_is_longer_is_told_by_its_option_and_of_an_own_tokenizer_not_at_all() -> None:
    """A pretraining that trains a tokenizer for itself tells at its end, once, whether it may get further."""
    measurings = [(10 * place, CODES | {"psnr": 15.0 + place}) for place in range(1, 6)]
    ends = [
        verdict_of(Measured("train-tokenizer", measurings, length=option)).text.partition("20.0 dB.")[2]
        for option in ("--epochs", "--tokenizer-steps")
    ]
    assert ends == [" The psnr was still rising: more --epochs may get further.", ""]
    little = Measured("train-tokenizer", [(10, CODES | {"perplexity": 3.0})], 256, length="--tokenizer-steps")
    assert verdict_of(little).text.endswith(" Train longer (--tokenizer-steps), or on more images.")


def test_a_codebook_in_use_in_part_and_collapsed() -> None:
    grade, text = judged(CODES, "train-tokenizer", vocab_size=1024)
    assert (grade, text[:75]) == (
        "good", "The codebook is in use: 1,007 of 1,024 codes, as many as 804 used evenly; i",
    )  # fmt: skip
    few = CODES | {"perplexity": 12.0, "codes_used": 30}
    assert judged(few, "train-tokenizer", vocab_size=1024)[1].startswith("Few of the codes carry the images (30 of")
    for broken in ({"perplexity": 1.2}, {"commonest_share": 0.7}):
        grade, text = judged(CODES | broken, "train-tokenizer", vocab_size=1024)
        assert (grade, text[:27]) == ("bad", "The codebook has collapsed ")


def test_a_classifier_is_judged_by_its_interval() -> None:
    last = {"top1": 0.713, "top5": 0.9, "images": 1000}
    assert judged(last, "finetune", classes=10, commonest=0.1) == (
        "good",
        "It tells the classes apart: 71.3% of 1,000 images right (95%: 68.4% to 74.0%); always guessing the "
        "most frequent class: 10.0%.",
    )
    grade, text = judged({"top1": 0.4, "images": 20}, "finetune", classes=3)
    assert grade == "early"
    assert text.startswith("It is not shown to be better than a fixed guess: 40.0% of 20 images right")
    assert text.endswith("20 images are too few to compare runs by.")


def test_a_little_above_guessing_is_little() -> None:
    grade, text = judged({"top1": 0.029, "images": 4000}, "finetune", classes=100, commonest=0.01)
    assert (grade, text.partition(":")[0]) == ("early", "It has begun to tell the classes apart")
    assert judged({"top1": 0.12, "images": 4000}, "finetune", classes=100, commonest=0.01)[0] == "good"
    seen = {"classes": 4, "commonest": 0.6, "labelled": 4}
    assert judged({"miou": 0.2, "images": 200}, "finetune", **seen)[0] == "early"  # guessing: 15%
    some = {"miou": 0.35, "images": 200, "iou/a": 0.9, "iou/b": 0.5, "iou/c": 0.0, "iou/d": 0.0}
    grade, text = judged(some, "finetune", **seen)
    assert (grade, "; 2 of 4 classes not found at all." in text) == ("good", True)
    grade, text = judged(some | {"iou/b": 0.0}, "finetune", **seen)
    assert (grade, "; 3 of 4 classes not found at all." in text) == ("early", True)
    absent = {"absent": frozenset("cd")}  # of whose labels none is there, but a stray pixel is called so
    assert judged(some, "finetune", **seen | absent) == (
        "good",
        "It has learnt: mean IoU 35.0% on 200 images of 4 classes; always guessing the most frequent class: 15.0%.",
    )  # fmt: skip
    assert judged({"ap": 0.03, "images": 200}, "finetune", classes=4) == (
        "early",
        "It has learnt little yet: AP 3.0% on 200 images of 4 classes. Train longer (--steps), or on more images.",
    )  # fmt: skip


def test_only_what_does_not_beat_guessing_says_so() -> None:
    def beats(last: dict[str, float], **known: Any) -> bool:
        return verdict_of(Measured("finetune", [(1, last)], **known)).beats_guessing

    assert not beats({"top1": 0.4, "images": 20}, classes=3)
    assert beats({"top1": 0.029, "images": 4000}, classes=100, commonest=0.01)
    assert not beats({"miou": 0.15, "images": 200}, classes=4, commonest=0.6, labelled=4)
    assert beats({"miou": 0.2, "images": 200}, classes=4, commonest=0.6, labelled=4)


def test_segmenters_and_detectors() -> None:
    seen = {"classes": 4, "commonest": 0.6, "labelled": 4}
    grade, text = judged({"miou": 0.45, "images": 200}, "finetune", **seen)
    assert (grade, text) == (
        "good",
        "It has learnt: mean IoU 45.0% on 200 images of 4 classes; always guessing the most frequent class: 15.0%.",
    )
    assert judged({"miou": 0.15, "images": 200}, "finetune", **seen)[0] == "early"
    assert judged({"ap": 0.0, "images": 200}, "finetune", classes=4)[0] == "early"
    assert judged({"mean_ap": 0.5, "micro_f1": 0.4, "images": 99}, "finetune", classes=4)[0] == "unknown"


def test_a_segmenter_that_always_says_one_class_has_learnt_nothing_where_most_classes_are_absent() -> None:
    """2 of 150 classes are labelled, 90 to 10: the IoU of the first is 0.9, that of the second 0."""
    counts = torch.zeros(150, 150, dtype=torch.int64)
    counts[0, 0], counts[1, 0] = 900, 100
    last = {"miou": metrics_of(counts).miou, "images": 200}
    assert last["miou"] == pytest.approx(0.45)
    labels = {"classes": 150, "labelled": 2}
    grade, text = judged(last, "finetune", commonest=0.9, **labels)
    assert grade == "early"
    assert text.endswith(
        "mean IoU 45.0% on 200 images of 150 classes; always guessing the most frequent class: 45.0%. "
        "Train longer (--steps), or on more images."
    )
    unknown = judged(last, "finetune", **labels)[1]
    assert "always guessing the same class, were all as common: 25.0%" in unknown


def test_a_share_that_was_better_before_is_told_as_a_percentage() -> None:
    measurings = [(step, {"ap": ap, "images": 100}) for step, ap in ((10, 0.2), (20, 0.4), (30, 0.3))]
    text = verdict_of(Measured("finetune", measurings, classes=2)).text
    assert text.startswith(
        "It has learnt: AP 30.0% on 100 images of 2 classes. But the ap was better at step 20 (40.0%; "
    )


def test_none_right_of_a_few_images_is_no_certainty() -> None:
    of = {"measured_images": 10, "measured_patches": 250}
    none = TOKENS | {"masked_accuracy": 0.0, "masked_accuracy_std_error": 0.0} | of
    assert "0.0% of the hidden tokens right (95%: 0.0% to 1.5%)" in judged(none)[1]
    one = TOKENS | {"masked_accuracy": 0.004, "masked_accuracy_std_error": 0.004} | of
    assert "0.40% of the hidden tokens right (95%: 0.0% to 1.3%)" in judged(one)[1]


def test_codes_in_use_are_told_with_the_tokens_where_these_are_too_few_to_show_all() -> None:
    few = judged(CODES | {"measured_tokens": 640}, "train-tokenizer", vocab_size=1024)[1]
    assert "1,007 of 1,024 codes among 640 tokens, as many as 804 used evenly" in few
    assert "among" not in judged(CODES | {"measured_tokens": 4096}, "train-tokenizer", vocab_size=1024)[1]


@pytest.mark.parametrize(
    ("metrics", "command", "heading"),
    [
        ({"loss": 0.5, "baseline_loss": 0.4}, "pretrain", "nothing learnt yet"),
        ({"loss": 0.39, "baseline_loss": 0.4}, "pretrain", "not convincing yet"),
        ({"loss": 0.2, "baseline_loss": 0.4}, "pretrain", "good"),
        ({"perplexity": 1.2}, "train-tokenizer", "not working"),
        ({}, "pretrain", "no verdict"),
    ],
)
def test_the_heading_says_what_the_sentence_says(metrics: dict[str, float], command: str, heading: str) -> None:
    verdict = verdict_of(Measured(command, [(1, metrics)] if metrics else []))
    assert verdict.heading == heading
    assert verdict.has_learnt_nothing == (heading == "nothing learnt yet")


def test_what_is_not_measured_or_not_known_is_no_verdict() -> None:
    assert verdict_of(Measured("pretrain", [])) == Verdict("unknown", "Nothing was measured yet.")
    tokenizer = Measured("train-tokenizer", [(6, FEW)], vocab_size=256)
    assert (
        verdict_of(Measured("pretrain", [], tokenizer=tokenizer)).text == "Nothing but its tokenizer was measured yet."
    )
    assert judged({"mean_error": 0.25, "images": 70}, "finetune") == ("unknown", "mean error 0.25 on 70 images.")


OUTCOMES: tuple[tuple[dict[str, float], str, dict[str, object]], ...] = (
    (TOKENS | {"masked_accuracy_std_error": 0.002, "measured_images": 50}, "pretrain", {}),
    (TOKENS | {"loss": 6.9}, "pretrain", {}),
    (COLLAPSED, "pretrain", {"vocab_size": 256, "tokenizer": Measured("train-tokenizer", [(6, FEW)], vocab_size=256)}),
    (COLLAPSED | {"measured_patches": 250}, "pretrain", {"vocab_size": 256}),
    ({"loss": 0.8, "baseline_loss": 1.0}, "pretrain", {}),
    (CODES, "train-tokenizer", {"vocab_size": 1024}),
    (FEW | {"commonest_share": 0.6}, "train-tokenizer", {"vocab_size": 256}),
    ({"top1": 0.713, "top5": 0.9, "images": 30}, "finetune", {"classes": 10, "commonest": 0.1}),
    ({"miou": 0.45, "images": 20}, "finetune", {"classes": 4, "commonest": 0.6, "labelled": 4}),
)


@pytest.mark.parametrize(("last", "command", "more"), OUTCOMES)
def test_a_verdict_is_read_at_a_glance_and_has_no_blank_to_fill_in(
    last: dict[str, float], command: str, more: dict[str, object]
) -> None:
    text = judged(last, command, **more)[1]
    assert "DATA" not in text
    assert len(text) <= 300, text


@pytest.mark.parametrize(("last", "command", "more"), OUTCOMES)
def test_what_is_measured_on_training_images_is_no_sign_of_learning(
    last: dict[str, float], command: str, more: dict[str, object]
) -> None:
    (grade, text), (elsewhere, held_out) = (
        judged(last, command, on_training=True, **more),
        judged(last, command, **more),
    )
    assert "training images" in text
    assert grade == ("unknown" if elsewhere == "good" else elsewhere)
    assert "training images" not in held_out


def test_wilson_equals_the_published_values() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    cases = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, of), interval in cases.items():
        assert wilson(right, of) == pytest.approx(interval, abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
