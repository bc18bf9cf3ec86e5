"""What only a GPU can show of the way of data to it and back, and of precisions; left out where there is no CUDA."""

from __future__ import annotations

import threading
from multiprocessing import active_children

import pytest
import torch
import torch.nn.functional as F

from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import training_batches
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import CenterTransform
from beitcli.engine.tokenizer_loading import prepared
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.engine.trainer.prefetch import on_device, to_device
from beitcli.runtime.compute.device import choose_compute
from beitcli.runtime.compute.peak_flops import measure_matmul_flops
from beitcli.runtime.storage.async_writer import SnapshotTaker
from beitcli.tokenizers.base import Tokenizer
from beitcli.tokenizers.dvae import DiscreteVAE
from beitcli.tokenizers.dvae_network import DVAEArchitecture
from beitcli.tokenizers.vector_quantizer import VectorQuantizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

CUDA = torch.device("cuda")


def test_waiting_for_the_device_is_noticed(nothing_waits):
    tensor = torch.ones((), device="cuda")
    with pytest.raises(RuntimeError, match="synchronizing"), nothing_waits():
        tensor.item()


# Batches on their way to the device


@pytest.mark.parametrize("bytes_per_image", [1, 400_000_000])  # the second travels in pieces
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_whole_and_in_order_and_nothing_waits(labelled_folder, workers, bytes_per_image, nothing_waits):
    class Transform(CenterTransform):
        pass

    Transform.bytes_per_image = bytes_per_image
    source = open_data([str(labelled_folder)])
    part = StreamPart(seed=3, batch_size=8, images_seen=0, steps=9)
    expected = list(training_batches(source, CenterTransform(size=32), part, workers=0))
    batches = on_device(training_batches(source, Transform(size=32), part, workers=workers, pin_memory=True), CUDA)
    moved = [next(batches)]  # which may allocate
    with nothing_waits():
        for batch, tensors in batches:
            moved.append((batch, {name: tensor.clone() for name, tensor in tensors.items()}))
    assert len(moved) == 9
    for (batch, tensors), other in zip(moved, expected, strict=True):
        assert batch.indices == other.indices
        assert tensors.keys() == other.tensors.keys()
        assert all(
            tensor.is_cuda and torch.equal(tensor.cpu(), other.tensors[name]) for name, tensor in tensors.items()
        )
        assert all(tensor.is_pinned() for tensor in batch.tensors.values())
    assert not active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_an_evaluation_come_from_pinned_memory_and_nothing_waits(labelled_folder, workers, nothing_waits):
    source, view = open_data([str(labelled_folder)], labelled=True), CenterTransform(size=32)
    expected = list(Batching(choose_compute("cpu", "fp32"), 8, 0).batches(source, view))
    batches = Batching(choose_compute("cuda", "fp32"), 8, workers).on_device(source, view)
    moved = [next(batches)]  # which may allocate
    with nothing_waits():
        moved += batches
    for (batch, tensors), other in zip(moved, expected, strict=True):
        assert batch.indices == other.indices
        assert all(tensor.is_pinned() for tensor in batch.tensors.values())
        assert all(
            tensor.is_cuda and torch.equal(tensor.cpu(), other.tensors[name]) for name, tensor in tensors.items()
        )
    assert not active_children()


def test_stopping_between_batches_ends_thread_and_workers(labelled_folder):
    source = open_data([str(labelled_folder)])
    part = StreamPart(seed=3, batch_size=8, images_seen=0, steps=500)
    batches = on_device(training_batches(source, CenterTransform(size=32), part, workers=2, pin_memory=True), CUDA)
    for _ in range(3):
        next(batches)
    batches.close()
    assert not active_children()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_a_small_tensor_goes_to_the_device_without_waiting(nothing_waits):
    drawn = [torch.rand(64, 24) for _ in range(20)]
    to_device(drawn[0], CUDA)
    with nothing_waits():
        there = [to_device(tensor, CUDA) for tensor in drawn]
    assert all(torch.equal(tensor.cpu(), mine) for tensor, mine in zip(there, drawn, strict=True))


# Checkpoints


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.rand(3000, 1000, device="cuda"),
        "kernel": torch.rand(64, 32, 3, 3, device="cuda").to(memory_format=torch.channels_last),
        "turned": torch.rand(300, 200, device="cuda").t(),
        "step": torch.ones((), device="cuda"),
        "count": torch.arange(5),
    }


