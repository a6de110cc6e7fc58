"""Batched relaxation: reaches the minimum, keeps symmetry, ends each crystal for its own reason."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from pymatgen.core import Lattice, Structure

from nucleate.errors import RecipeError
from nucleate.physics.cells import Cell
from nucleate.physics.chgnet import ChgnetPotential
from nucleate.physics.potentials import AsePotential
from nucleate.physics.relax import (
    REACH,
    TIGHT,
    RelaxSettings,
    RelaxStatus,
    _Model,
    equilibrium,
    relax,
)
from nucleate.protocols import PotentialResult


@pytest.fixture(scope="module")
def chgnet() -> ChgnetPotential:
    return ChgnetPotential()


@pytest.fixture
def argon() -> AsePotential:
    return AsePotential(LennardJones(sigma=3.4, epsilon=0.0104, rc=9.0, smooth=True))


def rock_salt(a: float = 5.69) -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).get_primitive_structure()


def test_perturbed_rock_salt_relaxes_to_the_symmetric_energy(chgnet: ChgnetPotential) -> None:
    rng = np.random.default_rng(0)
    disturbed = rock_salt(6.0)
    disturbed.translate_sites([0], rng.normal(0, 0.03, 3))
    settings = RelaxSettings(fmax=0.01)
    first, second = relax([disturbed, rock_salt()], chgnet, settings)
    for result in (first, second):
        assert result.status is RelaxStatus.CONVERGED
        assert result.fmax < settings.fmax
        assert result.energy_after <= result.energy_before
    assert first.energy_after == pytest.approx(second.energy_after, abs=1e-3)
    assert first.volume_ratio < 1
    assert first.rmsd > 0.01
    assert second.rmsd < 1e-6


def test_equals_ase_on_the_same_filter(argon: AsePotential) -> None:
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    structure = Structure(Lattice.hexagonal(4.1, 6.0), ["Ar", "Ar"], [[0, 0, 0], [0.3, 0.62, 0.45]])
    atoms = structure.to_ase_atoms()
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=9.0, smooth=True)
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.002, steps=500)
    [result] = relax([structure], argon, RelaxSettings(fmax=0.002, max_steps=500))
    assert result.status is RelaxStatus.CONVERGED
    assert result.energy_after == pytest.approx(atoms.get_potential_energy() / 2, abs=2e-4)


def test_result_does_not_depend_on_the_batch(argon: AsePotential) -> None:
    settings = RelaxSettings(fmax=0.005, max_steps=40)
    structures = [
        Structure(Lattice.cubic(a), ["Ar"] * 2, [[0, 0, 0], [0.5, 0.48, 0.45]])
        for a in (4.0, 4.3, 5.0)
    ]
    together = relax(structures, argon, settings)
    for structure, result in zip(structures, together, strict=True):
        [alone] = relax([structure], argon, settings)
        assert (alone.status, alone.n_steps) == (result.status, result.n_steps)
        assert alone.energy_after == pytest.approx(result.energy_after, abs=1e-9)


def test_a_turned_crystal_takes_the_same_steps(argon: AsePotential) -> None:
    """And few of them: the model of springs knows the soft directions."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    start = Cell(np.eye(3) * 4.6, np.array([18, 18]), np.array([[0, 0, 0], [0.4, 0.5, 0.55]]))
    turned = start._replace(lattice=start.lattice @ turn)
    settings = RelaxSettings(fmax=1e-3)
    one, other = relax([start, turned], argon, settings)
    assert one.status is RelaxStatus.CONVERGED
    assert one.energy_after == pytest.approx(other.energy_after, abs=1e-6)
    assert abs(one.n_steps - other.n_steps) <= 1  # the cell's rows are no invariants
    assert one.n_steps < 25


def test_forces_that_count_as_none_carry_no_atom_far() -> None:
    """However soft the direction; a stiff one is hardly held up."""
    fmax = 0.05
    model = _Model(np.diag([50.0, 50.0, 1e-4]), n=1, longest=0.5, shift=fmax / REACH)
    step = model.step(np.array([5.0, 0.0, fmax]))
    assert step[2] == pytest.approx(REACH, rel=1e-3)
    assert step[0] == pytest.approx(0.1, rel=0.03)


