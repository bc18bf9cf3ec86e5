"""The choice of an attention kernel: who is a candidate, what is refused; on the kernels that this machine has."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend

from beitcli.runtime.attention_kernels import candidates, fastest, use_fastest


@pytest.mark.parametrize(("length", "cudnn"), [(197, True), (577, True), (576, False), (192, False), (64, False)])
def test_cudnn_is_no_candidate_for_a_biased_length_of_64_modulo_128(length, cudnn):
    assert (SDPBackend.CUDNN_ATTENTION in candidates(length, has_bias=True)) == cudnn
    assert SDPBackend.CUDNN_ATTENTION in candidates(length, has_bias=False)


def test_flash_attention_is_a_candidate_without_a_bias_only():
    assert SDPBackend.FLASH_ATTENTION not in candidates(197, has_bias=True)
    assert SDPBackend.FLASH_ATTENTION in candidates(197, has_bias=False)


def test_the_fastest_of_the_kernels_that_run_is_chosen():
    query, bias = torch.empty(2, 2, 9, 8), torch.empty(1, 2, 9, 9)
    kernels = candidates(9, has_bias=True)
    assert fastest(kernels, query, query, bias) == SDPBackend.MATH  # the others need CUDA
    assert fastest([SDPBackend.CUDNN_ATTENTION], query, query, bias) is None
    assert fastest([SDPBackend.FLASH_ATTENTION], query, query, None) == SDPBackend.FLASH_ATTENTION


def test_trying_kernels_moves_no_random_number():
    before = torch.get_rng_state()
    fastest([SDPBackend.MATH], torch.empty(1, 1, 4, 8), torch.empty(1, 1, 4, 8), None)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_changes_off_cuda():
    flags = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    assert use_fastest(torch.empty(1, 1, 4, 8), torch.empty(1, 1, 4, 8), None) is None
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == flags
