"""Batches: the keyed stream and its tail, workers that change nothing, and bad images replaced the same way always."""

from __future__ import annotations

import os
import pickle
import resource
import select
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import Batch, ordered_batches, training_batches
from beitcli.data.loading.read_ahead import read_ahead
from beitcli.data.loading.sampler import KeyedPermutation
from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.subset import Subset
from beitcli.data.transforms.base import CenterTransform, PretrainingTransform, TwoCropTransform
from beitcli.data.transforms.finetuning import FinetuningTransform
from beitcli.data.transforms.pretraining import FastPretrainingTransform
from beitcli.errors import BadImage, DataError
from beitcli.masking import keyed_mask, make_masking

SEED = 5


class Numbered(Source):
    """Image i is all of grey i; those in `bad` cannot be read."""

    def __init__(self, length: int = 20, bad: tuple[int, ...] = (), classes: bool = True) -> None:
        self.length, self.bad = length, bad
        self.classes = ("even", "odd") if classes else None

    def __len__(self) -> int:
        return self.length

    def path(self, index: int) -> str:
        return f"numbered/{index}.png"

    def read(self, index: int) -> bytes:
        return bytes(self.image(index).tobytes())

    def image(self, index: int) -> Image.Image:
        if index in self.bad:
            raise BadImage(f"number {index} is broken")
        return Image.new("RGB", (12, 12), (index, index, index))

    def label(self, index: int) -> int | None:
        return index % 2 if self.classes else None


class Textured(Numbered):
    def image(self, index: int) -> Image.Image:
        if index in self.bad:
            return super().image(index)
        pixels = np.random.default_rng(index).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def stream(source: Source, batch_size: int = 4, steps: int = 10, images_seen: int = 0, **more) -> list[Batch]:
    seed, repeats = more.pop("seed", SEED), more.pop("repeats", 1)
    part = StreamPart(seed=seed, batch_size=batch_size, images_seen=images_seen, steps=steps, repeats=repeats)
    return list(training_batches(source, part=part, **({"transform": CenterTransform(size=4), "workers": 0} | more)))


def equal(first: Batch, second: Batch) -> bool:
    return (
        first.indices == second.indices
        and first.bad == second.bad
        and first.tensors.keys() == second.tensors.keys()
        and all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
    )


BOTH_VIEWS = pytest.mark.parametrize("kind", [FastPretrainingTransform, PretrainingTransform])


def keyed_options(seed: int = SEED, kind: type[TwoCropTransform] = FastPretrainingTransform) -> dict:
    masking = make_masking("blockwise", (4, 4), 6, 4)
    return {
        "transform": kind(seed=seed, image_size=16, token_size=8),
        "masking": partial(keyed_mask, masking, seed),
    }


def test_stream_is_the_keyed_order_epoch_after_epoch():
    batches = stream(Numbered(20), batch_size=8, steps=10)
    order = KeyedPermutation(20, SEED)
    expected = [order.at(position)[1] for position in range(80)]
    taken = [index for batch in batches for index in batch.indices]
    assert taken == expected
    for epoch in range(4):
        assert sorted(taken[20 * epoch : 20 * (epoch + 1)]) == list(range(20))
    for batch in batches:
        assert len(batch) == 8
        assert batch.tensors["images"][:, 0, 0, 0].tolist() == batch.indices
        assert batch.tensors["labels"].tolist() == [index % 2 for index in batch.indices]
        assert batch.tensors["labels"].dtype == torch.int64


def test_a_source_without_classes_gives_no_labels():
    assert set(stream(Numbered(classes=False), steps=1)[0].tensors) == {"images"}


@BOTH_VIEWS
@pytest.mark.parametrize("workers", [0, 2])
def test_tail_of_the_stream_is_what_a_resumed_run_reads(workers, kind):
    whole = stream(Textured(20), steps=12, **keyed_options(kind=kind))
    tail = stream(Textured(20), steps=5, images_seen=7 * 4, workers=workers, **keyed_options(kind=kind))
    assert len(tail) == 5
    assert all(equal(first, second) for first, second in zip(whole[7:], tail, strict=True))


def test_workers_change_nothing_even_for_timms_augmentation():
    transform = FinetuningTransform(seed=SEED, size=16, rand_augment="rand-m9-mstd0.5-inc1", erasing=0.5)
    alone, shared = (stream(Textured(20), steps=6, transform=transform, workers=workers) for workers in (0, 2))
    assert all(equal(first, second) for first, second in zip(alone, shared, strict=True))


