"""What the outputs of a classifier mean (stdlib only).

| problem | of the logits | transformers' `problem_type` |
|---|---|---|
| single-label | softmax: the probabilities of the classes | single_label_classification |
| multi-label | sigmoid: the probability of each label | multi_label_classification |
| regression | the numbers themselves | regression |
"""

from __future__ import annotations

from typing import Literal, get_args

Problem = Literal["single-label", "multi-label", "regression"]
TRANSFORMERS_NAMES: dict[Problem, str] = {
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}


def problem_named(name: object) -> Problem | None:
    """Returns the problem of a name of ours or of transformers; None for none.

    Raises:
        ValueError: There is no such problem.
    """
    if name is None:
        return None
    for problem in get_args(Problem):
        if name in (problem, TRANSFORMERS_NAMES[problem]):
            return problem
    raise ValueError(f"problem_type {name!r}")
