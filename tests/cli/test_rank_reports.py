"""How a rank that ends reports why: the failure that comes from a peer's never hides the peer's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from beitcli.cli import multi_process
from beitcli.cli.console import CommandConsole
from beitcli.cli.multi_process import ended
from beitcli.errors import BeitError, DataError, MemoryShortage
from beitcli.runtime.distributed.failure_reports import as_error, first_cause, read_failures, write_failure
from beitcli.runtime.distributed.rank_env import RankInfo
from beitcli.runtime.shortages import shortage
from tests.helpers.forked import Child


def test_a_lost_peer_that_sounds_like_a_shortage_does_not_hide_the_peer_s_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEIT_LAUNCH", str(tmp_path))
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer: out of memory")
    named = shortage(lost)
    assert named is not None
    write_failure(str(tmp_path), 1, 0, DataError("Image 3 is gone."), is_peer_failure=False)
    ended(RankInfo(0, 2, 0, 2, "127.0.0.1", 1), named, CommandConsole(debug=False))
    reports = read_failures(str(tmp_path))
    assert {each.rank: each.is_peer_failure for each in reports} == {0: True, 1: False}
    assert first_cause(reports, [], 2).message == "Image 3 is gone."


@pytest.mark.parametrize(("error", "leaves"), [(MemoryShortage("Full.", "Give less."), True), (DataError("x"), False)])
def test_a_rank_out_of_memory_does_not_wait_long_for_peers_that_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BeitError, leaves: bool
) -> None:
    monkeypatch.setenv("BEIT_LAUNCH", str(tmp_path))
    monkeypatch.setattr(multi_process, "_LEAVE_SECONDS", 3600.0)
    monkeypatch.setattr(multi_process, "_LEAVE_BLOCKED_SECONDS", 0.2)
    place = RankInfo(0, 2, 0, 2, "127.0.0.1", 1)
    child = Child(lambda: ended(place, error, CommandConsole(debug=False)))
    if not leaves:  # its peers meet the same error, and report it
        write_failure(str(tmp_path), 1, 0, error, is_peer_failure=False)
    assert child.ended(30).code == (error.exit_code if leaves else 0)
    assert as_error(first_cause(read_failures(str(tmp_path)), [], 2), 2).exit_code == error.exit_code