@BOTH_VIEWS
def test_views_and_masks_do_not_depend_on_the_batch_they_are_in(kind):
    small = stream(Textured(20), batch_size=2, steps=20, **keyed_options(kind=kind))
    large = stream(Textured(20), batch_size=8, steps=5, **keyed_options(kind=kind))
    assert ("color" in small[0].tensors) == (kind is FastPretrainingTransform)
    for name in small[0].tensors:
        joined = [torch.cat([batch.tensors[name] for batch in batches]) for batches in (small, large)]
        assert torch.equal(*joined)
    assert large[0].tensors["mask"].sum(dim=1).tolist() == [6] * 8


def test_views_and_masks_change_with_the_epoch_and_the_image():
    batches = stream(Textured(4), batch_size=4, steps=2, **keyed_options())
    by_image = [dict(zip(batch.indices, batch.tensors["mask"].tolist(), strict=True)) for batch in batches]
    assert set(by_image[0]) == set(by_image[1]) == {0, 1, 2, 3}
    assert by_image[0] != by_image[1]
    assert len({tuple(mask) for mask in by_image[0].values()}) > 1


def test_draws_are_keyed_by_the_image_in_the_whole_data():
    whole = Textured(20)
    part = Subset(whole, np.array([7, 3]))
    masks = {}
    for source in (whole, part):
        for batch in ordered_batches(source, batch_size=5, workers=0, **keyed_options()):
            for place, index in enumerate(batch.indices):
                masks[len(source), source.global_index(index)] = batch.tensors["mask"][place].tolist()
    assert masks[2, 7] == masks[20, 7]
    assert masks[2, 3] == masks[20, 3]


# Bad images


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_by_the_next_of_the_order_and_reported(workers):
    bad = (3, 4, 11)
    batches = stream(Numbered(20, bad), steps=10, workers=workers)
    permutation = [KeyedPermutation(20, SEED).permutation(epoch).tolist() for epoch in range(2)]
    expected = []
    for order in permutation:
        for place in range(20):
            while order[place % 20] in bad:
                place += 1
            expected.append(order[place % 20])
    assert [index for batch in batches for index in batch.indices] == expected
    reported = [record for batch in batches for record in batch.bad]
    assert set(reported) == {(i, f"numbered/{i}.png", f"number {i} is broken") for i in bad}
    for batch in batches:
        assert batch.tensors["images"][:, 0, 0, 0].tolist() == batch.indices


def test_bad_images_leave_a_resumed_stream_as_it_was():
    source = Numbered(20, (0, 1, 2, 3))
    whole, tail = stream(source, steps=10), stream(source, steps=4, images_seen=24)
    assert all(equal(first, second) for first, second in zip(whole[6:], tail, strict=True))


def test_the_last_place_of_an_epoch_is_replaced_by_its_first():
    order = KeyedPermutation(20, SEED).permutation(0).tolist()
    batches = stream(Numbered(20, (order[-1],)), batch_size=20, steps=1)
    assert batches[0].indices == [*order[:-1], order[0]]


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_readable_image_stops_with_a_data_error(workers):
    with pytest.raises(DataError, match="5 images in a row") as caught:
        stream(Numbered(5, (0, 1, 2, 3, 4)), steps=1, workers=workers)
    assert caught.value.exit_code == 3
    assert "Traceback" not in caught.value.message
    assert caught.value.hint.startswith("`beit doctor DATA` lists")
    assert not active_children()  # though the error, and its traceback, live


@dataclass(frozen=True)
class Scarce:
    """A view in a process that may take `spare` more bytes of memory than it has."""

    inner: TwoCropTransform
    spare: int

    @property
    def wants_pixels(self) -> bool:
        return getattr(self.inner, "wants_pixels", False)

    def __call__(self, image: Image.Image | np.ndarray, epoch: int, index: int) -> dict[str, np.ndarray]:
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + self.spare, before[1]))
        try:
            return self.inner(image, epoch, index)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


class OneVast(Textured):
    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (5000, 4000)) if index == 3 else super().image(index)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its own memory from /proc")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_memory_does_not_hold_is_a_bad_image(workers):
    transform = Scarce(
        PretrainingTransform(seed=SEED, image_size=16, token_size=8), spare=40_000_000
    )  # its jitter needs 80 MB
    (batch,) = ordered_batches(OneVast(5), transform, batch_size=5, workers=workers)
    assert batch.indices == [0, 1, 2, 4]
    assert batch.bad == [(3, "numbered/3.png", "too large for the memory of this machine")]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its own memory from /proc")
