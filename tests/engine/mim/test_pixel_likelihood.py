"""Probabilities of 8-bit pixels: they sum to 1, and agree with scipy and with numerical integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from beitcli.engine.mim.pixel_likelihood import (
    fitted_deviation,
    gaussian_log_density,
    gaussian_log_mass,
    laplace_log_mass,
    logit_laplace_log_density,
    logit_laplace_log_mass,
    normal_log_mass,
)

LEVELS = torch.arange(256).view(256, 1, 1, 1)  # 256 images of one channel of one pixel
LAPLACE = [(0.0, 0.0), (2.0, -3.0), (-4.0, 1.0), (0.3, -6.0)]


def full(value: float) -> torch.Tensor:
    return torch.full((256, 1, 1, 1), value, dtype=torch.float64)


@pytest.mark.parametrize(("mean", "log_scale"), LAPLACE)
def test_logit_laplace_masses_sum_to_one(mean, log_scale):
    masses = logit_laplace_log_mass(LEVELS, full(mean), full(log_scale)).exp()
    assert float(masses.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("mean", "log_scale"), LAPLACE[:3])
def test_the_logit_laplace_density_integrates_to_one_and_over_a_bin_to_its_mass(mean, log_scale):
    def density(level: float) -> float:
        levels = torch.tensor(level, dtype=torch.float64).view(1, 1, 1, 1)
        return float(logit_laplace_log_density(levels, full(mean)[:1], full(log_scale)[:1]).exp())

    peak = (1 / (1 + math.exp(-mean)) - 0.1) / 0.8 * 255
    reach = -0.1 / 0.8 * 255, 0.9 / 0.8 * 255  # where 0.8 x + 0.1 is 0 and 1
    whole = sum(
        scipy.integrate.quad(density, first, last, epsabs=1e-9, limit=200)[0]
        for first, last in ((reach[0] + 1e-9, peak), (peak, reach[1] - 1e-9))
    )
    assert whole == pytest.approx(1, abs=1e-6)
    for level in (40, round(peak) if 0 < peak < 255 else 128):
        kink = [peak] if abs(peak - level) < 0.5 else None
        part = scipy.integrate.quad(density, level - 0.5, level + 0.5, points=kink)[0]
        mass = logit_laplace_log_mass(LEVELS, full(mean), full(log_scale))[level].exp()
        assert float(mass) == pytest.approx(part, rel=1e-6)


@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 0.1), (0.0, 0.02), (1.0, 0.3), (0.3, 0.001)])
def test_gaussian_masses_sum_to_one_and_equal_scipy_s(mean, deviation):
    ours = gaussian_log_mass(LEVELS, full(mean), deviation)
    assert float(ours.exp().sum()) == pytest.approx(1, abs=1e-12)
    theirs = scipy.stats.norm(mean * 255, deviation * 255)
    edges = np.concatenate(([-np.inf], np.arange(255) + 0.5, [np.inf]))
    masses = np.diff(theirs.cdf(edges))
    near = masses > 1e-9
    assert ours.exp().numpy()[near] == pytest.approx(masses[near], rel=1e-6)
    assert ours.isfinite().all()  # scipy's difference is 0 in the tails
    density = gaussian_log_density(LEVELS, full(mean), deviation)
    assert density.numpy() == pytest.approx(theirs.logpdf(np.arange(256)), rel=1e-9)


def test_far_tails_keep_their_digits():
    lower, upper = torch.tensor([40.0, -41.0, 700.0]).double(), torch.tensor([41.0, -40.0, 701.0]).double()
    ours = laplace_log_mass(lower, upper)
    assert ours.tolist() == pytest.approx([near - math.log(2) + math.log1p(-math.exp(-1)) for near in (-40, -40, -700)])
    theirs = float(
        scipy.stats.norm.logsf(40) + np.log1p(-np.exp(scipy.stats.norm.logsf(41) - scipy.stats.norm.logsf(40)))
    )
    assert normal_log_mass(lower, upper)[:2].tolist() == pytest.approx([theirs, theirs])


def test_sums_are_over_pixels_and_channels_of_each_image():
    levels = torch.randint(256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean = torch.full((2, 3, 4, 5), 0.4)
    single = gaussian_log_mass(LEVELS, full(0.4), 0.2)
    assert gaussian_log_mass(levels, mean, 0.2).tolist() == pytest.approx(
        single[levels.long()].sum(dim=(1, 2, 3)).tolist()
    )


def test_the_fitted_deviation_is_the_sample_s_and_the_likeliest():
    generator = np.random.default_rng(0)
    errors = generator.normal(0, 0.07, 4000)
    deviation = fitted_deviation(float(np.square(errors).sum()), errors.size)
    assert deviation == pytest.approx(math.sqrt(np.mean(errors**2)))
    assert deviation == pytest.approx(scipy.stats.norm.fit(errors, floc=0)[1])
    levels = torch.from_numpy((0.5 + errors) * 255).view(-1, 1, 1, 1)
    mean = torch.full_like(levels, 0.5)
    best = float(gaussian_log_density(levels, mean, deviation).sum())
    for other in (0.98, 1.02):
        assert float(gaussian_log_density(levels, mean, other * deviation).sum()) < best
