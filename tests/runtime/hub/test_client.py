import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from beitcli.errors import StorageError, UsageError
from beitcli.runtime.hub.client import cache_folder, cached_file, fetch, list_files
from tests.helpers.hub_server import HubServer

REPO = "owner/name"
CONFIG = b'{"model_type": "beit"}'
WEIGHTS = bytes(range(256)) * 1600  # 409,600 bytes: more than one read of a socket
HASH = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer({REPO: {"config.json": CONFIG, "model.safetensors": WEIGHTS}}) as server:
        server.use(monkeypatch, tmp_path / "cache")
        yield server


def got(name: str = "model.safetensors", **options: Any) -> Path:
    found = fetch(REPO, [name], **options)
    assert found is not None
    return found


def blobs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache/hub/models--owner--name/blobs").iterdir())


def methods(server: HubServer) -> list[str]:
    return [request.method for request in server.requests]


# --- what is fetched, and how often


def test_fetch_downloads_a_file_once(server, tmp_path):
    first = got()
    assert first.read_bytes() == WEIGHTS
    assert methods(server) == ["HEAD", "HEAD", "GET"]
    assert fetch(REPO, ["model.safetensors"]) == first
    assert methods(server) == ["HEAD", "HEAD", "GET", "HEAD"]
    assert blobs(tmp_path) == [HASH]


def test_fetch_takes_the_first_name_that_the_repository_has(server):
    found = fetch(REPO, ["pytorch_model.bin", "config.json", "model.safetensors"])
    assert found is not None
    assert found.read_bytes() == CONFIG
    assert [request.file for request in server.bodies()] == ["config.json"]


def test_fetch_of_an_optional_file_is_none_where_there_is_none(server):
    assert fetch(REPO, ["preprocessor_config.json"], optional=True) is None


def test_fetch_of_a_commit_in_the_cache_asks_nobody(server):
    commit = server.commit(REPO)
    first = fetch(REPO, ["model.safetensors"], revision=commit)
    server.requests.clear()
    assert fetch(REPO, ["model.safetensors"], revision=commit) == first
    assert server.requests == []


def test_fetch_follows_the_branch_and_reuses_what_did_not_change(server):
    old = got()
    server.repos[REPO]["config.json"] = b"{}"
    server.requests.clear()
    new = got()
    assert new != old
    assert new.samefile(old)
    assert methods(server) == ["HEAD", "HEAD"]


def test_fetch_finds_what_the_hub_client_downloaded_and_the_other_way_round(server, tmp_path):
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cache = tmp_path / "cache" / "hub"
    theirs = hf_hub_download(REPO, "config.json", cache_dir=cache, endpoint=server.url)
    server.requests.clear()
    assert str(fetch(REPO, ["config.json"])) == theirs
    assert methods(server) == ["HEAD"]
    ours = fetch(REPO, ["model.safetensors"])
    assert try_to_load_from_cache(REPO, "model.safetensors", cache_dir=cache) == str(ours)


def test_fetch_sends_the_token(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    fetch(REPO, ["model.safetensors"])
    assert [request.token for request in server.requests] == ["Bearer hf_abc"] * 3


def test_two_fetches_at_once_download_once(server):
    found: list[Path | None] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(REPO, ["model.safetensors"]))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 3
    assert len(server.bodies()) == 1


def test_an_empty_file_is_fetched(server):
    server.repos[REPO]["empty.txt"] = b""
    assert got("empty.txt").read_bytes() == b""


# --- progress and broken connections


