"""Properties of composition and cell, against their definitions, pymatgen's and SMACT's."""

from __future__ import annotations

import csv
import itertools
import math
import random
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Composition, DummySpecies, Element, Lattice, Structure

from nucleate import plugins
from nucleate.errors import MissingDependencyError, RecipeError
from nucleate.objectives.shaping import Linear
from nucleate.properties import composition
from nucleate.properties.composition import (
    ChargeBalance,
    Density,
    ElementMask,
    ElementMean,
    HhiProduction,
    HhiReserve,
    LogCrustalAbundance,
    NumberDensity,
    Price,
    count_atoms,
)
from nucleate.properties.element_table import as_table
from nucleate.protocols import CostClass, Property, Status
from nucleate.structures.elements import RADIOACTIVE, SYMBOLS

TABLE_BASED = [
    Density,
    NumberDensity,
    HhiProduction,
    HhiReserve,
    Price,
    LogCrustalAbundance,
    ElementMask,
]
MASS = {"O": 15.9994, "Si": 28.0855, "Fe": 55.845, "Zn": 65.409, "S": 32.065}  # u


def crystal(formula: str, volume_per_atom: float = 15.0) -> Structure:
    """Atoms of a formula somewhere in a cubic cell."""
    symbols = [
        str(element)
        for element, amount in Composition(formula).items()
        for _ in range(round(amount))
    ]
    length = (volume_per_atom * len(symbols)) ** (1 / 3)
    positions = np.random.default_rng(0).random((len(symbols), 3))
    return Structure(Lattice.cubic(length), symbols, positions)


def mixtures(n: int, elements: int = 4, last: int = 83) -> list[str]:
    """Random formulas of up to some elements from H on."""
    draw = random.Random(0)
    return [
        "".join(
            f"{symbol}{draw.randint(1, 6)}"
            for symbol in draw.sample(SYMBOLS[:last], draw.randint(1, elements))
        )
        for _ in range(n)
    ]


# --- what all of them share -----------------------------------------------------------------


@pytest.mark.parametrize("made", TABLE_BASED)
def test_one_bad_crystal_gets_its_reason_and_hurts_no_other(made: type) -> None:
    good = crystal("SiO2")
    shared = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}, "O"], [[0] * 3, [0.5] * 3])
    vacant = Structure(Lattice.cubic(3), [{"Fe": 0.5}], [[0] * 3])
    heavy_water = Structure(Lattice.cubic(3), ["D", "D", "O"], np.eye(3) / 2)
    dummy = Structure(Lattice.cubic(3), [DummySpecies("X"), "O"], [[0] * 3, [0.5] * 3])
    empty = Structure(Lattice.cubic(3), [], [])
    batch = [shared, good, vacant, heavy_water, good, dummy, empty, None]
    scores = made().evaluate(batch)
    assert scores.status == [
        Status.UNSUPPORTED,
        Status.OK,
        Status.UNSUPPORTED,
        Status.UNSUPPORTED,
        Status.OK,
        Status.UNSUPPORTED,
        Status.INVALID,
        Status.INVALID,
    ]
    assert scores.reason[0].startswith("disordered: site 0 ") and "Ni" in scores.reason[0]
    assert scores.reason[2].startswith("disordered: site 0 ")
    assert scores.reason[3] == "no natural element: D"
    assert scores.reason[5].startswith("no natural element: X")
    assert scores.reason[6] == "no atoms"
    assert scores.reason[7] == "not a crystal: NoneType"
    assert scores.reason[1] == scores.reason[4] == ""
    assert np.isfinite(scores.value).tolist() == scores.ok.tolist()
    assert scores.value[1] == scores.value[4] == made().evaluate([good]).value[0]


@pytest.mark.parametrize("made", TABLE_BASED)
def test_protocol_and_the_empty_batch(made: type) -> None:
    assert isinstance(made(), Property)
    assert made.cost is CostClass.COMPOSITION
    assert made().key == made().key and made().key.startswith(f"{made.name}/")
    assert len(made().evaluate([])) == 0


