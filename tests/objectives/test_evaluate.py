"""Evaluating: each result is kept as it comes, and what is known is not computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError, NucleateError
from nucleate.execution.meter import current_meter
from nucleate.objectives.evaluate import PART, evaluate
from nucleate.objectives.objective import Objective, Term
from nucleate.objectives.shaping import Linear
from nucleate.protocols import CostClass, Scores, Status
from nucleate.store.cache import EvaluationCache, crystal_digest
from nucleate.store.experience import Evaluation, ExperienceStore

UNIT = Linear(type="linear", low=0, high=1)


def scores(values: Sequence[float]) -> Scores:
    return Scores(np.array(values, dtype=float), [Status.OK] * len(values), [""] * len(values))


def crystal(number: float) -> Structure:
    return Structure(Lattice.cubic(3 + number), ["Cu"], [[0, 0, 0]])


def number(structure: Any) -> float:
    return round(structure.lattice.a - 3, 6) if isinstance(structure, Structure) else structure


class Costly:
    """A property of "crystals" that are numbers; the process dies at some of them."""

    name, unit, key = "costly", "1", "costly/1"

    def __init__(self, cost: CostClass, dies_at: Sequence[float] = ()) -> None:
        self.cost, self.dies_at = cost, set(dies_at)
        self.calls: list[list[float]] = []

    def evaluate(self, structures: Sequence[Any]) -> Scores:
        numbers = list(map(number, structures))
        self.calls.append(numbers)
        if self.dies_at & set(numbers):
            raise KeyboardInterrupt
        return scores(numbers)


class Streamed(Costly):
    """Gives its values one by one, the last first."""

    def stream(self, structures: Sequence[Any]) -> Iterator[tuple[Sequence[int], Scores]]:
        for i in reversed(range(len(structures))):
            yield [i], self.evaluate([structures[i]])


def named(n: int) -> list[str]:
    return [str(i) for i in range(n)]


@pytest.mark.parametrize(
    ("kind", "cost", "first", "again"),
    [
        (Costly, CostClass.MODEL, [150], [150]),
        (Costly, CostClass.RELAXATION, [64, 64], [64, 22]),
        (Costly, CostClass.DFT, [1] * 71, [1] * 80),
        (Streamed, CostClass.DFT, [1] * 80, [1] * 71),
    ],
)
def test_a_crash_costs_what_was_under_way(kind, cost, first, again, monkeypatch) -> None:
    monkeypatch.setitem(PART, CostClass.RELAXATION, 64)
    with EvaluationCache(":memory:") as cache:
        dying, whole, resumed = kind(cost, dies_at=[70]), kind(cost), kind(cost)
        crystals = list(map(crystal, range(150)))
        with pytest.raises(KeyboardInterrupt):
            evaluate(dying, named(150), crystals, cache)
        found = evaluate(resumed, named(150), crystals, cache)
        assert [len(call) for call in dying.calls] == first
        assert [len(call) for call in resumed.calls] == again
        # in the company that an uninterrupted run computes it in
        assert list(found) == named(150)
        assert {k: v.value for k, v in found.items()} == {str(i): i for i in range(150)}
        evaluate(whole, named(150), range(150))
        assert all(call in whole.calls for call in resumed.calls)


def test_relaxations_are_as_many_at_a_time_as_keep_all_workers_busy() -> None:
    relaxes = Costly(CostClass.RELAXATION)
    relaxes.potential = SimpleNamespace(pool=SimpleNamespace(n_workers=512))  # type: ignore[attr-defined]
    evaluate(relaxes, named(2000), range(2000))
    assert [len(call) for call in relaxes.calls] == [1536, 464]


def test_crystals_that_the_cache_takes_for_one_have_one_value_before_and_after_a_crash() -> None:
    class Exact(Costly):
        def evaluate(self, structures: Sequence[Any]) -> Scores:
            self.calls.append([s.lattice.a for s in structures])
            return scores(self.calls[-1])

    twins = [crystal(x) for x in (0.1, 0.1 + 1e-9, 0.2)]
    with EvaluationCache(":memory:") as cache:
        exact = Exact(CostClass.MODEL)
        values, again = (
            [entry.value for entry in evaluate(exact, list("abc"), twins, cache).values()]
            for _ in range(2)
        )
    assert exact.calls == [[twins[0].lattice.a, twins[2].lattice.a]]
    assert values == again == [twins[i].lattice.a for i in (0, 0, 2)]


def test_what_costs_microseconds_is_not_looked_up() -> None:
    with EvaluationCache(":memory:") as cache:
        evaluate(Costly(CostClass.COMPOSITION), ["a"], [crystal(1)], cache)
        assert cache.lookup([crystal_digest(crystal(1))], "costly/1") == {}


def test_what_a_property_leaves_out_is_asked_for_alone_and_fails_alone() -> None:
    class Forgets(Costly):
        def evaluate(self, structures: Sequence[Any]) -> Scores:
            return scores([s for s in structures if s != 2])

    found = evaluate(Forgets(CostClass.MODEL), named(5), range(5))
    assert [entry.status for entry in found.values()] == [
        Status.FAILED if i == 2 else Status.OK for i in range(5)
    ]
    assert [found[str(i)].value for i in (0, 1, 3, 4)] == [0, 1, 3, 4]
    assert "0 values for 1 crystals" in found["2"].reason

    class Stops(Streamed):
        def stream(self, structures: Sequence[Any]) -> Iterator[tuple[Sequence[int], Scores]]:
            yield [0], self.evaluate([structures[0]])

    assert evaluate(Stops(CostClass.DFT), named(3), range(3))["2"].value == 2


def test_an_error_about_the_set_up_stops_and_one_about_a_crystal_does_not() -> None:
    class Raises(Costly):
        error: NucleateError = InputError("this crystal is odd")

        def evaluate(self, structures: Sequence[Any]) -> Scores:
            if any(s % 2 for s in structures):
                raise self.error
            return scores(structures)

    found = evaluate(Raises(CostClass.MODEL), named(4), range(4))
    assert [entry.reason for entry in found.values()] == [
        "costly raised InputError: this crystal is odd" if i % 2 else "" for i in range(4)
    ]
    raises = Raises(CostClass.MODEL)
    raises.error = NucleateError("the weights are gone")
    with pytest.raises(NucleateError, match="weights are gone"):
        evaluate(raises, named(4), range(4))


def test_seconds_are_those_of_the_workers_where_there_are_any() -> None:
    class Pooled(Costly):
        def evaluate(self, structures: Sequence[Any]) -> Scores:
            meter = current_meter()
            assert meter is not None
            meter.add(6.0)
            return super().evaluate(structures)

    found = evaluate(Pooled(CostClass.DFT), ["a", "b"], [1.0, 2.0])
    assert [entry.seconds for entry in found.values()] == [6.0, 6.0]
    assert 0 < evaluate(Costly(CostClass.DFT), ["a"], [1.0])["a"].seconds < 5


@pytest.mark.parametrize("known", [False, True])
def test_a_run_takes_the_same_course_whatever_others_have_computed(
    tmp_path: Path, known: bool
) -> None:
    """Rows, charges and rewards; only where values come from, and their seconds, differ."""
    path = tmp_path / "evaluations.sqlite"
    if known:
        with EvaluationCache(path, "another run") as cache:
            known = {
                crystal_digest(crystal(i / 5)): Evaluation(i / 5, seconds=9.0) for i in range(3)
            }
            cache.keep("costly/1", known)
    prop = Costly(CostClass.DFT)
    with EvaluationCache(path, "this run") as cache, ExperienceStore(":memory:") as store:
        objective = Objective([Term(prop, UNIT)], store=store, cache=cache)
        for step, digests in enumerate(("0123", "2345")):
            result = objective.score(
                [crystal(float(d) / 5) for d in digests], list(digests), step=step
            )
            np.testing.assert_array_equal(result.reward, [float(d) / 5 for d in digests])
            assert result.spent == {"costly": (4, 2)[step]}
        (spending,) = store.spending()
        objective.close()
        digest = store.content_digest()
    assert replace(spending, seconds=0.0, cached=0).evaluations == 6
    assert (spending.cost, spending.cached) == ("dft", 3 if known else 0)
    assert 0 < spending.seconds < 5
    assert len(prop.calls) == 6 - spending.cached
    plain = Objective([Term(Costly(CostClass.DFT), UNIT)])
    for step, digests in enumerate(("0123", "2345")):
        plain.score([float(d) / 5 for d in digests], list(digests), step=step)
    plain.close()
    assert plain.store.content_digest() == digest
