"""Hulls from tables and from a potential's energies."""

import dataclasses
import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import CheckpointError, InputError
from nucleate.physics.hull import Hull
from nucleate.physics.hull_build import build_hull, hull_from_phases
from nucleate.physics.hull_card import HullCard
from nucleate.physics.phases import PhaseTable, read_formation_table
from nucleate.protocols import PotentialResult

CARD = HullCard("toy", "none", "PBE", "MP2020", "invented")


def table(formulas, energies, formation=True):
    return PhaseTable(formulas, np.array(energies, dtype=float), formation, "MP2020")


def test_only_phases_on_the_hull_are_kept():
    phases = table(["NaCl", "Na2Cl2", "NaCl3", "Na3Cl"], [-1.0, -0.8, -0.9, -0.1])
    hull = hull_from_phases(phases, CARD, references={"Na": -1.0, "Cl": -2.0})
    assert [hull.phase_formula(i) for i in range(2, len(hull))] == ["NaCl", "NaCl3"]
    near = hull_from_phases(phases, dataclasses.replace(CARD, keep_ev_per_atom=0.5))
    assert {near.phase_formula(i) for i in range(2, len(near))} == {"NaCl", "NaCl3", "Na3Cl"}
    x = ["Na2Cl", "Na5Cl", "NaCl4"]
    a, _ = hull.e_above_hull(x, np.zeros(3), formation=True)
    b, _ = near.e_above_hull(x, np.zeros(3), formation=True)
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_references_are_the_lowest_elements_and_fallbacks_are_named(caplog):
    phases = table(["Na", "Na", "NaCl", "KCl"], [-1.0, -1.5, -3.0, -3.0], formation=False)
    hull = hull_from_phases(phases, CARD, fallback={"Cl": -2.0, "Na": -9.0}, fallback_source="lent")
    np.testing.assert_allclose(hull.references, [-1.5, -2.0])
    assert hull.card.reference_exceptions == {"Cl": "lent"}
    note = "1 phase of 4 left out, as there is no reference energy of K"
    assert hull.card.notes == [note]
    (told,) = caplog.messages
    assert told.startswith(note) and "can't be placed" in told and "--fallback" in told
    value, _ = hull.e_above_hull(["NaCl"], [-3.0])
    assert value[0] == pytest.approx(0.0)


def test_isotopes_are_their_element():
    phases = table(["D2", "H2", "D2O", "O2"], [-4.0, -3.0, -5.0, -2.0], formation=False)
    hull = hull_from_phases(phases, CARD)
    assert hull.elements == ("H", "O")
    assert hull.phase_formula(2) == "H2O"


def test_nothing_left_and_wrong_scheme():
    with pytest.raises(InputError, match="no phase is left"):
        hull_from_phases(table(["NaCl"], [-3.0], formation=False), CARD)
    elements = table(["Na", "NaCl", "NaBr"], [-1.0, -3.0, -3.0], formation=False)
    with pytest.raises(InputError, match=r"no compound(.|\n)*of Cl, Br(.|\n)*--fallback"):
        hull_from_phases(elements, CARD, fallback={})
    assert len(hull_from_phases(table(["Na"], [-1.0], formation=False), CARD)) == 1
    with pytest.raises(InputError, match="--references"):
        hull_from_phases(elements, CARD, references={"Na": -1.0})
    with pytest.raises(InputError, match="legacy"):
        hull_from_phases(table(["NaCl"], [-3.0]), dataclasses.replace(CARD, correction="legacy"))