@pytest.mark.parametrize("made", TABLE_BASED)
def test_values_do_not_depend_on_how_a_batch_is_split(made: type) -> None:
    batch = [crystal(formula) for formula in mixtures(60)]
    whole = made().evaluate(batch)
    alone = [made().evaluate([structure]) for structure in batch]
    np.testing.assert_array_equal(whole.value, np.concatenate([s.value for s in alone]))
    assert whole.reason == [s.reason[0] for s in alone]
    assert whole.ok.any()


@pytest.mark.parametrize("made", TABLE_BASED)
def test_ten_thousand_crystals_take_well_under_a_second_of_work(made: type) -> None:
    batch = [crystal(formula) for formula in mixtures(100, elements=3)] * 100
    prop = made()
    prop.evaluate(batch[:1])
    started = time.process_time()
    prop.evaluate(batch)
    assert time.process_time() - started < 1.0


def test_ions_count_as_their_element() -> None:
    ions = Structure(Lattice.cubic(4.2), ["Fe2+", "O2-"], [[0] * 3, [0.5] * 3])
    counts = count_atoms([ions]).counts[0]
    assert counts[[26, 8]].tolist() == [1, 1] and counts.sum() == 2


def test_properties_have_the_names_they_are_asked_for_by() -> None:
    module = "nucleate.properties.composition"
    known = plugins.available(plugins.PROPERTIES)
    ours = {name for name, plugin in known.items() if plugin.target.startswith(f"{module}:")}
    assert ours == {made.name for made in TABLE_BASED} | {"charge_balance"}
    for name in ours:
        made = plugins.load(plugins.PROPERTIES, name)
        assert made.name == name and made.cost is CostClass.COMPOSITION
        assert known[name].provider == "built in"


# --- per volume -----------------------------------------------------------------------------


def test_density_is_mass_over_volume_and_order_is_kept() -> None:
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    )
    iron = Structure(Lattice.cubic(2.866), ["Fe", "Fe"], [[0] * 3, [0.5] * 3])
    scores = Density().evaluate([salt, iron])
    # u/Å³ in g/cm³ is 1.66054; masses of Na, Cl, Fe in u
    masses = np.array([4 * (22.98977 + 35.453), 2 * 55.845])
    np.testing.assert_allclose(scores.value, masses * 1.66054 / [5.64**3, 2.866**3], rtol=1e-4)
    assert scores.ok.all()


def test_density_is_that_of_pymatgen() -> None:
    batch = [crystal(formula, 8 + i % 30) for i, formula in enumerate(mixtures(50, last=103))]
    expected = [float(structure.density) for structure in batch]
    np.testing.assert_allclose(Density().evaluate(batch).value, expected, rtol=1e-7)


def test_number_density_is_atoms_over_volume() -> None:
    iron = Structure(Lattice.cubic(2.866), ["Fe", "Fe"], [[0] * 3, [0.5] * 3])
    diamond = crystal("C8", 5.67)
    value = NumberDensity().evaluate([iron, diamond]).value
    np.testing.assert_allclose(value, [2 / 2.866**3, 1 / 5.67], rtol=1e-12)


@pytest.mark.parametrize("made", [Density, NumberDensity])
@pytest.mark.parametrize("third", [[3, 3, 0], [np.nan, 0, 3]])
def test_a_cell_without_volume_is_invalid(made: type, third: list[float]) -> None:
    good = Structure(Lattice.cubic(3), ["Fe"], [[0] * 3])
    flat = Structure(Lattice([[3, 0, 0], [0, 3, 0], third]), ["Fe"], [[0] * 3])
    scores = made().evaluate([flat, good])
    assert scores.status == [Status.INVALID, Status.OK]
    assert scores.reason[0] == "the cell has no volume"
    assert np.isnan(scores.value[0])


# --- means over the elements ----------------------------------------------------------------


def test_the_mean_is_weighted_by_mass() -> None:
    table = as_table({"Si": 1000.0, "O": 500.0})
    share = MASS["Si"] / (MASS["Si"] + 2 * MASS["O"])
    scores = ElementMean(table).evaluate([crystal("SiO2"), crystal("O3"), crystal("FeO")])
    assert scores.value[:2] == pytest.approx([share * 1000 + (1 - share) * 500, 500], rel=1e-6)
    assert scores.status[2] is Status.UNSUPPORTED and scores.reason[2] == "no value: Fe"
    assert ElementMean(table).key != ElementMean(as_table({"Si": 1001.0, "O": 500.0})).key


