"""Measurements run side by side: few calls, order kept, each failure its own."""

from __future__ import annotations

import numpy as np
import pytest

from nucleate.errors import InputError
from nucleate.physics import measurement
from nucleate.physics.cells import Cell
from nucleate.physics.measurement import measure
from nucleate.protocols import PotentialResult


class Counting:
    """Its energy is the first lattice parameter; remembers the size of each call."""

    name = "counting"
    accepts_cells = True

    def __init__(self) -> None:
        self.calls: list[int] = []

    def evaluate(self, cells, *, forces=False, stress=False, magmoms=False):
        self.calls.append(len(cells))
        results = []
        for cell in cells:
            a, n = cell.lattice[0, 0], len(cell.numbers)
            result = PotentialResult(a, np.zeros((n, 3)), np.zeros((3, 3)) if stress else None)
            if a > 90:
                result = InputError("too large")
            elif a > 80:
                result = PotentialResult(a, np.full((n, 3), np.nan), np.zeros((3, 3)))
            results.append(result)
        return results


def cell(a: float) -> Cell:
    return Cell(np.eye(3) * a, np.array([1]), np.zeros((1, 3)))


def total(sizes: list[list[float]]):
    """A measurement that asks in rounds and adds up what it is told."""
    found = 0.0
    for round_of_sizes in sizes:
        results = yield [cell(a) for a in round_of_sizes]
        found += sum(result.energy for result in results)
    return found


def broken():
    yield [cell(1.0)]
    raise ValueError("a bug of one crystal")


def test_rounds_are_shared_and_order_is_kept() -> None:
    potential = Counting()
    sizes = [[[1.0, 2.0], [3.0]], [[4.0]], [[5.0], [], [6.0, 7.0]]]
    assert measure([total(s) for s in sizes], potential) == [6.0, 4.0, 18.0]
    assert potential.calls == [4, 1, 2]
    assert measure([], potential) == []


def test_a_failure_harms_no_other() -> None:
    reason = InputError("no crystal")
    measurements = [
        total([[1.0], [2.0]]),
        reason,
        broken(),
        total([[95.0, 1.0]]),
        total([[1.0], [85.0]]),
    ]
    found = measure(measurements, Counting(), stress=True)
    assert found[0] == 3.0 and found[1] is reason
    assert isinstance(found[2], ValueError)
    assert "too large" in str(found[3])
    assert "not finite" in str(found[4])


def test_a_potential_without_stress_is_named() -> None:
    class Poor(Counting):
        def evaluate(self, cells, *, forces=False, stress=False, magmoms=False):
            return super().evaluate(cells)

    [found] = measure([total([[1.0]])], Poor(), stress=True)
    assert "counting gave no forces or no stress" in str(found)


def test_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "ATOMS_PER_CALL", 3)
    monkeypatch.setattr(measurement, "CRYSTALS_AT_ONCE", 2)
    potential = Counting()
    assert measure([total([[1.0] * 4]) for _ in range(3)], potential) == [4.0] * 3
    assert potential.calls == [3, 3, 2, 3, 1]
