"""The objective: from crystals to one reward each, with every raw value kept.

    dedupe by digest -> the run's store -> the project's cache -> evaluate -> record -> filter ->
    shape -> combine

Evaluation runs beside the caller: :meth:`Objective.submit` returns at once and
:meth:`PendingScores.result` waits, so that scoring overlaps with sampling and updating. Results
must be taken in the order of submission. A crystal that is being evaluated for an earlier
submission is not evaluated again.

Properties are evaluated from the cheapest to the costliest, and what a filter on one of them
refuses is not evaluated by those that follow: they wait for the filter, in their own thread.
Properties that are read from one measurement, such as energies of one potential, have one thread,
and the first of them measures for all: each crystal of a submission once.
"""

from __future__ import annotations

import builtins
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nucleate.errors import RecipeError
from nucleate.objectives.combination import Combination
from nucleate.objectives.evaluate import evaluate, evaluations_of, make_property, streams
from nucleate.objectives.pareto import ParetoFront
from nucleate.objectives.settings import Combine, FilterSettings, ObjectiveSettings
from nucleate.objectives.shaping import Shaping
from nucleate.properties.shared import Shared
from nucleate.protocols import CostClass, MeasuredProperty, Property, Scores, Status
from nucleate.store.cache import EvaluationCache
from nucleate.store.experience import COLUMNS, Evaluation, ExperienceStore

if TYPE_CHECKING:
    from pymatgen.core import Structure


_COSTS = list(CostClass)
"""The cheapest first."""


@dataclass(frozen=True)
class Term:
    """A property, how its value becomes a score, and its weight in the combination."""

    property: Property
    shaping: Shaping
    weight: float = 1.0
    name: str | None = None

    @builtins.property
    def label(self) -> str:
        """What the values are called: the name, by default that of the property."""
        return self.name or self.property.name


@dataclass(frozen=True)
class Filter:
    """A property, and the values of it that a crystal may have."""

    property: Property
    settings: FilterSettings

    @builtins.property
    def label(self) -> str:
        """What the values are called: the name, by default that of the property."""
        return self.settings.name or self.property.name


@dataclass(frozen=True)
class ObjectiveResult:
    """What the objective says of B crystals, order kept.

    Attributes:
        reward: (B,) float64, always finite.
        scores: raw values by label of the property.
        shaped: (B,) scores of each term by label (``label#2`` where one stands in several terms);
            NaN where there is no value.
        status: B statuses; the cheapest property that failed, or whose filter refuses, decides.
        reason: B strings, empty where OK.
        spent: evaluations charged to this step, by property, whoever computed them.
        reused: distinct crystals whose value the run knew, by property.
    """

    reward: np.ndarray
    scores: Mapping[str, Scores]
    shaped: Mapping[str, np.ndarray]
    status: list[Status]
    reason: list[str]
    spent: Mapping[str, int] = field(default_factory=dict)
    reused: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> np.ndarray:
        """(B,) bool, True where every filter lets pass and every term has a value."""
        return np.array([status is Status.OK for status in self.status], dtype=bool)

    @property
    def points(self) -> np.ndarray:
        """(B, T) scores, NaN in the rows of crystals that are not OK."""
        points = np.stack(list(self.shaped.values()), axis=1)
        points[~self.ok] = np.nan
        return points

    @property
    def answered(self) -> np.ndarray:
        """(B,) bool, True where the objective has a verdict: a score, or the no of a filter."""
        return np.array([s in (Status.OK, Status.FILTERED) for s in self.status], dtype=bool)

    @property
    def counts(self) -> dict[str, int]:
        """Crystals by ``ok`` or ``status: reason``, the most frequent first.

        Of a reason, what stands before its first colon counts; what follows is detail.
        """
        labels = (
            "ok" if status is Status.OK else f"{status.value}: {reason.partition(':')[0]}"
            for status, reason in zip(self.status, self.reason, strict=True)
        )
        return dict(Counter(labels).most_common())


