"""Memory that is left to a process: control groups of both versions, and those above a group."""

from __future__ import annotations

from pathlib import Path

import pytest

from beitcli.runtime.compute import free_memory as module
from beitcli.runtime.compute.free_memory import free_memory, group_folders

_LINES = "4:cpu,memory:/slurm/job_7/step_0\n1:name=systemd:/other\n0::/user/session\n"


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    (tmp_path / "cgroup").write_text(_LINES)
    return tmp_path / "cgroup"


def test_the_group_and_those_above_it_are_looked_at(groups: Path) -> None:
    root = Path("/r")
    assert list(group_folders(groups, "", root)) == [root, root / "user", root / "user/session"]
    parts = [root, root / "slurm", root / "slurm/job_7", root / "slurm/job_7/step_0"]
    assert list(group_folders(groups, "memory", root)) == parts
    assert list(group_folders(groups.with_name("none"), "memory", root)) == [root]
    groups.write_text("0::/../beside\n")
    assert list(group_folders(groups, "", root)) == [root]


def test_the_least_limit_of_all_groups_counts(groups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, limit in (("", "max"), ("user", "5000000"), ("user/session", "9000000")):
        place = tmp_path / "root" / folder
        place.mkdir()
        (place / "memory.max").write_text(limit)
        (place / "memory.current").write_text("2000000")
        (place / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    files = ("memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr(module, "_GROUPS", (("", str(tmp_path / "root"), *files),))
    assert free_memory(groups) == 5_000_000 - 1_500_000
