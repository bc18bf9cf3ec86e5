"""What the tests on a GPU share: a watch for whatever waits for the device, and the warnings of other programs that it
brings with it, which are errors in tests. None of those is about this code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

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


@pytest.fixture
def nothing_waits() -> Callable[[], AbstractContextManager[None]]:
    """`with nothing_waits():`: whatever waits for the device inside raises, in every thread."""

    @contextmanager
    def watched() -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched
