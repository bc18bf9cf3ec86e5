"""Data sets on the hub: which files are taken, that they come once, and what is said where they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import open_data
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.runtime.hub.client import list_files
from tests.helpers.hub_server import HubServer

REPO = "datasets/owner/name"
REFERENCE = f"hf://{REPO}"


def rows(*shades: int) -> bytes:
    """A parquet file of small pictures; the class of an even shade is `even`."""
    images = []
    for shade in shades:
        file = BytesIO()
        Image.new("RGB", (8, 6), (shade, 0, 0)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    written = BytesIO()
    labels = ["odd" if shade % 2 else "even" for shade in shades]
    parquet.write_table(pa.table({"image": images, "label": labels}), written)
    return written.getvalue()


FILES = {
    "README.md": b"# pictures",
    "data/train-00000-of-00002.parquet": rows(0, 1, 2),
    "data/train-00001-of-00002.parquet": rows(3, 4),
    "data/validation-00000-of-00001.parquet": rows(5, 6),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer({REPO: FILES}) as server:
        server.use(monkeypatch, tmp_path / "cache")
        yield server


def shades(source: Source) -> list[int]:
    return [source.image(index).getpixel((0, 0))[0] for index in range(len(source))]


def test_hub_data_is_read_by_split(server: HubServer) -> None:
    source = open_data([REFERENCE], labelled=True)
    assert shades(source) == [0, 1, 2, 3, 4]
    assert (source.classes, source.label(1)) == (("even", "odd"), 1)
    assert source.path(4) == f"{REFERENCE}/data/train-00001-of-00002.parquet/1"
    assert source.name == REFERENCE
    assert shades(open_data([REFERENCE], role="eval")) == [5, 6]
    assert shades(open_data([REFERENCE], split="val")) == [5, 6]
    with pytest.raises(DataError, match="no split 'test': it has train, validation"):
        open_data([REFERENCE], split="test")


def test_hub_data_is_downloaded_once_and_only_what_is_wanted(server: HubServer) -> None:
    told: list[tuple[str, int, int, str]] = []
    open_data([REFERENCE], role="eval", on_progress=lambda *event: told.append(event))
    bodies = [request.file for request in server.bodies() if request.file]
    assert bodies == ["data/validation-00000-of-00001.parquet"]
    size = len(FILES[bodies[0]])
    assert told[-2:] == [("downloading owner/name", size, size, "byte"), ("opening parquet files", 1, 1, "file")]
    server.requests.clear()
    open_data([REFERENCE], role="eval")
    assert [(request.method, request.file) for request in server.requests] == [("GET", "")]


def test_hub_data_progress_counts_over_all_files(server: HubServer) -> None:
    told: list[tuple[int, int]] = []
    open_data(
        [REFERENCE], on_progress=lambda what, done, total, unit: told.append((done, total)) if unit == "byte" else None
    )
    total = sum(len(content) for name, content in FILES.items() if "train" in name)
    assert told[-1] == (total, total)
    assert {whole for _, whole in told} == {total}
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("away", ["offline", "down", "failing"])
def test_hub_data_in_the_cache_needs_no_hub(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, away: str
) -> None:
    first = open_data([REFERENCE])
    if away == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif away == "down":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        server.status = 503
    assert open_data([REFERENCE]).fingerprint() == first.fingerprint()
    with pytest.raises(StorageError, match=r"validation-00000-of-00001\.parquet|HTTP 503|cannot be reached"):
        open_data([REFERENCE], role="eval")
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "other"))
    with pytest.raises(StorageError, match=r"The list of files of '.*' is not in|HTTP 503|cannot be reached"):
        open_data([REFERENCE])


def test_hub_data_of_a_revision(server: HubServer) -> None:
    commit = server.commit(REPO)
    server.repos[REPO]["data/train-00000-of-00002.parquet"] = rows(100)
    assert shades(open_data([REFERENCE])) == [100, 3, 4]
    assert shades(open_data([f"{REFERENCE}@{server.commit(REPO)}"])) == [100, 3, 4]
    with pytest.raises(StorageError, match=f"no revision '{commit}'"):
        open_data([f"{REFERENCE}@{commit}"])


def test_hub_data_of_several_configurations(server: HubServer) -> None:
    server.repos[REPO] = {f"{name}/train/0000.parquet": rows(shade) for shade, name in enumerate(("big", "small"))}
    with pytest.raises(DataError, match="several configurations: big, small") as error:
        open_data([REFERENCE])
    assert error.value.hint == f"Name one: {REFERENCE}/big"
    assert shades(open_data([f"{REFERENCE}/small"])) == [1]
    server.repos[REPO]["default/train/0000.parquet"] = rows(7)
    assert shades(open_data([REFERENCE])) == [7]
    with pytest.raises(DataError, match="no parquet files below 'none'"):
        open_data([f"{REFERENCE}/none"])


def test_hub_data_in_another_form_is_read_from_its_conversion(server: HubServer) -> None:
    server.repos[REPO] = {"images.zip": b"PK"}
    with pytest.raises(DataError, match="no parquet files, and the hub keeps no conversion"):
        open_data([REFERENCE])
    server.repos["datasets/owner/converted"] = {"default/train/0000.parquet": rows(3, 1)}
    server.branches[REPO, "refs/convert/parquet"] = "datasets/owner/converted"
    assert shades(open_data([REFERENCE])) == [3, 1]


@pytest.mark.parametrize("reference", ["hf://owner/name", "hf://datasets/name", "hf://datasets/"])
def test_hub_reference_that_names_no_data_set_is_refused(reference: str) -> None:
    with pytest.raises(UsageError, match="is no data set on the hub"):
        open_data([reference])


def test_hub_data_that_is_not_there_says_so(server: HubServer) -> None:
    with pytest.raises(StorageError, match="no dataset repository 'owner/nmae'"):
        open_data(["hf://datasets/owner/nmae"])
    with pytest.raises(UsageError, match="is no dataset repository"):
        open_data(["hf://datasets/owner/na..me"])
    server.gated.add(REPO)
    with pytest.raises(StorageError, match="gated"):
        open_data([REFERENCE])


def test_hub_names_never_leave_the_cache(server: HubServer) -> None:
    names: dict[str, Any] = dict.fromkeys(["../../evil.parquet", "/evil.parquet", "a/../../evil.parquet"], b"x")
    server.repos[REPO] = {**FILES, **names}
    listing = list_files(REPO)
    assert listing is not None
    assert set(listing.sizes) == set(FILES)


def test_hub_answer_that_is_no_listing_is_told(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "commit", lambda repo: "no commit")
    with pytest.raises(StorageError, match="does not answer as a model hub"):
        open_data([REFERENCE])


def test_hub_data_and_files_concatenate(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(rows(9))
    assert shades(open_data([REFERENCE, str(tmp_path / "x.parquet")])) == [0, 1, 2, 3, 4, 9]
