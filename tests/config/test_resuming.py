"""The command that goes on with a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from beitcli.cli.options import _resume_hint
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resuming import resuming_words

_CASES = [
    ({}, []),
    ({"gpus": 1, "device": "cpu", "workers": 0}, ["--device", "cpu", "--workers", "0"]),
    ({"gpus": 1, "device": "auto", "workers": -1, "max_restarts": 3}, []),  # the defaults
    ({"gpus": "1", "workers": "-1", "nodes": "1"}, []),  # words of a command line
    ({"gpus": "2", "nodes": "2"}, ["--gpus", "2", "--nodes", "2", "--rdzv-endpoint", "HOST:PORT"]),
    ({"shard": True, "in_memory": True, "gpus": "2"}, ["--gpus", "2", "--shard", "--in-memory"]),
    ({"shard": False, "in_memory": False}, []),
    ({"gpus": 2}, ["--gpus", "2"]),
    ({"gpus": 2, "device": "auto"}, ["--gpus", "2"]),
    ({"gpus": 2, "device": "cpu"}, ["--device", "cpu", "--gpus", "2"]),
    ({"process_timeout": 60, "max_restarts": 0}, ["--process-timeout", "60", "--max-restarts", "0"]),
    ({"gpus": 16, "nodes": 2}, ["--gpus", "16", "--nodes", "2", "--rdzv-endpoint", "HOST:PORT"]),
    ({"nodes": 2, "rdzv_endpoint": "a:1"}, ["--nodes", "2", "--rdzv-endpoint", "a:1"]),
    ({"token_cache": "c", "steps": 3}, ["--token-cache", "c"]),
]


@pytest.mark.parametrize(("settings", "words"), _CASES)
def test_what_the_run_does_not_store_is_given_again(settings, words):
    assert resuming_words(PretrainConfig, "r", settings) == ["beit", "pretrain", "--out", "r", "--resume", *words]


def test_a_stop_before_the_run_is_opened_names_the_same_command(tmp_path: Path):
    assert _resume_hint(PretrainConfig, {"out": str(tmp_path)}).startswith("Nothing was begun")
    (tmp_path / "config.toml").touch()
    hint = _resume_hint(PretrainConfig, {"out": str(tmp_path), "gpus": 2, "device": "cpu", "steps": 3})
    assert hint.endswith(f"beit pretrain --out {tmp_path} --resume --device cpu --gpus 2")
