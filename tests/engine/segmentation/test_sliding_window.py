"""Windows over an image: where they lie, that they average, and what scales and mirror images change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from beitcli.config.architecture import Architecture
from beitcli.config.normalization import IMAGENET
from beitcli.data.loading.batches import Batch
from beitcli.data.transforms.base import normalize
from beitcli.data.transforms.segmentation import SegmentationEvalTransform
from beitcli.engine.segmentation import sliding_window as segment_images
from beitcli.engine.segmentation.sliding_window import (
    SCALES,
    SlidingWindow,
    classes_of,
    sliding,
    window_logits,
    window_starts,
)
from beitcli.errors import UsageError
from beitcli.models.networks.segmenter import Segmenter
from beitcli.runtime.compute.device import choose_compute

COMPUTE = choose_compute("cpu", "fp32")


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    architecture = Architecture(image_size=(16, 24), patch_size=8, width=16, depth=2, heads=2)
    model = Segmenter(architecture, 5, "setr-pup").eval()
    torch.nn.init.normal_(model.decode_head.main.conv_seg.weight)
    return model


def sliding_of(**how: object) -> SlidingWindow:
    return sliding((16, 24), **({"normalization": IMAGENET, "short_side": 0} | how))  # type: ignore[arg-type]


def batch_of(height: int, width: int, how: SlidingWindow) -> Batch:
    pixels = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    transform = SegmentationEvalTransform(short_side=how.short_side, scales=how.scales, least=how.least)(pixels)
    return Batch({name: torch.from_numpy(array)[None] for name, array in transform.items()}, [0], [])


def whole(model: Segmenter, images: torch.Tensor) -> torch.Tensor:
    """One forward pass, upsampled."""
    with torch.no_grad():
        return F.interpolate(model(images)[0], size=images.shape[-2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [(512, 512, 341, [0]), (683, 512, 341, [0, 171]), (1024, 512, 341, [0, 341, 512]), (853, 512, 341, [0, 341]),
     (960, 640, 426, [0, 320]), (10, 4, 3, [0, 3, 6])],
)  # fmt: skip
def test_windows_cover_the_length_as_in_the_release(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


def test_stride_is_two_thirds_of_the_window_unless_given():
    for side, stride in ((512, 341), (640, 426)):
        how = sliding((side, side), normalization=IMAGENET, short_side=side)
        assert how.stride == (stride, stride)
    assert sliding_of(stride=7).stride == (7, 7)
    with pytest.raises(UsageError, match="--stride 17 is more than the window's 16 pixels"):
        sliding_of(stride=17)


def test_image_of_the_window_s_size_is_one_forward_pass(model):
    images = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(window_logits(model, images, sliding_of(), COMPUTE), whole(model, images))


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_logits_are_the_mean_of_the_windows_that_see_a_pixel(model, at_once):
    images, how = torch.randn(1, 3, 30, 41), sliding_of(stride=10, windows_at_once=at_once)
    total, seen = torch.zeros(1, 5, 30, 41), torch.zeros(30, 41)
    for upper in (0, 10, 14):
        for left in (0, 10, 17):
            place = (..., slice(upper, upper + 16), slice(left, left + 24))
            total[place] += whole(model, images[place])
            seen[place] += 1
    with torch.no_grad():
        logits = window_logits(model, images, how, COMPUTE)
    torch.testing.assert_close(logits, total / seen, rtol=1e-4, atol=1e-5)


def test_image_smaller_than_the_window_is_padded_with_the_mean_and_cut_again(model):
    images = torch.randn(1, 3, 9, 24)
    with torch.no_grad():
        logits = window_logits(model, images, sliding_of(), COMPUTE)
    expected = whole(model, F.pad(images, (0, 0, 0, 7)))[..., :9, :]
    torch.testing.assert_close(logits, expected)


def test_classes_are_decided_at_the_image_s_own_size(model):
    how = sliding_of(short_side=16)
    batch = batch_of(33, 47, how)
    assert batch.tensors["images_0"].shape == (1, 3, 16, 23)
    with torch.no_grad():
        logits = window_logits(model, normalize(batch.tensors["images_0"], *IMAGENET), how, COMPUTE)
    expected = F.interpolate(logits, size=(33, 47), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(classes_of(model, batch, how, COMPUTE), expected)


def test_classes_are_the_same_where_few_are_resized_at_a_time(model, monkeypatch):
    how = sliding_of()
    batch = batch_of(20, 30, how)
    at_once = classes_of(model, batch, how, COMPUTE)
    monkeypatch.setattr(segment_images, "_NUMBERS_AT_ONCE", 2 * 20 * 30)
    assert torch.equal(classes_of(model, batch, how, COMPUTE), at_once)


def test_mirror_images_make_the_decision_symmetric(model):
    """The mean over an image and its mirror image is the mirror image's, mirrored: whole passes, no seams."""
    how = sliding((16, 24), normalization=IMAGENET, short_side=0, flip=True)
    batch = batch_of(16, 24, how)
    mirrored = Batch(batch.tensors | {"images_0": batch.tensors["images_0"].flip(-1)}, [0], [])
    one, other = (classes_of(model, each, how, COMPUTE) for each in (batch, mirrored))
    assert (one == other.flip(-1)).float().mean() > 0.99  # ties of rounding aside
    single = classes_of(model, batch, sliding_of(), COMPUTE)
    assert not torch.equal(one, single)


def test_multi_scale_is_the_mean_of_the_probabilities_of_six_sizes(model):
    how = sliding_of(multi_scale=True, short_side=20)
    batch = batch_of(20, 26, how)
    assert (how.scales, len(SCALES)) == (SCALES, 6)
    total = torch.zeros(1, 5, 20, 26)
    with torch.no_grad():
        for number in range(6):
            images = normalize(batch.tensors[f"images_{number}"], *IMAGENET)
            logits = window_logits(model, images, how, COMPUTE)
            total += F.interpolate(logits, size=(20, 26), mode="bilinear", align_corners=False).softmax(1)
    assert torch.equal(classes_of(model, batch, how, COMPUTE), total[0].argmax(0))


def test_no_scale_goes_below_the_window():
    """The release's short sides of a 512 x 683 image; one scale by itself is padded as ever."""
    how = sliding((512, 512), normalization=IMAGENET, short_side=512, multi_scale=True)
    sizes = [tuple(batch_of(512, 683, how).tensors[f"images_{number}"].shape[-2:]) for number in range(6)]
    assert [min(size) for size in sizes] == [512, 512, 512, 640, 768, 896]
    assert [max(size) for size in sizes] == [683, 683, 683, 854, 1024, 1195]
    oblong = sliding((16, 24), normalization=IMAGENET, short_side=16, multi_scale=True)
    images = batch_of(32, 32, oblong).tensors
    assert all(images[f"images_{number}"].shape[-2] >= 24 for number in range(6))
    single = sliding((512, 512), normalization=IMAGENET, short_side=256)
    assert batch_of(512, 683, single).tensors["images_0"].shape[-2] == 256
