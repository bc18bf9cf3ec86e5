"""Warnings of other programs, which are errors in tests, that a GPU brings with it. None of them is about this code."""

from __future__ import annotations

from pathlib import Path

import pytest

FOREIGN_WARNINGS = (
    "ignore:Synchronization debug mode is a prototype feature:UserWarning",  # torch.cuda.set_sync_debug_mode
    "ignore:TensorFloat32 tensor cores for float32 matrix multiplication:UserWarning",  # torch.compile of chosen fp32
    r"ignore:\s*Online softmax is disabled on the fly:UserWarning",  # torch.compile, where a kernel is split
    r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning",  # torch's own use of it
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for each in FOREIGN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(each))
