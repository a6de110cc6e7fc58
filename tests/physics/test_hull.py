"""Energies above hull against pymatgen's PhaseDiagram, and hull files."""

import json
import warnings
from collections import defaultdict
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from nucleate.errors import InputError
from nucleate.physics.hull import Hull
from nucleate.physics.hull_card import SHIPPED, HullCard

loaded = cache(Hull.load)
CARD = HullCard("toy", "none", "PBE", "none", "invented")


@pytest.fixture(scope="module")
def hull():
    return loaded("mp2020")


@pytest.fixture
def toy():
    """A-B-C with AB and ABC2 known; energies of the elements -1, -2, -3 eV/atom."""
    fractions = np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    return Hull(
        ["Al", "Ni", "Cu"], fractions, np.array([-1.0, -0.8]), np.array([-1.0, -2, -3]), CARD
    )


def random_compositions(hull, count, seed):
    """Compositions of 1 to 5 elements in systems with known compounds."""
    rng = np.random.default_rng(seed)
    out = []
    while len(out) < count:
        k = 1 + len(out) % 5
        chosen: list[str] = []
        while len(chosen) < k:  # unions of known phases, so that the systems are populated
            phase = hull.phase_composition(int(rng.integers(len(hull.elements), len(hull))))
            chosen = list(dict.fromkeys([*chosen, *phase]))
        chosen = list(rng.permutation(chosen)[:k])
        out.append(Composition(dict(zip(chosen, rng.integers(1, 9, k).tolist(), strict=True))))
    return out


def by_pymatgen(hull, compositions, energies):
    """Energies above hull from a PhaseDiagram for each chemical system."""
    by_system = defaultdict(list)
    for i, energy in enumerate(hull.phase_energies):
        phase = hull.phase_composition(i)
        by_system[frozenset(phase)].append((phase, energy))
    values = []
    for composition, energy in zip(compositions, energies, strict=True):
        system = {e.symbol for e in composition}
        entries = [
            PDEntry(Composition(phase), e * sum(phase.values()))
            for size in range(1, len(system) + 1)
            for part in combinations(sorted(system), size)
            for phase, e in by_system.get(frozenset(part), ())
        ]
        candidate = PDEntry(composition, energy * composition.num_atoms)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            diagram = PhaseDiagram(entries)
            values.append(diagram.get_e_above_hull(candidate, allow_negative=True))
    return np.array(values)


def test_equals_pymatgen_on_a_thousand_compositions(hull):
    compositions = random_compositions(hull, 1000, seed=3)
    level = hull.hull_energies(hull.fractions(compositions)[0])
    energies = level + np.random.default_rng(4).normal(0.0, 0.3, len(level))
    values, reasons = hull.e_above_hull(compositions, energies, formation=True)
    assert not any(reasons)
    assert (values < 0).sum() > 300
    assert {len(c) for c in compositions} == {1, 2, 3, 4, 5}
    np.testing.assert_allclose(values, by_pymatgen(hull, compositions, energies), atol=1e-6)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_hulls_hold_only_phases_on_the_hull(name):
    hull = Hull.load(name)
    levels = hull.hull_energies(hull.phase_fractions)
    np.testing.assert_allclose(levels, hull.phase_energies, atol=1e-7)
    assert hull.card.correction == "MP2020"
    assert hull.card.attribution
    assert hull.card.licence
    assert len(hull.elements) == 89


def test_closed_form(toy):
    """Between AB (-1) and C the hull at ABC2 would be -0.5; ABC2 lies at -0.8."""
    values, reasons = toy.e_above_hull(["AlNiCu2", "AlNi", "Cu"], [-1.5, -2.5, -3.0])
    assert reasons == ["", "", ""]
    # references at AlNiCu2: (-1 - 2 - 6) / 4 = -2.25; formation energy 0.75; hull -0.8
    np.testing.assert_allclose(values, [1.55, 0.0, 0.0], atol=1e-12)
    assert toy.e_above_hull(["AlNiCu2"], [-1.0], formation=True)[0][0] == pytest.approx(-0.2)
    assert toy.decomposition("AlNiCu") == pytest.approx({"AlCu2Ni": 2 / 3, "AlNi": 1 / 3})


@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_size_of_the_cell_and_energy_shift(seed, shift, times):
    """The cell's size changes nothing; the value follows the energy one to one."""
    hull = loaded("mp2020")
    composition = random_compositions(hull, 5, seed)[seed % 5]
    a, _ = hull.e_above_hull([composition, composition * times], [0.3, 0.3], formation=True)
    b, _ = hull.e_above_hull([composition], [0.3 + shift], formation=True)
    assert a[0] == pytest.approx(a[1], abs=1e-9)
    assert b[0] - a[0] == pytest.approx(shift, abs=1e-9)


def test_batch_equals_one_by_one_and_order_is_kept(hull):
    compositions = random_compositions(hull, 60, seed=8)
    energies = np.linspace(-4, 1, 60)
    together, _ = hull.e_above_hull(compositions, energies, formation=True)
    order = np.random.default_rng(0).permutation(60)
    alone = np.empty(60)
    for i in order:
        alone[i] = hull.e_above_hull([compositions[i]], energies[i : i + 1], formation=True)[0][0]
    np.testing.assert_allclose(together, alone, atol=1e-10)


def test_chunks_change_nothing(hull, monkeypatch):
    compositions = random_compositions(hull, 60, seed=9)
    x, _ = hull.fractions(compositions)
    whole = hull.hull_energies(x)
    monkeypatch.setattr("nucleate.physics.hull.CHUNK_DOUBLES", 500)
    np.testing.assert_allclose(hull.hull_energies(x), whole, atol=1e-10)


