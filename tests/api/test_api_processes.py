"""A script that several processes run, as under torchrun: its jobs share the work, and the first process speaks."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from beitcli.api.call import event_handler
from beitcli.errors import DataError
from beitcli.runtime.distributed.world import join
from tests.helpers.processes import free_port, in_group

SCRIPT = """
import json, sys
import beitcli

data, run = sys.argv[1:]
quick = {"device": "cpu", "workers": 0}
small = {"recipe": "tiny", "vocab_size": 16, "size": 16, "width": 8, "steps": 2, "batch_size": 8}
report = beitcli.train_tokenizer(data, out=run, **quick, **small)
documents = list(beitcli.tokenize(data, tokenizer=run, stats=True, **quick))
print(json.dumps({"psnr": report.psnr, "images": [each["images"] for each in documents]}))
"""


def test_jobs_of_a_script_share_the_work_of_two_processes(labelled_folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(labelled_folder), str(tmp_path / "run")]
    started = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ended = [process.communicate(timeout=180) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ended
    (first, second) = (json.loads(out) for out, _ in ended)
    assert first["psnr"] == second["psnr"]
    assert (first["images"], second["images"]) == ([24], [])  # the first process tells for all
    assert "2 x cpu" in ended[0][1]
    assert "Data:" not in ended[1][1]


@pytest.mark.parametrize(
    ("failures", "script_fails", "stays"),
    [((False,), False, False), ((True,), False, True), ((True, False), False, False), ((False,), True, True)],
)
def test_a_script_leaves_the_process_group_at_its_end_unless_it_has_failed(
    failures: tuple[bool, ...], script_fails: bool, stays: bool
) -> None:
    """NCCL would wait there for peers that are blocked."""

    def job(fails: bool) -> None:
        with event_handler(False, print):
            if fails:
                raise DataError("No images.", "Give some.")

    def work(rank: int) -> None:
        atexit._clear()  # what pytest has registered
        world = join(torch.device("cpu"), 2, 60)
        for fails in failures:
            with suppress(DataError):
                job(fails)
        if script_fails:
            sys.last_value = ValueError()  # as Python does
        world.gather(None)
        atexit._run_exitfuncs()
        assert dist.is_initialized() == stays

    assert [(each.code, each.err) for each in in_group(2, work)] == [(0, "")] * 2
