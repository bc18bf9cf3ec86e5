"""Attention with a bias: numbers, gradients, alignment, and one compiled graph; on the kernels that a CPU has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.registry import lookup_backend
from torch._higher_order_ops.flex_attention import flex_attention as flex_operator
from torch.nn.attention.flex_attention import _create_empty_block_mask
from torch.overrides import TorchFunctionMode

from beitcli.runtime.compute.sdpa_backend import attention, attention_mask, padded_bias, score_mod

BATCH, HEADS, LENGTH, DIM, ROWS = 3, 2, 13, 16, 5
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


def some_rows() -> torch.Tensor:
    return drawn(BATCH, LENGTH, seed=9).argsort(dim=1)[:, :ROWS]


def inputs(narrow: bool, *, grad: bool = True) -> list[torch.Tensor]:
    """Query, key, value and bias."""
    shapes = [(BATCH, HEADS, ROWS if narrow else LENGTH, DIM)] + [(BATCH, HEADS, LENGTH, DIM)] * 2
    tensors = [*(drawn(*shape, seed=seed) for seed, shape in enumerate(shapes)), drawn(HEADS, LENGTH, LENGTH, seed=7)]
    return [tensor.requires_grad_(grad) for tensor in tensors]


def by_formula(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """In float64, with a bias that broadcasts to the scores."""
    scores = query.double() @ key.double().mT / DIM**0.5 + bias.double()
    return scores.softmax(dim=-1) @ value.double()


def own_rows(bias: torch.Tensor, queries: torch.Tensor | None) -> torch.Tensor:
    """(B, heads, R, L), image by image and head by head."""
    if queries is None:
        return bias.expand(BATCH, -1, -1, -1)
    return torch.stack([bias[:, rows] for rows in queries])


class Masks(TorchFunctionMode):
    """Notes the shape and strides of each mask that torch's attention is called with, and lets the call go on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.Size, tuple[int, ...]]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            mask = kwargs["attn_mask"]
            self.found.append((mask.shape, mask.stride()))
        return function(*args, **(kwargs or {}))


class Graphs:
    """A backend of torch.compile that keeps the graphs."""

    def __init__(self) -> None:
        self.found: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, examples: Any) -> Any:
        self.found.append(graph)
        return lookup_backend("aot_eager")(graph, examples)

    def operators(self) -> list[Any]:
        return [node.target for graph in self.found for node in graph.graph.nodes]


def compiled(function: Callable[..., Any]) -> tuple[Callable[..., Any], Graphs]:
    torch._dynamo.reset()
    graphs = Graphs()
    return torch.compile(function, fullgraph=True, backend=graphs), graphs


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_attention_equals_the_formula_with_all_gradients(narrow, padded):
    tensors, queries = inputs(narrow), some_rows() if narrow else None
    query, key, value, bias = tensors
    gradient = drawn(*query.shape, seed=8)
    out = attention(query, key, value, padded_bias(bias) if padded else bias, queries)
    expected = by_formula(query, key, value, own_rows(bias, queries))
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)
    ours = torch.autograd.grad(out, tensors, gradient)
    theirs = torch.autograd.grad(expected, tensors, gradient.double())
    for each, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(each, wanted, atol=2e-6, rtol=1e-5)