def test_progress_counts_up_to_the_size(server, capfd):
    seen: list[tuple[str, int, int]] = []
    fetch(REPO, ["model.safetensors"], on_progress=lambda *told: seen.append(told))
    assert {(what, total) for what, _, total in seen} == {(f"{REPO}/model.safetensors", len(WEIGHTS))}
    done = [done for _, done, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == len(WEIGHTS)
    fetch(REPO, ["model.safetensors"], on_progress=lambda *told: seen.append(told))
    assert len(seen) == len(done)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def small_reads(monkeypatch):
    """huggingface_hub writes pieces of so many bytes; a broken connection loses the piece that it breaks."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)


def test_a_broken_connection_is_taken_up_again(server, small_reads):
    server.cut_after = 150_000
    seen: list[int] = []
    assert got(on_progress=lambda _, done, total: seen.append(done)).read_bytes() == WEIGHTS
    assert [request.range for request in server.bodies()] == ["", "bytes=150000-", "bytes=300000-"]
    assert seen == [*range(10_000, 409_600, 10_000), 409_600]


def test_a_download_that_is_cut_off_leaves_nothing_and_succeeds_later(server, tmp_path, small_reads):
    server.cut_after = 100_000

    def lose_the_line(what: str, done: int, total: int) -> None:
        server.cut_after = 0

    with pytest.raises(StorageError, match=r"cut off at 100,000 of 409,600 bytes: .*closed") as failure:
        fetch(REPO, ["model.safetensors"], on_progress=lose_the_line)
    assert "run again" in failure.value.hint
    assert failure.value.exit_code == 4
    assert blobs(tmp_path) == []
    server.cut_after = None
    seen: list[int] = []
    found = got(on_progress=lambda _, done, total: seen.append(done))
    assert found.read_bytes() == WEIGHTS
    assert seen[-1] == len(WEIGHTS)
    assert blobs(tmp_path) == [HASH]


def test_an_interrupted_download_leaves_nothing_and_succeeds_later(server, tmp_path):
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(REPO, ["model.safetensors"], on_progress=interrupt)
    assert blobs(tmp_path) == []
    assert got().read_bytes() == WEIGHTS
    assert blobs(tmp_path) == [HASH]


def test_a_server_without_ranges_sends_the_whole_file_again(server, small_reads):
    server.ranges, server.cut_after, server.cuts = False, 150_000, 1
    seen: list[int] = []
    assert got(on_progress=lambda _, done, total: seen.append(done)).read_bytes() == WEIGHTS
    assert [request.range for request in server.bodies()] == ["", "bytes=150000-"]
    assert server.sent == [150_000, len(WEIGHTS)]
    assert seen[-1] == len(WEIGHTS)


@pytest.mark.parametrize("left", [WEIGHTS[:1000], WEIGHTS + b"more"], ids=["part", "too-long"])
def test_what_a_killed_process_left_does_not_get_into_the_file(server, tmp_path, left):
    folder = tmp_path / "cache/hub/models--owner--name/blobs"
    folder.mkdir(parents=True)
    (folder / f"{HASH}.incomplete").write_bytes(left)
    assert got().read_bytes() == WEIGHTS
    assert [request.range for request in server.bodies()] == [""]


# --- Xet


@pytest.fixture
def xet(server):
    pytest.importorskip("hf_xet")
    server.xet = True
    return server


def test_large_files_come_over_xet(xet, tmp_path, capfd):
    seen: list[tuple[str, int, int]] = []
    found = got(on_progress=lambda *told: seen.append(told))
    assert found.read_bytes() == WEIGHTS
    assert blobs(tmp_path) == [HASH]
    assert {request.file.rpartition("/")[0] for request in xet.bodies()} >= {"/xet", "/xet/v1/reconstructions"}
    assert "model.safetensors" not in {request.file for request in xet.bodies()}
    assert {(what, total) for what, _, total in seen} == {(f"{REPO}/model.safetensors", len(WEIGHTS))}
    done = [done for _, done, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == len(WEIGHTS)
    assert capfd.readouterr() == ("", "")


def test_what_xet_brings_is_checked_too(xet, tmp_path):
    xet.lie = True
    with pytest.raises(StorageError, match="came in damaged"):
        got()
    assert blobs(tmp_path) == []


def test_a_xet_store_that_lacks_the_file_is_told(xet, tmp_path):
    xet.headers = {"X-Xet-Hash": "a" * 64}
    with pytest.raises(StorageError, match=r"cut off at 0 of 409,600 bytes") as failure:
        got()
    assert "HF_HUB_DISABLE_XET" in failure.value.hint
    assert blobs(tmp_path) == []


# --- content


def test_a_file_of_another_hash_is_refused_and_removed(server, tmp_path):
    server.lie = True
    with pytest.raises(StorageError) as failure:
        fetch(REPO, ["model.safetensors"])
    lied = hashlib.sha256(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])).hexdigest()
    assert HASH[:12] in failure.value.message
    assert lied[:12] in failure.value.message
    assert blobs(tmp_path) == []
    server.lie = False
    assert got().read_bytes() == WEIGHTS


def test_a_cached_file_is_not_hashed_again(server):
    found = got()
    found.resolve().write_bytes(b"changed by its owner")
    assert fetch(REPO, ["model.safetensors"]) == found


@pytest.mark.parametrize("mark", ["../../../outside", "a/b", None], ids=["up", "slash", "none"])
def test_an_etag_that_is_no_hash_writes_nothing(server, tmp_path, mark):
    server.headers = {"X-Linked-Etag": mark, "ETag": mark}
    with pytest.raises(StorageError, match="does not answer as a model hub"):
        fetch(REPO, ["model.safetensors"])
    assert not (tmp_path / "cache").exists()


def test_a_file_larger_than_the_disk_is_not_begun(server):
    server.headers = {"X-Linked-Size": str(10**18)}
    with pytest.raises(StorageError, match=r"needs 1,000,000,000,000,000,000 bytes") as failure:
        fetch(REPO, ["model.safetensors"])
    assert "BEIT_CACHE_DIR" in failure.value.hint
    assert server.bodies() == []


def test_a_size_that_the_body_never_has_ends(server):
    server.headers = {"X-Linked-Size": "500000"}
    with pytest.raises(StorageError, match=r"of 500,000 bytes"):
        fetch(REPO, ["model.safetensors"])


# --- offline, and hubs that refuse


def test_offline_uses_the_cache(server, monkeypatch):
    found = fetch(REPO, ["model.safetensors"])
    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(REPO, ["pytorch_model.bin", "model.safetensors"]) == found
    assert fetch(REPO, ["preprocessor_config.json"], optional=True) is None
    assert server.requests == []


@pytest.mark.parametrize("optional", [False, True])
def test_offline_without_a_copy_says_what_is_missing(server, monkeypatch, optional):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StorageError, match=r"'model.safetensors' of 'owner/name' is not in the cache") as failure:
        fetch(REPO, ["model.safetensors"], optional=optional)
    assert "Unset HF_HUB_OFFLINE" in failure.value.hint
    assert failure.value.exit_code == 4


def test_without_network_the_cache_answers(server, monkeypatch):
    found = fetch(REPO, ["model.safetensors"])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens at `discard`
    assert fetch(REPO, ["model.safetensors"]) == found
    assert fetch(REPO, ["preprocessor_config.json"], optional=True) is None


def test_without_network_or_copy_the_address_and_the_mirror_are_named(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"http://127.0.0.1:9 cannot be reached") as failure:
        fetch(REPO, ["model.safetensors"], optional=True)
    assert "HF_ENDPOINT" in failure.value.hint
    assert "folder" in failure.value.hint


def test_a_missing_repository_is_named(server):
    with pytest.raises(StorageError, match="no model repository 'owner/nmae'") as failure:
        fetch("owner/nmae", ["config.json"], optional=True)
    assert "HF_TOKEN" in failure.value.hint


def test_a_gated_repository_says_where_its_terms_are(server):
    server.gated = {REPO}
    with pytest.raises(StorageError, match="gated") as failure:
        fetch(REPO, ["config.json"])
    assert f"{server.url}/{REPO}" in failure.value.hint


def test_missing_files_are_all_named(server):
    with pytest.raises(StorageError, match=r"has no file 'a.bin' or 'b.bin'"):
        fetch(REPO, ["a.bin", "b.bin"])


def test_a_missing_revision_is_named(server):
    with pytest.raises(StorageError, match="no revision 'v9'"):
        fetch(REPO, ["config.json"], revision="v9", optional=True)


@pytest.mark.parametrize(("status", "way"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (429, "Wait"), (503, "later")])
def test_other_refusals_name_their_status_or_the_token(server, status, way):
    server.status = status
    with pytest.raises(StorageError) as failure:
        fetch(REPO, ["config.json"])
    assert way in failure.value.hint
    assert str(status) in failure.value.message or status == 401


@pytest.mark.parametrize("repo", ["a", "a/b/c", "../x", "", "a/", "/etc/passwd", "a b/c", "a/b\n"])
def test_what_is_no_repository_is_refused(server, repo):
    with pytest.raises(UsageError, match="no model repository"):
        fetch(repo, ["config.json"])
    assert server.requests == []


@pytest.mark.parametrize("endpoint", ["mirror", "http://[bad", "ftp://mirror", "https://mirror:x", "https://a b"])
def test_an_endpoint_that_is_no_address_is_refused(server, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        fetch(REPO, ["config.json"])


def test_a_cache_that_cannot_be_written_is_named(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot be kept in") as failure:
        fetch(REPO, ["config.json"])
    assert "BEIT_CACHE_DIR" in failure.value.hint


# --- where the cache is


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"BEIT_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"BEIT_CACHE_DIR": "", "XDG_CACHE_HOME": "/c"}, "/c/beit"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/u"}, "/home/u/.cache/beit"),
        ({"BEIT_CACHE_DIR": "~/kept", "HOME": "/home/u"}, "/home/u/kept"),
    ],
)
def test_cache_folder_follows_the_environment_of_the_moment(monkeypatch, environment, expected):
    for name in ("BEIT_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_without_a_cache_of_ours_the_one_of_the_hub_is_used(server, tmp_path):
    script = f"from beitcli.runtime.hub.client import fetch; print(fetch({REPO!r}, ['config.json']))"
    environment = {name: value for name, value in os.environ.items() if name not in ("BEIT_CACHE_DIR", "HF_HUB_CACHE")}
    environment |= {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home" / "hub" / "models--owner--name" / "snapshots")


# --- names that climb out of the cache


@pytest.mark.parametrize(
    "revision",
    [
        "../../../../home/precious.txt",
        "..",
        "a/../../b",
        "/etc/passwd",
        "a\\..\\b",
        "main/",
        "a//b",
        ".hidden",
        "a\nb",
        "-x",
    ],
)
def test_a_revision_that_climbs_out_of_the_cache_is_refused(server, tmp_path, revision):
    precious = tmp_path / "home" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(UsageError, match="is no revision"):
        got(revision=revision)
    with pytest.raises(UsageError, match="is no revision"):
        list_files(f"datasets/{REPO}", revision=revision)
    assert server.requests == []
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "refs/convert/parquet", "feature/a_b-c+d"])
def test_names_of_branches_and_tags_are_revisions(server, revision):
    with pytest.raises(StorageError, match=r"has no revision|cannot be|no file"):
        fetch(REPO, ["none.bin"], revision=revision)
    assert server.requests


_CLIMBING = ["../x.json", "/x.json", "a/../../x", "a//b", "a\\b", "", "./x", "a\0b", "d:x", "a/C:/b"]


@pytest.mark.parametrize("name", _CLIMBING)
def test_a_file_name_that_climbs_out_is_refused(server, name):
    with pytest.raises(StorageError, match="leads out of its folder"):
        fetch(REPO, [name])
    with pytest.raises(StorageError, match="leads out of its folder"):
        cached_file(REPO, name, "main")
    assert server.requests == []
