"""Elastic tensors against second derivatives of the energy, symmetry, and pymatgen's formulas."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from pymatgen.analysis.elasticity import ElasticTensor as PymatgenTensor
from pymatgen.core import Lattice, Structure
from scipy.linalg import sqrtm
from scipy.spatial.transform import Rotation

from nucleate.errors import NucleateError, RecipeError
from nucleate.physics import elasticity as module
from nucleate.physics.cells import Cell, as_cell, as_structure
from nucleate.physics.elasticity import (
    GPA,
    Elasticity,
    ElasticSettings,
    ElasticTensor,
    elasticity,
    poisson_ratio,
    teter_hardness,
    tian_hardness,
    young_modulus,
)
from nucleate.physics.potentials import AsePotential
from nucleate.physics.relax import RelaxSettings, relax

FINE = RelaxSettings(fmax=2e-4, max_steps=3000, symprec=0.01)
SMALL = (0.003, 0.005)
TURN = Rotation.random(random_state=5).as_matrix()


@pytest.fixture(scope="module")
def emt() -> AsePotential:
    return AsePotential(EMT())


def copper() -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])


def hexagonal() -> Structure:
    coords = [[1 / 3, 2 / 3, 0.25]]
    return Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(2.6, 4.3), ["Cu"], coords)


def triclinic() -> Structure:
    lattice = Lattice.from_parameters(2.6, 4.3, 4.9, 80, 95, 110)
    return Structure(lattice, ["Cu", "Au", "Cu"], [[0] * 3, [0.5, 0.45, 0.1], [0.4, 0.1, 0.55]])


def one(result: Elasticity | Exception) -> Elasticity:
    assert isinstance(result, Elasticity), result
    return result


def along(tensor: ElasticTensor, strain: np.ndarray) -> float:
    """strain : C : strain, GPa."""
    voigt = np.array(
        [strain[0, 0], strain[1, 1], strain[2, 2], *(2 * strain[[1, 0, 0], [2, 2, 1]])]
    )
    return float(voigt @ tensor.stiffness @ voigt)


def curvature(cell: Cell, direction: np.ndarray, potential: AsePotential, relaxed: bool) -> float:
    """Second derivative of the energy along a Green-Lagrange strain, over the volume, GPa."""
    energies = []
    step = 0.004
    for size in (-step, 0.0, step):
        deformed = cell.lattice @ np.real(sqrtm(np.eye(3) + 2 * size * direction))
        strained = cell._replace(lattice=deformed)
        if relaxed:
            [result] = relax([strained], potential, RelaxSettings(1e-4, 3000, cell=False))
            energies.append(result.energy_after)
        else:
            energies.append(potential.evaluate([strained])[0].energy)
    per_cell = np.array(energies) * len(cell.numbers)
    second = (per_cell[0] - 2 * per_cell[1] + per_cell[2]) / step**2
    return float(second / abs(np.linalg.det(cell.lattice)) * GPA)


def directions(n: int) -> list[np.ndarray]:
    drawn = np.random.default_rng(0).normal(size=(n, 3, 3))
    return [(d + d.T) / np.linalg.norm(d + d.T) for d in drawn]


def test_copper_by_emt(emt: AsePotential) -> None:
    """Effective medium theory is fitted to copper: C11 173, C12 116, C44 90 GPa."""
    found = one(elasticity([copper()], emt, ElasticSettings(FINE, strains=SMALL))[0])
    c = found.tensor.stiffness
    np.testing.assert_allclose(c[[0, 0, 3], [0, 1, 3]], [173, 116, 90], rtol=0.01)
    cubic = np.zeros((6, 6))
    cubic[:3, :3] = c[0, 1]
    cubic[range(6), range(6)] = [c[0, 0]] * 3 + [c[3, 3]] * 3
    np.testing.assert_allclose(c, cubic, atol=1e-6)
    assert len(found.cell.numbers) == 1
    assert abs(found.pressure) < 0.01
    # Undisturbed, a uniaxial strain of both signs twice, a shear that symmetry reverses twice.
    assert found.n_evaluations == 1 + 4 + 2
    for direction in directions(3):
        expected = curvature(found.cell, direction, emt, relaxed=False)
        assert along(found.tensor, direction) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("make", [hexagonal, triclinic])
def test_energies_of_strained_crystals(make, emt: AsePotential) -> None:
    """Tensors of clamped and of relaxed atoms are curvatures of the energy."""
    found = one(elasticity([make()], emt, ElasticSettings(FINE, strains=SMALL))[0])
    difference = found.clamped.stiffness - found.tensor.stiffness
    assert np.linalg.eigvalsh(difference).min() > -1e-6, "atoms that give way only soften"
    assert np.abs(difference).max() > 1
    assert found.softest_mode > 0
    for direction in directions(3):
        for tensor, relaxed in ((found.clamped, False), (found.tensor, True)):
            expected = curvature(found.cell, direction, emt, relaxed)
            assert along(tensor, direction) == pytest.approx(expected, rel=5e-3)


def test_a_hexagonal_crystal_is_isotropic_in_its_plane(emt: AsePotential) -> None:
    c = one(elasticity([hexagonal()], emt)[0]).tensor.stiffness
    assert c[5, 5] == pytest.approx((c[0, 0] - c[0, 1]) / 2, rel=1e-6)
    assert c[3, 3] == pytest.approx(c[4, 4], rel=1e-6)


@pytest.mark.parametrize("make", [copper, hexagonal, triclinic])
def test_the_tensor_turns_with_the_crystal(make, emt: AsePotential) -> None:
    crystal = make()
    turned = Structure(
        Lattice(crystal.lattice.matrix @ TURN.T), crystal.species, crystal.frac_coords
    )
    plain, other = map(
        one, elasticity([crystal, turned], emt, ElasticSettings(FINE, strains=SMALL))
    )
    rotated = PymatgenTensor.from_voigt(plain.tensor.stiffness).rotate(TURN, tol=1e-6)
    np.testing.assert_allclose(other.tensor.stiffness, rotated.voigt, atol=0.3)


@pytest.mark.parametrize("make", [copper, hexagonal])
def test_the_choice_of_cell_does_not_matter(make, emt: AsePotential) -> None:
    crystal = make()
    larger = crystal * [[1, 1, 0], [0, 1, 0], [0, 1, 2]]
    plain, other = map(
        one, elasticity([crystal, larger], emt, ElasticSettings(FINE, strains=SMALL))
    )
    assert len(other.cell.numbers) == len(plain.cell.numbers)
    np.testing.assert_allclose(other.tensor.stiffness, plain.tensor.stiffness, atol=0.05)


def test_symmetry_spares_evaluations_and_changes_nothing(emt: AsePotential) -> None:
    """A tiny symprec hides the symmetry of a slightly disturbed crystal."""
    crystal = as_structure(
        one(elasticity([hexagonal()], emt, ElasticSettings(FINE, strains=SMALL))[0]).cell
    )
    disturbed = crystal.copy().perturb(1e-4)
    with_symmetry, without = (
        one(elasticity([disturbed], emt, ElasticSettings(None, strains=SMALL, symprec=symprec))[0])
        for symprec in (0.01, 1e-6)
    )
    np.testing.assert_allclose(with_symmetry.tensor.stiffness, without.tensor.stiffness, atol=0.1)
    assert without.n_evaluations > 1.5 * with_symmetry.n_evaluations


def test_clamped_atoms_cost_no_displacements(emt: AsePotential) -> None:
    relaxed, clamped = (
        one(elasticity([hexagonal()], emt, ElasticSettings(ions=ions))[0])
        for ions in ("relaxed", "clamped")
    )
    np.testing.assert_array_equal(clamped.tensor.stiffness, relaxed.clamped.stiffness)
    assert clamped.n_evaluations < relaxed.n_evaluations
    assert np.isnan(clamped.softest_mode)


def test_under_pressure_it_is_still_the_curvature(emt: AsePotential) -> None:
    squeezed = Structure(Lattice.cubic(3.5), copper().species, copper().frac_coords)
    found = one(elasticity([squeezed], emt, ElasticSettings(None, strains=SMALL))[0])
    assert found.pressure > 10
    for direction in directions(2):
        expected = curvature(found.cell, direction, emt, relaxed=False)
        assert along(found.tensor, direction) == pytest.approx(expected, rel=3e-3)


def test_each_crystal_has_its_own_fate(emt: AsePotential) -> None:
    broken = Cell(np.eye(3) * 3.6, np.array([29]), np.full((1, 3), np.nan))
    unknown = Structure(Lattice.cubic(3.0), ["U"], [[0] * 3])
    loose = RelaxSettings(fmax=1e-6, max_steps=1, symprec=0.01)
    found = elasticity([copper(), broken, unknown, hexagonal()], emt)
    assert isinstance(found[1], NucleateError)
    assert isinstance(found[2], Exception) and str(found[2])
    for i, make in ((0, copper), (3, hexagonal)):
        [alone] = elasticity([make()], emt)
        np.testing.assert_allclose(
            one(found[i]).tensor.stiffness, one(alone).tensor.stiffness, atol=1e-9
        )
    [stopped] = elasticity([copper()], emt, ElasticSettings(loose))
    assert str(stopped).startswith("relaxation not converged: ")
    assert elasticity([], emt) == []


def test_an_unstable_crystal_is_told_from_a_stable_one() -> None:
    argon = AsePotential(LennardJones(sigma=3.4, epsilon=0.0104, rc=9.0, smooth=True))
    simple = Structure(Lattice.cubic(3.7), ["Ar"], [[0] * 3])
    found = one(elasticity([simple], argon)[0])
    assert not found.tensor.stable
    assert found.tensor.softest == pytest.approx(
        min(
            found.tensor.stiffness[0, 0] - found.tensor.stiffness[0, 1],
            2 * found.tensor.stiffness[3, 3],
        )
    )


def test_atoms_that_do_not_push_back_are_a_failure() -> None:
    coupling = np.zeros((2, 6))
    assert not module._given_way(np.array([-1.0, 2.0]), coupling).any(), "nothing is coupled"
    coupling[1, 0] = 4.0
    assert module._given_way(np.array([-1.0, 2.0]), coupling)[0, 0] == pytest.approx(8.0)
    coupling[0, 0] = 1.0
    with pytest.raises(NucleateError, match="not mechanically stable"):
        module._given_way(np.array([-1.0, 2.0]), coupling)


@pytest.fixture(scope="module")
def any_tensor() -> ElasticTensor:
    half = np.random.default_rng(1).normal(size=(6, 6))
    return ElasticTensor(50 * half @ half.T + 30 * np.eye(6))


def test_averages_are_pymatgens(any_tensor: ElasticTensor) -> None:
    theirs = PymatgenTensor.from_voigt(any_tensor.stiffness)
    for average, bulk, shear in (
        ("voigt", theirs.k_voigt, theirs.g_voigt),
        ("reuss", theirs.k_reuss, theirs.g_reuss),
        ("hill", theirs.k_vrh, theirs.g_vrh),
    ):
        assert any_tensor.moduli(average) == pytest.approx((bulk, shear), rel=1e-9)
    assert any_tensor.anisotropy == pytest.approx(theirs.universal_anisotropy, rel=1e-9)
    assert poisson_ratio(theirs.k_vrh, theirs.g_vrh) == pytest.approx(theirs.homogeneous_poisson)


def test_formulas() -> None:
    assert young_modulus(100, 50) == pytest.approx(128.57, abs=0.005)
    assert tian_hardness(100, 50) == pytest.approx(6.67, abs=0.005)
    assert teter_hardness(100) == pytest.approx(15.1)
    assert tian_hardness(443, 535) == pytest.approx(97.5, rel=0.02)  # diamond


@pytest.mark.parametrize(
    "wrong",
    [{"ions": "frozen"}, {"strains": ()}, {"strains": (0.01, 0.01)}, {"strains": (-0.01,)}, {"displacement": 0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(RecipeError):
        ElasticSettings(**wrong)


def test_a_structure_and_its_cell_are_the_same_crystal(emt: AsePotential) -> None:
    first, second = map(one, elasticity([copper(), as_cell(copper())], emt))
    np.testing.assert_array_equal(first.tensor.stiffness, second.tensor.stiffness)
