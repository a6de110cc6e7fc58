"""The objective: nothing is evaluated twice, failures cost the penalty, every value is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pymatgen.core import Lattice, Structure

from nucleate.errors import NucleateError, RecipeError
from nucleate.objectives.objective import Filter, Objective, Term
from nucleate.objectives.settings import FilterSettings
from nucleate.objectives.shaping import Clip, Linear, Sigmoid
from nucleate.protocols import CostClass, Measurements, Property, Scores, Status
from nucleate.recipe import load_recipe
from nucleate.store.experience import ExperienceStore

UNIT = Linear(type="linear", low=0, high=1)


class Table:
    """A property that looks numbers up; the "crystals" are the numbers."""

    unit = "1"
    cost = CostClass.MODEL

    def __init__(self, name: str = "table", fails: Sequence[float] = ()) -> None:
        self.name, self.key, self.fails = name, f"{name}/1", set(fails)
        self.seen: list[float] = []

    def evaluate(self, structures: Sequence[Any]) -> Scores:
        self.seen += structures
        bad = [s in self.fails for s in structures]
        return Scores(
            np.array([np.nan if b else s for s, b in zip(structures, bad, strict=True)]),
            [Status.UNSUPPORTED if b else Status.OK for b in bad],
            ["no data: that one" if b else "" for b in bad],
            {"twice": np.array([2.0 * s for s in structures])},
        )


class Raises(Table):
    """A property that raises where it should report."""

    def evaluate(self, structures: Sequence[Any]) -> Scores:
        if any(s in self.fails for s in structures):
            raise ZeroDivisionError("by zero")
        return super().evaluate(structures)


crystals = st.lists(st.none() | st.integers(0, 5).map(lambda i: i / 5), max_size=12)


@settings(deadline=None)
@given(st.lists(crystals, min_size=1, max_size=4))
def test_no_crystal_is_evaluated_twice_and_order_is_kept(batches: list[list]) -> None:
    prop = Table(fails=[0.4])
    objective = Objective([Term(prop, UNIT)], failure_penalty=-3.0)
    for step, batch in enumerate(batches):
        result = objective.score(batch, [str(c) for c in batch], step=step)
        expected = [-3.0 if c in (None, 0.4) else c for c in batch]
        np.testing.assert_allclose(result.reward, expected)
        assert np.isfinite(result.reward).all()
        assert sum(result.counts.values()) == len(batch)
        np.testing.assert_array_equal(result.ok, [c not in (None, 0.4) for c in batch])
    distinct = {c for batch in batches for c in batch if c is not None}
    assert sorted(prop.seen) == sorted(distinct)
    assert objective.evaluations_spent() == len(distinct)
    objective.close()


def test_values_statuses_reasons_and_extras() -> None:
    objective = Objective([Term(Table(fails=[0.5]), UNIT)])
    result = objective.score(
        [0.25, None, 0.5, 0.25, None], list("abcad"), reasons=["", "overlap: 0.3 Å", "", "", ""]
    )
    scores = result.scores["table"]
    assert result.status == [
        Status.OK,
        Status.INVALID,
        Status.UNSUPPORTED,
        Status.OK,
        Status.INVALID,
    ]
    assert result.reason == ["", "overlap: 0.3 Å", "no data: that one", "", "undecodable"]
    np.testing.assert_array_equal(scores.extra["twice"], [0.5, np.nan, 1.0, 0.5, np.nan])
    assert np.isnan(scores.value[[1, 2, 4]]).all()
    assert result.counts == {
        "ok": 2,
        "invalid: overlap": 1,
        "unsupported: no data": 1,
        "invalid: undecodable": 1,
    }
    assert (result.spent, result.reused) == ({"table": 2}, {"table": 0})


def test_one_that_raises_costs_only_itself_and_all_that_raise_stop_the_run() -> None:
    objective = Objective([Term(Raises(fails=[0.5]), UNIT)])
    result = objective.score([0.1, 0.5, 0.9], list("abc"))
    assert result.status == [Status.OK, Status.FAILED, Status.OK]
    assert "ZeroDivisionError" in result.reason[1]
    hopeless = Objective([Term(Raises(fails=[0.5]), UNIT)])
    with pytest.raises(NucleateError, match="raised on each of 8"):
        hopeless.score([0.5] * 8, list("abcdefgh"))


def test_a_property_that_lies_is_caught() -> None:
    class Lies(Table):
        def evaluate(self, structures: Sequence[Any]) -> Scores:
            return Scores(np.full(len(structures), np.inf), [Status.OK] * len(structures), [""] * 3)

    assert Objective([Term(Lies(), UNIT)]).score([1, 2, 3], list("abc")).counts == {
        "failed: no finite number": 3
    }

    class Short(Table):
        def evaluate(self, structures: Sequence[Any]) -> Scores:
            return Scores(np.zeros(2), [Status.OK] * 2, [""] * 2)

    result = Objective([Term(Short(), UNIT)]).score([1, 2, 3], list("abc"))
    assert result.status == [Status.FAILED] * 3
    assert "2 values for 1 crystals" in result.reason[0]


def test_submission_returns_at_once_and_shares_what_is_under_way() -> None:
    gate = threading.Event()

    class Slow(Table):
        def evaluate(self, structures: Sequence[Any]) -> Scores:
            gate.wait(30)
            return super().evaluate(structures)

    prop = Slow()
    objective = Objective([Term(prop, UNIT)])
    first = objective.submit([0.1, 0.2], ["a", "b"], step=1)
    second = objective.submit([0.2, 0.3], ["b", "c"], step=2)
    assert not first.done()
    gate.set()
    assert first.result().spent == {"table": 2}
    result = second.result()
    np.testing.assert_allclose(result.reward, [0.2, 0.3])
    assert (result.spent, result.reused) == ({"table": 1}, {"table": 1})
    assert sorted(prop.seen) == [0.1, 0.2, 0.3]
    assert second.result() is result
    objective.close()


def test_a_streamed_batch_does_not_wait_for_the_slowest_of_the_one_before() -> None:
    later = threading.Event()

    class Streamed(Table):
        def stream(self, structures: Sequence[Any]) -> Iterator[tuple[Sequence[int], Scores]]:
            if structures[0] == 0.3:
                later.set()
            for i in range(len(structures)):
                assert later.wait(30), "the second batch has not begun"
                yield [i], self.evaluate(structures[i : i + 1])

    objective = Objective([Term(Streamed(), UNIT)])
    first = objective.submit([0.1, 0.2], ["a", "b"], step=1)
    second = objective.submit([0.3], ["c"], step=2)
    np.testing.assert_allclose(first.result().reward, [0.1, 0.2])
    np.testing.assert_allclose(second.result().reward, [0.3])
    objective.close()


def test_a_step_interrupted_after_recording_is_repeated_from_the_record(tmp_path: Path) -> None:
    with ExperienceStore(tmp_path / "run.sqlite") as store:
        prop = Table()
        whole = Objective([Term(prop, UNIT)], store=store).score([0.1, 0.2], list("ab"), step=5)
        store.rollback(4)
        again = Objective([Term(prop, UNIT)], store=store).score([0.1, 0.2], list("ab"), step=5)
        assert (again.spent, again.reused) == (whole.spent, whole.reused)
        np.testing.assert_array_equal(again.reward, whole.reward)
        np.testing.assert_array_equal(
            again.scores["table"].extra["twice"], whole.scores["table"].extra["twice"]
        )
    assert prop.seen == [0.1, 0.2]


def test_precomputed_values_are_used_and_recorded() -> None:
    prop = Table()
    objective = Objective([Term(prop, UNIT)])
    given_scores = Scores(np.array([0.7, np.nan]), [Status.OK, Status.FAILED], ["", "x"])
    result = objective.score([0.1, 0.2], list("ab"), precomputed={"table": given_scores})
    assert result.reward[0] == 0.7
    assert prop.seen == []
    assert objective.store.lookup("a", prop.key)["a"].value == 0.7


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", 0.5),
        ("weighted", (0.2 + 3 * 0.8) / 4),
        ("product", 0.16),
        ("min", 0.2),
        ("geometric", (0.2 * 0.8**3) ** 0.25),
        ("chebyshev", -max(0.8 / 3, 0.2)),
    ],
)
def test_combinations(combine: Any, expected: float) -> None:
    class Rest(Table):
        def evaluate(self, structures: Sequence[Any]) -> Scores:
            return super().evaluate([1 - s for s in structures])

    terms = [Term(Table("a"), UNIT), Term(Rest("b"), UNIT, 3.0)]
    objective = Objective(terms, combine)
    result = objective.score([0.2, None], ["x", "y"])
    np.testing.assert_allclose(result.reward, [expected, objective.range[0]])
    np.testing.assert_allclose(result.shaped["b"][0], 0.8)
    assert objective.failure_penalty == objective.range[0]


def test_matinvents_mixes() -> None:
    def score(values: dict[str, float], lines: dict[str, Any], combine: Any) -> float:
        class One(Table):
            def evaluate(self, structures: Sequence[Any]) -> Scores:
                return super().evaluate([values[self.name] for _ in structures])

        terms = [
            Term(One(name), Linear(type="linear", **line), weight)
            for name, (line, weight) in lines.items()
        ]
        return float(Objective(terms, combine).score(["a crystal"], ["a"]).reward[0])

    dielectric = {
        "figure_of_merit": ({"low": 10, "high": 250}, 0.8),
        "band_gap": ({"low": 0.5, "high": 3.5}, 0.1),
        "dielectric": ({"low": 25, "high": 50}, 0.1),
    }
    values = {"figure_of_merit": 130, "band_gap": 2.0, "dielectric": 37.5}
    assert score(values, dielectric, "weighted") == pytest.approx(0.5)
    magnet = {
        "magnetic_density": ({"low": 0, "high": 0.25}, 1.0),
        "hhi_reserve": ({"low": 750, "high": 3250, "direction": "minimise"}, 1.0),
    }
    assert score({"magnetic_density": 0.2, "hhi_reserve": 2000}, magnet, "min") == 0.5
    assert score({"magnetic_density": 0.05, "hhi_reserve": 750}, magnet, "min") == 0.2


# filters ------------------------------------------------------------------------------------


def refuses(prop: Property, **condition: float) -> Filter:
    return Filter(prop, FilterSettings(property=prop.name, **condition))


class Costly(Table):
    cost = CostClass.RELAXATION


class Cheap(Table):
    cost = CostClass.COMPOSITION


@settings(deadline=None)
@given(st.lists(crystals, min_size=1, max_size=4))
def test_costly_properties_see_only_what_cheaper_filters_let_pass(batches: list[list]) -> None:
    cheap, model, costly = Cheap("cheap", [0.0]), Table("model"), Costly("costly", [0.8])
    objective = Objective(
        [Term(costly, UNIT)], filters=[refuses(model, max=0.8), refuses(cheap, min=0.4)]
    )
    pending = [
        objective.submit(batch, [str(c) for c in batch], step=step)
        for step, batch in enumerate(batches)
    ]
    for batch, waiting in zip(batches, pending, strict=True):
        result = waiting.result()
        np.testing.assert_allclose(result.reward, [c if c in (0.4, 0.6) else 0.0 for c in batch])
        told = {
            None: "undecodable",
            0.0: "no data: that one",
            0.2: "cheap below 0.4: 0.2",
            0.4: "",
            0.6: "",
            0.8: "no data: that one",
            1.0: "model above 0.8: 1",
        }
        assert result.reason == [told[c] for c in batch]
        refused = [status is Status.FILTERED for status in result.status]
        assert refused == [c in (0.2, 1.0) for c in batch]
        np.testing.assert_array_equal(result.answered, [c in (0.2, 0.4, 0.6, 1.0) for c in batch])
        np.testing.assert_array_equal(np.isfinite(result.points[:, 0]), result.ok)
    distinct = {c for batch in batches for c in batch if c is not None}
    assert sorted(cheap.seen) == sorted(distinct)
    assert sorted(model.seen) == sorted(distinct - {0.0, 0.2})
    assert sorted(costly.seen) == sorted(distinct - {0.0, 0.2, 1.0})
    assert objective.properties[objective.costliest] is costly
    assert objective.evaluations_spent() == len(distinct - {0.0, 0.2, 1.0})
    objective.close()


def test_a_filter_costs_the_penalty_counts_its_reason_and_has_no_weight() -> None:
    prop = Table()
    objective = Objective(
        [Term(prop, UNIT)], "weighted", failure_penalty=-1.0, filters=[refuses(prop, equals=0.5)]
    )
    result = objective.score([0.5, 0.25, 0.75], list("abc"))
    np.testing.assert_array_equal(result.reward, [0.5, -1, -1])
    assert result.counts == {"filtered: table other than 0.5": 2, "ok": 1}
    np.testing.assert_array_equal(result.scores["table"].value, [0.5, 0.25, 0.75])  # kept
    assert sorted(prop.seen) == [0.25, 0.5, 0.75]
    assert (result.spent, objective.range) == ({"table": 3}, (0.0, 1.0))


def test_a_filter_that_breaks_stops_the_run_with_its_own_error() -> None:
    broken = Raises("broken", [0.5])
    broken.cost = CostClass.COMPOSITION
    objective = Objective([Term(Costly("costly"), UNIT)], filters=[refuses(broken, min=0)])
    with pytest.raises(NucleateError, match="'broken' raised on each of 8"):
        objective.score([0.5] * 8, list("abcdefgh"))
    objective.close()


@pytest.mark.parametrize(
    ("condition", "value", "why"),
    [
        ({"min": 0.5}, 0.31, "gap below 0.5: 0.31"),
        ({"min": 0.5}, 0.5, ""),
        ({"max": 2.0}, 2.5, "gap above 2: 2.5"),
        ({"min": 0.5, "max": 2.0}, 1.0, ""),
        ({"equals": 1}, 0.0, "gap other than 1: 0"),
        ({"equals": 1}, 1.0, ""),
    ],
)
def test_conditions(condition: dict, value: float, why: str) -> None:
    assert FilterSettings(property="gap", **condition).refusal("gap", value) == why


@pytest.mark.parametrize("condition", [{}, {"min": 2, "max": 1}, {"equals": 1, "min": 0}])
def test_senseless_conditions_are_refused(condition: dict) -> None:
    with pytest.raises(ValidationError):
        FilterSettings(property="gap", **condition)


def test_one_property_in_two_terms_is_evaluated_once() -> None:
    prop = Table()
    sigmoid = Sigmoid(type="sigmoid", centre=0.5, width=0.1)
    result = Objective([Term(prop, UNIT), Term(prop, sigmoid)]).score([0.5], ["a"])
    assert prop.seen == [0.5]
    assert set(result.shaped) == {"table", "table#2"}
    assert result.reward[0] == 0.5


class Length:
    """A multiple of the first lattice parameter, which all of them are read from."""

    unit, cost, measurement = "Å", CostClass.MODEL, "length/1"

    def __init__(self, factor: float, asked: list[list[float]]) -> None:
        self.factor, self.asked = factor, asked
        self.name = self.key = f"length{factor}"

    def evaluate(self, structures: Sequence[Any], shared: Measurements | None = None) -> Scores:
        assert shared is not None
        found = np.array(shared.get(self.measurement, structures, self._measure))
        return Scores(self.factor * found, [Status.OK] * len(found), [""] * len(found))

    def _measure(self, structures: list[Structure]) -> list[float]:
        self.asked.append([s.lattice.a for s in structures])
        return self.asked[-1]


def test_what_properties_are_read_from_is_measured_once_for_a_batch() -> None:
    """By the first of them, whatever the timing, and whatever a filter between them says."""
    batch = [Structure(Lattice.cubic(a), ["Cu"], [[0, 0, 0]]) for a in (2.0, 3.0, 4.0)]
    asked: list[list[float]] = []
    small = Filter(Length(2, asked), FilterSettings(property="length2", max=6.5))
    objective = Objective([Term(Length(k, asked), UNIT) for k in (3, 4)], filters=[small])
    first = objective.submit(batch[:2], list("ab"), step=0)
    second = objective.submit(batch[1:], list("bc"), step=1)
    np.testing.assert_array_equal(first.result().scores["length4"].value, [8, 12])
    np.testing.assert_array_equal(second.result().scores["length3"].value, [9, np.nan])
    assert asked == [[2.0, 3.0], [4.0]]
    assert first.result().spent == {"length2": 2, "length3": 2, "length4": 2}
    objective.close()


def test_senseless_objectives_are_refused() -> None:
    clip = Clip(type="clip", low=0, high=1, direction="minimise")
    with pytest.raises(RecipeError, match="0 and more"):
        Objective([Term(Table(), clip)], "geometric")
    with pytest.raises(RecipeError, match="at least one"):
        Objective([])
    other = Table()
    other.key = "table/2"
    with pytest.raises(RecipeError, match="Two different"):
        Objective([Term(Table(), UNIT), Term(other, UNIT)])


class Scaled(Table):
    """Settings that make another property of the same name."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.key = factor, f"table/{factor:g}"

    def evaluate(self, structures: Sequence[Any]) -> Scores:
        scores = super().evaluate(structures)
        return Scores(self.factor * scores.value, scores.status, scores.reason)


