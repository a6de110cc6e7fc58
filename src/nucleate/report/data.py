"""What a report is made of, from plain objects or from the folder of a run.

Files of a run that the report reads, each of them optional::

    log.jsonl                      one line of metrics for each step
    recipe.yaml, manifest.json     shown in the appendix
    evaluation/base*.csv           crystal by crystal, base model (one file for each seed)
    evaluation/tuned*.csv          the same, tuned model
    evaluation/comparison.json     fractions, intervals, guards, element shift
    crystals/crystals.csv, cif/    the best crystals

Metric names may be written with slashes (``reward/mean``) or underscores (``reward_mean``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleate.errors import InputError
from nucleate.evaluation.best import CRYSTALS_CSV
from nucleate.evaluation.compare import COMPARISON_JSON
from nucleate.evaluation.summary import from_file
from nucleate.store.rundir import LOG, MANIFEST, RECIPE

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from nucleate.evaluation.best import Best
    from nucleate.evaluation.summary import Evaluation

EVALUATION_FOLDER = "evaluation"
CRYSTALS_FOLDER = "crystals"
REPORT_HTML = "report.html"
MAX_CRYSTALS = 100
METRICS = (
    "step",
    "evaluations",
    "reward_mean",
    "stable_fraction",
    "unique_fraction",
    "new_fraction",
    "kl",
    "entropy",
    "clip_fraction",
    "gradient_norm",
    "hypervolume",
    "n_systems",
    "mean_sites",
    "mean_atoms",
    "seconds_sampling",
    "seconds_scoring",
    "seconds_updating",
)


@dataclass(frozen=True)
class ReportCrystal:
    """One crystal of the table.

    Attributes:
        structure: the crystal.
        space_group: number, 0 if unknown.
        n_atoms: in the primitive cell.
        e_above_hull: eV/atom by hull label, the main hull first.
        new: no match in the training set.
        new_formula: formula absent from the training set.
        sun: stable, unique and novel.
        hull_support: competing phases that the main hull knows, None if not counted.
        formula: reduced formula; the structure's own if empty.
        reward: the objective's, NaN where it is not known.
        step: of the run that found it, None for a judged sample.
        relaxed: whether it is what the drawn crystal relaxed to.
        cif: CIF text; written from the structure if empty.
    """

    structure: Structure
    space_group: int
    n_atoms: int
    e_above_hull: Mapping[str, float]
    new: bool = False
    new_formula: bool = False
    sun: bool = False
    hull_support: int | None = None
    formula: str = ""
    reward: float = math.nan
    step: int | None = None
    relaxed: bool = False
    cif: str = ""


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows; what is missing leaves its section out.

    Attributes:
        title: name of the run.
        metrics: one mapping a step, names as in METRICS.
        e_above_hull: eV/atom against the main hull by set ("base", "tuned").
        space_groups: for each set, space group -> (samples, stable, S.U.N.).
        comparison: as :func:`nucleate.evaluation.compare.compare` gives it.
        crystals: best first.
        recipe: YAML text.
        manifest: versions, hashes, seeds, command.
    """

    title: str
    metrics: Sequence[Mapping[str, Any]] = ()
    e_above_hull: Mapping[str, Sequence[float]] = field(default_factory=dict)
    space_groups: Mapping[str, Mapping[int, tuple[int, int, int]]] = field(default_factory=dict)
    comparison: Mapping[str, Any] = field(default_factory=dict)
    crystals: Sequence[ReportCrystal] = ()
    recipe: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> list[float]:
        """One metric over all steps; NaN where a step lacks it."""
        return [_number(row.get(name)) for row in self.metrics]


def from_objects(
    title: str,
    *,
    base: Sequence[Evaluation] = (),
    tuned: Sequence[Evaluation] = (),
    best: Best | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    recipe: str = "",
    manifest: Mapping[str, Any] | None = None,
) -> ReportData:
    """Report data of evaluations in memory."""
    from nucleate.evaluation.compare import compare, without_nan

    sides = {"base": [e.table for e in base], "tuned": [e.table for e in tuned]}
    crystals: list[ReportCrystal] = []
    if best is not None:
        label = main_hull([*base, *tuned])
        crystals = [
            report_crystal(structure, row, label)
            for structure, row in zip(best.structures, best.rows, strict=True)
        ]
    return ReportData(
        title=title,
        metrics=[canonical(row) for row in metrics],
        e_above_hull={name: _energies(tables) for name, tables in sides.items() if tables},
        space_groups={name: _groups(tables) for name, tables in sides.items() if tables},
        comparison=without_nan(compare(base, tuned)) if base and tuned else {},
        crystals=crystals[:MAX_CRYSTALS],
        recipe=recipe,
        manifest=manifest or {},
    )


