"""Label rules: values of mask files to classes and back, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from beitcli.data.annotations.label_maps import IGNORED, LabelMapping
from beitcli.errors import BadImage


def labels(rule: LabelMapping, *values: int) -> list[int]:
    return rule.to_labels(np.array([values], dtype=np.uint8))[0].tolist()


def test_values_are_classes_and_255_is_ignored():
    assert labels(LabelMapping(classes=3), 0, 1, 2, 255) == [0, 1, 2, IGNORED]


def test_another_value_can_stand_for_no_class():
    assert labels(LabelMapping(ignore_index=11, classes=11), 0, 10, 11) == [0, 10, IGNORED]


def test_reduce_zero_label_ignores_zero_and_moves_the_others_down():
    rule = LabelMapping(reduce_zero_label=True, classes=150)
    assert labels(rule, 0, 1, 150, 255) == [IGNORED, 0, 149, IGNORED]
    assert rule.to_values(np.array([0, 149], dtype=np.uint8)).tolist() == [1, 150]


@pytest.mark.parametrize(
    ("rule", "value", "said"),
    [
        (LabelMapping(classes=3), 3, "the value 3, outside 0..2"),
        (LabelMapping(reduce_zero_label=True, classes=150), 151, "the value 151, outside 1..150"),
    ],
)
def test_a_value_that_is_no_class_is_told(rule, value, said):
    with pytest.raises(BadImage, match=said):
        labels(rule, 0, value)


def test_255_is_ignored_even_where_another_value_is_too():
    assert labels(LabelMapping(ignore_index=11, classes=11), 11, 255) == [IGNORED, IGNORED]


def test_any_value_will_do_where_the_classes_are_still_to_be_seen():
    assert labels(LabelMapping(ignore_index=0), 0, 7, 254) == [IGNORED, 7, 254]
