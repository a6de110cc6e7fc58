"""Comparison of two judged sets, and what is written of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from nucleate.evaluation.compare import (
    compare,
    element_shift,
    guards,
    to_markdown,
    write_comparison,
    write_evaluation,
)
from nucleate.evaluation.summary import Evaluation


def test_a_set_against_itself_changes_nothing(judged: Evaluation) -> None:
    comparison = compare([judged], [judged])
    for row in comparison["rows"]:
        assert row["difference"]["value"] == 0
        assert row["difference"]["low"] <= 0 <= row["difference"]["high"]
        assert row["ratio"]["value"] == 1 or row["base"]["count"] == 0
    assert all(guard["ratio"] == 1 or math.isnan(guard["ratio"]) for guard in comparison["guards"])
    assert comparison["elements"]["total_variation"] == 0


def test_unequal_sample_counts_are_refused(judged: Evaluation) -> None:
    with pytest.raises(ValueError, match="equal sample counts"):
        compare([judged], [judged, judged])


def test_sets_of_unequal_sizes_are_refused_though_their_sum_is_equal(judged: Evaluation) -> None:
    half = replace(judged, summary={**judged.summary, "n": 4})
    double = replace(judged, summary={**judged.summary, "n": 8})
    with pytest.raises(ValueError, match="uniqueness"):
        compare([double], [half, half])


@pytest.mark.parametrize(("key", "value"), [("relaxed", True), ("stable", "below 0.2")])
def test_sets_judged_differently_are_refused(judged: Evaluation, key: str, value: object) -> None:
    settings = {**judged.summary["settings"], key: value}
    other = replace(judged, summary={**judged.summary, "settings": settings})
    with pytest.raises(ValueError, match=f"judged differently: {key}"):
        compare([judged], [other])


def test_a_hull_on_one_side_only_is_refused(judged: Evaluation) -> None:
    by_hull = {"chgnet": judged.summary["fractions_by_hull"]["chgnet"]}
    other = replace(judged, summary={**judged.summary, "fractions_by_hull": by_hull})
    with pytest.raises(ValueError, match="mp2020"):
        compare([judged], [other])


def test_guards_tell_a_collapse() -> None:
    before = {"systems": 850, "space_groups": 120, "mean_sites": {"value": 5.0}}
    after = {"systems": 500, "space_groups": 110, "mean_sites": {"value": 4.0}}
    atoms = {"mean_atoms": {"value": 9.0}}
    rows = guards({"diversity": before | atoms}, {"diversity": after | atoms})
    assert {row["quantity"]: row["kept"] for row in rows} == {
        "systems": False,
        "space_groups": True,
        "mean_sites": True,
        "mean_atoms": True,
    }


def test_total_variation_is_one_for_disjoint_elements() -> None:
    shift = element_shift({"Na": 3, "Cl": 3}, {"Mg": 4, "O": 4}, 10)
    assert shift["total_variation"] == pytest.approx(1)
    assert [row["element"] for row in shift["rows"]] == ["Mg", "O", "Cl", "Na"]
    assert shift["rows"][0]["change"] == pytest.approx(0.4)


def test_written_files_read_back(judged: Evaluation, tmp_path: Path) -> None:
    comparison = compare([judged, judged], [judged, judged])
    write_evaluation(judged, tmp_path)
    write_comparison(comparison, tmp_path)
    table = pd.read_csv(tmp_path / "base.csv", keep_default_na=False)
    assert len(table) == 8
    summary = json.loads((tmp_path / "base.json").read_text())
    assert summary["fractions"]["stable"] == pytest.approx(judged.summary["fractions"]["stable"])
    results = pd.read_csv(tmp_path / "results.csv", keep_default_na=False)
    stable = results[(results.quantity == "stable") & (results.hull == "mp2020")].iloc[0]
    assert (int(float(stable.base_count)), int(float(stable.base_n))) == (8, 16)
    assert not list(tmp_path.glob("*.part"))


def test_markdown_names_hull_potential_denominator_and_methods(
    judged: Evaluation,
) -> None:
    text = to_markdown(compare([judged], [judged]))
    for words in (
        "8 samples each (1 seed);",
        "chgnet",
        "strict",
        "Newcombe",
        "StructureMatcher",
        "S.U.N.",
    ):
        assert words in text
