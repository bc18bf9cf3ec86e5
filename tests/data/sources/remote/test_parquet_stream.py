"""Streams of data sets on the hub: what is fetched and when, the order of their images, and what breaks them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import Batch, ordered_batches, training_batches
from beitcli.data.loading.sampler import KeyedPermutation, WindowedPermutation, split_holdout, training_order
from beitcli.data.sources.formats.parquet import ParquetSource
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.remote.parquet_stream import StreamedParquet
from beitcli.data.sources.remote.prefetch import READ_AHEAD
from beitcli.data.sources.subset import Subset
from beitcli.data.transforms.base import CenterTransform
from beitcli.engine.events import Event
from beitcli.engine.pack.encoding import Encoding
from beitcli.engine.pack.plan import Packing, plan_shards
from beitcli.engine.pack.size import tell_size
from beitcli.errors import BadImage, DataError, StorageError, UsageError
from beitcli.runtime.hub import http_ranges as ranges
from tests.helpers.hub_server import HubServer

REPO = "datasets/owner/large"
REFERENCE = f"hf://{REPO}"
ROWS, GROUP, FILES = 160, 8, 2
SIZE = 80  # pixels a side; 19 kB an image, uncompressed


def noise(number: int) -> bytes:
    file = BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[0, 0] = number % 256, number // 256, 0
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Two files of 160 images each in groups of 8; the class is the image's number modulo 4."""
    made = {}
    for file in range(FILES):
        numbers = range(file * ROWS, (file + 1) * ROWS)
        images = [{"bytes": noise(number), "path": None} for number in numbers]
        written = BytesIO()
        table = pa.table({"image": images, "label": [str(number % 4) for number in numbers]})
        parquet.write_table(table, written, row_group_size=GROUP, compression="none")
        made[f"data/train-{file:05d}-of-{FILES:05d}.parquet"] = written.getvalue()
    return made


@pytest.fixture
def server(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setattr(ranges, "PAUSES", (0.0, 0.0, 0.0))
    with HubServer({REPO: files}) as server:
        server.use(monkeypatch, tmp_path / "cache")
        yield server


def opened() -> ParquetSource:
    """A stream whose window holds 5 of the 40 groups."""
    source = open_data([REFERENCE])
    assert isinstance(source, ParquetSource)
    assert all(isinstance(each, StreamedParquet) for each in source._files)
    source._blocks = type(source._blocks)(source._blocks.lengths, 5, True)
    return source


def number(source: ParquetSource, index: int) -> int:
    red, green, _ = source.image(index).getpixel((0, 0))
    return red + 256 * green


def batches(source: ParquetSource, workers: int = 0, seen: int = 0, steps: int = 12, **more) -> list[Batch]:
    """`steps` batches of 32: ten are an epoch."""
    part = StreamPart(seed=3, batch_size=32, images_seen=seen, steps=steps)
    return list(training_batches(source, CenterTransform(size=8), part, workers=workers, **more))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.indices == b.indices and a.bad == b.bad and torch.equal(a.tensors["images"], b.tensors["images"])
        for a, b in zip(first, second, strict=True)
    )


def test_opening_a_stream_reads_a_part_of_it(server: HubServer, files: dict[str, bytes]) -> None:
    source = opened()
    whole = sum(map(len, files.values()))
    assert len(source) == FILES * ROWS
    assert source.classes == ("0", "1", "2", "3")
    assert [source.label(index) for index in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert sum(server.sent) < whole / 20
    server.sent.clear()
    assert number(source, 171) == 171
    assert sum(server.sent) < 1.2 * whole / (len(source) / GROUP)


def test_a_stream_is_the_source_that_its_files_are(server: HubServer, tmp_path: Path) -> None:
    source = opened()
    for name, content in server.repos[REPO].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    local = open_data([str(tmp_path / "data")])
    assert [source.label(index) for index in range(len(source))] == [local.label(index) for index in range(len(local))]
    assert all(source.read(index) == local.read(index) for index in (0, 7, 8, 159, 160, 319))
    assert source.path(161) == f"{REFERENCE}/data/train-00001-of-00002.parquet/1"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_stream_are_the_same_whoever_reads_and_wherever_it_begins(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int
) -> None:
    whole = batches(opened(), workers)
    epoch = [index for batch in whole[:10] for index in batch.indices]
    assert sorted(epoch) == list(range(FILES * ROWS))
    assert epoch != sorted(epoch)
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "other"))
    assert same(batches(opened(), 2 - workers, seen=7 * 32, steps=5), whole[7:])
    shares = [batches(opened(), steps=4, share=(rank, 2)) for rank in (0, 1)]
    for step in range(4):
        assert sorted(shares[0][step].indices + shares[1][step].indices) == sorted(whole[step].indices)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_epoch_and_a_resumed_run_read_what_is_kept(server: HubServer, files, workers: int) -> None:
    whole = sum(map(len, files.values()))
    first = batches(opened(), workers)
    assert sum(server.sent) < 1.1 * whole  # each group once, whoever came to it
    server.sent.clear()
    assert same(batches(opened(), workers, seen=2 * 32, steps=20)[:10], first[2:])
    assert sum(server.sent) == 0


