"""Flags and counts of a set judged by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from nucleate.evaluation.summary import FUNNEL, Evaluation, kind_of_reason, pool
from nucleate.evaluation.sun import evaluate_crystals
from nucleate.protocols import Scores, Status


def _flags(evaluation: Evaluation, column: str) -> list[int]:
    return evaluation.table[column].astype(int).tolist()


def test_flags_by_hand(judged: Evaluation) -> None:
    assert _flags(judged, "decodable") == [1, 1, 1, 1, 1, 1, 0, 1]
    assert _flags(judged, "valid") == [1, 1, 1, 1, 1, 0, 0, 1]
    assert _flags(judged, "stable") == [
        1,
        0,
        1,
        1,
        0,
        0,
        0,
        0,
    ]  # 0.1 itself is not stable
    assert _flags(judged, "on_hull") == [1, 0, 0, 0, 0, 0, 0, 0]
    assert _flags(judged, "metastable") == [0, 0, 1, 1, 0, 0, 0, 0]
    # the two MgO of 4.21 and 4.22 Å are twins of the stretched one: first of its kind is row 1
    assert _flags(judged, "unique") == [1, 1, 0, 0, 1, 0, 0, 1]
    assert _flags(judged, "novel") == [0, 1, 1, 1, 1, 0, 0, 1]
    assert _flags(judged, "new_formula") == [0, 1, 0, 0, 1, 0, 0, 0]
    assert _flags(judged, "stable_new_formula") == [0, 0, 1, 0, 0, 0, 0, 0]


def test_unique_and_novel_are_the_matchers_verdicts(
    crystals: list[Structure | None], judged: Evaluation
) -> None:
    matcher = StructureMatcher()
    known = crystals[0]
    earlier: list[Structure] = []
    for structure, row in zip(crystals, judged.table.itertuples(), strict=True):
        if structure is None or not row.valid:
            continue
        assert row.unique == (not any(matcher.fit(structure, other) for other in earlier))
        assert row.novel == (not matcher.fit(structure, known))
        assert row.known_as == ("" if row.novel else "mp-22862")
        earlier.append(structure)


def test_without_a_reference_nothing_is_novel_and_the_summary_says_so(
    crystals: list[Structure | None],
) -> None:
    result = evaluate_crystals(crystals, [""] * 8, hulls={}, charge_balanced=[None] * 8)
    assert not result.table["novel"].any()
    assert result.table["unique"].sum() == 4
    assert "nothing counts as novel" in result.summary["settings"]["reference"]


def test_an_unstable_twin_takes_nothing_from_sun(judged: Evaluation) -> None:
    assert _flags(judged, "sun") == [0, 0, 1, 0, 0, 0, 0, 0]


def test_second_hull_has_its_own_columns(judged: Evaluation) -> None:
    assert _flags(judged, "stable@mp2020") == [1, 0, 0, 1, 1, 0, 0, 1]
    assert _flags(judged, "sun@mp2020") == [0, 0, 0, 1, 1, 0, 0, 1]
    assert judged.summary["fractions_by_hull"]["mp2020"]["sun"]["count"] == 3


def test_every_denominator_counts_the_failed_samples(judged: Evaluation) -> None:
    summary = judged.summary
    assert {part["n"] for part in summary["fractions"].values()} == {8}
    for flags in summary["fractions_by_hull"].values():
        assert {part["n"] for part in flags.values()} == {8}
    assert summary["fractions"]["stable"]["value"] == 3 / 8


def test_funnel_narrows_and_ends_in_sun(judged: Evaluation) -> None:
    counts = judged.summary["funnel"]
    assert list(counts) == list(FUNNEL)
    assert list(counts.values()) == [8, 7, 6, 5, 3, 2, 1]
    assert all(before >= after for before, after in pairwise(counts.values()))


def test_failures_are_counted_by_reason(judged: Evaluation) -> None:
    failures = judged.summary["failures"]
    assert failures["decodable"] == {"no site was drawn": 1}
    assert sum(failures["valid"].values()) == 1
    assert failures["scored"] == {"unsupported: the hull lacks Pm": 1}


def test_reasons_that_differ_in_numbers_are_one_kind() -> None:
    assert kind_of_reason("distance: two atoms 0.31 Å apart") == "distance"
    assert kind_of_reason("gave up after 12 s") == kind_of_reason("gave up after 9.5 s")
    assert kind_of_reason("") == "no reason given"


def test_space_group_is_found_without_tokens(judged: Evaluation) -> None:
    assert judged.table["space_group"].tolist()[:5] == [225] * 5
    assert judged.table["space_group"].tolist()[6:] == [0, 221]
    groups = {row["space_group"]: row for row in judged.summary["by_space_group"]}
    assert groups[225]["stable"]["count"] == 3
    assert groups[225]["n"] == 5


def test_element_counts_and_diversity(judged: Evaluation) -> None:
    assert judged.summary["elements"]["Mg"] == 3
    assert judged.summary["elements_stable"] == {"Cl": 1, "Mg": 2, "Na": 1, "O": 2}
    assert judged.summary["diversity"]["systems"] == 4
    assert judged.summary["diversity"]["mean_atoms"]["value"] == 2


def test_unique_and_novel_of_an_empty_or_fully_failed_set() -> None:
    nothing = Scores(np.full(2, np.nan), [Status.INVALID] * 2, ["x", "x"])
    result = evaluate_crystals(
        [None, None], ["a", "b"], hulls={"h": nothing}, charge_balanced=[None, None]
    )
    assert result.summary["fractions"]["sun"]["count"] == 0
    assert result.summary["fractions"]["sun"]["high"] > 0.5


def test_pooling_adds_counts_and_keeps_seeds(judged: Evaluation) -> None:
    pooled = pool([judged, judged, judged], "base")
    assert pooled["n"] == 24
    assert pooled["fractions"]["sun"]["count"] == 3
    assert pooled["fractions"]["sun"]["seeds"] == [1 / 8] * 3
    single = judged.summary["fractions"]["sun"]
    assert pooled["fractions"]["sun"]["high"] < single["high"]
    assert pooled["funnel"]["sampled"] == 24
    assert pooled["diversity"]["systems"] == 4


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 structures but 2 entries of reasons"):
        evaluate_crystals([None], ["a", "b"], hulls={})
