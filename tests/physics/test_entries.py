"""Phases from computed entries: schemes found, mixes refused."""

import bz2
import gzip
import json

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

from nucleate.errors import InputError, RecipeError
from nucleate.physics.entries import phases_from_entries, read_entries


def raw(formula, energy, run="GGA"):
    parameters = {"run_type": run, "hubbards": {}, "potcar_symbols": [], "is_hubbard": False}
    return ComputedEntry(
        Composition(formula), energy, parameters=parameters, data={"oxide_type": "oxide"}
    )


def corrected(entry, scheme):
    made = scheme(check_potcar=False).process_entries([entry], on_error="raise")
    return made[0]


@pytest.fixture
def uncorrected():
    return [raw("MgO", -11.0), raw("Mg", -1.5), raw("O2", -9.8), raw("CaO", -12.0)]


def test_raw_entries_stay_raw(uncorrected):
    phases = phases_from_entries(uncorrected)
    assert phases.correction == "none"
    np.testing.assert_allclose(phases.energy_per_atom, [-5.5, -1.5, -4.9, -6.0])


def test_scheme_is_found_taken_off_and_applied(uncorrected):
    entries = [corrected(e, MaterialsProject2020Compatibility) for e in uncorrected]
    stored = phases_from_entries(entries)
    assert stored.correction == "MP2020"
    np.testing.assert_allclose(stored.energy_per_atom, [e.energy_per_atom for e in entries])
    off = phases_from_entries(entries, correction="none")
    np.testing.assert_allclose(off.energy_per_atom, [-5.5, -1.5, -4.9, -6.0])
    anew = phases_from_entries([e.as_dict() for e in uncorrected_again()], correction="MP2020")
    np.testing.assert_allclose(anew.energy_per_atom, stored.energy_per_atom)


def uncorrected_again():
    return [raw("MgO", -11.0), raw("Mg", -1.5), raw("O2", -9.8), raw("CaO", -12.0)]


def test_mixes_are_refused(uncorrected):
    new = corrected(raw("MgO", -11.0), MaterialsProject2020Compatibility)
    with pytest.raises(InputError, match="mix corrected and uncorrected"):
        phases_from_entries([new, *uncorrected[1:]])
    old = raw("CaO", -12.0).as_dict()
    old["energy_adjustments"] = [{"name": "MP Anion Correction", "value": -0.7}]
    with pytest.raises(InputError, match="mix correction schemes"):
        phases_from_entries([new, old])
    assert len(phases_from_entries([new, old], correction="none").compositions) == 2
    with pytest.raises(InputError, match="levels of theory"):
        phases_from_entries([raw("MgO", -11.0), raw("CaO", -20.0, run="R2SCAN")])
    with pytest.raises(InputError, match="scheme"):
        phases_from_entries([{"composition": {"Mg": 1, "O": 1}, "energy": -1, "correction": -0.7}])
    with pytest.raises(RecipeError, match="2019"):
        phases_from_entries(uncorrected, correction="MP2019")


@pytest.mark.parametrize(
    "broken",
    [{"energy": -1.0}, {"composition": {"Mg": 1}}, {"composition": {}, "energy": 1}, 7,
     {"composition": {"Mg": 1}, "energy": "low"}],
)  # fmt: skip
def test_broken_entries_are_named_by_number(uncorrected, broken):
    with pytest.raises(InputError, match="entry 4"):
        phases_from_entries([*uncorrected, broken])


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".json.bz2"])
@pytest.mark.parametrize("layout", [list, lambda e: {"entries": e}, lambda e: dict(enumerate(e))])
def test_files(tmp_path, uncorrected, suffix, layout):
    opener = {".json": open, ".json.gz": gzip.open, ".json.bz2": bz2.open}[suffix]
    path = tmp_path / f"entries{suffix}"
    structure = Structure(Lattice.cubic(3.2), ["Mg"], [[0, 0, 0]])
    entries = [*uncorrected, ComputedStructureEntry(structure, -1.6)]
    dictionaries = [e.as_dict() for e in entries]
    dictionaries[-1].pop("composition", None)
    with opener(path, "wt") as stream:
        json.dump(layout(dictionaries), stream)
    phases = read_entries(path)
    assert phases.energy_per_atom[-1] == pytest.approx(-1.6)
    assert phases.data_hashes.keys() == {path.name}


def test_truncated_file(tmp_path, uncorrected):
    path = tmp_path / "entries.json.gz"
    with gzip.open(path, "wt") as stream:
        json.dump([e.as_dict() for e in uncorrected], stream)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"entries\.json\.gz"):
        read_entries(path)
