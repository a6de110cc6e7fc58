"""Samples judged: their energies, none computed twice, against each hull, then all else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import RecipeError
from nucleate.evaluation.summary import Evaluation, EvaluationSettings
from nucleate.evaluation.sun import KnownCrystals, evaluate_crystals
from nucleate.execution.meter import metered
from nucleate.objectives.evaluate import evaluations_of
from nucleate.physics.relax import Relaxation, RelaxStatus
from nucleate.protocols import PotentialResult, Scores, Status
from nucleate.store.cache import EvaluationCache, crystal_digest
from nucleate.structures.validity import check_all

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.properties.stability import EnergyAboveHull, EnergyResult
    from nucleate.samples import Samples
    from nucleate.store.experience import Evaluation as CacheEntry
    from nucleate.store.experience import ExperienceStore

RELAXED = (RelaxStatus.CONVERGED, RelaxStatus.STEP_CAP)
"""Relaxations that count, as in :class:`~nucleate.properties.stability.EnergyAboveHull`."""


class Energies:
    """What a potential says of crystals; each is computed once, however often it is drawn.

    Args:
        judge: whose potential gives the energies, of relaxed crystals if it relaxes.
        store: of a run; energies that ``judge`` has left there are not computed again. Those of
            relaxed crystals are, for the store does not hold what they relaxed to, and so are
            those with corrections added.
        cache: of the project, likewise; new energies are kept there.
    """

    def __init__(
        self,
        judge: EnergyAboveHull,
        store: ExperienceStore | None = None,
        cache: EvaluationCache | None = None,
    ) -> None:
        self.judge = judge
        recordable = judge.relax_settings is None and not judge.correct
        self._store, self._cache = (store, cache) if recordable else (None, None)
        self._found: dict[str, EnergyResult] = {}

    def __call__(
        self, structures: Sequence[Structure], digests: Sequence[str]
    ) -> list[EnergyResult]:
        """One result for each of B crystals, order kept.

        Args:
            structures: B crystals.
            digests: B content hashes; equal hashes mean equal crystals.
        """
        asked = dict(zip(digests, structures, strict=True))
        self._found |= self._recorded({d: s for d, s in asked.items() if d not in self._found})
        missing = {d: s for d, s in asked.items() if d not in self._found}
        started = time.perf_counter()
        with metered() as meter:
            results = self.judge.energies(list(missing.values()))
        self._found |= dict(zip(missing, results, strict=True))
        if self._cache is not None and missing:
            seconds = meter.seconds if meter.tasks else time.perf_counter() - started
            scores = self.judge.from_energies(list(missing.values()), results)
            evaluations = evaluations_of(scores, range(len(missing)), seconds / len(missing))
            names = map(crystal_digest, missing.values())
            self._cache.keep(self.judge.key, dict(zip(names, evaluations, strict=True)))
        return [self._found[digest] for digest in digests]

    def _recorded(self, asked: Mapping[str, Structure]) -> dict[str, EnergyResult]:
        """What is known already, failures left out."""
        entries: dict[str, CacheEntry] = {}
        if self._cache is not None:
            names = {digest: crystal_digest(structure) for digest, structure in asked.items()}
            kept = self._cache.lookup(names.values(), self.judge.key)
            entries |= {digest: kept[name] for digest, name in names.items() if name in kept}
        if self._store is not None:  # the run's own word counts first
            entries |= self._store.lookup(asked, self.judge.key)
        return {
            digest: PotentialResult(entry.extra["energy_per_atom"])
            for digest, entry in entries.items()
            if entry.status is Status.OK
        }


def hull_cards(judges: Iterable[EnergyAboveHull]) -> dict[str, dict[str, Any]]:
    """What each judge's hull is, by the name that results are labelled with.

    Raises:
        RecipeError: two different hulls of one name.
    """
    cards: dict[str, dict[str, Any]] = {}
    for judge in judges:
        label, card = judge.hull.name, judge.description
        if cards.setdefault(label, card) != card:
            raise RecipeError(
                f"two different hulls are called {label!r}",
                "results are told apart by the names of the hulls",
                "judge by one of them, or rename one in its .json card",
            )
    return cards


def judge(
    samples: Samples,
    stability: EnergyAboveHull,
    *,
    hulls: Sequence[EnergyAboveHull] = (),
    energies: Energies | None = None,
    reference: KnownCrystals | None = None,
    name: str = "samples",
    stable_below: float = 0.1,
    extra: dict[str, Any] | None = None,
) -> Evaluation:
    """Valid, stable, unique and novel fractions of samples.

    Where the judge relaxes, stability, uniqueness and novelty are those of the relaxed crystals,
    and validity that of the crystals as drawn.

    Args:
        samples: crystals.
        stability: the main judge.
        hulls: further judges with the same potential; they reuse its energies.
        energies: those of ``stability`` that are known already; more are added.
        reference: training set, for novelty.
        name: of the set.
        stable_below: eV/atom.
        extra: printed with the result.

    Raises:
        RecipeError: two different hulls of one name.
    """
    invalid = check_all(samples.structures)
    rows = [i for i, why in enumerate(invalid) if not why]
    chosen = [s for s, why in zip(samples.structures, invalid, strict=True) if s and not why]
    results = (energies or Energies(stability))(chosen, [samples.digests[i] for i in rows])
    judges = (stability, *hulls)
    cards = hull_cards(judges)
    judged = {
        judge_.hull.name: _spread(judge_.from_energies(chosen, results), rows, invalid)
        for judge_ in judges
    }
    structures = list(samples.structures)
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, Relaxation) and result.status in RELAXED:
            structures[row] = result.structure
    settings = EvaluationSettings(
        stable_below=stable_below,
        potential=stability.potential.name,
        relaxed=stability.relax_settings is not None,
        hulls=cards,
        reference="" if reference is None else str(getattr(reference, "source", "")),
        extra=extra or {},
    )
    return evaluate_crystals(
        structures,
        samples.reasons,
        hulls=judged,
        tokens=samples.batch,
        reference=reference,
        invalid=invalid,
        settings=settings,
        name=name,
    )


def _spread(scores: Scores, rows: Sequence[int], invalid: Sequence[str]) -> Scores:
    """Scores of some rows as scores of all; the others are invalid for their reason."""
    n = len(invalid)
    value = np.full(n, np.nan)
    status, reason = [Status.INVALID] * n, list(invalid)
    extra = {key: np.full(n, np.nan) for key in scores.extra}
    for position, row in enumerate(rows):
        value[row] = scores.value[position]
        status[row], reason[row] = scores.status[position], scores.reason[position]
        for key, column in scores.extra.items():
            extra[key][row] = column[position]
    return Scores(value, status, reason, extra)
