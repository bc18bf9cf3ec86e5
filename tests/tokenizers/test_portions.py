"""How many images a CPU encodes at once: more where the bits are the same, else eight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from beitcli.tokenizers import portions as module
from beitcli.tokenizers.base import Tokenizer
from beitcli.tokenizers.dvae import DiscreteVAE
from beitcli.tokenizers.dvae_network import DVAEArchitecture
from beitcli.tokenizers.portions import portions


def lengths(model: nn.Module, images: Tensor, logits) -> list[int]:
    return [len(part) for part in portions(model, logits, images)]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (7, [7]),
        (15, [8, 7]),
        (16, [16]),
        (37, [32, 5]),
        (64, [64]),
        (150, [64, 64, 8, 8, 6]),
    ],
)
def test_logits_that_do_not_depend_on_the_batch_are_computed_in_large_portions(images, expected):
    parts = portions(nn.Identity(), lambda each: each * 2, torch.arange(images).view(-1, 1, 1, 1).float())
    assert [len(part) for part in parts] == expected
    assert torch.cat(parts).flatten().tolist() == list(range(images))


def test_logits_that_differ_by_the_last_bit_keep_portions_of_eight():
    def logits(images: Tensor) -> Tensor:
        calls.append(len(images))
        return images * (1 + len(images) // 16 * 2**-20)

    model, calls = nn.Identity(), []
    assert lengths(model, torch.rand(40, 1, 4, 4), logits) == [8] * 5
    assert calls == [16, 8]
    assert lengths(model, torch.rand(40, 1, 4, 4), logits) == [8] * 5
    assert calls == [16, 8]  # once for each size of image


def test_a_tokenizer_without_logits_keeps_portions_of_eight():
    assert lengths(nn.Identity(), torch.rand(20, 1, 4, 4), lambda images: None) == [8, 8, 4]


def test_large_images_are_not_tried():
    def logits(images: Tensor) -> Tensor:
        raise AssertionError

    assert lengths(nn.Identity(), torch.rand(17, 1, 65, 64), logits) == [8, 8, 1]


def test_the_bits_of_a_tokenizer_are_those_of_portions_of_eight(monkeypatch):
    torch.manual_seed(0)
    shape = DVAEArchitecture(vocab_size=64, width=8, groups=3, blocks_per_group=1)
    tokenizer = Tokenizer("a", DiscreteVAE(shape, decoder=False).requires_grad_(False).eval(), 16, "")
    images = torch.rand(83, 3, 16, 16)
    monkeypatch.setattr(DiscreteVAE, "encode", DiscreteVAE.token_logits)
    large = tokenizer.encode_batch_invariant(images)
    monkeypatch.setattr(module, "_LARGER", (1000,))
    assert torch.equal(large, tokenizer.encode_batch_invariant(images))