def test_a_long_step_bends_towards_steepest_descent() -> None:
    """The soft direction is cut short, not the stiff one, and the longest move is kept to."""
    stiffness, force = np.diag([20.0, 20.0, 0.5]), np.array([1.0, 0.0, 1.0])
    step = _Model(stiffness, n=1, longest=0.1, shift=1e-3).step(force)
    assert 0.08 < np.linalg.norm(step) <= 0.1
    newton = np.linalg.solve(stiffness, force)
    assert step[0] > 3 * newton[0] * 0.1 / np.linalg.norm(newton)
    huge = _Model(stiffness, n=1, longest=0.1, shift=1e-12).step(1e3 * force)
    assert np.linalg.norm(huge) == pytest.approx(0.1)


def test_a_step_uphill_is_taken_back() -> None:
    """A wall behind the minimum: the energy never rises, and the minimum is found."""

    class Wall:
        name, level_of_theory, correction, weights_hash = "wall", "none", "none", ""
        energies: ClassVar[list[float]] = []

        def evaluate(self, structures, *, forces=False, stress=False, magmoms=False):
            results = []
            for structure in structures:
                x = structure.cart_coords[1, 0] - structure.cart_coords[0, 0] - 2.5
                energy = -2 * x + 500 * max(x, 0.0) ** 2
                force = np.zeros((2, 3))
                force[1, 0] = 2 - 1000 * max(x, 0.0)
                force[0] = -force[1]
                self.energies.append(energy)
                results.append(PotentialResult(energy / 2, force, np.zeros((3, 3))))
            return results

    start = Structure(Lattice.cubic(6.0), ["Ar", "Ar"], [[0.2, 0, 0], [0.6, 0, 0]])
    [result] = relax([start], Wall(), RelaxSettings(fmax=1e-3, cell=False, max_move=0.5))
    assert any(b > a + 2e-4 for a, b in pairwise(Wall.energies)), "no step went uphill"
    assert result.status is RelaxStatus.CONVERGED
    assert result.energy_after == pytest.approx(-0.001)
    assert result.structure.get_distance(0, 1) == pytest.approx(2.502, abs=1e-4)


@pytest.mark.parametrize("lost", ["energy", "forces"])
def test_numbers_that_are_not_finite_end_a_relaxation_at_once(lost: str) -> None:
    class Breaks:
        name, level_of_theory, correction, weights_hash = "breaks", "none", "none", ""
        asked = 0

        def evaluate(self, structures, *, forces=False, stress=False, magmoms=False):
            self.asked += 1
            force = np.array([[1.0, 0, 0], [-1.0, 0, 0]])
            if self.asked == 1:
                return [PotentialResult(0.0, force, np.zeros((3, 3)))]
            if lost == "energy":
                return [PotentialResult(np.nan, 1e-3 * force, np.zeros((3, 3)))]
            return [PotentialResult(1.0, np.nan * force, np.zeros((3, 3)))]

    start = Structure(Lattice.cubic(6.0), ["Ar", "Ar"], [[0.2, 0, 0], [0.6, 0, 0]])
    potential = Breaks()
    [result] = relax([start], potential)
    assert result.status is RelaxStatus.FAILED and "not finite" in result.reason
    assert potential.asked == 2 and result.n_steps == 1


