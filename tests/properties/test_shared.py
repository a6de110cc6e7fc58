"""Measurements that properties share: made once for a batch, by whoever asks first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from made_up import MadeUpPotential
from nucleate.errors import InputError, NucleateError
from nucleate.physics import relax
from nucleate.physics.cells import Cell, as_cell
from nucleate.properties.mechanical import BulkModulus, BulkModulusOfState
from nucleate.properties.shared import Shared, scores_of
from nucleate.properties.stability import EnergyAboveHull
from nucleate.protocols import Status


def crystal(a: float) -> Structure:
    return Structure(Lattice.cubic(a), ["Cu"], [[0, 0, 0]])


class Length:
    """Measures the first lattice parameter; remembers what it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[float] = []
        self.error = error

    def __call__(self, structures: list[Structure | Cell]) -> list[float | Exception]:
        lengths = [float(as_cell(structure).lattice[0, 0]) for structure in structures]
        self.asked += lengths
        return [self.error or length for length in lengths]


def test_each_crystal_is_computed_once_for_each_key() -> None:
    shared, length = Shared(), Length()
    assert shared.get("a", [crystal(3), crystal(4), crystal(3)], length) == [3.0, 4.0, 3.0]
    assert shared.get("a", [crystal(4), crystal(5)], length) == [4.0, 5.0]
    assert length.asked == [3.0, 4.0, 5.0]
    assert shared.get("b", [crystal(4)], length) == [4.0]
    assert length.asked == [3.0, 4.0, 5.0, 4.0]
    assert shared.get("a", [], length) == []


def test_what_is_no_crystal_has_its_reason() -> None:
    half = Structure(Lattice.cubic(3), [{"Cu": 0.5}], [[0, 0, 0]])
    first, second = Shared().get("a", [half, crystal(3)], Length())
    assert isinstance(first, InputError) and second == 3.0


def test_a_failure_is_shared_too() -> None:
    shared, length = Shared(), Length(TimeoutError("60 s"))
    assert shared.get("a", [crystal(3)], length) == [length.error]
    assert shared.get("a", [crystal(3)], length) == [length.error]
    assert length.asked == [3.0]


def test_threads_do_not_compute_twice() -> None:
    shared, asked = Shared(), []

    def slow(structures: list[Structure | Cell]) -> list[float]:
        asked.extend(structures)
        time.sleep(0.05)
        return [1.0] * len(structures)

    threads = [
        threading.Thread(target=shared.get, args=("a", [crystal(3)], slow)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1


@pytest.mark.parametrize("made", [EnergyAboveHull, BulkModulus, BulkModulusOfState])
def test_keys_of_what_relaxes_hold_the_algorithm_and_no_time_out(
    made: Callable[..., EnergyAboveHull | BulkModulus | BulkModulusOfState],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def keys(**settings: float) -> set[str]:
        found = made(potential=MadeUpPotential(), relax=settings)
        return {found.key, getattr(found, "measurement", found.key)}

    assert keys() == keys(timeout=7.0)
    assert keys().isdisjoint(keys(fmax=0.02))
    before = keys()
    monkeypatch.setattr(relax, "ALGORITHM", relax.ALGORITHM + 1)
    assert before.isdisjoint(keys())


def test_scores_keep_order_status_reason_and_columns() -> None:
    results = [2.0, TimeoutError("60 s"), NucleateError("not converged", "why"), 0.0, -1.0]
    scores = scores_of(
        results,
        lambda x: (1 / x if x else np.inf, "below zero" if x < 0 else ""),
        lambda x: {"itself": x},
    )
    ok, failed = Status.OK, Status.FAILED
    assert scores.status == [ok, Status.TIMEOUT, failed, failed, Status.UNSUPPORTED]
    assert scores.reason == ["", "60 s", "not converged", "no finite number", "below zero"]
    np.testing.assert_array_equal(scores.value, [0.5] + [np.nan] * 4)
    np.testing.assert_array_equal(scores.extra["itself"], [2.0, np.nan, np.nan, 0.0, -1.0])
