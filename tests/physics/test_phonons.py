"""Phonons against frozen displacements and limits; what needs phonopy is skipped without it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from pymatgen.core import Element, Lattice, Structure

from nucleate.errors import MissingDependencyError, RecipeError
from nucleate.physics.cells import Cell
from nucleate.physics.phonons import (
    Phonons,
    PhononSettings,
    phonons,
    require_phonopy,
    supercell_of,
)
from nucleate.physics.potentials import AsePotential

needs_phonopy = pytest.mark.skipif(
    importlib.util.find_spec("phonopy") is None, reason="phonopy is not installed"
)
GAS_CONSTANT = 8.314462618
COPPER_MASS = float(Element("Cu").atomic_mass)


@pytest.fixture(scope="module")
def emt() -> AsePotential:
    return AsePotential(EMT())


def copper(a: float = 3.6) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Cu"], [[0, 0, 0]])


def modes(frequencies: list[list[float]], weights: list[float], mass: float = 50.0) -> Phonons:
    return Phonons(np.array(frequencies), np.array(weights), mass, (1, 1, 1), 1)


def test_heat_capacity_of_an_oscillator() -> None:
    """Einstein's formula at h nu = 2 k T, and its limits."""
    warm = 2 * 6.62607015e-34 * 3e12 / (2 * 2 * 1.380649e-23)  # 3 THz, x = 2
    x = 2.0
    one = x**2 * np.exp(x) / (np.exp(x) - 1) ** 2
    found = modes([[3.0, 3.0, 3.0]], [1.0])
    assert found.heat_capacity(warm) == pytest.approx(3 * one * GAS_CONSTANT / 50, rel=1e-9)
    assert found.heat_capacity(1e6) == pytest.approx(3 * GAS_CONSTANT / 50, rel=1e-6)
    assert found.heat_capacity(0.01) == pytest.approx(0.0, abs=1e-12)
    assert found.heat_capacity(0.0) == 0.0


def test_imaginary_modes_are_counted_by_weight_and_have_no_heat_capacity() -> None:
    found = modes([[-1.0, 2.0, 3.0], [-0.05, 2.0, 3.0]], [0.25, 0.75])
    assert found.lowest == -1.0
    assert found.imaginary == pytest.approx(0.25 / 3)
    assert found.heat_capacity(1e6) == pytest.approx((3 - 0.25) * GAS_CONSTANT / 50, rel=1e-6)


@pytest.mark.parametrize(
    ("lattice", "expected"),
    [
        (Lattice.cubic(3.0), (4, 4, 4)),
        (Lattice.orthorhombic(2.5, 5.0, 11.0), (4, 2, 1)),
        (Lattice.from_parameters(2.55, 2.55, 2.55, 60, 60, 60), (4, 4, 4)),
    ],
)
def test_a_supercell_is_as_long_as_asked(lattice: Lattice, expected) -> None:
    assert supercell_of(lattice.matrix, 10.0) == expected


def test_a_skewed_supercell_has_no_near_image() -> None:
    lattice = Lattice.rhombohedral(6.0, 25).matrix
    repeats = supercell_of(lattice, 10.0)
    large = Structure(Lattice(lattice * np.array(repeats)[:, None]), ["Cu"], [[0] * 3])
    images = large.get_neighbors(large[0], 30.0)
    assert min(image.nn_distance for image in images) >= 10.0 - 1e-6
    assert repeats[0] > 2


def test_without_phonopy_the_message_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "nucleate\[eval\]"'):
        require_phonopy()
    with pytest.raises(MissingDependencyError):
        phonons([copper()], AsePotential(EMT()))


@pytest.mark.parametrize("wrong", [{"min_length": 0}, {"displacement": -0.01}, {"mesh": 0}])
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(RecipeError):
        PhononSettings(**wrong)


