"""Run folders: what may be opened, what is refused, and metrics rewound to a checkpoint."""

from __future__ import annotations

import json

import pytest

from beitcli.errors import StorageError, UsageError
from beitcli.runtime.run_folder import RunFolder


def test_a_new_or_empty_folder_is_made(tmp_path):
    run = RunFolder.create(tmp_path / "deep" / "run", resume=False)
    assert list(run.path.iterdir()) == []
    assert RunFolder.create(run.path, resume=False).path == run.path
    assert run.checkpoints == run.path / "checkpoints"


def test_a_folder_that_holds_something_is_refused_and_untouched(tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(UsageError, match="not empty") as caught:
        RunFolder.create(tmp_path, resume=False)
    assert "--resume" in caught.value.hint
    with pytest.raises(UsageError, match="holds no run"):
        RunFolder.create(tmp_path, resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_run_is_opened_again_only_to_resume(tmp_path):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UsageError):
        RunFolder.create(tmp_path, resume=False)
    assert RunFolder.create(tmp_path, resume=True).path == tmp_path
    assert RunFolder.create(tmp_path / "new", resume=True).path.is_dir()


def test_a_file_in_the_way_is_a_usage_error_and_an_impossible_place_a_storage_error(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder.create(file, resume=False)
    with pytest.raises(StorageError, match="cannot be written"):
        RunFolder.create(file / "below", resume=False)
    with pytest.raises(StorageError, match="cannot be written"):
        RunFolder.create(tmp_path / ("n" * 300), resume=False)


def test_text_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    run = RunFolder.create(tmp_path / "run", resume=False)
    run.write_text("README.md", "first")
    run.write_text("README.md", "second")
    assert (run.path / "README.md").read_text() == "second"
    assert [entry.name for entry in run.path.iterdir()] == ["README.md"]


def test_what_cannot_be_written_is_a_storage_error(tmp_path):
    run = RunFolder.create(tmp_path / "run", resume=False)
    (run.path / "README.md").mkdir()
    with pytest.raises(StorageError, match=r"README\.md"):
        run.write_text("README.md", "text")
    with pytest.raises(StorageError, match=r"README\.md"):
        run.append_json("README.md", {})
    assert [entry.name for entry in run.path.iterdir()] == ["README.md"]


def test_rewound_metrics_drop_later_and_unfinished_lines(tmp_path):
    run = RunFolder.create(tmp_path / "run", resume=False)
    run.rewind_metrics(5)
    assert not (run.path / "metrics.jsonl").exists()
    for step in (2, 4, 6):
        run.append_json("metrics.jsonl", {"step": step, "loss": step / 2})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    run.rewind_metrics(4)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}]
    run.append_json("metrics.jsonl", {"step": 6})
    assert (run.path / "metrics.jsonl").read_text().endswith('"loss": 2.0}\n{"step": 6}\n')


@pytest.mark.parametrize("line", ["12", "null", "[1, 2]", '{"loss": 1}', '{"step": null}'])
def test_rewound_metrics_drop_lines_that_are_no_metrics(tmp_path, line):
    run = RunFolder.create(tmp_path / "run", resume=False)
    run.append_json("metrics.jsonl", {"step": 1})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    run.rewind_metrics(4)
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_rewound_metrics_drop_a_line_of_broken_bytes(tmp_path):
    run = RunFolder.create(tmp_path / "run", resume=False)
    (run.path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\x00\xfe\n')
    run.rewind_metrics(4)
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 1}\n'