def test_cache_stays_small(hull, monkeypatch):
    monkeypatch.setattr("nucleate.physics.hull.CACHED_SYSTEMS", 3)
    hull.forget()
    first = hull.support(["LiFeO2", "NaCl", "CaTiO3", "Fe2O3", "LiCoO2"])
    assert len(hull._systems) == 3
    np.testing.assert_array_equal(
        first[::-1], hull.support(["LiCoO2", "Fe2O3", "CaTiO3", "NaCl", "LiFeO2"])
    )


def test_many_elements_take_another_path(hull):
    many = Composition({s: i + 1 for i, s in enumerate(hull.elements[2:16])})
    few = hull.support(["LiFeO2"])[0]
    assert hull.support([many])[0] > few
    value, reasons = hull.e_above_hull([many], [0.0], formation=True)
    assert reasons == [""]
    assert value[0] > 0


def test_each_failure_has_its_reason_and_harms_no_other(hull):
    given_ = ["LiFeO2", "PoO2", "NotAFormula", {}, "NaCl", np.array([11, 17]), np.array([84])]
    energies = [-5.0, -5.0, -5.0, -5.0, np.nan, -3.0, -3.0]
    values, reasons = hull.e_above_hull(given_, energies)
    np.testing.assert_array_equal(np.isfinite(values), [1, 0, 0, 0, 0, 1, 0])
    assert [bool(reason) for reason in reasons] == [False, True, True, True, True, False, True]
    assert "Po" in reasons[1]
    assert "Po" in reasons[6]
    assert "empty" in reasons[3]
    assert "nan" in reasons[4]
    assert list(hull.support(["PoO2", "NaCl"]) >= 0) == [False, True]


def test_compositions_in_every_form_agree(hull):
    forms = [Composition("Fe2O3"), "Fe2O3", {"Fe": 2, "O": 3}, np.array([26, 8, 8, 26, 8])]
    x, reasons = hull.fractions(forms)
    assert not any(reasons)
    assert (x == x[0]).all()
    np.testing.assert_array_equal(hull.fractions(["D2O"])[0], hull.fractions(["H2O"])[0])


def test_support_counts_competing_compounds(toy):
    np.testing.assert_array_equal(toy.support(["AlNi", "AlNiCu", "AlCu", "Al"]), [1, 2, 0, 0])


def test_without_references_only_formation_energies_compare():
    hull = Hull(["Li", "O"], np.array([[0.5, 0.5]]), np.array([-1.0]), np.array([np.nan, -2]), CARD)
    values, reasons = hull.e_above_hull(["LiO", "O2"], [-3.0, -1.0])
    assert "reference energy of Li" in reasons[0]
    assert values[1] == pytest.approx(1.0)
    assert hull.e_above_hull(["LiO"], [-0.5], formation=True)[0][0] == pytest.approx(0.5)


def test_an_empty_batch(hull):
    values, reasons = hull.e_above_hull([], [])
    assert values.shape == (0,)
    assert reasons == []


class TestFiles:
    def test_round_trip(self, toy, tmp_path):
        path = toy.save(tmp_path / "toy")
        again = Hull.load(path)
        assert again.hash == toy.hash
        assert again.card == toy.card
        assert again.elements == toy.elements
        np.testing.assert_allclose(again.phase_energies, toy.phase_energies)
        assert Hull.load(path.with_suffix(".json")).hash == toy.hash

    def test_saving_twice_gives_the_same_bytes(self, toy, tmp_path):
        assert toy.save(tmp_path / "a").read_bytes() == toy.save(tmp_path / "b").read_bytes()

    @pytest.mark.parametrize("kept", [0, 1, 10, 0.5, -1])
    def test_truncated(self, toy, tmp_path, kept):
        path = toy.save(tmp_path / "toy")
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
        with pytest.raises(InputError, match=r"toy\.safetensors"):
            Hull.load(path)

    def test_without_its_card(self, toy, tmp_path):
        path = toy.save(tmp_path / "toy")
        path.with_suffix(".json").unlink()
        with pytest.raises(InputError, match=r"toy\.json"):
            Hull.load(path)

    @pytest.mark.parametrize(
        "change", [{"colour": "red"}, {"correction": None, "name": None}, {"sha256": None}]
    )
    def test_unknown_or_missing_card_fields(self, toy, tmp_path, change):
        path = toy.save(tmp_path / "toy")
        file = path.with_suffix(".json")
        card = {**json.loads(file.read_text()), **change}
        file.write_text(json.dumps({k: v for k, v in card.items() if v is not None}))
        with pytest.raises(InputError, match=next(iter(change))):
            Hull.load(path)

    def test_foreign_file_under_the_card(self, toy, tmp_path):
        path = toy.save(tmp_path / "toy")
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(InputError, match="sha256"):
            Hull.load(path)

    def test_unknown_name_suggests(self):
        with pytest.raises(InputError, match="mp2020"):
            Hull.load("mp2002")

    def test_hash_follows_what_the_values_depend_on(self, toy):
        same = Hull(
            toy.elements, toy.phase_fractions[3:], toy.phase_energies[3:], toy.references, CARD
        )
        other = Hull(
            toy.elements,
            toy.phase_fractions[3:],
            toy.phase_energies[3:] - 1e-3,
            toy.references,
            CARD,
        )
        assert same.hash == toy.hash != other.hash