@dataclass
class _Work:
    """The evaluation of one property for one submission."""

    label: str
    property: Property
    known: dict[str, Evaluation]
    borrowed: dict[str, _Work]
    future: Future[dict[str, Evaluation]] | None
    step: int | None
    spent: int = 0
    recorded: dict[str, Evaluation] | None = None

    def evaluations(self) -> dict[str, Evaluation]:
        """By digest, recorded or not; waits."""
        lent = {
            digest: found[digest]
            for digest, other in self.borrowed.items()
            if digest in (found := other.evaluations())
        }
        return {**self.known, **lent, **(self.future.result() if self.future is not None else {})}


class PendingScores:
    """Crystals on their way through the objective."""

    def __init__(
        self, objective: Objective, digests: list[str], status: list[Status], reason: list[str]
    ) -> None:
        self._objective = objective
        self._digests = digests
        self._status, self._reason = status, reason
        self._works: dict[str, _Work] = {}
        self._result: ObjectiveResult | None = None

    def done(self) -> bool:
        """True if :meth:`result` would not wait."""
        return all(w.future is None or w.future.done() for w in self._works.values())

    def result(self) -> ObjectiveResult:
        """Wait, record what was computed, shape and combine.

        Raises:
            NucleateError: a property failed on everything it was given.
            StorageError: the values can't be recorded.
        """
        if self._result is None:
            scores: dict[str, Scores] = {}
            status, reason = list(self._status), list(self._reason)
            for name, work in self._works.items():
                evaluations = self._objective._collect(work)
                scores[name] = self._scores(evaluations, status, reason)
                self._objective._filter(name, scores[name], status, reason)
            self._result = replace(
                self._objective._combine(scores, status, reason),
                spent={name: work.spent for name, work in self._works.items()},
                reused={
                    name: len(work.recorded or {}) - work.spent
                    for name, work in self._works.items()
                },
            )
        return self._result

    def _scores(
        self,
        evaluations: Mapping[str, Evaluation],
        status: Sequence[Status],
        reason: Sequence[str],
    ) -> Scores:
        """Spread evaluations by digest over the B crystals.

        Args:
            evaluations: of those that were to be evaluated.
            status: B statuses, which the others keep.
            reason: B reasons, likewise.
        """
        value = np.full(len(self._digests), np.nan)
        status, reason = list(status), list(reason)
        columns = {name for evaluation in evaluations.values() for name in evaluation.extra}
        extra = {name: np.full(len(self._digests), np.nan) for name in sorted(columns)}
        for i, digest in enumerate(self._digests):
            evaluation = evaluations.get(digest)
            if self._status[i] is not Status.OK or evaluation is None:
                continue
            value[i], status[i], reason[i] = evaluation.value, evaluation.status, evaluation.reason
            for name, number in evaluation.extra.items():
                extra[name][i] = number
        return Scores(value, status, reason, extra)


