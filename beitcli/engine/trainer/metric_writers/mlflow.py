"""`--log-to mlflow`: a store in RUN/mlflow; with MLFLOW_TRACKING_URI the one that it names."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beitcli.config.common import Training
from beitcli.config.toml_text import plain_settings
from beitcli.errors import UsageError
from beitcli.runtime.extras import install_line
from beitcli.runtime.storage.own_files import atomic_write_text
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.run_dir import RunFolder

_EXPERIMENT = "beit"
_LONGEST = 500  # characters of a parameter
_BATCH = 1000  # metrics that MLflow takes at once


class MlflowWriter:
    """Writes scalars named as in metrics.jsonl, pictures, and the settings of the run.

    A run that is resumed goes on under the ID in RUN/mlflow/run-id, and what it writes again at a step counts.

    Raises:
        UsageError: The package `mlflow` is not installed.
    """

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would ask a server at import
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise UsageError(
                "--log-to mlflow needs the package mlflow, which is not installed.",
                f"Install it: {install_line('mlflow')}, or leave mlflow out.",
            ) from None
        for talker in ("mlflow", "alembic"):  # which tell of each table that they make
            logging.getLogger(talker).setLevel(logging.WARNING)
        self._make: Any = MlflowClient
        self.client: Any = None

    def start(self, run: RunFolder, config: Training) -> None:
        self.path, self.config = run.path, config

    def rewind(self, step: int) -> None: ...

    def _begin(self) -> Any:
        """Begins only with the first metrics: a finished run must leave no empty one."""
        if self.client is None:
            folder = self.path.resolve() / "mlflow"
            folder.mkdir(exist_ok=True)
            given = os.environ.get("MLFLOW_TRACKING_URI")
            self.client = self._make(tracking_uri=given or f"sqlite:///{folder / 'mlflow.db'}")
            existing = self.client.get_experiment_by_name(_EXPERIMENT)
            own = None if given else (folder / "artifacts").as_uri()
            experiment = existing.experiment_id if existing else self.client.create_experiment(_EXPERIMENT, own)
            self.run = self._resumed(folder / "run-id", experiment)
        return self.client

    def _resumed(self, file: Path, experiment: str) -> str:
        """Returns the ID of the run, a new one unless the file names one of this store."""
        from mlflow.exceptions import MlflowException

        try:
            run = read_regular(file).decode().strip()
            self.client.update_run(run, status="RUNNING")
            return run
        except (OSError, ValueError, MlflowException):
            pass
        run = self.client.create_run(experiment, run_name=self.path.resolve().name).info.run_id
        for name, value in plain_settings(self.config).items():
            self.client.log_param(run, name, str(value)[:_LONGEST])
        atomic_write_text(file, run + "\n")
        return run

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        client, now = self._begin(), int(time.time() * 1000)
        entries = [Metric(_name(name), value, now, step) for name, value in metrics.items()]
        for first in range(0, len(entries), _BATCH):
            client.log_batch(self.run, metrics=entries[first : first + _BATCH])

    def picture(self, step: int, name: str, file: Path) -> None:
        self._begin().log_artifact(self.run, str(file), name)

    def close(self) -> None:
        if self.client is not None:
            self.client.set_terminated(self.run)


def _name(name: str) -> str:
    """Returns a metric's name, such as one with a class in it, in the characters that MLflow takes."""
    return posixpath.normpath(re.sub(r"[^/\w.\- ]", "_", name))


WRITER = MlflowWriter