def test_one_property_with_two_settings_stands_under_two_names() -> None:
    cold, hot = Scaled(1), Scaled(3)
    wanted = FilterSettings(property="table", name="hot", max=2.5)
    objective = Objective(
        [Term(cold, UNIT), Term(hot, Linear(type="linear", low=0, high=3), name="hot")],
        filters=[Filter(hot, wanted)],
    )
    result = objective.score([0.5, 1.0], ["a", "b"])
    np.testing.assert_array_equal(result.scores["hot"].value, [1.5, 3.0])
    np.testing.assert_array_equal(result.scores["table"].value, [0.5, np.nan])
    assert result.reason == ["", "hot above 2.5: 3"]
    np.testing.assert_allclose(result.reward, [0.5, 0.0])
    assert result.spent == {"hot": 2, "table": 1} and set(result.shaped) == {"table", "hot"}
    assert {s.name: s.evaluations for s in objective.store.spending()} == {"hot": 2, "table": 1}
    # the key says nothing of the name, so what others have computed is found under any
    assert set(objective.store.lookup(["a", "b"], "table/3")) == {"a", "b"}


def test_a_label_is_one_property_and_a_property_one_label() -> None:
    with pytest.raises(RecipeError, match=r"'hot' and 'hotter' are the same"):
        Objective([Term(Scaled(3), UNIT, name="hot"), Term(Scaled(3), UNIT, name="hotter")])
    with pytest.raises(RecipeError, match=r"called 'reward'"):
        Objective([Term(Table("reward"), UNIT)])


def test_from_recipe_with_a_file_and_a_built_in(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(
        "def atoms(structures):\n    return [len(s) for s in structures]\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "budget: {steps: 1}\n"
        "objective:\n"
        "  terms:\n"
        "    - property: my.py:atoms\n"
        "      shaping: {type: linear, low: 0, high: 4}\n"
        "    - property: density\n"
        "      shaping: {type: linear, low: 0, high: 20}\n"
    )
    recipe = load_recipe(tmp_path / "mine.yaml")
    objective = Objective.from_settings(recipe.objective, base=tmp_path)
    structure = Structure(Lattice.cubic(3), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    result = objective.score([structure], ["a"])
    np.testing.assert_allclose(result.reward, (0.5 + structure.density / 20) / 2)
    assert objective.costliest == "atoms"
