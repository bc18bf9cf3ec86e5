"""Arguments of benchmarks/jobs.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import jobs  # noqa: E402 - in the folder of benchmarks


def test_relative_paths_are_those_of_the_folder_that_it_is_started_in() -> None:
    """Its processes run in another one."""
    args = jobs.arguments().parse_args(["photos", "--tokenizer", "runs/tokens"])
    assert (args.photos, args.tokenizer) == (os.path.abspath("photos"), os.path.abspath("runs/tokens"))