def test_formation_tables(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("formula,e_form\nNaCl,-1.0\nNaCl3,x\n")
    phases = read_formation_table(path, correction="MP2020")
    assert list(phases.compositions) == ["NaCl", "NaCl3"]
    np.testing.assert_array_equal(np.isnan(phases.energy_per_atom), [False, True])
    assert len(hull_from_phases(phases, CARD)) == 3
    with pytest.raises(InputError, match="energy"):
        read_formation_table(path, correction="MP2020", energy_column="energy")
    with pytest.raises(InputError, match="absent"):
        read_formation_table(tmp_path / "absent.csv", correction="MP2020")


class Counting:
    """Energies by formula; can be told to die after some batches."""

    name, level_of_theory, correction, weights_hash = "toy", "PBE", "MP2020", "0" * 64

    def __init__(self, batches=99):
        self.left, self.asked = batches, 0

    def evaluate(self, structures, *, forces=False, stress=False, magmoms=False):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked += len(structures)
        return [
            ValueError("no")
            if 18 in s.numbers
            else PotentialResult(-float(np.mean(s.numbers)) / 10)
            for s in structures
        ]


@pytest.fixture
def crystals(tmp_path):
    folder = tmp_path / "crystals"
    folder.mkdir()
    for i, species in enumerate(
        [["Na"], ["Cl"], ["Na", "Cl"], ["Na", "Cl", "Cl"], ["Ar"], ["K", "Cl"], ["Na", "Na", "Cl"]]
    ):
        frac = np.linspace(0, 0.6, len(species))[:, None] * np.ones(3)
        cell = Structure(Lattice.cubic(9.0 if "K" in species else 4.0), species, frac)
        cell.to(str(folder / f"{i}.cif"))
    (folder / "7.cif").write_text("data_\nbroken")
    return folder


def test_build_and_resume(crystals, tmp_path):
    whole = build_hull(crystals, Counting(), tmp_path / "a", name="h", chunk_size=2)
    dying = Counting(batches=2)
    with pytest.raises(KeyboardInterrupt):
        build_hull(crystals, dying, tmp_path / "b", name="h", chunk_size=2)
    rest = Counting()
    again = build_hull(crystals, rest, tmp_path / "b", name="h", chunk_size=2)
    assert again.hash == whole.hash
    assert dying.asked + rest.asked == 6  # the emptier KCl and the broken file are left out
    assert whole.card.weights_hash == "0" * 64
    assert len(whole.card.data_hashes) == 8
    assert sum("left out" in note for note in whole.card.notes) == 3
    rows = (tmp_path / "a" / "energies.csv").read_text().splitlines()
    assert len(rows) == 9
    assert rows == (tmp_path / "b" / "energies.csv").read_text().splitlines()


def test_a_survey_belongs_to_its_data_and_settings(crystals, tmp_path):
    build_hull(crystals, Counting(), tmp_path / "a", name="h", chunk_size=2)
    with pytest.raises(CheckpointError, match="chunk_size"):
        build_hull(crystals, Counting(), tmp_path / "a", name="h", chunk_size=3)
    chunk = next((tmp_path / "a").glob("chunk-*.npz"))
    chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=chunk.name):
        build_hull(crystals, Counting(), tmp_path / "a", name="h", chunk_size=2)
    (crystals / "0.cif").unlink()
    with pytest.raises(CheckpointError, match="data"):
        build_hull(crystals, Counting(), tmp_path / "a", name="h", chunk_size=2)


def test_labels_select(tmp_path):
    rows = [("Na", 0.0), ("Cl", 0.0), ("NaCl", 0.0), ("NaCl", 0.3)]
    lines = []
    for formula, label in rows:
        species = {"Na": ["Na"], "Cl": ["Cl"], "NaCl": ["Na", "Cl"]}[formula]
        frac = np.linspace(0, 0.5, len(species))[:, None] * np.ones(3)
        cell = Structure(Lattice.cubic(4.0), species, frac)
        lines.append({"structure": cell.as_dict(), "e_hull": label})
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    potential = Counting()
    build_hull(path, potential, tmp_path / "s", name="h", max_e_hull=0.1)
    assert potential.asked == 3


def test_a_fallback_on_another_scale_is_refused(crystals, tmp_path):
    other = Hull(
        ["K"],
        np.zeros((0, 1)),
        np.zeros(0),
        np.array([-1.0]),
        dataclasses.replace(CARD, correction="none"),
    )
    with pytest.raises(InputError, match="scale"):
        build_hull(crystals, Counting(), tmp_path / "a", name="h", fallback=other)


def test_published_formation_energies_give_their_published_hull(shared, tmp_path):
    """Compounds of Li, Fe, P and O: the hull below those off it is the one that was published."""
    import pandas as pd
    from pymatgen.core import Composition

    from nucleate.physics.hull_import import import_hull

    published = pd.read_parquet(shared / "data/energies/mp_hull_critexam_85014.parquet")
    within = published["formula"].str.fullmatch(r"(?:(?:Li|Fe|P|O)[\d.]*)+")
    published = published[within]
    assert len(published) > 100
    published.to_parquet(tmp_path / "table.parquet")
    hull = import_hull(
        tmp_path / "table.parquet",
        name="mp",
        correction="legacy",
        energy_column="e_form_per_atom",
    )
    off = published[published["e_decomp_per_atom"] > 0]
    fractions, _ = hull.fractions(off["formula"].tolist())
    np.testing.assert_allclose(
        hull.hull_energies(fractions), off["hull_e_form_per_atom"], atol=2e-3
    )
    on = published["on_hull"].sum()
    assert len(hull) - len(hull.elements) == pytest.approx(on, abs=2)
    systems = [set(Composition(f).elements) for f in published.loc[published["on_hull"], "formula"]]
    lithium = sum(s <= set(Composition("LiFeO2").elements) for s in systems)
    assert hull.support(["LiFeO2"])[0] == pytest.approx(lithium, abs=2)
