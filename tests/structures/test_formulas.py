"""A formula is in the index exactly if a crystal of it is in the set."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError
from nucleate.structures.formulas import FormulaIndex, batch_keys, composition_key
from nucleate.structures.wyckoff import encode


def salts() -> list[Structure]:
    """Nine salts, all in the structure of CsCl."""
    return [
        Structure(Lattice.cubic(3.5), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])
        for a in ("Li", "Na", "K")
        for b in ("F", "Cl", "Br")
    ]


def test_known_are_those_of_the_same_reduced_formula(tmp_path):
    crystals = salts()
    batch, why = encode(crystals)
    assert not any(why)
    index = FormulaIndex.from_batches([batch[:3], batch[3:6]], "nine salts")
    assert len(index) == 6 and index.source == "nine salts"
    keys = batch_keys(batch)
    expected = [s.composition.reduced_formula in _formulas(crystals[:6]) for s in crystals]
    np.testing.assert_array_equal(index.contains(keys), expected)
    # cells of any size count by the reduced formula; an undecodable crystal is not known
    doubled = [s.make_supercell([2, 1, 1], in_place=False) for s in crystals]
    primitive = [s.get_primitive_structure() for s in crystals]
    for same in (doubled, primitive):
        np.testing.assert_array_equal(index.known_formula([*same, None]), [*expected, False])
    known, reasons = index.is_known(crystals)
    np.testing.assert_array_equal(known, expected)
    assert [r is not None for r in reasons] == expected
    index.save(tmp_path / "formulas.npy")
    np.testing.assert_array_equal(FormulaIndex.load(tmp_path / "formulas.npy").keys, index.keys)


def _formulas(structures: list[Structure]) -> set[str]:
    return {s.composition.reduced_formula for s in structures}


def test_keys_tell_compositions_apart():
    rng = np.random.default_rng(0)
    numbers = [rng.integers(1, 90, rng.integers(1, 6)) for _ in range(2000)]
    keys = {int(composition_key(n)) for n in numbers}
    formulas = {
        Structure(Lattice.cubic(9), n, np.zeros((len(n), 3))).composition.reduced_formula
        for n in numbers
    }
    assert len(keys) == len(formulas)
    assert composition_key(np.array([3, 8, 8])) == composition_key(np.array([8, 3, 8]))


def test_empty_set_and_unreadable_file(tmp_path):
    empty = FormulaIndex.from_batches([])
    assert len(empty) == 0 and not empty.contains(np.array([1, 2], dtype=np.uint64)).any()
    np.save(tmp_path / "floats.npy", np.zeros(3))
    for content in (b"", b"no array", (tmp_path / "floats.npy").read_bytes()):
        (tmp_path / "f.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"f\.npy"):
            FormulaIndex.load(tmp_path / "f.npy")
    with pytest.raises(InputError, match="absent"):
        FormulaIndex.load(tmp_path / "absent.npy")


def test_composition_key_is_of_the_reduced_formula():
    assert composition_key(np.array([8, 22, 8])) == composition_key(np.array([22, 8, 8, 22, 8, 8]))
    assert composition_key(np.array([8, 22])) != composition_key(np.array([8, 22, 8]))