class Objective:
    """Shaped properties and how they combine.

    Attributes:
        properties: by label, which is the name of the property unless filter or term has another;
            the cheapest first.
        labels: of the scores: those of the terms, and ``label#2`` where it stands in several.

    Args:
        terms: at least one.
        combine: ``mean`` and ``weighted`` (arithmetic), ``product``, ``min``, ``geometric``
            (weighted), or ``chebyshev``: minus the largest weighted distance of a term from the
            best score of its shaping.
        failure_penalty: reward of a crystal without a value for some term, or that a filter
            refuses; by default the lowest reward that a crystal with values can get.
        store: record of the run; one in memory by default.
        cache: what other runs have computed; none by default.
        filters: what a crystal has to be; they have no part in the score.
        crystals: what was done to the crystals of these digests before they are handed in, such
            as a relaxation; part of the keys that the store has values under, since the digests
            are those of the crystals as drawn.

    Example:
        >>> objective = Objective([Term(Density(), Linear(type="linear", low=1, high=20))])
        >>> objective.score(structures, digests).reward
    """

    def __init__(
        self,
        terms: Sequence[Term],
        combine: Combine = "mean",
        failure_penalty: float | None = None,
        store: ExperienceStore | None = None,
        cache: EvaluationCache | None = None,
        *,
        filters: Sequence[Filter] = (),
        crystals: str = "",
    ) -> None:
        if not terms:
            raise RecipeError("An objective needs at least one term.")
        self.terms, self.filters = tuple(terms), tuple(filters)
        self.combine = combine
        names = [term.label for term in self.terms]
        before = [names[:i].count(name) for i, name in enumerate(names)]
        self.labels = [f"{n}#{k + 1}" if k else n for n, k in zip(names, before, strict=True)]
        self.properties = _by_label([*self.filters, *self.terms])
        self.store = store if store is not None else ExperienceStore(":memory:")
        self.cache = cache
        self.crystals = crystals
        self.combination = Combination(combine, [(t.shaping.range, t.weight) for t in self.terms])
        self.range = self.combination.range
        penalty = self.range[0] if failure_penalty is None else float(failure_penalty)
        if not math.isfinite(penalty):
            raise RecipeError("failure_penalty must be a finite number.")
        self.failure_penalty = penalty
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._running: dict[str, dict[str, _Work]] = {name: {} for name in self.properties}

    @classmethod
    def from_settings(
        cls,
        settings: ObjectiveSettings,
        store: ExperienceStore | None = None,
        cache: EvaluationCache | None = None,
        *,
        properties: Mapping[str, Property] | None = None,
        resources: Mapping[str, Any] | None = None,
        base: Path = Path(),
        crystals: str = "",
    ) -> Self:
        """Build an objective from a recipe.

        Args:
            settings: filters, terms and combination.
            store: record of the run.
            cache: what other runs have computed.
            properties: properties made already, by the label of their entries.
            resources: what properties may ask for by parameter name, such as ``pool``.
            base: folder that ``path.py:function`` is relative to beside the working directory.
            crystals: see :class:`Objective`.

        Raises:
            RecipeError: an unknown property or setting.
        """
        made: dict[str, Property] = dict(properties or {})
        for entry in settings.properties:
            if entry.label not in made:
                made[entry.label] = make_property(
                    entry.property, entry.settings, resources=resources, base=base
                )
        terms = [
            Term(made[term.label], term.shaping, term.weight, term.name) for term in settings.terms
        ]
        filters = [Filter(made[entry.label], entry) for entry in settings.filters]
        return cls(
            terms,
            settings.combine,
            settings.failure_penalty,
            store,
            cache,
            filters=filters,
            crystals=crystals,
        )

    @property
    def costliest(self) -> str:
        """Label of the property whose evaluations are the budget."""
        return max(self.properties, key=lambda name: _COSTS.index(self.properties[name].cost))

    def as_drawn(self) -> Objective:
        """The same objective for crystals to which nothing was done."""
        return Objective(
            self.terms,
            self.combine,
            self.failure_penalty,
            self.store,
            self.cache,
            filters=self.filters,
        )

    def key(self, prop: Property) -> str:
        """What the store has the values of a property under."""
        return f"{prop.key}/{self.crystals}" if self.crystals else prop.key

    def evaluations_spent(self) -> int:
        """Evaluations of the costliest property so far."""
        return self.store.evaluations_spent(self.costliest)

    def reward(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """(B,) rewards of crystals with these values, by label; NaN where one is missing."""
        return self.combination(np.stack([term.shaping(values[term.label]) for term in self.terms]))

    def front(self) -> ParetoFront:
        """The Pareto front of all crystals of the store that a step has sampled, by digest."""
        front = ParetoFront([term.shaping.range for term in self.terms])
        crystals = self.store.crystals(*self.properties)
        scores = [term.shaping(crystals[term.label]) for term in self.terms]
        ok = crystals["status"] == Status.OK.value
        front.add(np.stack(scores, axis=1)[ok], crystals["digest"][ok].tolist())
        return front

    def score(
        self,
        structures: Sequence[Structure | None],
        digests: Sequence[str],
        *,
        step: int | None = 0,
        reasons: Sequence[str] | None = None,
        precomputed: Mapping[str, Scores] | None = None,
    ) -> ObjectiveResult:
        """Rewards of B crystals; see :meth:`submit`."""
        return self.submit(
            structures, digests, step=step, reasons=reasons, precomputed=precomputed
        ).result()

    def submit(
        self,
        structures: Sequence[Structure | None],
        digests: Sequence[str],
        *,
        step: int | None = 0,
        reasons: Sequence[str] | None = None,
        statuses: Sequence[Status] | None = None,
        precomputed: Mapping[str, Scores] | None = None,
    ) -> PendingScores:
        """Start evaluating B crystals.

        Args:
            structures: B structures, None where a crystal could not be decoded or was screened.
            digests: B content hashes; equal hashes mean equal crystals.
            step: step that is charged; None for none, until one asks for the same values.
            reasons: B strings, why a structure is None.
            statuses: B statuses of structures that are None; ``invalid`` by default.
            precomputed: values known from elsewhere, by label; they are recorded too.
        """
        size = len(structures)
        if len(digests) != size or (reasons is not None and len(reasons) != size):
            raise ValueError(
                f"{size} structures, {len(digests)} digests, or reasons of other length"
            )
        lost = statuses or [Status.INVALID] * size
        status = [why if s is None else Status.OK for s, why in zip(structures, lost, strict=True)]
        reason = [
            "" if s is not None else (reasons[i] if reasons and reasons[i] else "undecodable")
            for i, s in enumerate(structures)
        ]
        first: dict[str, int] = {}
        for i, (digest, structure) in enumerate(zip(digests, structures, strict=True)):
            if structure is not None:
                first.setdefault(digest, i)
        pending = PendingScores(self, list(digests), status, reason)
        filtering: list[_Work] = []
        shared = Shared()
        for name, prop in self.properties.items():
            given = (precomputed or {}).get(name)
            work = self._start(name, prop, structures, first, step, given, tuple(filtering), shared)
            pending._works[name] = work
            if any(entry.label == name for entry in self.filters):
                filtering.append(work)
        return pending

    def close(self) -> None:
        """Stop the threads that wait for evaluations."""
        for threads in self._threads.values():
            threads.shutdown(wait=True, cancel_futures=True)
        self._threads.clear()

    # -- evaluation ----------------------------------------------------------------------------

    def _start(
        self,
        label: str,
        prop: Property,
        structures: Sequence[Structure | None],
        first: Mapping[str, int],
        step: int | None,
        given: Scores | None,
        filtering: Sequence[_Work],
        shared: Shared,
    ) -> _Work:
        known = self.store.lookup(first, self.key(prop))
        running = self._running[label]
        borrowed = {d: running[d] for d in first if d not in known and d in running}
        missing = [d for d in first if d not in known and d not in borrowed]
        future: Future[dict[str, Evaluation]] | None = None
        if given is not None:
            if len(given) != len(structures):
                raise ValueError(f"{len(given)} precomputed values, {len(structures)} structures")
            rows = [first[d] for d in missing]
            future = Future()
            future.set_result(dict(zip(missing, evaluations_of(given, rows, 0.0), strict=True)))
        elif missing:
            chosen = {d: s for d in missing if (s := structures[first[d]]) is not None}
            # properties of one measurement in turn: who measures does not depend on timing
            lane, batches = label, 2 if streams(prop) else 1  # at a time
            if isinstance(prop, MeasuredProperty):
                lane, batches = prop.measurement, 1
            if lane not in self._threads:
                self._threads[lane] = ThreadPoolExecutor(batches, f"nucleate-{label}")
            future = self._threads[lane].submit(self._evaluate, prop, chosen, filtering, shared)
        work = _Work(label, prop, known, borrowed, future, step)
        running.update(dict.fromkeys(missing, work))
        return work

    def _evaluate(
        self,
        prop: Property,
        structures: Mapping[str, Structure],
        filtering: Sequence[_Work],
        shared: Shared,
    ) -> dict[str, Evaluation]:
        """Evaluate, by digest, what the filters on cheaper properties let pass; waits for them."""
        passed = dict(structures)
        for work in filtering:
            name, evaluations = work.label, work.evaluations()
            for digest in list(passed):
                found = evaluations.get(digest)
                if (
                    found is None
                    or found.status is not Status.OK
                    or self._refusal(name, found.value)
                ):
                    del passed[digest]
        if not passed:
            return {}
        return evaluate(prop, list(passed), list(passed.values()), self.cache, shared)

    def _refusal(self, name: str, value: float) -> str:
        """Why a filter refuses this value of a property; empty if none does."""
        refusals = (
            entry.settings.refusal(name, value) for entry in self.filters if entry.label == name
        )
        return next((why for why in refusals if why), "")

    def _filter(self, name: str, scores: Scores, status: list[Status], reason: list[str]) -> None:
        """Mark, in place, what the filters on a property refuse."""
        if not any(entry.label == name for entry in self.filters):
            return
        for i, entry in enumerate(scores.status):
            if status[i] is not Status.OK:
                continue
            if entry is not Status.OK:
                status[i], reason[i] = entry, scores.reason[i]
            elif why := self._refusal(name, float(scores.value[i])):
                status[i], reason[i] = Status.FILTERED, why

    def _collect(self, work: _Work) -> dict[str, Evaluation]:
        """Evaluations of all digests asked for, recorded; waits."""
        if work.recorded is None:
            prop = work.property
            lent = {
                digest: found[digest]
                for digest, other in work.borrowed.items()
                if digest in (found := self._collect(other))
            }
            running = self._running[work.label]
            try:
                fresh = work.future.result() if work.future is not None else {}
                work.spent = self.store.record(
                    work.step,
                    self.key(prop),
                    fresh,
                    name=work.label,
                    unit=prop.unit,
                    cost=prop.cost,
                    reused=work.known,
                )
            finally:
                for digest in [d for d, owner in running.items() if owner is work]:
                    del running[digest]
            work.recorded = {**work.known, **lent, **fresh}
        return work.recorded

    # -- combination ---------------------------------------------------------------------------

    def _combine(
        self, scores: Mapping[str, Scores], status: Sequence[Status], reason: Sequence[str]
    ) -> ObjectiveResult:
        shaped = {
            label: np.asarray(term.shaping(scores[term.label].value), dtype=np.float64)
            for label, term in zip(self.labels, self.terms, strict=True)
        }
        final_status, final_reason = list(status), list(reason)
        for prop_scores in scores.values():
            for i, entry in enumerate(prop_scores.status):
                if final_status[i] is Status.OK and entry is not Status.OK:
                    final_status[i], final_reason[i] = entry, prop_scores.reason[i]
        ok = np.array([entry is Status.OK for entry in final_status], dtype=bool)
        reward = np.full(len(ok), self.failure_penalty)
        if ok.any():
            reward[ok] = self.combination(np.stack([column[ok] for column in shaped.values()]))
        return ObjectiveResult(reward, dict(scores), shaped, final_status, final_reason)


def _by_label(entries: Sequence[Filter | Term]) -> dict[str, Property]:
    """Properties by label, the cheapest first: one label, one property with its settings.

    Raises:
        RecipeError: a label that stands for two, one that can't be used, or two for one.
    """
    found: dict[str, Property] = {}
    for entry in entries:
        known = found.setdefault(entry.label, entry.property)
        if known.key != entry.property.key:
            raise RecipeError(
                f"Two different properties are called {entry.label!r}.",
                f"Their keys are {known.key!r} and {entry.property.key!r}.",
                "Give one of them another name: 'name: ...' beside 'property'.",
            )
        if entry.label in COLUMNS:
            raise RecipeError(
                f"A property can't be called {entry.label!r}: that is a column of every table.",
                fix="Give it another name: 'name: ...' beside 'property'.",
            )
    labels: dict[str, str] = {}
    for label, prop in found.items():
        if (other := labels.setdefault(prop.key, label)) != label:
            raise same_property(other, label)
    return dict(sorted(found.items(), key=lambda item: _COSTS.index(item[1].cost)))


def same_property(first: str, second: str) -> RecipeError:
    """Two names for one property with its settings."""
    return RecipeError(
        f"{first!r} and {second!r} are the same property with the same settings.",
        fix="Give both the same name, or one of them other settings.",
    )
