"""Potentials by name and ASE calculators as potentials."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError, RecipeError
from nucleate.physics.cells import Cell
from nucleate.physics.potentials import AsePotential, WorkerCrashError, get_potential, status_of
from nucleate.protocols import Potential, PotentialResult, Status


def argon() -> LennardJones:
    return LennardJones(sigma=3.4, epsilon=0.0104, rc=10.0)


def solid() -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.2), ["Ar"], [[0, 0, 0]])


def test_ase_calculator_gives_what_ase_gives() -> None:
    potential = AsePotential(argon, name="lj", level_of_theory="pair potential")
    assert isinstance(potential, Potential)
    structure = solid().perturb(0.1)
    atoms = structure.to_ase_atoms()
    atoms.calc = argon()
    [result] = potential.evaluate([structure], forces=True, stress=True)
    assert isinstance(result, PotentialResult)
    assert result.energy == pytest.approx(atoms.get_potential_energy() / len(atoms))
    assert np.allclose(result.forces, atoms.get_forces())
    assert np.allclose(result.stress, atoms.get_stress(voigt=False))
    assert result.magmoms is None


def test_one_bad_structure_fails_alone() -> None:
    from ase.calculators.emt import EMT

    copper = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
    uranium = Structure(Lattice.cubic(3.0), ["U"], [[0, 0, 0]])
    nan = Cell(np.eye(3), np.array([29]), np.full((1, 3), np.nan))
    results = AsePotential(EMT()).evaluate([copper, uranium, nan, copper])
    assert [isinstance(r, Exception) for r in results] == [False, True, True, False]
    assert results[0] == results[3]


def test_names() -> None:
    made = get_potential(f"ase:{__name__}:argon")
    assert made.name == f"ase:{__name__}:argon"
    assert made.correction == "none"
    assert get_potential(made) is made
    assert isinstance(get_potential(argon()), AsePotential)
    with pytest.raises(RecipeError, match="Did you mean 'chgnet'"):
        get_potential("chgnett")
    with pytest.raises(RecipeError, match="can't be imported"):
        get_potential("ase:no_such_module:factory")
    with pytest.raises(RecipeError, match="ase:module:factory"):
        get_potential("ase:missing_factory")
    with pytest.raises(RecipeError, match="correction"):
        AsePotential(argon, correction="MP2O20")


def test_statuses_of_failures() -> None:
    failures = (None, TimeoutError(), WorkerCrashError("died"), InputError("bad"), ValueError())
    expected = [Status.OK, Status.TIMEOUT, Status.CRASHED, Status.INVALID, Status.FAILED]
    assert [status_of(failure) for failure in failures] == expected
