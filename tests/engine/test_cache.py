"""`cache`: what lies there by kind, size and last use; prunes what is asked for, and nothing that is in use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beitcli.cli.app import main
from beitcli.data.caches.feature_cache import FeatureWriter
from beitcli.data.caches.feature_note import note_of
from beitcli.data.sources.index_cache import save_index
from tests.cli.test_contract import at_terminal

DAY = 86400
OLD, NEW = f"features/{'a' * 32}", f"features/{'b' * 32}"
STREAM, INDEX = f"streams/{'c' * 32}", f"indexes/tar-{'d' * 32}"
ENTRIES = {  # name: kind, bytes, days since its last use
    OLD: ("features", 3000, 40),
    NEW: ("features", 100, 1),
    STREAM: ("streams", 2000, 10),
    INDEX: ("indexes", 50, 50),
    "dall-e/encoder.safetensors": ("downloads", 4000, 3),
}
FOLDERS = ("features", "streams")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("beitcli.engine.cache._JUST_CHANGED", 0.0)  # the files of a test are all new
    for name, (_, size, days) in ENTRIES.items():
        path = tmp_path / "cache" / name
        file = path / "0-100" if name.startswith(FOLDERS) else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
        then = time.time() - days * DAY
        os.utime(file, (then, then))
    (tmp_path / "cache" / "streams" / ".locks").mkdir()
    (tmp_path / "cache" / "of-another-program").write_text("kept")
    (tmp_path / "cache" / "features" / "my-own").mkdir()
    (tmp_path / "cache" / "features" / "my-own" / "notes.txt").write_text("kept")
    return tmp_path / "cache"


def names(cache: Path) -> set[str]:
    return {name for name in ENTRIES if (cache / name).exists()}


def test_list_names_each_entry_with_kind_size_and_last_use(beit: Callable, cache: Path) -> None:
    (told,) = beit("cache", "list").lines
    assert (told["folder"], told["bytes"]) == (str(cache), 9150)
    assert [(each["name"], each["kind"], each["bytes"]) for each in told["entries"]] == [
        (name, kind, size) for name, (kind, size, _) in sorted(ENTRIES.items(), key=lambda pair: -pair[1][1])
    ]
    for each in told["entries"]:
        assert time.time() - each["used"] == pytest.approx(ENTRIES[each["name"]][2] * DAY, abs=100)
    assert beit("cache").lines == [told]
    assert beit("cache", "dir").out == f"{cache}\n"


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (
            ["--older-than", "30d"],
            {OLD, INDEX},
        ),
        (["--older-than", "2w", "--kind", "features"], {OLD}),
        (
            ["--larger-than", "1.5k"],
            {
                OLD,
                STREAM,
                "dall-e/encoder.safetensors",
            },
        ),
        (
            ["--larger-than", "1kB", "--kind", "features,streams"],
            {OLD, STREAM},
        ),
        (["--kind", "downloads"], {"dall-e/encoder.safetensors"}),
        (["--all"], set(ENTRIES)),
    ],
    ids=lambda each: " ".join(sorted(each)),
)
def test_prune_removes_what_is_asked_for_alone(beit: Callable, cache: Path, words: list[str], gone: set[str]) -> None:
    (plan,) = beit("cache", "prune", *words, "--dry-run").lines
    assert names(cache) == set(ENTRIES)
    (told,) = beit("cache", "prune", *words).lines
    assert names(cache) == set(ENTRIES) - gone
    assert {each["name"] for each in told["removed"]} == {each["name"] for each in plan["removed"]} == gone
    assert told["freed"] == sum(ENTRIES[name][1] for name in gone)
    assert (plan["dry_run"], told["dry_run"], told["in_use"]) == (True, False, [])
    assert (cache / "of-another-program").exists()
    assert (cache / "streams" / ".locks").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells which files are open")
def test_prune_leaves_what_a_process_has_open_or_has_just_changed(
    beit: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    held = cache / OLD / "0-100"
    with subprocess.Popen(
        [sys.executable, "-c", program, held], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (told,) = beit("cache", "prune", "--kind", "features").lines
        process.communicate(b"")
    assert [each["name"] for each in told["in_use"]] == [OLD]
    assert [each["name"] for each in told["removed"]] == [NEW]
    monkeypatch.setattr("beitcli.engine.cache._JUST_CHANGED", 60.0)
    (told,) = beit("cache", "prune", "--all").lines
    assert told["removed"] == []
    assert held.exists()


def test_prune_removes_a_link_and_not_what_it_points_to(beit: Callable, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("kept")
    link = cache / "features" / ("e" * 32)
    link.symlink_to(tmp_path / "elsewhere")
    beit("cache", "prune", "--all")
    assert not link.is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_text() == "kept"
    assert (cache / "features" / "my-own" / "notes.txt").read_text() == "kept"


def test_an_empty_cache_is_no_error(beit: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "none"))
    assert beit("cache").lines == [{"folder": str(tmp_path / "none"), "bytes": 0, "kinds": {}, "entries": []}]
    assert beit("cache", "prune", "--all").lines[0]["removed"] == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune"], "is not told what to remove"),
        (["prnue"], "Did you mean 'prune'?"),
        (["prune", "--older-than", "month"], "--older-than is 'month'"),
        (["list", "--larger-than", "big"], "--larger-than is 'big'"),
        (["list", "--kind", "feature"], "Did you mean 'features'?"),
    ],
    ids=str,
)
def test_cache_refuses_what_it_does_not_understand(beit: Callable, cache: Path, words: list[str], said: str) -> None:
    ended = beit("cache", *words)
    assert ended.code == 2
    assert said in ended.err
    assert names(cache) == set(ENTRIES)


def test_cache_needs_no_torch(cache: Path) -> None:
    program = (
        "import sys; from beitcli.cli.app import main\n"
        "assert not any([main(['cache', each]) for each in ('list', 'dir')])\n"
        "assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["bytes"] == 9150


def test_list_adds_up_each_kind(beit: Callable, cache: Path) -> None:
    (told,) = beit("cache", "list").lines
    assert told["kinds"] == {
        "downloads": {"entries": 1, "bytes": 4000},
        "features": {"entries": 2, "bytes": 3100},
        "streams": {"entries": 1, "bytes": 2000},
        "indexes": {"entries": 1, "bytes": 50},
    }
    (some,) = beit("cache", "list", "--kind", "features").lines
    assert list(some["kinds"]) == ["features"]
    code, said = at_terminal(lambda: main(["cache", "list"]))
    assert code == 0
    assert re.search(r"^features +2 +3\.1 kB", said, re.MULTILINE)


def test_features_say_whose_they_are(beit: Callable, cache: Path) -> None:
    about = {"images": 1200, "weights": "00"}
    with FeatureWriter(cache / "features", about, [1], 2, 3, note_of("runs/mine", "photos/", 2)) as writer:
        writer.add(np.ones((1, 2, 3), np.float32), np.zeros(2, np.int64), [0, 1], [])
        writer.finish()
    (cache / OLD / "about.json").write_text(json.dumps({"about": about}))  # of an earlier version
    (cache / NEW / "about.json").write_text("[" * 100_000)
    (told,) = beit("cache", "list", "--kind", "features").lines
    found = {each["name"]: each["of"] for each in told["entries"]}
    assert (found.pop(OLD), found.pop(NEW)) == ("1,200 images", "")
    assert list(found.values()) == ["runs/mine, 2 images of photos/"]


@pytest.mark.skipif(not hasattr(os, "O_NOATIME"), reason="to read a file here is to use it")
def test_measurements_of_the_processor_say_of_what_model(beit: Callable, cache: Path) -> None:
    folder, then = cache / "arithmetic", time.time() - 40 * DAY
    folder.mkdir()
    about = {"threads": 2, "shape": {"images": 32, "length": 65, "width": 192, "heads": 3, "hidden": 768}}
    for name, text in (("a" * 32, json.dumps({"about": about})), ("b" * 32, '{"about": {"shape": 3}}')):
        (folder / f"{name}.json").write_text(text)
        os.utime(folder / f"{name}.json", (then, then))
    for _ in range(2):
        (told,) = beit("cache", "list", "--kind", "arithmetic").lines
        assert sorted(each["of"] for each in told["entries"]) == ["", "width 192, 65 tokens, 32 images, 2 threads"]
        assert all(each["used"] < then + DAY for each in told["entries"])


def test_list_makes_no_features_look_used(beit: Callable, cache: Path) -> None:
    about, then = cache / OLD / "about.json", time.time() - 40 * DAY
    about.write_text(json.dumps({"of": "runs/mine, 2 images of photos/"}))
    os.utime(about, (then, then))
    for _ in range(2):
        (told,) = beit("cache", "list", "--kind", "features").lines
        assert {each["name"]: each["used"] < then + DAY for each in told["entries"]}[OLD]
    os.utime(about, (time.time(), then))  # read, as a disk that notes each reading has it
    (pruned,) = beit("cache", "prune", "--older-than", "30d", "--kind", "features").lines
    assert [each["name"] for each in pruned["removed"]] == [OLD]


def test_rows_of_a_narrow_terminal_hold_each_entry_whole(cache: Path) -> None:
    def listed() -> list[str]:
        code, said = at_terminal(lambda: main(["cache", "list"]), COLUMNS="80")
        assert code == 0
        return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in said.splitlines()]

    assert not any(re.match(r"kind .* of$", line) for line in listed())
    (cache / OLD / "about.json").write_text(json.dumps({"of": f"runs/{'m' * 40}, 1,200 images of photos/"}))
    twin = cache / "features" / ("a" * 9 + "b" * 23)
    twin.mkdir()
    (twin / "0-100").write_bytes(b"0")
    lines = listed()
    assert max(map(len, lines[:-1])) <= 80  # the last names the folder
    found = [line.split()[1] for line in lines if line.startswith(("features", "streams"))]
    assert "dall-e/encoder.safetensors" in " ".join(lines)
    assert {f"features/{'a' * 10}", f"features/{'a' * 9}b", f"streams/{'c' * 10}"} <= set(found)


@pytest.mark.skipif(not hasattr(os, "O_NOATIME"), reason="to read a file here is to use it")
def test_indexes_say_which_data_they_are_of(beit: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    about = {"version": 1}
    folder = tmp_path / "cache" / "indexes"
    for name, of in (("folder-" + "a" * 32, tmp_path / "photos"), ("tar-" + "b" * 32, "")):
        save_index(folder / name, about, {"names": np.arange(3)}, str(of))
        os.utime(folder / name, (time.time() - 40 * DAY,) * 2)
    told = {each["name"].partition("-")[0]: each["of"] for each in beit("cache").lines[0]["entries"]}
    assert told == {"indexes/folder": str(tmp_path / "photos"), "indexes/tar": ""}
    _, shown = at_terminal(lambda: main(["cache", "list"]), COLUMNS="200")
    assert str(tmp_path / "photos") in shown
    (planned,) = beit("cache", "prune", "--older-than", "30d", "--dry-run").lines  # to list them is not to use them
    assert len(planned["removed"] + planned["in_use"]) == 2