def test_hhi_is_that_of_pymatgen_where_it_has_a_value() -> None:
    from pymatgen.analysis.hhi import HHIModel

    formulas = [*mixtures(300), "SiO2", "Nd2Fe14B", "NaCl", "PtO2"]
    batch = [crystal(formula) for formula in formulas]
    found = [HhiProduction().evaluate(batch), HhiReserve().evaluate(batch)]
    expected = np.array([HHIModel().get_hhi(formula) for formula in formulas], dtype=float).T
    for scores, values in zip(found, expected, strict=True):
        np.testing.assert_array_equal(scores.ok, np.isfinite(values))
        np.testing.assert_allclose(scores.value, values, rtol=1e-6)
    assert found[0].ok.sum() > 100 and not found[0].ok.all()


def test_hhi_of_quartz_and_of_what_has_none() -> None:
    batch = [crystal("SiO2"), crystal("LiH"), crystal("UXe")]
    production, reserve = HhiProduction().evaluate(batch), HhiReserve().evaluate(batch)
    share = MASS["Si"] / (MASS["Si"] + 2 * MASS["O"])
    assert production.value[0] == pytest.approx(share * 4700 + (1 - share) * 500, rel=1e-6)
    assert reserve.value[0] == pytest.approx(share * 1000 + (1 - share) * 500, rel=1e-6)
    assert reserve.reason == ["", "no HHI: H", "no HHI: Xe, U"]
    assert HhiProduction().key != HhiReserve().key


def test_price_from_the_table_by_hand() -> None:
    batch = [crystal("Fe3"), crystal("Fe2O3"), crystal("PuO2"), crystal("FrAt")]
    scores = Price().evaluate(batch)
    iron = 2 * MASS["Fe"] / (2 * MASS["Fe"] + 3 * MASS["O"])
    assert scores.value[:2] == pytest.approx([0.424, iron * 0.424 + (1 - iron) * 0.154], rel=1e-6)
    assert scores.reason[2:] == ["no price: Pu", "no price: At, Fr"]


def test_price_is_that_of_pymatgens_cost_analyzer() -> None:
    from pymatgen.analysis.cost import CostAnalyzer, CostDB, CostEntry

    formulas = ["SiO2", "Nd2Fe14B", "BaTiO3", "Rb2AgAu"]

    class Ours(CostDB):
        """The prices that ship, per mole as pymatgen wants them."""

        def get_entries(self, chemsys: list[Element]) -> list[CostEntry]:
            if len(chemsys) > 1:
                return []
            price = Price().evaluate([crystal(chemsys[0].symbol)]).value[0]
            mass = float(chemsys[0].atomic_mass) / 1000
            return [CostEntry(Composition(chemsys[0].symbol), price * mass, None, None)]

    analyzer = CostAnalyzer(Ours())
    mass = [float(Composition(formula).weight) / 1000 for formula in formulas]  # kg/mol
    expected = [analyzer.get_cost_per_mol(f) / m for f, m in zip(formulas, mass, strict=True)]
    value = Price().evaluate([crystal(formula) for formula in formulas]).value
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_price_by_a_table_of_ones_own(tmp_path: Path) -> None:
    table = tmp_path / "prices.csv"
    table.write_text("element,usd_per_kg\nFe,2\nO,0\n")
    scores = Price(table).evaluate([crystal("Fe2O3"), crystal("SiO2")])
    iron = 2 * MASS["Fe"] / (2 * MASS["Fe"] + 3 * MASS["O"])
    assert scores.value[0] == pytest.approx(2 * iron, rel=1e-6)
    assert scores.reason == ["", "no price: Si"]
    assert Price(str(table)).key == Price(table).key != Price().key


