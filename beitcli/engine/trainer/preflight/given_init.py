"""A finding about the run of `--init`: whether its own verdict is that it has learnt nothing."""

from __future__ import annotations

from collections.abc import Iterator

from beitcli.engine.report.record import read_measured
from beitcli.engine.report.verdict import verdict_of
from beitcli.engine.trainer.preflight.findings import Finding
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.runtime.storage.checkpoint import step_of


def given_init_findings(reference: str, checkpoint: CheckpointHandle | None) -> Iterator[Finding]:
    """Yields whether the run that a finetuning starts from has learnt nothing.

    Args:
        reference: `--init`, for the message.
        checkpoint: What it stands for; None without weights.
    """
    if checkpoint is None or checkpoint.folder is None or checkpoint.kind != "masked-image-model":
        return  # of another program, of random weights, or with a backbone that was pretrained before
    try:
        verdict = verdict_of(read_measured(checkpoint.run, step_of(checkpoint.folder.path)))
    except Exception:  # as of a file that was edited: no training fails for a note
        return
    if verdict.has_learnt_nothing:
        what = f"--init {reference} has learnt nothing yet, by its own report: random weights may do as well."
        yield Finding("init-learnt-nothing", "note", what, "`--init random` is the comparison.")