def test_images_in_order_and_held_out_ones_come_from_few_groups(server: HubServer, files: dict[str, bytes]) -> None:
    source = opened()
    training, held_out = split_holdout(source, 16, seed=1)
    assert sorted([*training, *held_out]) == list(range(len(source)))
    assert np.bincount([source.label(index) for index in held_out]).tolist() == [4, 4, 4, 4]
    assert len(np.unique(held_out // GROUP)) <= 8
    server.sent.clear()
    taken = [
        index
        for batch in ordered_batches(Subset(source, held_out), CenterTransform(size=8), batch_size=4, workers=0)
        for index in batch.indices
    ]
    assert taken == list(range(16))
    assert sum(server.sent) < 0.25 * sum(map(len, files.values()))


def test_the_order_of_a_stream_keeps_to_a_window(server: HubServer) -> None:
    source = opened()
    order = training_order(source, 3)
    assert isinstance(order, WindowedPermutation)
    assert order.window == 5 * GROUP
    for epoch in range(2):
        taken = order.indices(epoch * len(source) + np.arange(len(source)))[1]
        assert sorted(taken.tolist()) == list(range(len(source)))
        for window in range(8):
            assert len(np.unique(taken[window * 40 : window * 40 + 40] // GROUP)) == 5


def test_what_is_expected_is_fetched_in_the_background(server: HubServer) -> None:
    source = opened()
    part = Subset(source, np.arange(100, 200))
    part.prefetch(np.array([0, 1, 50]))
    READ_AHEAD.finish()
    server.status = 503
    assert [part.label(index) for index in (0, 50)] == [0, 2]
    assert [number(source, index) for index in (100, 101, 150)] == [100, 101, 150]
    source.prefetch(np.array([0]))  # in vain, which nobody hears
    READ_AHEAD.finish()
    with pytest.raises(DataError, match="HTTP 503"):
        source.read(0)


@pytest.mark.slow
def test_a_stream_of_few_groups_is_mixed_as_a_whole(server: HubServer) -> None:
    source = open_data([REFERENCE])
    assert isinstance(training_order(source, 3), KeyedPermutation)
    assert same(batches(source), batches(open_data([REFERENCE]), workers=2))


@pytest.mark.parametrize("away", ["offline", "down", "failing"])
def test_a_stream_that_is_kept_needs_no_hub(server: HubServer, monkeypatch: pytest.MonkeyPatch, away: str) -> None:
    first = batches(opened(), steps=3)
    kept = {index for batch in first for index in batch.indices}
    if away == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif away == "down":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        server.status = 503
    assert same(batches(opened(), steps=3), first)
    source = opened()
    missing = next(index for index in range(len(source)) if not kept & set(range(index - 8, index + 8)))
    words = "HF_HUB_OFFLINE is set" if away == "offline" else r"train-0000\d-of-00002\.parquet' was cut off at .* tries"
    with pytest.raises(DataError, match=words) as error:
        source.read(missing)
    assert not isinstance(error.value, BadImage)
    assert (error.value.exit_code, bool(error.value.hint)) == (3, True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_cut_connections_change_nothing(server: HubServer, workers: int) -> None:
    server.cut_after = 40_000
    source = opened()
    cut = batches(source, workers)
    server.cut_after = None
    assert same(cut, batches(opened()))
    assert [number(source, index) for index in (5, 300)] == [5, 300]


def test_failures_that_pass_are_waited_for(server: HubServer) -> None:
    source = opened()
    server.failures = 3
    assert number(source, 40) == 40
    server.failures = 1000
    with pytest.raises(DataError, match=r"HTTP 503; 3 further tries brought no more") as error:
        source.read(200)
    assert "--resume" in error.value.hint
    assert 1000 - server.failures == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hub_that_goes_away_ends_the_run_with_the_file(server: HubServer, workers: int) -> None:
    source = opened()
    server.status = 503
    with pytest.raises(DataError, match=r"owner/large/data/train-.*was cut off"):
        batches(source, workers)


def test_a_stream_whose_data_set_was_changed_is_noticed(server: HubServer, files: dict[str, bytes]) -> None:
    source = opened()
    number(source, 0)
    server.repos[REPO]["README.md"] = b"# new"
    name = next(iter(files))
    assert opened().fingerprint() == source.fingerprint()  # the images are the same
    with pytest.raises(DataError, match="no longer what it was at commit"):
        source.read(100)
    server.sent.clear()
    again = opened()
    assert number(again, 0) == 0
    assert sum(server.sent) == 0  # kept by its content, whatever the commit
    images = [{"bytes": noise(500 + number), "path": None} for number in range(ROWS)]
    written = BytesIO()
    table = pa.table({"image": images, "label": [str(number % 4) for number in range(ROWS)]})
    parquet.write_table(table, written, row_group_size=GROUP, compression="none")
    server.repos[REPO][name] = written.getvalue()
    other = opened()
    assert other.fingerprint() != source.fingerprint()
    assert number(other, 0) == 500


def test_a_server_without_ranges_sends_whole_files(server: HubServer, files: dict[str, bytes]) -> None:
    server.ranges = False
    source = open_data([REFERENCE])
    assert isinstance(source, ParquetSource)
    assert all(isinstance(each, str) for each in source._files)
    assert number(source, 171) == 171
    server.ranges = True
    assert open_data([REFERENCE])._files == source._files  # type: ignore[attr-defined]


@pytest.mark.slow
def test_kept_stretches_stay_below_their_limit(
    server: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def kept() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "cache" / "streams").rglob("*-*") if path.is_file())

    first = batches(opened())
    assert kept() > 5e6
    monkeypatch.setenv("BEIT_STREAM_CACHE_GB", "0.002")
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    (next(tmp_path.rglob("streams/*/*-*"))).unlink()
    assert same(batches(opened()), first)
    assert 0 < kept() <= 2e6
    monkeypatch.setenv("BEIT_STREAM_CACHE_GB", "much")
    with pytest.raises(UsageError, match="BEIT_STREAM_CACHE_GB is 'much'"):
        open_data([REFERENCE])


def test_damaged_and_unwritable_caches_are_gone_around(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = opened()
    assert number(source, 0) == 0
    for path in tmp_path.rglob("streams/*/*-*"):
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
    assert number(pickle.loads(pickle.dumps(source)), 0) == 0
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder would be")
    monkeypatch.setenv("BEIT_CACHE_DIR", str(blocked))
    server.sent.clear()
    assert number(pickle.loads(pickle.dumps(source)), 0) == 0
    assert sum(server.sent) > 0
    assert os.path.isfile(blocked)


def test_a_private_stream_is_asked_for_with_the_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    source = opened()
    server.requests.clear()
    number(source, 0)
    assert {request.token for request in server.requests} == {"Bearer hf_secret"}
    assert all(request.range for request in server.requests)


def test_a_stream_that_is_no_parquet_is_refused(server: HubServer) -> None:
    server.repos[REPO] = {"data/train.parquet": bytes(5_000_000)}
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_data([REFERENCE])
    server.status = 503
    with pytest.raises(StorageError):
        open_data(["hf://datasets/owner/none"])


def test_a_pack_asks_few_groups_for_its_size(server: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    """32 images spread over the data would be 32 of its 40 groups."""
    source = opened()
    server.sent.clear()
    packing = Packing((source,), ("cls",), Encoding("raw"), tmp_path)
    told: list[Event] = []
    tell_size(packing, plan_shards({"train": source}, 100), told.append)
    assert len(told) == 1
    assert sum(server.sent) < 6 / 40 * sum(map(len, files.values()))