def test_symmetry_can_be_kept(argon: AsePotential) -> None:
    """A sheared simple cubic crystal closes its packing unless told to stay (nearly) cubic."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    lattice = np.array([[3.7, 0.003, 0.0], [0.0, 3.7, 0.002], [0.001, 0.0, 3.7]])
    start = Structure(Lattice(lattice), ["Ar"], [[0, 0, 0]])
    free, kept = (
        relax([start], argon, RelaxSettings(fmax=1e-5, max_steps=300, symprec=symprec))[0]
        for symprec in (None, 0.05)
    )
    assert free.energy_after < kept.energy_after - 0.005
    assert SpacegroupAnalyzer(kept.structure, symprec=0.05).get_space_group_number() == 221
    assert SpacegroupAnalyzer(free.structure, symprec=0.05).get_space_group_number() != 221


def test_fixed_cell_keeps_the_lattice(argon: AsePotential) -> None:
    start = Structure(Lattice.cubic(4.2), ["Ar", "Ar"], [[0, 0, 0], [0.45, 0.5, 0.5]])
    [result] = relax([start], argon, RelaxSettings(fmax=0.001, cell=False))
    assert result.status is RelaxStatus.CONVERGED
    assert np.array_equal(result.structure.lattice.matrix, start.lattice.matrix)
    assert result.volume_ratio == 1.0


def test_each_crystal_ends_for_its_own_reason(argon: AsePotential) -> None:
    good = Structure(
        Lattice.cubic(5.3), ["Ar"] * 4, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    )
    squeezed = Structure(Lattice.cubic(2.0), ["Ar"], [[0, 0, 0]])
    broken = Cell(np.eye(3) * 5, np.array([18]), np.full((1, 3), np.nan))
    slow = Structure(Lattice.cubic(4.6), ["Ar", "Ar"], [[0, 0, 0], [0.4, 0.5, 0.55]])
    settings = RelaxSettings(fmax=1e-3, max_steps=12, volume_range=(0.5, 2.0))
    results = relax([good, squeezed, broken, slow], argon, settings)
    assert [r.status for r in results] == [
        RelaxStatus.CONVERGED,
        RelaxStatus.EXPLODED,
        RelaxStatus.FAILED,
        RelaxStatus.STEP_CAP,
    ]
    assert all(r.reason for r in results[1:])
    assert results[2].structure is None
    assert results[3].n_steps == settings.max_steps
    assert results[3].energy_after < results[3].energy_before
    [late] = relax([slow], argon, RelaxSettings(timeout=0.0, fmax=1e-6))
    assert late.status is RelaxStatus.TIMEOUT
    assert relax([], argon) == []


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="positive"):
        RelaxSettings(fmax=0.0)


def test_settings_of_a_recipe_change_the_defaults() -> None:
    assert TIGHT.updated(False) is None
    assert TIGHT.updated(True) is TIGHT
    changed = TIGHT.updated({"max_steps": 7})
    assert changed == RelaxSettings(fmax=TIGHT.fmax, max_steps=7, symprec=TIGHT.symprec)
    assert TIGHT.updated(RelaxSettings()) == RelaxSettings()
    with pytest.raises(RecipeError, match="Did you mean 'max_steps'"):
        TIGHT.updated({"maxsteps": 7})


def test_equilibrium_is_a_primitive_cell_or_a_reason(argon: AsePotential) -> None:
    cubic = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.1), ["Ar"], [[0] * 3])
    squeezed = Structure(Lattice.cubic(2.0), ["Ar"], [[0, 0, 0]])
    broken = Cell(np.eye(3) * 5, np.array([18]), np.full((1, 3), np.nan))
    fine = RelaxSettings(fmax=1e-4, max_steps=500, symprec=0.01)
    cell, exploded, nothing = equilibrium([cubic, squeezed, broken], argon, fine)
    assert isinstance(cell, Cell)
    assert len(cell.numbers) == 1
    [alone] = relax([cubic], argon, fine)
    assert np.linalg.det(cell.lattice) == pytest.approx(alone.structure.volume / 4, rel=1e-3)
    assert str(exploded).startswith("relaxation exploded: ")
    assert "not finite" in str(nothing)
    [early] = equilibrium([cubic], argon, RelaxSettings(fmax=1e-6, max_steps=2))
    assert str(early).startswith("relaxation not converged: ")
    [late] = equilibrium([cubic], argon, RelaxSettings(fmax=1e-6, timeout=0.0))
    assert isinstance(late, TimeoutError)
    [as_given] = equilibrium([cubic], argon, None)
    assert np.linalg.det(as_given.lattice) == pytest.approx(5.1**3 / 4)
