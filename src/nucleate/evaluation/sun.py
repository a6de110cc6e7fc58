"""Validity, stability, uniqueness and novelty of a set of crystals, crystal by crystal.

Definitions, each a column of the table and a fraction of ALL requested samples, failed ones
included:

- valid: the crystal can be decoded and passes the distance and volume tests; charge balance is
  reported apart, since metals have none.
- stable: energy above hull strictly below the threshold, 0.1 eV/atom by default; on_hull: at or
  below 0; metastable: stable but not on the hull.
- unique: valid, and the first crystal of its kind in sample order ("same kind" is the verdict of
  pymatgen's StructureMatcher).
- novel: valid, and no match among the training crystals.
- sun: stable, novel, and the first of its kind among the STABLE crystals, so that an unstable twin
  drawn earlier takes nothing away.
- new_formula: valid, reduced formula absent from the training set, first of its formula.
- stable_new_formula: the same counted among the stable crystals.

With several hulls the first is the main one and its columns carry no suffix; those of the others
end in ``@label``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nucleate.errors import MissingDependencyError
from nucleate.evaluation.summary import (
    Evaluation,
    EvaluationSettings,
    column,
    summarise,
)
from nucleate.protocols import Scores

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.structures.wyckoff import WyckoffBatch


class KnownCrystals(Protocol):
    """What the evaluation needs of :class:`nucleate.structures.identity.ReferenceSet`."""

    def is_known(
        self, structures: Iterable[Structure | None]
    ) -> tuple[np.ndarray, list[str | None]]:
        """(B,) bool, True where a crystal matches one of the reference, and whose match it is."""
        ...

    def known_formula(self, structures: Iterable[Structure | None]) -> np.ndarray:
        """(B,) bool, True where the reference holds a crystal of the same reduced formula."""
        ...


def evaluate_crystals(
    structures: Sequence[Structure | None],
    reasons: Sequence[str],
    *,
    hulls: Mapping[str, Scores],
    tokens: WyckoffBatch | None = None,
    reference: KnownCrystals | None = None,
    invalid: Sequence[str] | None = None,
    charge_balanced: Sequence[bool | None] | None = None,
    settings: EvaluationSettings | None = None,
    name: str = "samples",
) -> Evaluation:
    """Judge B crystals.

    Args:
        structures: B crystals, None where decoding failed.
        reasons: B strings, why decoding failed, empty where it did not.
        hulls: energy above hull (eV/atom) of the B crystals by hull label; the first label is the
            main hull.
        tokens: the B sampled rows; they give the space group, the sites and the formula even of
            what could not be decoded.
        reference: training crystals; without it nothing counts as novel or as a new formula, and
            the summary says so.
        invalid: B reasons from the validity tests, empty where valid; by default the tests of
            :mod:`nucleate.structures.validity` are run here.
        charge_balanced: B verdicts; by default SMACT's. Without SMACT the column is left out and
            the summary says so.
        settings: what to print beside the numbers.
        name: of the set.
    """
    import pandas as pd

    settings = settings or EvaluationSettings()
    n = len(structures)
    beside = {"reasons": reasons, "tokens": tokens, "invalid": invalid, **hulls}
    _check_lengths(n, {**beside, "charge_balanced": charge_balanced})
    decodable = np.array([structure is not None for structure in structures], dtype=bool)
    if invalid is None:
        invalid = _validity(structures)
    valid = decodable & np.array([not reason for reason in invalid], dtype=bool)
    columns: dict[str, Any] = {"sample": np.arange(n), **_describe(structures, tokens)}
    columns["decodable"] = decodable
    columns["valid"] = valid
    columns["reason"] = [
        (reasons[i] or "undecodable") if not decodable[i] else invalid[i] for i in range(n)
    ]
    balanced = _charge_balance(structures) if charge_balanced is None else charge_balanced
    if balanced is not None:
        columns["charge_balanced"] = valid & np.array([bool(b) for b in balanced], dtype=bool)
    else:
        unmeasured = {"charge_balanced": "not measured, SMACT is not installed"}
        settings = replace(settings, extra={**settings.extra, **unmeasured})
    formulas = columns["formula"]
    columns["unique"] = _unique(structures, valid)
    if reference is None:
        columns["novel"] = new = np.zeros(n, dtype=bool)
        columns["known_as"] = [""] * n
        settings = replace(settings, reference="none given: nothing counts as novel")
    else:
        known, names = reference.is_known(_where(structures, valid))
        columns["novel"] = valid & ~known
        columns["known_as"] = [name or "" for name in names]
        new = valid & ~reference.known_formula(_where(structures, valid))
    columns["new_formula"] = valid & new & _first_of(formulas, valid)
    for position, (label, scores) in enumerate(hulls.items()):
        suffix = None if position == 0 else label
        e_above_hull = np.where(valid, scores.value, np.nan)
        stable = valid & scores.ok & (e_above_hull < settings.stable_below)
        on_hull = stable & (e_above_hull <= 0)
        columns[column("e_above_hull", suffix)] = e_above_hull
        columns[column("score_status", suffix)] = [str(status) for status in scores.status]
        columns[column("score_reason", suffix)] = list(scores.reason)
        columns[column("stable", suffix)] = stable
        columns[column("on_hull", suffix)] = on_hull
        columns[column("metastable", suffix)] = stable & ~on_hull
        unique_stable = _unique(structures, stable)
        columns[column("unique_stable", suffix)] = unique_stable
        columns[column("stable_new_formula", suffix)] = stable & new & _first_of(formulas, stable)
        columns[column("sun", suffix)] = unique_stable & columns["novel"]
        for key, values in scores.extra.items():
            columns.setdefault(key, np.where(valid, values, np.nan))
    table = pd.DataFrame(columns)
    summary = summarise(table, settings, hulls=list(hulls), name=name)
    return Evaluation(name, table, summary, list(structures))


def _check_lengths(n: int, parts: Mapping[str, Sized | None]) -> None:
    for what, part in parts.items():
        if part is not None and len(part) != n:
            raise ValueError(
                f"{n} structures but {len(part)} entries of {what}; order is kept everywhere, so "
                "the lengths must agree"
            )


def _validity(structures: Sequence[Structure | None]) -> list[str]:
    from nucleate.structures.validity import check_all

    return check_all(structures)


def _charge_balance(structures: Sequence[Structure | None]) -> list[bool | None] | None:
    """SMACT's verdicts, None for all where it isn't installed."""
    from nucleate.structures.validity import charge_balance

    try:
        return charge_balance(structures)
    except MissingDependencyError:
        return None


def _describe(
    structures: Sequence[Structure | None], tokens: WyckoffBatch | None
) -> dict[str, list[Any]]:
    """Formula, chemistry and size of each row, from the tokens where there is no structure."""
    from pymatgen.core import Composition

    rows: dict[str, list[Any]] = {
        key: []
        for key in (
            "formula",
            "system",
            "elements",
            "space_group",
            "n_sites",
            "n_atoms",
        )
    }
    sites = None if tokens is None else tokens.n_sites
    for i, structure in enumerate(structures):
        if structure is not None:
            composition = structure.composition
        elif tokens is not None and sites is not None and sites[i] > 0:
            composition = Composition(tokens.formula(i))
        else:
            composition = Composition()
        symbols = sorted(element.symbol for element in composition.elements)
        rows["formula"].append(composition.reduced_formula if symbols else "")
        rows["system"].append("-".join(symbols))
        rows["elements"].append(" ".join(symbols))
        rows["space_group"].append(0 if tokens is None else int(tokens.space_group[i]))
        rows["n_sites"].append(math.nan if sites is None else int(sites[i]))
        rows["n_atoms"].append(math.nan if structure is None else len(structure))
    if tokens is None:
        rows["space_group"] = [_space_group(structure) for structure in structures]
    return rows


def _space_group(structure: Structure | None, symprec: float = 0.01) -> int:
    """Space group number by moyopy at ``symprec`` Å; 0 where there is none to find."""
    if structure is None:
        return 0
    import moyopy
    from moyopy.interface import MoyoAdapter

    try:
        cell = MoyoAdapter.from_py_obj(structure)
        return int(moyopy.MoyoDataset(cell, symprec=symprec).number)
    except (RuntimeError, ValueError):
        return 0


def _first_of(names: Sequence[str], among: np.ndarray) -> np.ndarray:
    """(B,) bool, True for the first row of each name, counting only the rows of ``among``."""
    first = np.zeros(len(names), dtype=bool)
    seen: set[str] = set()
    for i in np.flatnonzero(among).tolist():
        first[i] = names[i] not in seen
        seen.add(names[i])
    return first


def _where(structures: Sequence[Structure | None], among: np.ndarray) -> list[Structure | None]:
    """The crystals of the rows in ``among``, None elsewhere."""
    return [s if keep else None for s, keep in zip(structures, among.tolist(), strict=True)]


def _unique(structures: Sequence[Structure | None], among: np.ndarray) -> np.ndarray:
    """(B,) bool, True for the first crystal of each kind, counting only the rows of ``among``."""
    from nucleate.structures.identity import unique

    return among & unique(_where(structures, among))[0]
