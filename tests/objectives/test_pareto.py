"""Fronts hold what nothing beats; hypervolumes are exact in any number of terms."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleate.objectives.pareto import ParetoFront, hypervolume, pareto_front

rows = st.integers(1, 4).flatmap(
    lambda terms: st.lists(
        st.lists(st.integers(0, 5), min_size=terms, max_size=terms), min_size=1, max_size=9
    )
)


def dominated(a: np.ndarray, scores: np.ndarray) -> bool:
    return any((b >= a).all() and (b > a).any() for b in scores)


@settings(deadline=None)
@given(rows)
def test_the_front_is_what_nothing_dominates(rows: list[list[int]]) -> None:
    scores = np.array(rows, dtype=float)
    on_front = pareto_front(scores)
    for i, row in enumerate(scores):
        again = any((scores[j] == row).all() for j in range(i))
        assert on_front[i] == (not dominated(row, scores) and not again)


@settings(deadline=None)
@given(rows)
def test_hypervolume_is_the_volume_of_the_union_of_boxes(rows: list[list[int]]) -> None:
    scores = np.array(rows, dtype=float)
    expected = 0.0  # inclusion and exclusion
    for size in range(1, len(scores) + 1):
        for chosen in combinations(scores, size):
            expected -= (-1) ** size * np.min(chosen, axis=0).prod()
    assert hypervolume(scores, np.zeros(scores.shape[1])) == pytest.approx(expected)


def test_hypervolume_by_hand() -> None:
    assert hypervolume(np.array([[3.0, 1.0], [1.0, 2.0], [0.5, 0.5]]), [0, 0]) == 4.0
    assert hypervolume(np.array([[3.0, 1.0], [1.0, 2.0]]), [-1, 0]) == 6.0
    assert hypervolume(np.array([[3.0, -1.0]]), [0, 0]) == 0.0
    assert hypervolume(np.zeros((0, 3)), [0, 0, 0]) == 0.0


@settings(deadline=None)
@given(rows, st.integers(0, 9))
def test_a_front_does_not_depend_on_how_it_was_shown(rows: list[list[int]], cut: int) -> None:
    scores = np.array(rows, dtype=float)
    names = [str(i) for i in range(len(rows))]
    ranges = [(0.0, 5.0)] * scores.shape[1]
    whole, parts = ParetoFront(ranges), ParetoFront(ranges)
    whole.add(scores, names)
    parts.add(scores[:cut], names[:cut])
    before = parts.hypervolume
    parts.add(scores[cut:], names[cut:])
    assert (parts.names, parts.hypervolume) == (whole.names, whole.hypervolume)
    assert 0 <= before <= parts.hypervolume <= 1


def test_rows_without_a_score_are_left_out_and_the_best_of_all_covers_everything() -> None:
    front = ParetoFront([(-5.0, 0.0), (0.0, 1.0)])
    front.add(np.array([[np.nan, 1.0], [-2.5, 0.5]]), ["a", "b"])
    assert (front.names, front.hypervolume) == (["b"], 0.25)
    front.add(np.array([[0.0, 1.0]]), ["c"])
    assert (front.names, front.hypervolume) == (["c"], 1.0)