def test_a_bias_is_not_expanded_over_the_batch():
    query, key, value, bias = inputs(False)
    with Masks() as masks:
        attention(query, key, value, bias)
    assert [shape for shape, _ in masks.found] == [(1, HEADS, LENGTH, LENGTH)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_broadcast_bias_gives_what_an_expanded_one_gives(dtype):
    """Bit for bit; but the math kernel rounds a bf16 gradient of each image before it sums those of an expanded one."""
    query, key, value, bias = (tensor.detach().to(dtype) for tensor in inputs(False))
    expanded = bias.expand(BATCH, -1, -1, -1)
    with torch.no_grad():
        whole = F.scaled_dot_product_attention(query, key, value, attn_mask=expanded)
        assert torch.equal(attention(query, key, value, bias), whole)
    gradients = []
    for expand in (False, True):
        leaf = bias.clone().requires_grad_()
        mask = leaf.expand(BATCH, -1, -1, -1) if expand else leaf.unsqueeze(0)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        gradients.append(torch.autograd.grad(out, leaf, drawn(*out.shape, seed=8, dtype=dtype))[0])
    if dtype == torch.float32:
        assert torch.equal(*gradients)
    else:
        torch.testing.assert_close(*gradients, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("queries", [None, 75])
@pytest.mark.parametrize("length", [197, 192, 577, 65])
def test_a_padded_mask_has_strides_that_torch_neither_pads_nor_copies(length, queries):
    bias = padded_bias(drawn(HEADS, length, length))
    rows = None if queries is None else torch.randint(0, length, (BATCH, queries))
    mask = attention_mask(bias, rows, torch.bfloat16, length)
    assert mask.shape == ((1, HEADS, length, length) if queries is None else (BATCH, HEADS, queries, length))
    assert mask.stride(-1) == 1
    assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
    assert mask.dtype == torch.bfloat16
    assert torch.equal(mask[0], bias[:, slice(None) if rows is None else rows[0], :length].bfloat16())


def test_a_bias_of_aligned_length_is_not_copied():
    bias = drawn(HEADS, 16, 16)
    assert padded_bias(bias) is bias


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_attention_is_one_compiled_graph(has_bias, narrow):
    tensors, queries = inputs(narrow), some_rows() if narrow and has_bias else None
    leaves = tensors if has_bias else tensors[:3]

    def of_padded(*given: torch.Tensor) -> torch.Tensor:
        return attention(*given[:3], padded_bias(given[3]) if has_bias else None, queries)

    function, graphs = compiled(of_padded)
    out, expected = function(*leaves), of_padded(*leaves)
    assert len(graphs.found) == 1
    torch.testing.assert_close(out, expected)
    gradient = drawn(*out.shape, seed=8)
    for ours, theirs in zip(
        torch.autograd.grad(out, leaves, gradient), torch.autograd.grad(expected, leaves, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("narrow", [False, True])
def test_flex_attention_is_traced_into_one_graph_and_gives_the_formula(narrow):
    """Forward only: torch has no backward pass of it on a CPU."""
    query, key, value, bias = inputs(narrow, grad=False)
    queries = some_rows() if narrow else None
    function, graphs = compiled(lambda *given: attention(*given, queries, use_flex=True))
    out = function(query, key, value, padded_bias(bias))
    assert len(graphs.found) == 1
    assert flex_operator in graphs.operators()
    expected = by_formula(query, key, value, own_rows(bias, queries))
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(TORCH < (2, 14), reason="outside a fused kernel torch 2.11 returns no gradient of what is captured")
@pytest.mark.parametrize("narrow", [False, True])
def test_the_function_of_scores_gives_a_bias_its_gradient(narrow):
    """torch's own unfused backward pass of the operator, called beneath the check that refuses it on a CPU."""
    tensors, queries = inputs(narrow), some_rows() if narrow else None

    def by_operator(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        blocks = _create_empty_block_mask(query, key).as_tuple()
        options = {"OUTPUT_LOGSUMEXP": True, "OUTPUT_MAX": False}
        added = score_mod(padded_bias(bias), queries)
        return flex_operator(query, key, value, added, blocks, DIM**-0.5, options)[0]

    function, graphs = compiled(by_operator)
    out = function(*tensors)
    assert len(graphs.found) == 1
    expected = by_formula(*tensors[:3], own_rows(tensors[3], queries))
    gradient = drawn(*out.shape, seed=8)
    ours = torch.autograd.grad(out, tensors, gradient)
    theirs = torch.autograd.grad(expected, tensors, gradient.double())
    for each, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(each, wanted, atol=2e-6, rtol=1e-5)


def test_flex_attention_is_for_recorded_gradients_only():
    query, key, value, bias = inputs(False, grad=False)
    function, graphs = compiled(lambda *given: attention(*given, use_flex=True))
    with torch.no_grad():
        out = function(query, key, value, bias)
    assert flex_operator not in graphs.operators()
    assert torch.equal(out, attention(query, key, value, bias, use_flex=False))
