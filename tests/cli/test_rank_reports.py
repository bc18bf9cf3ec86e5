"""How a rank that ends reports why: the failure that comes from a peer's never hides the peer's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from beitcli.cli.console import CommandConsole
from beitcli.cli.multi_process import ended
from beitcli.errors import DataError
from beitcli.runtime.distributed.failure_reports import first_cause, read_failures, write_failure
from beitcli.runtime.distributed.rank_env import RankInfo
from beitcli.runtime.shortages import shortage


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
    assert first_cause(reports, {}, 2).message == "Image 3 is gone."
