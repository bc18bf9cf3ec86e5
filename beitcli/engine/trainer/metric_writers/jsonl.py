"""RUN/metrics.jsonl: one JSON object per logged step, `{"step", "epoch", "loss", ...}`."""

from __future__ import annotations

from collections.abc import Mapping

from beitcli.config.common import Training
from beitcli.errors import StorageError
from beitcli.runtime.storage.run_dir import RunFolder
from beitcli.runtime.storage.safe_json import parse_json

FILE = "metrics.jsonl"


class MetricsJsonl:
    """Appends one line at a time, so that a killed process leaves at most one incomplete line."""

    def start(self, run: RunFolder, config: Training) -> None:
        self.run = run

    def rewind(self, step: int) -> None:
        path = self.run.path / FILE
        if not path.exists():
            return
        kept = []
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError as error:
            raise StorageError(
                f"'{path}' cannot be read: {error.strerror or error}.", "Move it away, then go on with --resume."
            ) from None
        for line in lines:
            try:
                if parse_json(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # an incomplete line of a killed process
                continue
        self.run.write_text(FILE, "".join(line + "\n" for line in kept))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.append_json(FILE, {"step": step, **metrics})

    def close(self) -> None: ...


WRITER = MetricsJsonl