@needs_phonopy
def test_the_highest_frequency_of_copper_is_that_of_frozen_planes(emt: AsePotential) -> None:
    """In a face-centred crystal, planes moving against each other along an edge of the cube."""
    [found] = phonons([copper()], emt)
    assert found.supercell == (4, 4, 4) and found.n_displacements == 1
    a = (4 * 11.565) ** (1 / 3)
    step, energies = 0.02, []
    for size in (-step, 0.0, step):
        frozen = copper(a)
        frozen.translate_sites(
            [i for i, s in enumerate(frozen) if s.c > 0.25], [0, 0, 2 * size / a]
        )
        energies.append(emt.evaluate([frozen])[0].energy)
    spring = (energies[0] - 2 * energies[1] + energies[2]) / step**2  # eV/Å², of m u'^2 / 2 an atom
    frequency = np.sqrt(spring / COPPER_MASS * 9648.533212) / (2 * np.pi)
    assert found.frequencies.max() == pytest.approx(frequency, rel=0.01)


@needs_phonopy
def test_the_mass_belongs_to_the_cell_of_the_modes(emt: AsePotential) -> None:
    """The same crystal in a primitive, a conventional and a doubled cell."""
    cells = [copper().get_primitive_structure(), copper(), copper() * [2, 1, 1]]
    found = phonons(cells, emt)
    for one in found:
        assert one.mass == pytest.approx(COPPER_MASS, rel=1e-3)
        assert one.heat_capacity(300) == pytest.approx(found[0].heat_capacity(300), rel=1e-6)
        assert one.heat_capacity(1e5) == pytest.approx(3 * GAS_CONSTANT / COPPER_MASS, rel=1e-3)
        assert one.imaginary == 0
    assert found[0].heat_capacity(300) == pytest.approx(0.37, abs=0.01)  # measured: 0.385


@needs_phonopy
def test_elements_without_a_stable_isotope_have_a_mass() -> None:
    plutonium = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.3), ["Pu"], [[0] * 3])
    pairs = AsePotential(LennardJones(sigma=3.4, epsilon=0.1, rc=9.0, smooth=True))
    [found] = phonons([plutonium], pairs, PhononSettings(min_length=7.0))
    assert found.mass == pytest.approx(244)


@needs_phonopy
def test_heat_capacity_is_phonopys(emt: AsePotential) -> None:
    from phonopy.phonon.thermal_properties import mode_cv

    ordered = Structure(Lattice.cubic(3.75), ["Au", "Cu", "Cu", "Cu"], copper().frac_coords)
    [found] = phonons([ordered], emt, PhononSettings(min_length=7.0))
    assert found.frequencies.shape[1] == 12
    assert found.weights.sum() == pytest.approx(1.0)
    electronvolt = np.maximum(found.frequencies, 1e-3) * 4.135667696e-3
    each = mode_cv(np.array([150.0]), electronvolt.ravel()).reshape(electronvolt.shape)
    theirs = found.weights @ each.sum(1)
    joule = theirs * 1.602176634e-19 / (found.mass * 1.66053906892e-24)
    assert found.heat_capacity(150.0) == pytest.approx(joule, rel=1e-5)


@needs_phonopy
def test_each_crystal_has_its_own_fate(emt: AsePotential) -> None:
    broken = Cell(np.eye(3) * 3.6, np.array([29]), np.full((1, 3), np.nan))
    unknown = Structure(Lattice.cubic(3.0), ["U"], [[0] * 3])
    settings = PhononSettings(min_length=7.0)
    nothing, found, failed = phonons([broken, copper(), unknown], emt, settings)
    assert isinstance(nothing, Exception) and isinstance(failed, Exception)
    [alone] = phonons([copper()], emt, settings)
    np.testing.assert_allclose(found.frequencies, alone.frequencies, atol=1e-9)
    assert phonons([], emt) == []


@needs_phonopy
def test_a_loosely_packed_crystal_would_distort() -> None:
    argon = AsePotential(LennardJones(sigma=3.4, epsilon=0.0104, rc=9.0, smooth=True))
    simple = Structure(Lattice.cubic(3.7), ["Ar"], [[0] * 3])
    [found] = phonons([simple], argon)
    assert found.lowest < -0.1
    assert 0 < found.imaginary < 1
