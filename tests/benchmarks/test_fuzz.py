"""The targets of `benchmarks/fuzz.py`, without atheris: each reads its seeds, and what mutations make of them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.mutations import mutated

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = ("pictures", "collections", "records")  # those of weights and of the hub start from whole runs
NEED_RUNS = {"settings", "metrics", "runs"}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_targets_read_their_seeds_and_mutations(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from beitcli.data import decode

    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(decode, "MAX_PIXELS", decode.MAX_PIXELS)  # the targets lower both
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    outcome = importlib.import_module("fuzz_readers.containment").outcome
    place = importlib.import_module("fuzz_readers.target").Place
    targets = importlib.import_module(f"fuzz_readers.{part}").TARGETS
    assert len({target.name for target in targets}) == len(targets)
    for target in targets:
        if target.name in NEED_RUNS:
            continue
        folder = tmp_path / target.name
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("BEIT_CACHE_DIR", str(folder / "cache"))
        prepared = target.prepare(place(folder, tmp_path / "models"))
        assert prepared.seeds
        for seed, content in enumerate(prepared.seeds):
            assert len(content) <= target.longest, target.name
            inputs = [content, mutated(content, seed)]
            inputs += [prepared.mutate(content, number) for number in range(3)] if prepared.mutate else []
            for each in inputs:
                assert outcome(prepared, each) is None, (target.name, each)
