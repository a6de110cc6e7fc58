"""MP2020 corrections of raw PBE(+U) energies."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.physics.cells import Cell
from nucleate.physics.corrections import hubbard_u, mp2020_corrections


def rock_salt(a, cation, anion):
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5] * 3]
    )


def test_published_shifts():
    """Wang et al. 2021, table of corrections: oxide -0.687, Fe -2.256 eV per atom of the kind."""
    crystals = [rock_salt(4.2, "Mg", "O"), rock_salt(4.3, "Fe", "O"), rock_salt(4.0, "Cu", "Au")]
    values, reasons = mp2020_corrections(crystals)
    assert reasons == ["", "", ""]
    np.testing.assert_allclose(values, [-0.687 / 2, (-0.687 - 2.256) / 2, 0.0], atol=1e-3)


def test_u_only_in_oxides_and_fluorides():
    assert "Fe" in hubbard_u(["Fe", "O"])
    assert hubbard_u(["Fe", "S"]) == {}
    assert hubbard_u(["Fe"]) == {}


def test_equals_the_materials_project(shared):
    """Difference of corrected and raw energies as stored, for 60 crystals with the same id."""
    pd = pytest.importorskip("pandas")
    energies = pd.read_parquet(shared / "data/energies/mp_total_energies_mpf2021_mp2020.parquet")
    crystals = pd.read_parquet(shared / "data/crystals/val.parquet")
    both = crystals.merge(energies, left_on="id", right_on="material_id").sample(60, random_state=1)
    cells = [
        Cell(
            np.reshape(row.lattice, (3, 3)).astype(float),
            np.array(row.numbers, dtype=np.int64),
            np.reshape(row.frac_coords, (-1, 3)).astype(float),
        )
        for row in both.itertuples()
    ]
    values, reasons = mp2020_corrections(cells)
    assert not any(reasons)
    stored = (both.e_mp2020_per_atom - both.e_raw_per_atom).to_numpy()
    assert (np.abs(values - stored) < 1e-5).mean() > 0.97
