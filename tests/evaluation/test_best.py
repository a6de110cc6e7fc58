"""The best crystals of several judged sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase.io import read
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
    first = judged.table.assign(valid=False)
    empty = replace(judged, table=first)
    assert len(select_best([empty], 10)) == 0
    assert len(select_best([empty, judged], 10)) == len(select_best([judged], 10)) > 1
    assert len(select_best([empty, judged], 1)) == 1


def test_without_rewards_the_energy_decides_and_a_new_formula_counts_once(
    judged: Evaluation,
) -> None:
    table = judged.table.copy()
    # rows 2 and 1 are MgO, stable and not; 0 and 7 are NaCl in two structures
    table.loc[[0, 7], ["stable_new_formula", "stable", "novel"]] = True
    best = select_best([replace(judged, table=table)], 10)
    assert [row["sample"] for row in best.rows[:3]] == [0, 2, 7]
    assert [row["stable_new_formula"] for row in best.rows[:3]] == [True, True, False]
    energies = [row["e_above_hull"] for row in best.rows[3:]]
    assert energies == sorted(energies)


def test_the_reward_decides_among_those_that_are_new_and_stable(judged: Evaluation) -> None:
    """New: MgO of rows 1 (unstable) to 3, all of one kind; PmN, without an energy; NaCl of row 7."""

    def chosen(reward: object, **asked: bool) -> list[int]:
        table = judged.table.assign(reward=reward)
        return [
            row["sample"] for row in select_best([replace(judged, table=table)], 10, **asked).rows
        ]

    # rewards of what is no crystal don't count, nor the lower ones of equal crystals
    reward = [0.9, 0.8, 0.1, 0.2, 0.5, 1.0, np.nan, 0.3]
    assert chosen(reward) == [3, 0, 4, 7]
    assert chosen(reward, stable=False) == [1, 4, 7, 0]
    assert chosen(0.5, stable=False) == [2, 7, 4, 0]  # by energy, where it is known
    assert chosen([np.nan, 0.1, *[np.nan] * 6]) == [1]  # what has no reward is not compared


def test_files_hold_what_was_judged(judged: Evaluation, tmp_path: Path) -> None:
    best = select_best([judged], 10)
    best.rows[0]["reward"] = 0.25
    write_best(best, tmp_path)
    frames = read(tmp_path / "crystals.extxyz", ":")
    assert [frame.info["rank"] for frame in frames] == list(range(1, len(best) + 1))
    assert frames[0].info["reward"] == 0.25
    table = pd.read_csv(tmp_path / "crystals.csv", keep_default_na=False)
    assert table["formula"].tolist() == [row["formula"] for row in best.rows]
    for name, structure in zip(table["cif"], best.structures, strict=True):
        written = Structure.from_file(tmp_path / name)
        assert written.volume / len(written) == pytest.approx(
            structure.volume / len(structure), rel=1e-4
        )
