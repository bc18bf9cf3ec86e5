"""Images that could not be read: skipped, counted, named; past the limit the job stops (exit code 3)."""

from __future__ import annotations

from collections.abc import Sequence

from beitcli.errors import DataError
from beitcli.runtime.storage.run_dir import RunFolder

Bad = tuple[int, str, str]


def refuse_many_bad(bad: Sequence[Bad], images: int, max_bad: float, hint: str) -> None:
    """Raises DataError where `bad` are more than the share `max_bad` of `images`; a single one is always forgiven.

    Args:
        bad: (index, path, reason) of each.
        max_bad: In 0-1; 0 forgives none.
    """
    allowed = max(1, int(max_bad * images)) if max_bad > 0 else 0
    if len(bad) > allowed or (bad and len(bad) == images):
        examples = "; ".join(f"{path}: {reason}" for _, path, reason in bad[:5])
        raise DataError(f"{len(bad)} of {images} images cannot be read, {allowed} are allowed: {examples}.", hint)


class BadImageLedger:
    """Every image of a run that could not be read, once, in bad-images.jsonl.

    Attributes:
        records: (index, path, reason) in the order they were met.

    Args:
        resume_command: What a person runs to go on with the run.
    """

    def __init__(self, run: RunFolder, images: int, max_bad: float, resume_command: str) -> None:
        self.run, self.images, self.max_bad, self.resume_command = run, images, max_bad, resume_command
        self.records: list[Bad] = []
        self._known: set[str] = set()

    def note(self, bad: Sequence[Bad]) -> None:
        """Adds what a batch met. Raises DataError past the limit."""
        new = [record for record in bad if record[1] not in self._known]
        for index, path, reason in new:
            if path not in self._known:
                self._known.add(path)
                self.records.append((index, path, reason))
                self.run.append_json("bad-images.jsonl", {"path": path, "error": reason})
        if new:
            listed = self.run.path / "bad-images.jsonl"
            hint = f"They are listed in {listed}. Mend them or raise --max-bad. {self.resume_command} --max-bad SHARE"
            refuse_many_bad(self.records, self.images, self.max_bad, hint)
