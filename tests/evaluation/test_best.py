"""The best crystals of several judged sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from pymatgen.core import Structure

from nucleate.evaluation.best import select_best, write_best
from nucleate.evaluation.summary import Evaluation


def test_all_sets_count_and_a_crystal_of_several_is_taken_once(judged: Evaluation) -> None:
    other = judged.table.copy()
    other["e_above_hull"] -= 0.01
    alone = select_best([judged], 10)
    pooled = select_best([judged, replace(judged, name="again", table=other)], 10)
    formulas = [row["formula"] for row in pooled.rows]
    assert formulas == [row["formula"] for row in alone.rows]
    assert len(set(formulas)) < len(formulas)  # polymorphs, none of them twice
    assert {row["set"] for row in pooled.rows} == {"again"}  # the lower of two equal ones
    assert [s.composition.reduced_formula for s in pooled.structures] == formulas


def test_a_set_that_has_what_the_first_lacks_adds_to_it(
    judged: Evaluation, crystals: list[Structure | None]
) -> None:
    first = judged.table.assign(unique=False, unique_stable=False, sun=False)
    empty = replace(judged, table=first)
    assert len(select_best([empty], 10)) == 0
    assert len(select_best([empty, judged], 10)) == len(select_best([judged], 10)) > 1
    assert len(select_best([empty, judged], 1)) == 1


def test_the_order_is_sun_then_energy_and_a_new_formula_counts_once(judged: Evaluation) -> None:
    table = judged.table.copy()
    # rows 2 and 1 are MgO, stable and not; 0 and 7 are NaCl in two structures
    table.loc[[0, 7], ["sun", "stable_new_formula", "unique", "stable", "novel"]] = True
    best = select_best([replace(judged, table=table)], 10)
    assert [row["sample"] for row in best.rows[:3]] == [0, 2, 7]
    assert [row["stable_new_formula"] for row in best.rows[:3]] == [True, True, False]
    energies = [row["e_above_hull"] for row in best.rows[3:]]
    assert energies == sorted(energies)


def test_files_hold_what_was_judged(judged: Evaluation, tmp_path: Path) -> None:
    best = select_best([judged], 10)
    write_best(best, tmp_path)
    table = pd.read_csv(tmp_path / "crystals.csv", keep_default_na=False)
    assert table["formula"].tolist() == [row["formula"] for row in best.rows]
    for name, structure in zip(table["cif"], best.structures, strict=True):
        written = Structure.from_file(tmp_path / name)
        assert written.volume / len(written) == pytest.approx(
            structure.volume / len(structure), rel=1e-4
        )
