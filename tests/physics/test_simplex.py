"""Batched linear programmes against HiGHS."""

import numpy as np
import pytest
from scipy.optimize import linprog

from nucleate.physics.simplex import cheapest_mixture


def problem(rng, count, n_phases, k):
    fractions = rng.dirichlet(np.ones(k), size=(count, n_phases))
    fractions[:, :k] = np.eye(k)
    energies = rng.normal(-1.0, 1.0, (count, n_phases))
    energies[:, :k] = 0.0
    return fractions, energies, rng.dirichlet(np.ones(k), size=count)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_equals_highs(k):
    rng = np.random.default_rng(k)
    a, e, x = problem(rng, 20, k + 25, k)
    found = cheapest_mixture(a, e, x)
    assert found.converged.all()
    for i in range(len(x)):
        reference = linprog(e[i], A_eq=a[i].T, b_eq=x[i], method="highs").fun
        assert found.energy[i] == pytest.approx(reference, abs=1e-8)
    mixed = np.take_along_axis(a, found.phases[:, :, None], 1) * found.weights[:, :, None]
    np.testing.assert_allclose(mixed.sum(1), x, atol=1e-12)


def test_padding_and_degenerate_targets_change_nothing():
    """Targets that are themselves phases, and phases given many times over, do not cycle."""
    rng = np.random.default_rng(0)
    a, e, _ = problem(rng, 30, 12, 4)
    x = a[:, 7]
    padded_a = np.concatenate([a, a, a[:, :3]], axis=1)
    padded_e = np.concatenate([e, e, np.full((30, 3), np.inf)], axis=1)
    plain, padded = cheapest_mixture(a, e, x), cheapest_mixture(padded_a, padded_e, x)
    assert padded.converged.all()
    np.testing.assert_allclose(padded.energy, plain.energy, atol=1e-12)
    assert (plain.energy <= e[:, 7] + 1e-12).all()


def test_blands_rule_alone_finds_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    a, e, x = problem(rng, 20, 30, 4)
    expected = cheapest_mixture(a, e, x).energy
    monkeypatch.setattr("nucleate.physics.simplex.DANTZIG_STEPS", 0)
    np.testing.assert_allclose(cheapest_mixture(a, e, x).energy, expected, atol=1e-9)


def test_too_few_steps_are_reported(monkeypatch):
    monkeypatch.setattr("nucleate.physics.simplex.MAX_STEPS", 1)
    a, e, x = problem(np.random.default_rng(2), 5, 30, 4)
    found = cheapest_mixture(a, e, x)
    assert not found.converged.all()
    assert np.isnan(found.energy[~found.converged]).all()
