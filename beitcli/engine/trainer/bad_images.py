"""Unreadable images: skipped, counted and listed; too many of them stop the job (exit code 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from beitcli.errors import DataError
from beitcli.runtime.metric_text import counted
from beitcli.runtime.storage.run_dir import RunFolder

Bad = tuple[int, str, str]
BAD_IMAGES = "bad-images.jsonl"


def refuse_many_bad(bad: Sequence[Bad], images: int, max_bad: float, hint: str) -> None:
    """Raises DataError if `bad` are more than the fraction `max_bad` of `images`, or all of them.

    Args:
        bad: (index, path, reason) of each.
        max_bad: In 0-1; one bad image is always tolerated, except with 0.
    """
    allowed = max(1, int(max_bad * images)) if max_bad > 0 else 0
    if len(bad) > allowed or (bad and len(bad) == images):
        examples = "; ".join(f"{path}: {reason}" for _, path, reason in bad[:5])
        limit = "" if len(bad) == images else f", {allowed} are allowed"
        raise DataError(f"{len(bad):,} of {counted(images, 'image')} cannot be read{limit}: {examples}.", hint)


def joined(records: Iterable[Sequence[Bad]]) -> list[Bad]:
    """Returns the unreadable images of several batches, in order."""
    return [record for each in records for record in each]


def left_out_text(bad: Sequence[Bad], what: str) -> str:
    """Returns `2 training images are left out, the first: PATH: REASON.`

    Args:
        bad: (index, path, reason) of each; one at least.
        what: One of them.
    """
    verb = "is" if len(bad) == 1 else "are"
    return f"{counted(len(bad), what)} {verb} left out, the first: {bad[0][1]}: {bad[0][2]}."


class BadImageLedger:
    """Lists every unreadable image of a run once, in bad-images.jsonl, which the first one makes.

    Attributes:
        records: (index, path, reason) of those that count, in the order of occurrence.

    Args:
        resume_command: Sentence with the command that resumes the run.
    """

    def __init__(self, run: RunFolder, images: int, max_bad: float, resume_command: str) -> None:
        self.run, self.images, self.max_bad, self.resume_command = run, images, max_bad, resume_command
        self.records: list[Bad] = []
        self._listed, self._counted = set[str](), set[str]()

    def list_measured(self, bad: Sequence[Bad]) -> list[Bad]:
        """Lists unreadable images of an evaluation without counting them; returns those that are new."""
        new = {path: (index, path, reason) for index, path, reason in bad if path not in self._listed}
        for _, path, reason in new.values():
            self._listed.add(path)
            self.run.append_json(BAD_IMAGES, {"path": path, "error": reason})
        return list(new.values())

    def note(self, bad: Sequence[Bad]) -> None:
        """Adds the unreadable images of a batch. Raises DataError beyond the limit."""
        self.list_measured(bad)
        new = {path: (index, path, reason) for index, path, reason in bad if path not in self._counted}
        self._counted.update(new)
        self.records += new.values()
        if new:
            listed = self.run.path / BAD_IMAGES
            hint = f"They are listed in {listed}. Mend them or raise --max-bad. {self.resume_command} --max-bad SHARE"
            refuse_many_bad(self.records, self.images, self.max_bad, hint)
