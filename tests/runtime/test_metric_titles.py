"""What a metric is called in headings, tables and cards."""

from __future__ import annotations

import pytest

from beitcli.runtime.metric_text import figure_text, metric_title


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("top1", "top-1 accuracy"),
        ("held_out_top5", "held-out top-5 accuracy"),
        ("miou", "mean IoU"),
        ("ap50", "AP50"),
        ("mask_ap75", "mask AP75"),
        ("mean_ap", "mean AP"),
        ("micro_f1", "micro F1"),
        ("iou/cat_dog", "IoU, cat_dog"),
        ("masked_accuracy", "masked accuracy"),
        ("masked_accuracy_std_error", "standard error of the masked accuracy"),
        ("probe_top1", "top-1 accuracy of the probe"),
        ("loss_rpn", "loss rpn"),
    ],
)
def test_a_metric_has_a_title_in_people_s_words(name: str, title: str) -> None:
    assert metric_title(name) == title


def test_figures_are_percentages_counts_or_numbers() -> None:
    texts = [figure_text(*each) for each in (("miou", 0.302), ("images", 1234.0), ("loss", 2.0))]
    assert texts == ["30.2%", "1,234", "2.0000"]
    assert figure_text("masked_accuracy_std_error", 0.00291) == "0.0029"
    assert [figure_text(name, 5.49736) for name in ("loss", "unigram_entropy")] == ["5.4974", "5.4974"]
