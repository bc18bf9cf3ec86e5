"""The bound against the exact likelihood, and its terms against torch.distributions and scipy."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch

from beitcli.engine.mim.variational_bound import (
    bits_per_dimension,
    categorical_kl,
    entropy,
    expected_log_likelihood,
    lower_bound,
    mean_and_error,
    point_kl,
    sample_tokens,
    uniform_log_prior,
    unigram_log_prior,
)

V, N = 3, 2
ALL = torch.tensor(list(itertools.product(range(V), repeat=N)))  # (9, 2)
Q = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.15, 0.8]], dtype=torch.float64)
PRIOR = torch.tensor([[0.5, 0.3, 0.2], [0.25, 0.35, 0.4]], dtype=torch.float64)
LIKELIHOOD = torch.tensor([0.02, 0.3, 0.11, 0.4, 0.07, 0.01, 0.25, 0.6, 0.09], dtype=torch.float64)  # p(x|z), 9 z


def of_all(probabilities: torch.Tensor) -> torch.Tensor:
    """(9,) probabilities of the nine z under a product of (N, V)."""
    return torch.stack([probabilities[0, a] * probabilities[1, b] for a, b in ALL.tolist()])


def exact() -> tuple[torch.Tensor, torch.Tensor]:
    """ln sum_z p(z|x~) p(x|z), and the posterior p(z|x, x~) of the nine z."""
    joint = of_all(PRIOR) * LIKELIHOOD
    return joint.sum().log(), joint / joint.sum()


@pytest.mark.parametrize("q", [Q, PRIOR, torch.full((N, V), 1 / V, dtype=torch.float64), torch.eye(3).double()[:2]])
def test_the_gap_of_the_bound_is_the_kl_to_the_posterior(q):
    evidence, posterior = exact()
    expected = expected_log_likelihood(LIKELIHOOD.log(), of_all(q))
    bound = lower_bound(expected, categorical_kl(q.log(), PRIOR.log()).sum(dim=-1))
    weights = of_all(q)
    gap = torch.special.xlogy(weights, weights).sum() - (weights * posterior.log()).sum()
    assert bound <= evidence
    assert float(evidence - bound) == pytest.approx(float(gap), abs=1e-6)
    assert gap > 1e-3


@pytest.mark.parametrize("place", range(V**N))
def test_the_bound_of_one_point_is_the_joint_and_its_gap_the_point_s_posterior(place):
    evidence, posterior = exact()
    bound = lower_bound(LIKELIHOOD[place].log(), point_kl(ALL[place], PRIOR.log()).sum(dim=-1))
    assert float(bound) == pytest.approx(float((of_all(PRIOR) * LIKELIHOOD)[place].log()), abs=1e-12)
    assert float(evidence - bound) == pytest.approx(-float(posterior[place].log()), abs=1e-6)
    delta = torch.nn.functional.one_hot(ALL[place], V).double()
    assert torch.allclose(categorical_kl(delta.log(), PRIOR.log()), point_kl(ALL[place], PRIOR.log()))


def test_samples_converge_to_the_expectation_over_all_z():
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(40_000, N, generator=generator, dtype=torch.float64)
    drawn = sample_tokens(Q.log().expand(40_000, N, V), uniforms)
    values = LIKELIHOOD.log()[drawn[:, 0] * V + drawn[:, 1]]
    mean, error = mean_and_error(values)
    exactly = float(expected_log_likelihood(LIKELIHOOD.log(), of_all(Q)))
    assert error is not None
    assert abs(mean - exactly) < 4 * error
    assert float(expected_log_likelihood(values)) == mean
    frequencies = torch.bincount(drawn[:, 1], minlength=V) / 40_000
    assert torch.allclose(frequencies.double(), Q[1], atol=0.01)


def test_sampling_inverts_the_cumulative_distribution_and_never_draws_what_cannot_be():
    log_q = torch.tensor([0.0, 0.25, 0.0, 0.75]).log()
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.9999999])
    assert sample_tokens(log_q.expand(4, 4), uniforms).tolist() == [1, 1, 3, 3]


def test_kl_and_entropy_equal_torch_s_and_scipy_s():
    generator = torch.Generator().manual_seed(1)
    log_q, log_p = torch.randn(2, 4, 5, 16, generator=generator, dtype=torch.float64).log_softmax(dim=-1)
    q, p = (torch.distributions.Categorical(logits=each) for each in (log_q, log_p))
    assert torch.allclose(categorical_kl(log_q, log_p), torch.distributions.kl_divergence(q, p), atol=1e-12)
    assert torch.allclose(entropy(log_q), q.entropy(), atol=1e-12)
    theirs = scipy.stats.entropy(log_q.exp().numpy(), log_p.exp().numpy(), axis=-1)
    assert torch.allclose(categorical_kl(log_q, log_p), torch.from_numpy(theirs), atol=1e-12)
    tokens = torch.randint(16, (4, 5), generator=generator)
    assert torch.allclose(point_kl(tokens, log_p), -p.log_prob(tokens))


def test_the_uniform_prior_costs_ln_v_a_position():
    tokens = torch.tensor([[0, 5, 1023, 7]])
    assert float(point_kl(tokens, uniform_log_prior(1024)).sum()) == 4 * math.log(1024)
    log_q = torch.randn(4, 1024, dtype=torch.float64).log_softmax(dim=-1)
    difference = categorical_kl(log_q, uniform_log_prior(1024)) + entropy(log_q)
    assert torch.allclose(difference, torch.full((4,), math.log(1024), dtype=torch.float64))


def test_the_unigram_prior_counts_every_code_once_more():
    prior = unigram_log_prior(torch.tensor([5, 0, 2])).exp()
    assert prior.tolist() == pytest.approx([0.6, 0.1, 0.3])


def test_errors_and_bits():
    assert mean_and_error(torch.tensor([1.0, 2.0, 6.0])) == (3.0, pytest.approx(math.sqrt(7 / 3)))
    assert mean_and_error(torch.tensor([2.0])) == (2.0, None)
    assert bits_per_dimension(-8 * math.log(256), 8) == pytest.approx(8.0)