def test_log_abundance_is_of_the_mass_weighted_mean() -> None:
    batch = [crystal("SiO2"), crystal("ZnS"), crystal("TcO2")]
    scores = LogCrustalAbundance().evaluate(batch)
    silicon = MASS["Si"] / (MASS["Si"] + 2 * MASS["O"])
    zinc = MASS["Zn"] / (MASS["Zn"] + MASS["S"])
    expected = [silicon * 282000 + (1 - silicon) * 461000, zinc * 70 + (1 - zinc) * 350]
    assert scores.value[:2] == pytest.approx([math.log10(x) for x in expected], rel=1e-6)
    assert scores.reason[2] == "no crustal abundance: Tc"


def test_crustal_abundance_is_smacts_but_for_known_misprints() -> None:
    smact = pytest.importorskip("smact")
    path = files("nucleate") / "data" / "elements" / "crustal_abundance.csv"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    ours = {row["element"]: float(row["mg_per_kg"]) for row in csv.DictReader(lines)}
    theirs = {
        symbol: smact.Element(symbol).crustal_abundance for symbol in smact.ordered_elements(1, 103)
    }
    different = {s for s, value in theirs.items() if value != pytest.approx(ours.get(s))}
    # a factor of ten or a hundred off in SMACT 4.0, or absent there
    assert different <= {"S", "Nb", "Lu", "Ru", "Rn"}
    assert {symbol for symbol, value in theirs.items() if value is not None} <= set(ours)


@pytest.mark.parametrize(
    ("made", "low", "high", "direction", "values", "scores"),
    [
        (HhiReserve, 750, 3250, "minimise", [750, 2000, 3250], [1, 0.5, 0]),
        (Price, 50, 500, "minimise", [50, 275, 500], [1, 0.5, 0]),
        (LogCrustalAbundance, 2, 5, "maximise", [2, 3.5, 5], [0, 0.5, 1]),
    ],
)
def test_scores_on_the_published_lines(
    made: type, low: float, high: float, direction: str, values: list[float], scores: list[float]
) -> None:
    """The ranges and directions by which MatInvent scores these three."""
    line = Linear(type="linear", low=low, high=high, direction=direction)
    np.testing.assert_array_equal(line(np.array(values)), scores)
    good, bad = made().evaluate([crystal("SiO2"), crystal("PtRhIr3")]).value
    assert line(np.array([good, bad])).tolist() == [1, 0]


def test_every_price_has_year_and_source() -> None:
    path = files("nucleate") / "data" / "elements" / "prices_2025-07.csv"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    assert {row["element"] for row in rows} == {*SYMBOLS[:83], "Th", "U"}
    assert all(1999 <= int(row["year"]) <= 2025 and row["source"] for row in rows)


# --- yes or no ------------------------------------------------------------------------------


def test_mask_by_default_and_by_settings() -> None:
    batch = [crystal(formula) for formula in ("SiO2", "UO2", "PbTe", "CsCl", "BiTc")]
    assert ElementMask().evaluate(batch).value.tolist() == [1, 0, 0, 1, 0]
    toxic = ElementMask(exclude_radioactive=False)
    assert toxic.evaluate(batch).value.tolist() == [1, 1, 0, 1, 1]
    denied = ElementMask(exclude_toxic=False, deny=["Cs"])
    assert denied.evaluate(batch).value.tolist() == [1, 0, 1, 0, 0]
    anything = ElementMask(exclude_radioactive=False, exclude_toxic=False)
    assert anything.evaluate(batch).value.tolist() == [1] * 5
    keys = {prop.key for prop in (ElementMask(), toxic, denied, anything)}
    assert len(keys) == 4
    assert ElementMask(deny=["Pb"]).key == ElementMask().key  # the same elements


def test_mask_of_each_element() -> None:
    batch = [crystal(symbol) for symbol in SYMBOLS]
    allowed = ElementMask().evaluate(batch).value.astype(bool)
    left_out = {z for z, ok in enumerate(allowed, start=1) if not ok}
    toxic = {Element(symbol).Z for symbol in ("Be", "As", "Cd", "Hg", "Tl", "Pb")}
    assert left_out == RADIOACTIVE | toxic


