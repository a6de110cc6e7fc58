"""Report data from a run directory equal those from memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nucleate.errors import InputError
from nucleate.evaluation.best import CRYSTALS_CSV, Best, write_best
from nucleate.evaluation.compare import compare, write_comparison, write_evaluation
from nucleate.evaluation.summary import Evaluation
from nucleate.report.data import (
    CRYSTALS_FOLDER,
    EVALUATION_FOLDER,
    ReportData,
    load_run,
)
from nucleate.report.page import build_report


def write_run(run: Path, data: ReportData, judged: tuple[Evaluation, Evaluation, Best]) -> None:
    """The files that a finished run leaves for the report."""
    base, tuned, best = judged
    run.mkdir()
    (run / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in data.metrics))
    (run / "recipe.yaml").write_text(data.recipe)
    (run / "manifest.json").write_text(json.dumps(data.manifest))
    for evaluation in (base, tuned):
        write_evaluation(evaluation, run / EVALUATION_FOLDER)
    write_comparison(compare([base], [tuned]), run / EVALUATION_FOLDER)
    write_best(best, run / CRYSTALS_FOLDER)


def test_a_run_read_back_is_the_run_in_memory(
    tmp_path: Path, report_data: ReportData, judged: tuple[Evaluation, Evaluation, Best]
) -> None:
    write_run(tmp_path / "stability", report_data, judged)
    loaded = load_run(tmp_path / "stability")
    assert loaded.title == "stability"
    assert loaded.metrics == report_data.metrics
    assert loaded.space_groups == report_data.space_groups
    assert loaded.comparison == json.loads(json.dumps(report_data.comparison))
    for side, values in report_data.e_above_hull.items():
        assert loaded.e_above_hull[side] == pytest.approx(values)
    assert len(loaded.crystals) == len(report_data.crystals)
    for read, kept in zip(loaded.crystals, report_data.crystals, strict=True):
        assert (read.formula, read.n_atoms) == (kept.formula, kept.n_atoms)
        assert read.e_above_hull == pytest.approx(kept.e_above_hull)
        assert (read.sun, read.new, read.hull_support) == (kept.sun, kept.new, kept.hull_support)
        composition = read.structure.composition
        assert composition.reduced_formula == kept.structure.composition.reduced_formula


def test_a_run_of_before_columns_had_units_is_read_alike(
    tmp_path: Path, report_data: ReportData, judged: tuple[Evaluation, Evaluation, Best]
) -> None:
    run = tmp_path / "stability"
    write_run(run, report_data, judged)
    before = load_run(run)
    energies = set()
    for path in (*(run / EVALUATION_FOLDER).glob("*.csv"), run / CRYSTALS_FOLDER / CRYSTALS_CSV):
        head, _, rows = path.read_text(encoding="utf-8").partition("\n")
        energies |= {name for name in head.split(",") if "above_hull" in name or "energy" in name}
        old = head.replace("hull_eV_per_atom", "hull").replace("energy_eV_per", "energy_per")
        path.write_text(f"{old}\n{rows}", encoding="utf-8")
    named = {"e_above_hull_eV_per_atom", "e_above_hull_eV_per_atom@mp2020", "energy_eV_per_atom"}
    assert energies == named
    after = load_run(run)
    assert after.e_above_hull == before.e_above_hull
    assert after.e_above_hull["tuned"] and len(after.crystals) > 1
    for one, other in zip(after.crystals, before.crystals, strict=True):
        assert one.e_above_hull == other.e_above_hull
        assert set(one.e_above_hull) == {"chgnet", "mp2020"}


def test_sodium_nitride_is_no_missing_value(
    tmp_path: Path, report_data: ReportData, judged: tuple[Evaluation, Evaluation, Best]
) -> None:
    base, tuned, best = judged
    rows = [{**row, "formula": "NaN"} for row in best.rows[:2]]
    write_run(tmp_path / "run", report_data, (base, tuned, Best(best.structures[:2], rows)))
    assert [crystal.formula for crystal in load_run(tmp_path / "run").crystals] == ["NaN"] * 2


def test_the_page_says_where_the_best_crystals_come_from(
    tmp_path: Path, report_data: ReportData, judged: tuple[Evaluation, Evaluation, Best]
) -> None:
    base, tuned, best = judged
    write_run(tmp_path / "old", report_data, judged)  # a release that looked at samples alone
    page = build_report(tmp_path / "old").read_text(encoding="utf-8")
    assert "Chosen from the judged samples of the tuned model." in page
    assert "<button>found</button>" not in page
    counts = {"evaluated": 30_000, "new_formulas": 1_234, "samples": 150, "stable": True}
    data = replace(report_data, manifest={**report_data.manifest, "best": counts})
    rows = [{**best.rows[0], "set": "run", "step": 7, "relaxed": True}, best.rows[1]]
    write_run(tmp_path / "new", data, (base, tuned, Best(best.structures[:2], rows)))
    page = build_report(tmp_path / "new").read_text(encoding="utf-8")
    assert "30,000 crystals" in page and "1,234 formulas that are new and stable" in page
    assert "150 judged samples" in page and "Of the 2 shown here the run found 1." in page
    assert ">step 7, relaxed</td>" in page and ">sample</td>" in page


def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0, "evaluations": 128}\n{"step": 1, "eval')
    page = build_report(tmp_path)
    assert page == tmp_path / "report.html"
    assert "have not been evaluated yet" in page.read_text()


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        load_run(tmp_path / "absent")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json"):
        load_run(tmp_path)
