"""Equations of state: exact curves, other people's fits, and the elastic tensor."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.eos import EquationOfState as AseEquation
from pymatgen.core import Lattice, Structure

from nucleate.errors import NucleateError, RecipeError
from nucleate.physics.cells import Cell
from nucleate.physics.elasticity import GPA, ElasticSettings, elasticity
from nucleate.physics.equation_of_state import (
    EquationOfState,
    StateSettings,
    equations_of_state,
    fit,
)
from nucleate.physics.potentials import AsePotential
from nucleate.physics.relax import RelaxSettings

FINE = RelaxSettings(fmax=1e-4, max_steps=3000, symprec=0.01)
FORMS = ("birch-murnaghan", "murnaghan")
VOLUMES = np.linspace(10.5, 13.5, 9)


def birch_murnaghan(v: np.ndarray, e0: float, k: float, kp: float, v0: float) -> np.ndarray:
    x = (v0 / v) ** (2 / 3)
    return e0 + 9 * v0 * k / 16 * ((x - 1) ** 3 * kp + (x - 1) ** 2 * (6 - 4 * x))


def murnaghan(v: np.ndarray, e0: float, k: float, kp: float, v0: float) -> np.ndarray:
    return e0 + k * v / kp * ((v0 / v) ** kp / (kp - 1) + 1) - k * v0 / (kp - 1)


@pytest.mark.parametrize(("form", "curve"), zip(FORMS, (birch_murnaghan, murnaghan), strict=True))
def test_exact_curves_are_recovered(form, curve) -> None:
    found = fit(VOLUMES, curve(VOLUMES, -3.5, 0.85, 4.7, 11.8), form)
    assert found.bulk_modulus == pytest.approx(0.85 * GPA, rel=1e-6)
    assert found.derivative == pytest.approx(4.7, rel=1e-5)
    assert (found.volume, found.energy) == pytest.approx((11.8, -3.5), rel=1e-6)
    assert found.residual < 1e-7


@pytest.mark.parametrize(
    ("form", "theirs"), zip(FORMS, ("birchmurnaghan", "murnaghan"), strict=True)
)
def test_noisy_points_as_ase(form, theirs) -> None:
    energies = birch_murnaghan(VOLUMES, -3.5, 0.85, 4.7, 11.8)
    energies = energies + np.random.default_rng(0).normal(0, 2e-4, len(VOLUMES))
    v0, e0, bulk = AseEquation(VOLUMES, energies, eos=theirs).fit()
    found = fit(VOLUMES, energies, form)
    assert (found.volume, found.energy) == pytest.approx((v0, e0), rel=1e-5)
    assert found.bulk_modulus == pytest.approx(bulk * GPA, rel=1e-3)


@pytest.mark.parametrize(
    ("energies", "why"),
    [
        (0.1 * VOLUMES, "no equation of state"),
        (birch_murnaghan(VOLUMES, 0, 0.85, 4.7, 15.0), "outside"),
        (-birch_murnaghan(VOLUMES, 0, 0.85, 4.7, 12.0), "no equation of state"),
        (0.02 * np.abs(VOLUMES - 12) + 0.01 * (VOLUMES > 12.4), "the fit leaves"),
    ],
)
def test_what_is_no_equation_of_state(energies, why) -> None:
    with pytest.raises(NucleateError, match=why):
        fit(VOLUMES, energies)


@pytest.mark.parametrize("form", FORMS)
def test_a_cubic_crystal_agrees_with_its_tensor(form) -> None:
    potential = AsePotential(EMT())
    copper = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.7), ["Cu"], [[0] * 3])
    [state] = equations_of_state([copper], potential, StateSettings(form, FINE))
    [tensor] = elasticity([copper], potential, ElasticSettings(FINE))
    c = tensor.tensor.stiffness
    assert isinstance(state, EquationOfState)
    assert state.bulk_modulus == pytest.approx((c[0, 0] + 2 * c[0, 1]) / 3, rel=5e-3)
    volume = abs(np.linalg.det(tensor.cell.lattice))
    assert state.volume == pytest.approx(volume, rel=1e-3)


def test_fixed_shape_is_voigts_average() -> None:
    potential = AsePotential(EMT())
    coords = [[1 / 3, 2 / 3, 0.25]]
    crystal = Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(2.6, 4.3), ["Cu"], coords)
    [tensor] = elasticity([crystal], potential, ElasticSettings(FINE))
    for ions, expected in (("relaxed", tensor.tensor), ("clamped", tensor.clamped)):
        [state] = equations_of_state([crystal], potential, StateSettings(relax=FINE, ions=ions))
        assert state.bulk_modulus == pytest.approx(expected.moduli("voigt")[0], rel=0.01)


def test_each_crystal_has_its_own_fate() -> None:
    potential = AsePotential(EMT())
    copper = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.6), ["Cu"], [[0] * 3])
    broken = Cell(np.eye(3), np.array([29]), np.full((1, 3), np.nan))
    unknown = Structure(Lattice.cubic(3.0), ["U"], [[0] * 3])
    for relaxation in (FINE, None):
        settings = StateSettings(relax=relaxation)
        found = equations_of_state([broken, copper, unknown], potential, settings)
        assert isinstance(found[0], NucleateError)
        assert found[1].bulk_modulus == pytest.approx(134, rel=0.02)
        assert isinstance(found[2], Exception) and str(found[2])
    assert equations_of_state([], potential) == []


@pytest.mark.parametrize(
    "wrong", [{"form": "vinet"}, {"ions": "frozen"}, {"span": 0.0}, {"points": 4}]
)
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(RecipeError):
        StateSettings(**wrong)
