"""The machine's own matrix rate, what a dry run holds a step against."""

from __future__ import annotations

import pytest
import torch

from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.peak_flops import measure_matmul_flops


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_matrix_rate_is_one_that_a_processor_can_have(precision):
    before = torch.get_rng_state()
    assert 1e8 < measure_matmul_flops(Compute(torch.device("cpu"), precision)) < 1e14
    assert torch.equal(torch.get_rng_state(), before)
