"""CHGNet: the package's own numbers, exact slopes, one failure at a time."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError
from nucleate.physics.cells import Cell, as_cell
from nucleate.physics.chgnet import ChgnetPotential
from nucleate.protocols import Potential, PotentialResult

GPA = 160.21766208


@pytest.fixture(scope="module")
def potential() -> ChgnetPotential:
    return ChgnetPotential()


@pytest.fixture(scope="module")
def exact() -> ChgnetPotential:
    return ChgnetPotential(dtype="float64")


def crystals() -> list[Structure]:
    """High and low symmetry, with and without short bonds."""
    group = Structure.from_spacegroup
    out = [
        group("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        group("Im-3m", Lattice.cubic(5.0), ["Ba"], [[0, 0, 0]]),
        group(
            "P6_3mc",
            Lattice.hexagonal(3.2, 5.2),
            ["Zn", "O"],
            [[1 / 3, 2 / 3, z] for z in (0, 0.38)],
        ),
        group(
            "Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]
        ),
    ]
    distorted = out[3].copy()
    rng = np.random.default_rng(0)
    for site in range(len(distorted)):
        distorted.translate_sites([site], rng.normal(0, 0.02, 3))
    triclinic = Structure(
        Lattice.from_parameters(4.1, 5.3, 6.2, 81, 95, 102),
        ["Fe", "O", "P", "O"],
        [[0.03, 0.11, 0.07], [0.52, 0.43, 0.35], [0.31, 0.81, 0.62], [0.77, 0.25, 0.83]],
    )
    return [*out, distorted, triclinic]


def one(result: PotentialResult | Exception) -> PotentialResult:
    assert isinstance(result, PotentialResult), result
    return result


def test_equals_the_package(potential: ChgnetPotential) -> None:
    from chgnet.model import CHGNet

    with contextlib.redirect_stdout(io.StringIO()):
        model = CHGNet.load(use_device="cpu")
    structures = crystals()
    results = potential.evaluate(structures, forces=True, stress=True, magmoms=True)
    for structure, result in zip(structures, results, strict=True):
        expected = model.predict_structure(structure, task="efsm")
        result = one(result)
        assert result.energy == pytest.approx(float(expected["e"]), abs=1e-5)
        assert np.abs(result.forces - expected["f"]).max() < 1e-3
        assert np.abs(result.stress * GPA - expected["s"]).max() < 1e-2
        assert np.abs(result.magmoms - expected["m"]).max() < 1e-3


def test_validation_crystals_equal_the_package(potential: ChgnetPotential, shared: Path) -> None:
    import pandas as pd
    from chgnet.model import CHGNet

    table = pd.read_parquet(shared / "data/crystals/val.parquet")
    table = table[table.vol_per_atom < 60].sample(12, random_state=1)
    structures = [
        Structure(
            Lattice(np.reshape(row.lattice, (3, 3))),
            row.numbers,
            np.reshape(row.frac_coords, (-1, 3)),
        )
        for row in table.itertuples()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        model = CHGNet.load(use_device="cpu")
    for structure, result in zip(structures, potential.evaluate(structures), strict=True):
        expected = float(model.predict_structure(structure, task="e")["e"])
        assert one(result).energy == pytest.approx(expected, abs=1e-5)


def test_energy_does_not_depend_on_the_batch_or_on_what_else_is_asked(
    potential: ChgnetPotential,
) -> None:
    structures = crystals() * 2
    together = [one(r).energy for r in potential.evaluate(structures)]
    alone = [one(potential.evaluate([s])[0]).energy for s in structures]
    with_forces = [one(r).energy for r in potential.evaluate(structures, forces=True)]
    backwards = [one(r).energy for r in potential.evaluate(structures[::-1])][::-1]
    for other in (alone, with_forces, backwards):
        assert np.allclose(together, other, rtol=0, atol=1e-6)


def test_supercell_has_the_same_energy_and_forces(exact: ChgnetPotential) -> None:
    structure = crystals()[-1]
    small, large = (
        one(r) for r in exact.evaluate([structure, structure * (2, 1, 1)], forces=True, stress=True)
    )
    assert small.energy == pytest.approx(large.energy, abs=1e-9)
    assert np.allclose(np.repeat(small.forces, 2, axis=0), large.forces, atol=1e-7)
    assert np.allclose(small.stress, large.stress, atol=1e-9)


@pytest.mark.parametrize("k", [4, 5])
def test_forces_and_stress_are_slopes_of_the_energy(exact: ChgnetPotential, k: int) -> None:
    cell = as_cell(crystals()[k])
    n, volume = len(cell.numbers), abs(np.linalg.det(cell.lattice))
    rng = np.random.default_rng(k)
    result = one(exact.evaluate([cell], forces=True, stress=True)[0])
    h, direction, strain = 1e-5, rng.normal(size=(n, 3)), rng.normal(size=(3, 3))
    inverse = np.linalg.inv(cell.lattice)
    moved = [
        cell._replace(frac_coords=cell.frac_coords + s * h * direction @ inverse) for s in (1, -1)
    ]
    strained = [cell._replace(lattice=cell.lattice @ (np.eye(3) + s * h * strain)) for s in (1, -1)]
    e = [one(r).energy * n for r in exact.evaluate(moved + strained)]
    assert (e[0] - e[1]) / (2 * h) == pytest.approx(
        -(result.forces * direction).sum(), rel=1e-3, abs=1e-4
    )
    assert (e[2] - e[3]) / (2 * h) == pytest.approx(
        (result.stress * strain).sum() * volume, rel=1e-3, abs=1e-4
    )
    assert np.abs(result.forces.sum(0)).max() < 1e-9
    assert np.abs(result.stress - result.stress.T).max() < 1e-6


def test_symmetric_crystals_have_symmetric_forces(potential: ChgnetPotential) -> None:
    result = one(potential.evaluate(crystals()[:1], forces=True, stress=True)[0])
    assert np.abs(result.forces).max() < 1e-9
    assert np.allclose(result.stress, np.eye(3) * result.stress[0, 0], atol=1e-9)


def test_one_bad_structure_fails_alone(potential: ChgnetPotential) -> None:
    good = crystals()[0]
    lonely = Cell(np.eye(3) * 40, np.array([11]), np.zeros((1, 3)))
    broken = Cell(np.eye(3) * 5, np.array([11]), np.full((1, 3), np.nan))
    crushed = Cell(np.eye(3) * 0.1, np.array([11]), np.zeros((1, 3)))
    unknown = Cell(np.eye(3) * 4, np.array([98]), np.zeros((1, 3)))
    batch = [good, lonely, broken, good, crushed, unknown, "not a crystal", good]
    results = potential.evaluate(batch, forces=True)
    assert [isinstance(r, Exception) for r in results] == [k not in (0, 3, 7) for k in range(8)]
    assert all(str(r) for r in results if isinstance(r, InputError))
    assert one(results[0]).energy == one(results[7]).energy


def test_is_a_potential(potential: ChgnetPotential) -> None:
    assert isinstance(potential, Potential)
    assert potential.correction == "MP2020"
    assert len(potential.weights_hash) == 64
    assert potential.evaluate([]) == []
