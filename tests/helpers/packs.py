"""Packs of small data, and packs that end before their time."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

from beitcli.cli.app import main
from beitcli.config.pack import PackConfig
from beitcli.data.sources.base import Source
from beitcli.engine.pack.folder import PackFolder
from beitcli.engine.pack.run import PackReport, pack
from tests.helpers.forked import Child


def packed(data: Path | str, output: Path, **settings: Any) -> PackReport:
    return pack(PackConfig(data=(str(data),), output=str(output), **{"workers": 0} | settings))


def contents(source: Source) -> list[tuple[str, int | None]]:
    """Pixels, as a hash, and label of each image."""
    return [
        (hashlib.sha256(source.pixels(index).tobytes()).hexdigest(), source.label(index))
        for index in range(len(source))
    ]


def killed_behind_the_first_shard(data: Path, output: Path, number: int = signal.SIGKILL, workers: int = 0) -> int:
    """Packs in a process that gets a signal when its first shard is finished; returns its exit code."""

    def work() -> int:
        add = PackFolder.add

        def then_die(self: PackFolder, written: Any) -> None:
            add(self, written)
            (self.partial / ".train-00001-of-00003.tar.1").write_bytes(b"half")
            os.kill(os.getpid(), number)

        PackFolder.add = then_die  # type: ignore[method-assign]
        words = ["pack", str(data), "-o", str(output), "--shard-images", "4", "--split", "train"]
        return main([*words, "--workers", str(workers)])

    return Child(work).ended(60).code
