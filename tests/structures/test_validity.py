"""Distances are exact in any cell; reasons name what is wrong."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, Lattice, Structure

from nucleate.errors import MissingDependencyError
from nucleate.structures.validity import (
    Limits,
    charge_balance,
    check,
    check_all,
    check_cell,
    minimum_distance,
)


def brute_force(lattice, frac, reach=6):
    shifts = np.array(list(product(range(-reach, reach + 1), repeat=3)))
    best = np.inf
    for i, j in product(range(len(frac)), repeat=2):
        vectors = (frac[j] - frac[i] + shifts) @ lattice
        lengths = np.linalg.norm(vectors, axis=1)
        if i == j:
            lengths = lengths[np.any(shifts != 0, axis=1)]
        best = min(best, lengths.min())
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_minimum_distance_is_that_of_brute_force(seed, n):
    rng = np.random.default_rng(seed)
    lattice = rng.normal(size=(3, 3)) * rng.uniform(1, 6, size=3)[:, None]
    # coefficients of a shortest vector are at most 1 / skewness: within the oracle's reach of 6
    skewness = abs(np.linalg.det(lattice)) / np.prod(np.linalg.norm(lattice, axis=1))
    assume(skewness > 0.2)
    frac = rng.uniform(0, 1, size=(n, 3))
    found = minimum_distance(lattice, frac)
    assert found == pytest.approx(brute_force(lattice, frac), abs=1e-7)


def test_minimum_distance_in_a_very_skew_cell():
    lattice = np.array([[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]])
    skew = np.array([[1, 0, 0], [4, 1, 0], [-5, 3, 1]]) @ lattice  # the same lattice of points
    assert minimum_distance(skew, np.zeros((1, 3))) == pytest.approx(3.0)
    assert minimum_distance(skew, np.zeros((0, 3))) == np.inf


@pytest.mark.parametrize(
    ("lattice", "frac", "kind"),
    [
        (np.eye(3) * 4, np.zeros((0, 3)), "no atoms"),
        (np.eye(3) * 4, np.array([[0, 0, np.nan]]), "non-finite"),
        (np.diag([4, 4, 0.001]), np.zeros((1, 3)), "cell volume"),
        (np.diag([4, 4, 0.1]), np.zeros((1, 3)), "cell length"),
        (np.array([[4, 0, 0], [4, 0.2, 0], [0, 0, 4]]), np.zeros((1, 3)), "cell angle"),
        (np.eye(3) * 12, np.zeros((1, 3)), "volume per atom"),
        (np.eye(3) * 4, np.array([[0, 0, 0], [0.1, 0, 0]]), "distance"),
        (np.eye(3) * 4, np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), ""),
    ],
)
def test_reasons(lattice, frac, kind):
    assert check_cell(lattice, frac).split(":")[0] == kind


def test_limits_can_be_chosen_and_none_is_undecodable():
    crystal = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert check(crystal) == ""
    assert check(crystal, Limits(min_distance=3.5)).startswith("distance")
    assert check_all([crystal, None]) == ["", "undecodable"]


def test_every_given_crystal_is_valid(shared):
    import pyarrow.parquet as pq

    table = pq.read_table(shared / "data/crystals/test.parquet", columns=["lattice", "frac_coords"])
    bad = [
        check_cell(np.reshape(row["lattice"], (3, 3)), np.reshape(row["frac_coords"], (-1, 3)))
        for row in table.to_pylist()
    ]
    assert len(bad) == 4325 and not any(bad)


def test_charge_balance():
    pytest.importorskip("smact")
    salt = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    verdicts = charge_balance([salt, "Na2Cl2", "Na2Cl", Composition("Fe3Al"), None])
    assert verdicts == [True, True, False, True, None]
    assert charge_balance(["Fe3Al"], alloys=False) == [False]


def test_charge_balance_without_smact(monkeypatch):
    monkeypatch.setitem(sys.modules, "smact.screening", None)
    with pytest.raises(MissingDependencyError, match=r"nucleate\[eval\]"):
        charge_balance(["NaCl"])