def test_a_snapshot_holds_the_values_of_before_and_nothing_waits(nothing_waits):
    taker, tensors = SnapshotTaker(), some_tensors()
    for _ in range(3):
        expected = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        with nothing_waits():
            taken = taker.take(weights=tensors, moments={"weight": tensors["weight"]}, extra={})
            for tensor in tensors.values():
                tensor.mul_(-3)
        taken.wait()
        assert taken.groups["weights"].keys() == tensors.keys()
        for name, tensor in taken.groups["weights"].items():
            assert tensor.device.type == "cpu"
            assert torch.equal(tensor, expected[name]), name
        assert torch.equal(taken.groups["moments"]["weight"], expected["weight"])
        assert taken.groups["extra"] == {}


def test_snapshots_share_their_pinned_memory():
    taker, tensors = SnapshotTaker(), some_tensors()
    first = taker.take(weights=tensors)
    first.wait()
    second = taker.take(weights=tensors)
    second.wait()
    for name, tensor in tensors.items():
        if tensor.is_cuda:
            assert first.groups["weights"][name].is_pinned()
            assert first.groups["weights"][name].data_ptr() == second.groups["weights"][name].data_ptr()


def test_a_snapshot_needs_no_memory_of_the_device():
    tensors = {str(number): torch.rand(16, 1 << 20, device="cuda") for number in range(4)}  # 64 MiB each
    expected = {name: tensor.cpu() for name, tensor in tensors.items()}
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (96 << 20)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            [tensor.clone() for tensor in tensors.values()]
        torch.cuda.empty_cache()
        taken = SnapshotTaker().take(weights=tensors)
        for tensor in tensors.values():
            tensor.zero_()
        taken.wait()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(torch.equal(taken.groups["weights"][name], tensor) for name, tensor in expected.items())


# Precision


def test_fp32_is_fp32_and_tf32_is_not_in_products_and_convolutions():
    torch.manual_seed(0)
    a, b = torch.randn(2, 512, 512, device="cuda").unbind()
    images, kernel = torch.randn(8, 64, 32, 32, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    calls = {"product": lambda a, b: a @ b, "convolution": lambda a, b: F.conv2d(a, b, padding=1)}
    factors = {"product": (a, b), "convolution": (images, kernel)}
    for name, call in calls.items():
        exact = call(*(each.double() for each in factors[name]))
        errors = {}
        for precision in ("tf32", "fp32"):  # in this order: what is left behind is fp32
            with choose_compute("cuda", precision).autocast():
                errors[precision] = float((call(*factors[name]).double() - exact).abs().max() / exact.std())
        assert errors["fp32"] < 2e-4, (name, errors)  # of Winograd's algorithm; one factor in TF32 makes it 1e-3
        assert name == "convolution" or 5e-4 < errors["tf32"] < 1e-2, errors


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("cosine", [False, True])
def test_codes_of_a_step_are_the_nearest_of_fp32(precision, cosine):
    torch.manual_seed(0)
    model, vectors = VectorQuantizer(512, 16, cosine=cosine).cuda(), torch.randn(4000, 16, device="cuda")
    with choose_compute("cuda", precision).autocast():
        _, codes, _ = model(vectors)
    with choose_compute("cuda", "fp32").autocast():
        assert torch.equal(codes, model.nearest(vectors))


def loud_tokenizer() -> Tokenizer:
    """One whose encoder leaves the range of fp16 on its way: 64 codes of 16 x 16 pixels in 8 x 8 tokens."""
    torch.manual_seed(0)
    architecture = DVAEArchitecture(vocab_size=64, width=16, groups=2, blocks_per_group=2, init_gain=2**0.5)
    model = DiscreteVAE(architecture).requires_grad_(False).eval().cuda()
    for conv in (model.encoder.stem, *model.encoder.groups[0][0].convs):
        conv.weight *= 300
    return Tokenizer("random", model, 16, "0" * 64)


@pytest.mark.parametrize("compiled", [False, True])
def test_fp16_gives_fp32s_tokens_where_its_range_is_left_and_nothing_waits(compiled, nothing_waits):
    tokenizer = loud_tokenizer()
    images = F.interpolate(torch.rand(32, 3, 4, 4, device="cuda"), size=(16, 16), mode="bilinear")
    events = []
    low = prepared(tokenizer, "fp16", (16, 16) if compiled else None, events.append)
    if events:
        pytest.skip(events[0].message)  # no compiler here
    low.encode(images)
    with nothing_waits():
        tokens = low.encode(images)
    assert (tokens == tokenizer.encode(images)).float().mean() > 0.98
    assert len(tokens.unique()) > 5


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_matrix_rate_is_one_that_a_gpu_can_have(precision):
    assert 1e12 < measure_matmul_flops(choose_compute("cuda", precision)) < 1e16