@pytest.mark.parametrize("deny", ["Cs", ["Xx"]])
def test_mask_refuses_what_is_no_list_of_elements(deny: object) -> None:
    with pytest.raises(RecipeError, match=r"deny|symbol"):
        ElementMask(deny=deny)  # type: ignore[arg-type]


def neutral(formula: str, states: str, pauling: bool, alloys: bool) -> bool:
    """The test as the literature states it, by trying every set of oxidation states."""
    import smact

    amounts = Composition(formula).get_el_amt_dict()
    elements = [smact.Element(symbol) for symbol in amounts]
    if len(elements) == 1 or (alloys and all(e.symbol in smact.metals for e in elements)):
        return True
    for charges in itertools.product(*(getattr(e, states) or [] for e in elements)):
        if sum(c * n for c, n in zip(charges, amounts.values(), strict=True)) != 0:
            continue
        pairs = itertools.permutations(
            zip(charges, [e.pauling_eneg for e in elements], strict=True), 2
        )
        if not pauling or all(
            first is not None and second is not None and not (c > 0 > a and first >= second)
            for (c, first), (a, second) in pairs
        ):
            return True
    return False


@pytest.mark.parametrize("pauling", [True, False])
@pytest.mark.parametrize("alloys", [True, False])
def test_charge_balance_is_smacts_and_that_of_the_definition(pauling: bool, alloys: bool) -> None:
    pytest.importorskip("smact")
    from smact.screening import smact_validity

    draw = random.Random(1)
    ionic = [
        f"{draw.choice(['Na', 'Mg', 'Al', 'Fe', 'Ti', 'La', 'Cu'])}{draw.randint(1, 3)}"
        f"{draw.choice(['O', 'S', 'F', 'Cl', 'N', 'Se'])}{draw.randint(1, 6)}"
        for _ in range(200)
    ]
    formulas = [*ionic, *mixtures(200, elements=3)]
    batch = [crystal(formula) for formula in formulas]
    settings = {"alloys": alloys, "pauling": pauling}
    ours = ChargeBalance(**settings).evaluate(batch)
    theirs = [
        smact_validity(formula, use_pauling_test=pauling, include_alloys=alloys)
        for formula in formulas
    ]
    assert ours.ok.all() and ours.value.tolist() == [float(verdict) for verdict in theirs]
    assert 50 < ours.value.sum() < 350
    old = ChargeBalance(oxidation_states="smact14", **settings).evaluate(batch).value
    states = "oxidation_states_smact14"
    assert old.tolist() == [float(neutral(f, states, pauling, alloys)) for f in formulas]


def test_charge_balance_of_known_compounds_and_of_bad_crystals() -> None:
    pytest.importorskip("smact")
    shared = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}], [[0] * 3])
    formulas = ("NaCl", "NaCl2", "Fe3Al", "Na2Cl2", "Si", "RfO2")
    scores = ChargeBalance().evaluate([shared, *map(crystal, formulas), None])
    assert scores.value[1:6].tolist() == [1, 0, 1, 1, 1]
    assert [scores.status[i] for i in (0, 6, 7)] == [
        Status.UNSUPPORTED,
        Status.UNSUPPORTED,
        Status.INVALID,
    ]
    assert scores.reason[0].startswith("disordered")
    assert scores.reason[6] == "SMACT lacks one of: O, Rf"
    assert ChargeBalance(alloys=False).evaluate([crystal("Fe3Al")]).value[0] == 0
    assert len(ChargeBalance().evaluate([])) == 0


def test_charge_balance_settings_are_part_of_the_key_and_checked() -> None:
    pytest.importorskip("smact")
    made = [
        ChargeBalance(),
        ChargeBalance(alloys=False),
        ChargeBalance(pauling=False),
        ChargeBalance(oxidation_states="smact14"),
    ]
    assert len({prop.key for prop in made}) == 4
    assert isinstance(made[0], Property)
    with pytest.raises(RecipeError, match="smact14"):
        ChargeBalance(oxidation_states="smact15")


def test_charge_balance_without_smact_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "smact.screening", None)
    with pytest.raises(MissingDependencyError, match=r"nucleate\[eval\]"):
        composition.ChargeBalance()
