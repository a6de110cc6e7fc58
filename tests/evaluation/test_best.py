"""The best crystals of a run and of several judged sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase.io import read
from pymatgen.core import Lattice, Structure

from nucleate.evaluation.best import Best, best_of_run, select_best, write_best
from nucleate.evaluation.summary import Evaluation
from nucleate.objectives.objective import Objective, Term
from nucleate.objectives.shaping import Clip
from nucleate.protocols import CostClass, Scores, Status
from nucleate.store.experience import Evaluation as Value
from nucleate.store.experience import ExperienceStore, Reward, SampledCrystal
from nucleate.store.packing import pack_batch
from nucleate.structures.formulas import FormulaIndex
from nucleate.structures.wyckoff import encode


def rock_salt(cation: str, anion: str, a: float) -> Structure:
    """``a`` in Å."""
    places = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return Structure.from_spacegroup(225, Lattice.cubic(a), [cation, anion], places)


class Recorded:
    """Energies above hull that a store holds already, eV/atom."""

    name = key = "e_above_hull"
    unit, cost = "eV/atom", CostClass.MODEL

    def evaluate(self, structures: object) -> Scores:
        raise AssertionError("nothing is evaluated again")


def a_run() -> tuple[Objective, FormulaIndex]:
    """Two steps of four crystals; NaCl is known, one crystal is drawn twice, one is filtered."""
    rows = [
        (rock_salt("Mg", "O", 4.2), 0.05),
        (rock_salt("Na", "Cl", 5.6), -0.1),
        (rock_salt("Li", "F", 4.0), 0.0),
        (rock_salt("Ca", "O", 4.8), -0.05),
        (rock_salt("Mg", "O", 4.3), -0.02),
        (rock_salt("K", "Br", 6.6), -0.5),
        (rock_salt("K", "Cl", 6.3), 0.3),
        (rock_salt("Li", "F", 4.0), 0.0),
    ]
    batch, _ = encode([structure for structure, _ in rows])
    packed = pack_batch(batch)
    crystals = [
        SampledCrystal(batch.digest(i), 225, batch.formula(i), packed[i], -1.0) for i in range(8)
    ]
    rewards = [Reward(0.8, bonus=0.8)] * 8  # a bonus is no part of the objective
    rewards[3] = Reward(-0.6, status=Status.FILTERED)
    store = ExperienceStore(":memory:")
    for step in (0, 1):
        here = slice(4 * step, 4 * step + 4)
        values = {c.digest: Value(e) for c, (_, e) in zip(crystals[here], rows[here], strict=True)}
        store.record(step, Recorded.key, values, name=Recorded.name, unit="eV/atom")
        store.record_step(step, crystals[here], rewards[here], {})
    shaping = Clip(type="clip", low=0.0, high=0.6, direction="minimise")
    known, _ = encode([rock_salt("Na", "Cl", 5.0)])
    return Objective([Term(Recorded(), shaping)], store=store), FormulaIndex.from_batches([known])


def test_the_best_of_a_run_are_new_and_stable_and_the_best_of_their_formulas() -> None:
    objective, known = a_run()
    found = best_of_run(objective, known, 10, stability="e_above_hull")
    # MgO of step 1 is below that of step 0; LiF was found first in step 0; KBr is past belief
    assert found.table[["step", "sample"]].to_numpy().tolist() == [[1, 0], [0, 2]]
    assert found.table["reward"].tolist() == [0.0, 0.0]
    assert (found.evaluated, found.new) == (6, 2)
    found = best_of_run(objective, known, 3)
    assert found.table[["step", "sample"]].to_numpy().tolist() == [[0, 2], [1, 0], [1, 1]]
    assert (found.evaluated, found.new) == (6, 4)


def test_a_run_of_nothing_new_has_no_best_crystals() -> None:
    objective, _ = a_run()
    batch, _ = encode([rock_salt(*pair, 5.0) for pair in (("Mg", "O"), ("Li", "F"))])
    known = FormulaIndex.from_batches([batch])
    found = best_of_run(objective, known, 10, stability="e_above_hull", stable_below=-0.3)
    assert (len(found.table), found.evaluated, found.new) == (0, 6, 0)
    found = best_of_run(objective, known, 10, stability="e_above_hull")
    assert found.table["sample"].tolist() == [1]  # NaCl, which this training set lacks
    objective.store.rollback(-1)
    assert best_of_run(objective, known, 10, stability="e_above_hull").evaluated == 0


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


def test_what_is_too_far_below_the_hull_to_be_believed_is_not_stable(judged: Evaluation) -> None:
    energies = judged.table["e_above_hull"].to_numpy(copy=True)
    energies[2] = -0.31  # MgO, as are rows 1 and 3; of them only 2 and 3 are stable
    table = judged.table.assign(e_above_hull=energies)
    assert select_best([replace(judged, table=table)], 1).rows[0]["sample"] == 3


def test_a_set_without_rewards_comes_behind_one_with_rewards(judged: Evaluation) -> None:
    of_run = replace(judged, name="run", table=judged.table.iloc[2:3].assign(reward=-0.5))
    of_run = replace(of_run, structures=judged.structures[2:3])
    best = select_best([judged, of_run], 10)
    assert best.rows[0]["set"] == "run" and best.rows[0]["reward"] == -0.5
    assert {row["set"] for row in best.rows[1:]} == {"base"}
    assert all(np.isnan(row["reward"]) for row in best.rows[1:])


def test_files_hold_what_was_judged(judged: Evaluation, tmp_path: Path) -> None:
    steps = judged.table.assign(step=np.arange(8) + 10, relaxed=True).iloc[2:3]
    of_run = replace(judged, name="run", table=steps, structures=judged.structures[2:3])
    best = select_best([of_run, judged], 10)
    assert [row["set"] for row in best.rows] == ["run", *["base"] * (len(best) - 1)]
    best.rows[0]["reward"] = 0.25
    write_best(Best(best.structures[::-1], best.rows[::-1]), tmp_path)  # of which nothing is left
    write_best(best, tmp_path)
    first, second = (next((tmp_path / "cif").glob(f"00{i}_*")).read_text() for i in (1, 2))
    assert first.startswith("# rank 1, reward 0.25, e_above_hull 0.05 eV/atom, step 12 of the run")
    assert "step" not in second.partition("\n")[0]
    frames = read(tmp_path / "crystals.extxyz", ":")
    assert [frame.info["rank"] for frame in frames] == list(range(1, len(best) + 1))
    assert frames[0].info["reward"] == 0.25
    table = pd.read_csv(tmp_path / "crystals.csv", keep_default_na=False)
    assert table["formula"].tolist() == [row["formula"] for row in best.rows]
    assert table["step"].tolist() == ["12"] + [""] * (len(best) - 1)
    assert table["relaxed"].tolist() == [True] + [False] * (len(best) - 1)
    assert {f"cif/{file.name}" for file in (tmp_path / "cif").iterdir()} == set(table["cif"])
    assert frames[0].info["step"] == 12 and "step" not in frames[1].info
    for name, structure in zip(table["cif"], best.structures, strict=True):
        written = Structure.from_file(tmp_path / name)
        assert written.volume / len(written) == pytest.approx(
            structure.volume / len(structure), rel=1e-4
        )
