"""A finding about the tokenizer of `--tokenizer`: whether its run says that it uses few of its codes. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from beitcli.engine.report.record import read_record
from beitcli.engine.report.verdict import OTHER_TOKENIZER, poor_tokenizer
from beitcli.engine.trainer.preflight.findings import Finding


def given_tokenizer_findings(reference: str) -> Iterator[Finding]:
    """Yields whether the run of a tokenizer measured that few codes carry its images.

    Args:
        reference: A run of train-tokenizer, a checkpoint in it, or a run of pretrain that trained its own; of others,
            such as dall-e, nothing is known before their tokens.
    """
    for folder in _runs(Path(reference)):
        try:
            record = read_record(folder)
        except (OSError, ValueError):
            continue
        if record.command == "train-tokenizer":
            if poor := poor_tokenizer(record.measured):
                what = f"In --tokenizer {reference} {poor}. Little can be learned from its tokens."
                yield Finding("tokenizer-few-codes", "warning", what, OTHER_TOKENIZER)
            return


def _runs(path: Path) -> tuple[Path, ...]:
    """Returns the folders that may be the tokenizer's run, as they are looked for when it is opened."""
    is_checkpoint = path.parent.name == "checkpoints"
    return (path / "tokenizer", path, *((path.parent.parent,) if is_checkpoint else ()))