def test_a_fast_view_that_memory_does_not_hold_makes_a_bad_image():
    transform = Scarce(FastPretrainingTransform(seed=SEED, image_size=(8000, 4000), token_size=8), spare=40_000_000)
    (batch,) = ordered_batches(Textured(1), transform, batch_size=1, workers=0)
    assert batch.bad == [(0, "numbered/0.png", "too large for the memory of this machine")]


# One pass in order


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_every_readable_image_comes_once_in_order(workers, batch_size):
    if workers and batch_size == 1:
        batch_size = 3
    bad = (0, 8, 9, 10, 11, 12, 13)
    batches = list(ordered_batches(Numbered(20, bad), CenterTransform(size=4), batch_size=batch_size, workers=workers))
    assert len(batches) == -(-20 // batch_size)
    assert [index for batch in batches for index in batch.indices] == [i for i in range(20) if i not in bad]
    assert [record[0] for batch in batches for record in batch.bad] == list(bad)
    for batch in batches:
        if len(batch):
            assert batch.tensors["images"][:, 0, 0, 0].tolist() == batch.indices
        else:
            assert batch.tensors == {}


def test_a_batch_goes_to_a_device_by_name():
    moved = stream(Numbered(), steps=1)[0].to(torch.device("cpu"))
    assert set(moved) == {"images", "labels"}


# Workers


@pytest.mark.parametrize(("batch_size", "started"), [(20, 1), (10, 2), (1, 3)])
def test_no_more_workers_than_batches(batch_size, started):
    batches = ordered_batches(Numbered(20), CenterTransform(size=4), batch_size=batch_size, workers=3)
    before = len(active_children())
    next(batches)
    assert len(active_children()) - before == started
    batches.close()
    assert list(ordered_batches(Numbered(0), CenterTransform(size=4), batch_size=4, workers=3)) == []


def test_more_workers_than_cores_are_no_warning():
    many = len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1
    batches = list(
        ordered_batches(Numbered(20), CenterTransform(size=4), batch_size=1, workers=many)
    )  # warnings are errors
    assert [batch.indices for batch in batches] == [[index] for index in range(20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_moves_no_global_generator(workers):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    transform = PretrainingTransform(seed=SEED, image_size=16, token_size=8)
    assert len(list(ordered_batches(Textured(20), transform, batch_size=4, workers=workers))) == 5
    assert torch.equal(torch.get_rng_state(), before)


def test_read_ahead_by_hand():
    assert read_ahead(64, 0, 8) == (2, 1)  # nothing is known
    assert read_ahead(64, 188_160, 15) == (4, 1)  # 224 and 112 pixels: 0.7 GB
    assert read_ahead(512, 188_160, 7) == (2, 1)  # 0.67 GB for one a worker: two are 1.35 GB, three 2.02
    assert read_ahead(2048, 188_160, 15) == (2, 6)  # 385 MB a batch: 30 sixths of one are 1.93 GB
    assert read_ahead(1, 10**12, 4) == (2, 1)  # an image is the smallest piece


@pytest.mark.parametrize("bytes_per_image", [1, 188_160, 602_112])
@pytest.mark.parametrize("batch_size", [1, 32, 2048, 65536])
@pytest.mark.parametrize("workers", [1, 3, 16])
def test_read_ahead_stays_below_2_gb(batch_size, bytes_per_image, workers):
    prefetch, pieces = read_ahead(batch_size, bytes_per_image, workers)
    assert 2 <= prefetch <= 4
    assert 1 <= pieces <= batch_size
    assert prefetch * workers * -(-batch_size // pieces) * bytes_per_image <= 2.01e9


@dataclass(frozen=True)
class Heavy:
    """A view that says it is large."""

    inner: PretrainingTransform
    bytes_per_image: int

    def __call__(self, image: Image.Image, epoch: int, index: int) -> dict[str, np.ndarray]:
        return self.inner(image, epoch, index)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_that_travel_in_pieces_are_the_same_batches(workers):
    source = Textured(20, bad=(3, 4, 11))
    plain = keyed_options(kind=PretrainingTransform)
    heavy = plain | {"transform": Heavy(plain["transform"], bytes_per_image=400_000_000)}
    assert read_ahead(7, 400_000_000, workers)[1] > 1
    for start in (0, 21):
        alone = stream(source, batch_size=7, steps=4, images_seen=start, **plain)
        joined = stream(source, batch_size=7, steps=4, images_seen=start, workers=workers, **heavy)
        assert all(equal(first, second) for first, second in zip(alone, joined, strict=True))
    alone = list(ordered_batches(source, batch_size=7, workers=0, **plain))
    joined = list(ordered_batches(source, batch_size=7, workers=workers, **heavy))
    assert [len(batch) for batch in joined] == [5, 6, 6]
    assert all(equal(first, second) for first, second in zip(alone, joined, strict=True))


def test_a_batch_in_pieces_without_a_readable_image_is_empty():
    transform = Heavy(PretrainingTransform(seed=SEED, image_size=16, token_size=8), bytes_per_image=10**9)
    batches = list(ordered_batches(Numbered(6, (0, 1, 2)), transform, batch_size=3, workers=1))
    assert [batch.indices for batch in batches] == [[], [3, 4, 5]]
    assert batches[0].tensors == {}
    assert [record[0] for record in batches[0].bad] == [0, 1, 2]


def test_workers_say_nothing_of_a_damaged_image_that_can_be_decoded(tmp_path, capfd):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([7] * 12) + content[-2:])  # libjpeg: "12 extraneous bytes before marker"
    source = open_data([str(tmp_path)])
    transform = FastPretrainingTransform(seed=0, image_size=32, token_size=16)
    (batch,) = ordered_batches(source, transform, batch_size=1, workers=1)
    assert len(batch) == 1
    assert capfd.readouterr().err == ""
    source.pixels(0)
    assert "extraneous bytes" in capfd.readouterr().err  # the trap is a real one


# Repeated augmentation


@pytest.mark.parametrize("workers", [0, 2])
def test_repeats_draw_each_image_in_a_row_with_other_views(workers):
    options = keyed_options(kind=PretrainingTransform)
    thrice = stream(Textured(10), **options, repeats=3, steps=8, workers=workers)
    indices = [index for batch in thrice for index in batch.indices]
    once = [index for batch in stream(Textured(10), **options, steps=3) for index in batch.indices]
    assert indices[:30] == [index for index in once[:10] for _ in range(3)]
    images = torch.cat([batch.tensors["images"] for batch in thrice])
    for first in range(0, 30, 3):
        a, b, c = images[first : first + 3]
        assert not torch.equal(a, b)
        assert not torch.equal(b, c)
        assert not torch.equal(a, c)


def test_a_stream_with_repeats_goes_on_from_any_view():
    options = keyed_options(kind=PretrainingTransform)
    whole = stream(Textured(7), **options, repeats=3, batch_size=4, steps=12)
    rest = stream(Textured(7), **options, repeats=3, batch_size=4, steps=7, images_seen=20)
    assert all(equal(first, second) for first, second in zip(whole[5:], rest, strict=True))


def test_repeats_replace_an_unreadable_image_by_the_same_other_one():
    broken = stream(Textured(6, bad=(2,)), repeats=2, batch_size=2, steps=6)
    pairs = [batch.indices for batch in broken]
    assert all(first == second for first, second in pairs)
    assert 2 not in {index for pair in pairs for index in pair}


def test_the_smallest_tensors_travel_as_arrays_in_a_message_that_a_pipe_takes_whole():
    tensors = {
        "images": torch.arange(3 * 64 * 64, dtype=torch.uint8).view(1, 3, 64, 64),
        "mask": torch.ones(64, 196, dtype=torch.bool),
        "labels": torch.arange(64),
        "erased": torch.ones(64, 4, dtype=torch.int32),
        "weights": torch.ones(2, dtype=torch.bfloat16),  # numpy has no such numbers
    }
    sent = Batch(tensors, list(range(64)), [])
    state = sent.__getstate__()["tensors"]
    assert {name for name, each in state.items() if not isinstance(each, torch.Tensor)} == {"labels", "erased"}
    arrays = {name: each for name, each in state.items() if not isinstance(each, torch.Tensor)}
    assert len(pickle.dumps((arrays, sent.indices))) < select.PIPE_BUF - 1000  # and names of shared files
    got = pickle.loads(pickle.dumps(sent))
    assert (got.indices, got.bad) == (sent.indices, sent.bad)
    assert got.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(got.tensors[name], tensor)
        assert got.tensors[name].dtype == tensor.dtype
    got.tensors["labels"] += 1  # they can be written to
