"""Codebooks and grids: nearest codes, straight-through gradients, moving averages, codes that come back into use."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from beitcli.errors import UsageError
from beitcli.tokenizers import vector_quantizer
from beitcli.tokenizers.vector_quantizer import FiniteScalarQuantizer, VectorQuantizer, levels_of


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest result of an operation has."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def quantizer(codes: int = 5, width: int = 3, **how: bool) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(codes, width, **how)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("cosine", [False, True])
def test_a_code_is_the_nearest_of_all(cosine):
    model, vectors = quantizer(11, 4, cosine=cosine), torch.randn(2, 3, 4)
    model.codebook.copy_(model.prepared(model.codebook))
    codes = model.nearest(vectors)
    assert codes.shape == (2, 3)
    for vector, code in zip(vectors.view(-1, 4), codes.flatten().tolist(), strict=True):
        if cosine:
            distances = [-float(F.cosine_similarity(vector, each, dim=0)) for each in model.codebook]
        else:
            distances = [float((vector - each).square().sum()) for each in model.codebook]
        assert code == min(range(11), key=distances.__getitem__)


@pytest.mark.parametrize("how", [{}, {"cosine": True}, {"by_loss": True}])
def test_codes_under_autocast_are_the_nearest_of_fp32(how):
    """A training step runs under autocast; bf16 products of 512 codes miss the nearest for one vector in fourteen."""
    model, vectors = quantizer(512, 16, **how), torch.randn(2000, 16)
    with torch.autocast("cpu", torch.bfloat16):
        quantized, codes, _ = model(vectors)
        alone = model.nearest(vectors)
    assert torch.equal(codes, model.nearest(vectors))
    assert torch.equal(alone, codes)
    assert quantized.dtype == torch.float32


@pytest.mark.parametrize("cosine", [False, True])
def test_many_vectors_are_compared_in_parts(monkeypatch, cosine):
    """The scores of a first batch with all codes would be 13 GB for 2,048 images of 196 patches and 8,192 codes."""
    model, vectors = quantizer(11, 2, cosine=cosine), torch.randn(5, 7, 2)
    whole = model.nearest(vectors)
    monkeypatch.setattr(vector_quantizer, "_MOST_SCORES", 11 * 8 + 5)
    with LargestTensor() as largest:
        assert torch.equal(model.nearest(vectors), whole)
    assert largest.numbers == 11 * 8  # of 11 * 35


def test_the_gradient_passes_straight_through():
    model = quantizer()
    vectors = torch.randn(7, 3, requires_grad=True)
    quantized, codes, _ = model(vectors)
    torch.testing.assert_close(quantized, model.codebook[codes])
    weights = torch.randn(7, 3)
    (quantized * weights).sum().backward()
    assert torch.equal(vectors.grad, weights)


def test_the_commitment_pulls_a_vector_to_its_code():
    model = quantizer()
    vectors = torch.randn(7, 3, requires_grad=True)
    _, codes, distance = model(vectors)
    distance.backward()
    torch.testing.assert_close(vectors.grad, 2 * (vectors.detach() - model.codebook[codes]) / 21)


def test_one_step_of_the_moving_averages_by_hand():
    model = quantizer(2, 1)
    model.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    model.counts.copy_(torch.tensor([4.0, 2.0]))
    model.sums.copy_(torch.tensor([[0.0], [20.0]]))
    vectors = torch.tensor([[1.0], [2.0], [9.0]])
    codes = model.nearest(vectors)
    assert codes.tolist() == [0, 0, 1]
    model.update(*model.tally(vectors, codes), decay=0.5)
    # counts: (4 + 2) / 2 = 3 and (2 + 1) / 2 = 1.5; sums: (0 + 3) / 2 = 1.5 and (20 + 9) / 2 = 14.5
    torch.testing.assert_close(model.counts, torch.tensor([3.0, 1.5]))
    torch.testing.assert_close(model.sums, torch.tensor([[1.5], [14.5]]))
    smoothed = [(count + 1e-5) / (4.5 + 2e-5) * 4.5 for count in (3.0, 1.5)]
    torch.testing.assert_close(model.codebook, torch.tensor([[1.5 / smoothed[0]], [14.5 / smoothed[1]]]))


def test_one_step_on_the_unit_sphere_by_hand():
    """Each code moves towards the direction of its vectors' sum, and back to the sphere; one without use stays."""
    model = quantizer(3, 2, cosine=True)
    model.codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    vectors = torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, 2.0]])  # (0.6, 0.8) is nearer to the second code
    codes = model.nearest(vectors)
    assert codes.tolist() == [1, 0, 1]
    model.update(*model.tally(vectors, codes), decay=0.75)
    mean = torch.tensor([0.6, 1.8]) / math.hypot(0.6, 1.8)
    moved = 0.75 * torch.tensor([0.0, 1.0]) + 0.25 * mean
    torch.testing.assert_close(model.codebook[1], moved / moved.norm())
    torch.testing.assert_close(model.codebook[[0, 2]], torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert model.unused.tolist() == [0, 0, 1]


@pytest.mark.parametrize("how", [{}, {"cosine": True}, {"by_loss": True}])
def test_a_total_that_is_not_finite_changes_nothing(how):
    model = quantizer(**how)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = torch.zeros(5, 3)
    total[2, 1] = math.nan
    model.update(torch.ones(5), total, decay=0.5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_codebook_trained_by_loss_has_the_gradients_of_equation_3():
    """loss = |sg(z) - e|^2 + 0.25 |z - sg(e)|^2, means over 7 x 3 numbers."""
    model = quantizer(by_loss=True)
    assert [name for name, _ in model.named_parameters()] == ["codebook"]
    vectors = torch.randn(7, 3, requires_grad=True)
    quantized, codes, distances = model(vectors)
    (0.25 * distances[0] + distances[1]).backward()
    difference = vectors.detach() - model.codebook.detach()[codes]
    torch.testing.assert_close(vectors.grad, 0.25 * 2 * difference / 21)
    expected = torch.zeros(5, 3)
    for code, each in zip(codes.tolist(), difference, strict=True):
        expected[code] -= 2 * each / 21
    torch.testing.assert_close(model.codebook.grad, expected)
    torch.testing.assert_close(quantized, model.codebook[codes])
    model.codebook.grad = vectors.grad = None
    quantized, _, _ = model(vectors)
    quantized.sum().backward()
    assert torch.equal(vectors.grad, torch.ones(7, 3))
    assert model.codebook.grad is None  # the decoder's gradient passes the codes by


def test_codes_without_use_become_vectors_of_the_batch():
    model = quantizer(3, 1)
    model.codebook.copy_(torch.tensor([[0.0], [50.0], [100.0]]))
    model.sums.copy_(model.codebook)
    vectors = torch.tensor([[0.5], [1.5]])
    for _ in range(2):
        model.update(*model.tally(vectors, model.nearest(vectors)), decay=0.9)
        assert model.replace_unused(vectors, 3, generator()) == 0
    model.update(*model.tally(vectors, model.nearest(vectors)), decay=0.9)
    assert model.unused.tolist() == [0, 3, 3]
    assert model.replace_unused(vectors, 3, generator()) == 2
    assert set(model.codebook[1:].flatten().tolist()) <= {0.5, 1.5}
    assert model.unused.tolist() == [0, 0, 0]


def test_k_means_finds_separate_clusters():
    torch.manual_seed(1)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    vectors = (centres[:, None] + 0.1 * torch.randn(4, 50, 2)).flatten(0, 1)
    best = min(_spread(seed, vectors, centres) for seed in range(5))
    assert best < 0.1


def _spread(seed: int, vectors: torch.Tensor, centres: torch.Tensor) -> float:
    model = quantizer(4, 2)
    model.start(vectors, generator(seed))
    return float(torch.cdist(centres, model.codebook).min(dim=1).values.max())


def test_fewer_vectors_than_codes_start_it_all_the_same():
    model = quantizer(10, 3)
    vectors = torch.randn(4, 3)
    model.start(vectors, generator())
    assert {tuple(each) for each in model.codebook.tolist()} == {tuple(each) for each in vectors.tolist()}


@pytest.mark.parametrize(
    ("codes", "levels"),
    [
        (9, (9,)),
        (240, (8, 6, 5)),
        (256, (8, 8, 4)),
        (1000, (8, 5, 5, 5)),
        (1024, (8, 8, 4, 4)),
        (8192, (8, 8, 8, 4, 4)),
    ],
)
def test_levels_multiply_to_the_codes(codes, levels):
    assert math.prod(levels) == codes
    if codes in (240, 1000):
        assert levels_of(codes) == levels  # those of the paper's table
    assert math.prod(levels_of(codes)) == codes
    assert all(3 <= level <= 9 for level in levels_of(codes))


@pytest.mark.parametrize("codes", [11, 1021, 26])
def test_a_number_that_no_grid_has_is_refused_with_one_that_a_grid_has(codes):
    with pytest.raises(UsageError, match=f"--vocab-size {codes}") as caught:
        levels_of(codes)
    near = int(caught.value.hint.rstrip(".").split()[-1].rstrip(","))
    assert math.prod(levels_of(near)) == near


@pytest.mark.parametrize("levels", [(8, 5, 5), (3, 4), (7,)])
def test_every_point_of_the_grid_is_its_own_code(levels):
    model = FiniteScalarQuantizer(levels)
    codes = torch.arange(math.prod(levels))
    points = model.lookup(codes)
    assert len({tuple(point) for point in points.tolist()}) == len(codes)
    assert points.min() >= -1
    assert points.max() <= 1


@pytest.mark.parametrize("levels", [(8, 5, 5), (3, 4), (7,)])
def test_normal_numbers_reach_every_point_evenly(levels):
    model = FiniteScalarQuantizer(levels)
    torch.manual_seed(0)
    vectors = torch.randn(100_000, len(levels))
    points, codes, _ = model(vectors)
    assert torch.equal(codes, model.nearest(vectors))
    torch.testing.assert_close(points, model.lookup(codes))
    shares = torch.bincount(codes, minlength=math.prod(levels)) / len(codes) * math.prod(levels)
    assert shares.min() > 0.7
    assert shares.max() < 1.3


def test_the_grid_follows_mean_and_deviation():
    model = FiniteScalarQuantizer((5, 5))
    vectors = torch.tensor([[1.0, -2.0], [3.0, 2.0]])
    model.update(vectors.sum(0), vectors.square().sum(0), torch.tensor(2.0), 0.0)
    torch.testing.assert_close(model.mean, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(model.square, torch.tensor([5.0, 4.0]))
    assert model.nearest(torch.tensor([[2.0, 0.0]])).tolist() == [2 + 2 * 5]  # the middle of both


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_the_grid_stays_where_totals_are_not_finite(bad):
    """Such a step is skipped; averages that took it would be NaN for good, and every code the same."""
    model = FiniteScalarQuantizer((5, 5))
    vectors = torch.tensor([[1.0, -2.0], [3.0, 2.0]])
    model.update(vectors.sum(0), vectors.square().sum(0), torch.tensor(2.0), 0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vectors[0, 1] = bad
    model.update(vectors.sum(0), vectors.square().sum(0), torch.tensor(2.0), 0.5)
    model.update(torch.ones(2), torch.tensor([bad, 1.0]).square(), torch.tensor(2.0), 0.5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_gradient_of_the_grid_is_that_of_the_bounded_number():
    model = FiniteScalarQuantizer((5,))
    vectors = torch.tensor([[0.3]], requires_grad=True)
    model(vectors)[0].sum().backward()
    slope = 2.5 * (1 - 1e-4) * 2 / math.sqrt(math.pi) * math.exp(-(0.3**2) / 2) * 2**-0.5 / 2
    assert float(vectors.grad) == pytest.approx(slope / math.sqrt(1 + 1e-6), rel=1e-4)
