"""Every density integrates to one, and its sampler draws from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nucleate.policies.distributions import (
    MAX_CONCENTRATION,
    MIN_SIGMA,
    SHARPEST,
    categorical,
    gaussian_mixture_log_prob,
    masked_log_softmax,
    sample_gaussian_mixture,
    sample_von_mises,
    split_gaussians,
    split_mixture,
    von_mises_log_prob,
    wrapped,
)
from tiny import generator

TEMPERATURES = (0.5, 1.0, 2.0)
COLD = (0.01, 0.1, 0.3)


def mixture(seed: int, concentration: float) -> torch.Tensor:
    """(12,) outputs of a head with four components around one concentration."""
    rng = np.random.default_rng(seed)
    raw = np.r_[rng.normal(size=4), rng.uniform(-4, 4, 4), concentration * rng.uniform(0.5, 1, 4)]
    return torch.tensor(raw, dtype=torch.float32)


@pytest.mark.parametrize("temperature", [*COLD, *TEMPERATURES])
@pytest.mark.parametrize("concentration", [-9.0, 1.0, 30.0, 3000.0])
def test_von_mises_density_integrates_to_one(concentration, temperature):
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    raw = mixture(1, concentration).double().expand(len(grid), -1)
    density = von_mises_log_prob(raw, grid, temperature=temperature).double().exp()
    # per radian of the angle 2 pi x
    assert torch.trapezoid(density, grid) * 2 * math.pi == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("temperature", [*COLD, *TEMPERATURES])
@pytest.mark.parametrize("concentration", [-9.0, 1.0, 30.0, 3000.0])
def test_von_mises_sampler_follows_the_density(concentration, temperature):
    n = 20_000
    raw = mixture(2, concentration)
    drawn = sample_von_mises(raw.expand(n, -1), generator(3), temperature=temperature)
    assert drawn.min() >= 0 and drawn.max() < 1
    grid = torch.linspace(0, 1, 40_001)
    density = von_mises_log_prob(raw.expand(len(grid), -1), grid, temperature=temperature).exp()
    cumulative = np.r_[0, np.cumsum(density[1:].double().numpy() + density[:-1].double().numpy())]
    cumulative /= cumulative[-1]
    test = stats.kstest(drawn.numpy(), lambda x: np.interp(x, grid.numpy(), cumulative))
    assert test.pvalue > 1e-3


def test_coordinates_wrap_around():
    raw = torch.tensor([0.0, math.pi, 50.0])  # one component at x = 1, the same as x = 0
    x = torch.linspace(-1, 1, 41)
    density = von_mises_log_prob(raw.expand(41, -1), x)
    shifted = von_mises_log_prob(raw.expand(41, -1), x + 1)
    assert torch.allclose(density, shifted, atol=1e-4)
    drawn = sample_von_mises(raw.expand(1000, -1), generator(0))
    below, above = (drawn > 0.5).float().mean(), (drawn < 0.5).float().mean()
    assert abs(below - above) < 0.1
    assert torch.minimum(drawn, 1 - drawn).max() < 0.15


def test_fractions_are_wrapped_into_the_cell():
    edge = torch.tensor([-1e-9, 1.0, -1.0, 0.0, 2.25, -0.25])
    assert torch.remainder(edge, 1.0)[0] == 1.0  # rounding
    assert wrapped(edge).tolist() == [0.0, 0.0, 0.0, 0.0, 0.25, 0.75]


@pytest.mark.parametrize("temperature", [0.001, *COLD, *TEMPERATURES])
def test_temperature_narrows_and_widens_up_to_a_limit(temperature):
    """Below the temperature SHARPEST, densities at the limit stay as sharp as they are there."""
    raw = torch.cat([torch.tensor([1.0, -2.0]), torch.zeros(2), torch.tensor([5.0, 1e5])])
    logits, location, concentration = split_mixture(raw, temperature)
    torch.testing.assert_close(logits, raw[:2] / temperature)
    assert torch.equal(location, raw[2:4])
    most = MAX_CONCENTRATION / max(temperature, SHARPEST)
    own = math.log1p(math.exp(5.0)) / temperature
    assert concentration[0] == pytest.approx(min(own, most), rel=1e-4)
    assert concentration[1] == pytest.approx(most)
    raw = torch.tensor([[1.0, -2.0, 0.3, -0.3, -50.0, 1.0]])
    logits, mean, sigma = split_gaussians(raw, 1, temperature)
    torch.testing.assert_close(logits, raw[:, :2] / temperature)
    assert torch.equal(mean[0, :, 0], raw[0, 2:4])
    assert sigma[0, 0] == pytest.approx(MIN_SIGMA * max(temperature, SHARPEST) ** 0.5)
    wide = (math.log1p(math.exp(1.0)) + MIN_SIGMA) * temperature**0.5
    assert sigma[0, 1] == pytest.approx(wide, rel=1e-5)


def test_double_precision_is_kept_until_the_density_is_known():
    """A location between two single-precision numbers, under the sharpest density."""
    raw = torch.tensor([0.0, 3.0 + 1e-7, 1e5], dtype=torch.float64).expand(1, -1)
    assert split_mixture(raw, 1.0)[1] == 3.0 + 1e-7
    near = torch.tensor([0.97])
    exact = von_mises_log_prob(raw, near)
    rounded = von_mises_log_prob(raw.float(), near)
    assert exact.dtype == rounded.dtype == torch.float32 and exact != rounded
    half = raw.to(torch.bfloat16)
    assert split_mixture(half, 1.0)[0].dtype == torch.float32
    assert split_gaussians(raw, 1, 1.0)[1].dtype == torch.float64
    for drawn in (
        sample_von_mises(raw, generator(0)),
        sample_gaussian_mixture(raw, 1, generator(0)),
        gaussian_mixture_log_prob(raw, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)),
    ):
        assert drawn.dtype == torch.float32


def gaussian(seed: int) -> torch.Tensor:
    """Outputs of a head with three components in two dimensions, well apart."""
    rng = np.random.default_rng(seed)
    raw = np.r_[rng.normal(size=3), rng.normal(0, 3, 6), rng.normal(-1, 0.5, 6)]
    return torch.tensor(raw, dtype=torch.float32)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gaussian_mixture_is_joint_in_sampling_and_in_scoring(temperature):
    raw, n = gaussian(0), 20_000
    axis = torch.linspace(-14, 14, 701)
    grid = torch.cartesian_prod(axis, axis)
    free = torch.ones(len(grid), 2, dtype=torch.bool)
    log_density = gaussian_mixture_log_prob(
        raw.expand(len(grid), -1), grid, free, temperature=temperature
    ).double()
    weight = log_density.exp() * float(axis[1] - axis[0]) ** 2
    assert weight.sum() == pytest.approx(1.0, abs=1e-3)
    entropy = -(weight * log_density).sum()
    drawn = sample_gaussian_mixture(raw.expand(n, -1), 2, generator(1), temperature=temperature)
    own = gaussian_mixture_log_prob(
        raw.expand(n, -1), drawn, free[:1].expand(n, -1), temperature=temperature
    ).double()
    error = own.std() / math.sqrt(n)
    assert abs(own.mean() + entropy) < 4 * error
    # and not the product of its marginals, which puts mass between the components
    alone = [
        gaussian_mixture_log_prob(
            raw.expand(n, -1), drawn, torch.arange(2).expand(n, 2) == d, temperature=temperature
        )
        for d in range(2)
    ]
    assert own.mean() > (alone[0] + alone[1]).mean() + 0.2


def test_parameters_that_are_not_free_carry_no_density():
    raw = gaussian(4).expand(5, -1)
    value = torch.randn(5, 2, generator=generator(0))
    free = torch.tensor([[True, False]]).expand(5, 2)
    moved = torch.stack([value[:, 0], torch.randn(5, generator=generator(1))], 1)
    one = gaussian_mixture_log_prob(raw, value, free)
    assert torch.equal(one, gaussian_mixture_log_prob(raw, moved, free))
    logits, mean, sigma = split_gaussians(raw, 2, 1.0)
    normal = torch.distributions.Normal(mean[..., 0], sigma[..., 0]).log_prob(value[:, :1])
    assert torch.allclose(one, torch.logsumexp(logits.log_softmax(-1) + normal, -1), atol=1e-5)
    none = gaussian_mixture_log_prob(raw, value, torch.zeros(5, 2, dtype=torch.bool))
    assert torch.equal(none, torch.zeros(5))


logit_rows = st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=9)


@settings(max_examples=60, deadline=None)
@given(logit_rows, st.floats(0.05, 0.999), st.floats(0.3, 3), st.data())
def test_nucleus_is_the_smallest_set_that_reaches_top_p(row, top_p, temperature, data):
    allowed = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))))
    allowed[data.draw(st.integers(0, len(row) - 1))] = True
    logits = torch.tensor(row)
    whole = masked_log_softmax(logits, allowed, temperature=temperature).exp()
    expected = torch.where(allowed, (logits / temperature).exp(), 0.0)
    assert torch.allclose(whole, expected / expected.sum(), atol=1e-6)
    nucleus = masked_log_softmax(logits, allowed, temperature=temperature, top_p=top_p).exp()
    kept = nucleus > 0
    assert nucleus.sum() == pytest.approx(1.0, abs=1e-5)
    assert not (kept & ~allowed).any()
    assert whole[kept].sum() >= top_p - 1e-5
    assert whole[kept].sum() - whole[kept].min() < top_p + 1e-5
    assert whole[kept].min() >= whole[~kept].max() if (~kept).any() else True
    assert torch.allclose(nucleus[kept], whole[kept] / whole[kept].sum(), atol=1e-5)


def test_a_choice_outside_the_nucleus_keeps_a_finite_score():
    logits, allowed = (
        torch.tensor([[3.0, 2.0, -4.0, 0.0]]),
        torch.tensor([[True, True, True, False]]),
    )
    plain = masked_log_softmax(logits, allowed, top_p=0.5)
    assert torch.equal(plain.isfinite(), torch.tensor([[True, False, False, False]]))
    for choice, finite in ((0, True), (2, True), (3, False)):
        log_prob = masked_log_softmax(logits, allowed, top_p=0.5, chosen=torch.tensor([choice]))
        assert bool(log_prob[0, choice].isfinite()) == finite
        assert log_prob.exp().sum() == pytest.approx(1.0)
    inside = masked_log_softmax(logits, allowed, top_p=0.5, chosen=torch.tensor([0]))
    assert torch.equal(inside, plain)


def test_categorical_draws_by_weight():
    log_prob = masked_log_softmax(
        torch.tensor([1.0, 0.0, 5.0, -1.0]), torch.tensor([True, True, False, True])
    )
    drawn = categorical(log_prob.expand(20_000, -1), generator(0))
    count = torch.bincount(drawn, minlength=4).numpy()
    assert count[2] == 0
    expected = log_prob[[0, 1, 3]].double().exp().numpy()
    expected *= 20_000 / expected.sum()
    assert stats.chisquare(count[[0, 1, 3]], expected).pvalue > 1e-3