def load_run(run: Path) -> ReportData:
    """Report data from the folder of a run, finished or not.

    Raises:
        InputError: there is no such folder, or a file in it can't be read.
    """
    if not run.is_dir():
        raise InputError(f"{run} is no folder", fix="Name the folder of a run, as in runs/<name>.")
    folder = run / EVALUATION_FOLDER
    sides = {
        name: [_table(path) for path in sorted(folder.glob(f"{name}*.csv"))]
        for name in ("base", "tuned")
    }
    comparison = _json(folder / COMPARISON_JSON)
    main = comparison.get("tuned", {}).get("settings", {}).get("main_hull", "")
    recipe = run / RECIPE
    return ReportData(
        title=run.resolve().name,
        metrics=[canonical(row) for row in _json_lines(run / LOG)],
        e_above_hull={name: _energies(tables) for name, tables in sides.items() if tables},
        space_groups={name: _groups(tables) for name, tables in sides.items() if tables},
        comparison=comparison,
        crystals=_crystals(run / CRYSTALS_FOLDER, main),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        manifest=_json(run / MANIFEST),
    )


def canonical(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same metrics with underscores for slashes in their names."""
    return {str(key).replace("/", "_"): value for key, value in row.items()}


def report_crystal(
    structure: Structure, row: Mapping[str, Any], hull: str, cif: str = ""
) -> ReportCrystal:
    """A crystal of the table from its evaluation row."""
    energies = {}
    for key, value in row.items():
        name, _, label = str(key).partition("@")
        if name == "e_above_hull":
            energies[label or hull or "hull"] = _number(value)
    support, step = _number(row.get("hull_support")), _number(row.get("step"))
    return ReportCrystal(
        structure=structure,
        space_group=int(row["space_group"]),
        n_atoms=int(row["n_atoms"]),
        e_above_hull=energies,
        new=_truth(row.get("novel")),
        new_formula=_truth(row.get("stable_new_formula")) or _truth(row.get("new_formula")),
        sun=_truth(row.get("sun")),
        hull_support=int(support) if math.isfinite(support) else None,
        formula=str(row.get("formula", "")),
        reward=_number(row.get("reward")),
        step=int(step) if math.isfinite(step) else None,
        relaxed=_truth(row.get("relaxed")),
        cif=cif,
    )


def main_hull(evaluations: Sequence[Evaluation]) -> str:
    """Label of the main hull of the first evaluation, empty without any."""
    return str(evaluations[0].summary["settings"]["main_hull"]) if evaluations else ""


def _crystals(folder: Path, hull: str) -> list[ReportCrystal]:
    from pymatgen.core import Structure

    path = folder / CRYSTALS_CSV
    if not path.is_file() or not path.read_bytes().strip():  # none was asked for (output.best: 0)
        return []
    found = []
    for row in _table(path).head(MAX_CRYSTALS).to_dict("records"):
        file = folder / str(row["cif"])
        try:
            text = file.read_text(encoding="utf-8")
            structure = Structure.from_str(text, fmt="cif")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{file} can't be read as a crystal",
                str(error),
                f"Write {folder} again with: nucleate tune --resume {folder.parent}",
            ) from error
        found.append(report_crystal(structure, {str(k): v for k, v in row.items()}, hull, text))
    return found


def _energies(tables: Sequence[pd.DataFrame]) -> list[float]:
    return [
        float(value)
        for table in tables
        if "e_above_hull" in table
        for value in table["e_above_hull"].dropna()
    ]


def _groups(tables: Sequence[pd.DataFrame]) -> dict[int, tuple[int, int, int]]:
    """Samples, stable and S.U.N. crystals of each space group."""
    counts: dict[int, list[int]] = {}
    for table in tables:
        stable = table["stable"] if "stable" in table else [False] * len(table)
        sun = table["sun"] if "sun" in table else [False] * len(table)
        for group, is_stable, is_sun in zip(table["space_group"], stable, sun, strict=True):
            row = counts.setdefault(int(group), [0, 0, 0])
            row[0] += 1
            row[1] += _truth(is_stable)
            row[2] += _truth(is_sun)
    return {g: (n, s, u) for g, (n, s, u) in sorted(counts.items()) if g > 0}


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        # Only empty cells are missing values: "NaN" is the formula of a sodium nitride.
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read", str(error), "Evaluate the run again.") from error
    return table.rename(columns=from_file)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read", str(error), "Evaluate the run again.") from error
    return content if isinstance(content, dict) else {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a last line still being written is left out."""
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for i, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if i < len(lines):
                raise InputError(
                    f"{path}, line {i}: not JSON", str(error), "Remove that line."
                ) from error
    return rows


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return math.nan


def _truth(value: Any) -> bool:
    return value is True or str(value) in ("True", "1", "1.0")
