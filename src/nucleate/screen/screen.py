"""The screen: what a crystal has to pass before costly properties are asked about it.

    decodable -> valid -> relaxed -> stable -> unique -> novel

in the order of the recipe. A crystal that fails a stage is seen by no later one; it keeps its row
and has a reason, whose part before the colon is what is counted. From the stage ``relaxed`` on, a
crystal is what it relaxed to, for the later stages and for the properties.

Relaxations and energies are recorded under the digest of the drawn crystal and looked up before
they are computed, in the run and in the cache of the project, so that a crystal is relaxed once.
Stages that ask a potential run in
a thread of their own, batch after batch, so that they overlap with sampling and updates and their
verdicts do not depend on timing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nucleate.execution.local import relax_anywhere
from nucleate.execution.meter import metered
from nucleate.objectives.evaluate import evaluations_of, in_parts, part_size
from nucleate.physics.cells import Cell, as_cell, as_structure
from nucleate.physics.potentials import status_of
from nucleate.physics.relax import RelaxSettings
from nucleate.properties.shared import described
from nucleate.properties.stability import EnergyAboveHull
from nucleate.protocols import CostClass, Potential, PotentialResult, Status
from nucleate.screen.settings import (
    TRAINING,
    NovelStage,
    RelaxedStage,
    ScreenSettings,
    StableStage,
    UniqueStage,
    ValidStage,
)
from nucleate.store.cache import crystal_digest
from nucleate.store.experience import Evaluation, ExperienceStore
from nucleate.structures.identity import ReferenceSet, UniqueFilter
from nucleate.structures.validity import Limits, check

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.physics.relax import Relaxation
    from nucleate.store.cache import EvaluationCache


class Known(Protocol):
    """What novelty is measured against."""

    def is_known(
        self, structures: Sequence[Structure | None]
    ) -> tuple[np.ndarray, list[str | None]]:
        """(B,) bool, True where a crystal is known, and as what."""
        ...


@dataclass
class Screened:
    """B crystals after the screen, order kept.

    Attributes:
        structures: what the properties see, relaxed if there is such a stage; None where a
            crystal failed.
        reasons: why, empty where it passed.
        passed: crystals left after each stage, ``decodable`` first.
        rmsd: (B,) Å, how far relaxation moved the atoms; NaN where nothing was relaxed.
        stable: (B,) bool, what passed the stage ``stable``.
        statuses: B statuses; what is no crystal is ``invalid``, what a stage refused ``filtered``.
    """

    structures: list[Structure | None]
    reasons: list[str]
    digests: list[str]
    step: int
    passed: dict[str, int] = field(default_factory=dict)
    rmsd: np.ndarray = field(default_factory=lambda: np.zeros(0))
    energies: dict[str, float] = field(default_factory=dict)  # eV/atom, of relaxed crystals

    def __post_init__(self) -> None:
        self.rmsd = np.full(len(self.structures), np.nan)
        self.stable = np.zeros(len(self.structures), dtype=bool)
        self.statuses = [Status.OK] * len(self.structures)

    @property
    def left(self) -> list[int]:
        """Rows that have passed so far."""
        return [row for row, structure in enumerate(self.structures) if structure is not None]

    def fail(self, row: int, reason: str, status: Status = Status.FILTERED) -> None:
        """Take a crystal out."""
        self.structures[row], self.reasons[row], self.statuses[row] = None, reason, status


class _Valid:
    name = "valid"

    def __init__(self, settings: ValidStage) -> None:
        self.limits = Limits(settings.min_distance, volume_per_atom=settings.volume_per_atom)

    def __call__(self, batch: Screened) -> None:
        for row in batch.left:
            if why := check(batch.structures[row], self.limits):
                batch.fail(row, why, Status.INVALID)


class _Relaxed:
    """Relaxations, each recorded with the cell that it led to."""

    name, unit, cost = "relaxed", "Å", CostClass.RELAXATION

    def __init__(self, settings: RelaxedStage, potential: Potential, records: _Records) -> None:
        self.settings = RelaxSettings(**settings.model_dump(exclude={"type"}))
        self.potential, self.records = potential, records
        self.key = self.shared_as = f"{self.name}/1/{described(potential, self.settings)}"

    def __call__(self, batch: Screened) -> None:
        found = self.records.measured(self, batch, self._relax)
        cells = self.records.store.cells(self.key, found)
        for row in batch.left:
            digest = batch.digests[row]
            if found[digest].status is Status.OK:
                batch.rmsd[row] = found[digest].value
                batch.energies[digest] = found[digest].extra["energy_after"]
                batch.structures[row] = as_structure(Cell(*cells[digest]))
            else:
                batch.fail(row, found[digest].reason, found[digest].status)

    def _relax(
        self, structures: list[Structure], digests: list[str]
    ) -> tuple[dict[str, Evaluation], dict[str, Cell]]:
        done = relax_anywhere(structures, self.potential, self.settings)
        found = {d: _relaxation(r) for d, r in zip(digests, done, strict=True)}
        cells = {
            digest: as_cell(result.structure)
            for digest, result in zip(digests, done, strict=True)
            if not isinstance(result, Exception)
            and result.structure is not None
            and found[digest].status is Status.OK
        }
        return found, cells


def _relaxation(result: Relaxation | Exception) -> Evaluation:
    """A relaxation as an entry of the store; the value is the RMSD, Å."""
    if isinstance(result, Exception):
        status = status_of(result)
        return Evaluation(np.nan, status, f"relaxation {status.value}: {result}")
    if (status := result.status.verdict) is not Status.OK:
        return Evaluation(np.nan, status, f"relaxation {result.status.value}: {result.reason}")
    measured = {
        "energy_before": result.energy_before,
        "energy_after": result.energy_after,
        "fmax": result.fmax,
        "n_steps": float(result.n_steps),
        "volume_ratio": result.volume_ratio,
    }
    return Evaluation(result.rmsd, extra=measured)


class _Stable:
    """Energies above hull, of relaxed crystals from the energies that relaxation gave."""

    name, unit, cost = "stable", "eV/atom", CostClass.MODEL

    def __init__(
        self,
        settings: StableStage,
        potential: Potential,
        records: _Records,
        relaxed: _Relaxed | None,
    ) -> None:
        self.below, self.records = settings.below, records
        self.potential = potential
        self.judge = EnergyAboveHull(potential, settings.hull, correct=settings.correct)
        self.relaxed = relaxed is not None
        self.key = f"stable/1/{self.judge.key}/{relaxed.key if relaxed else 'as drawn'}"
        # crystals as drawn have the value that objectives ask for, kept as theirs
        self.shared_as = self.key if relaxed else self.judge.key

    def __call__(self, batch: Screened) -> None:
        def measure(
            structures: list[Structure], digests: list[str]
        ) -> tuple[dict[str, Evaluation], dict[str, Cell]]:
            if self.relaxed:
                energies = [PotentialResult(batch.energies[digest]) for digest in digests]
                scores = self.judge.from_energies(structures, energies)
            else:
                scores = self.judge.evaluate(structures)
            found = evaluations_of(scores, range(len(structures)), 0.0)
            return dict(zip(digests, found, strict=True)), {}

        found = self.records.measured(self, batch, measure)
        for row in batch.left:
            entry = found[batch.digests[row]]
            if entry.status is not Status.OK:
                batch.fail(row, f"no energy above hull: {entry.reason}", entry.status)
            elif not entry.value < self.below:
                batch.fail(row, f"not stable: {entry.value:.3g} eV/atom above hull")
            else:
                batch.stable[row] = True


class _Unique:
    """First fit over the run: the crystals of all steps that came this far, in order."""

    name = "unique"

    def __init__(self, settings: UniqueStage) -> None:
        self.filter = UniqueFilter()
        self._lock = threading.Lock()

    def __call__(self, batch: Screened) -> None:
        with self._lock:
            first, group = self.filter.add(batch.structures)
        size = len(batch.structures)
        for row in batch.left:
            if not first[row]:
                step, position = divmod(int(group[row]), size)
                where = f"crystal {position} of step {step}" if group[row] >= 0 else "no crystal"
                batch.fail(row, f"not unique: {where}")

    def state(self, seen: int) -> dict[str, np.ndarray]:
        with self._lock:
            return self.filter.state(seen)


class _Novel:
    name = "novel"

    def __init__(self, settings: NovelStage, reference: Known) -> None:
        self.reference = reference

    def __call__(self, batch: Screened) -> None:
        known, names = self.reference.is_known(batch.structures)
        for row in batch.left:
            if known[row]:
                batch.fail(row, f"not novel: {names[row]}")


Measure = Callable[["list[Structure]", list[str]], "tuple[dict[str, Evaluation], dict[str, Cell]]"]


@dataclass(frozen=True)
class _Records:
    """Where measurements are looked up before they are made, and written.

    Attributes:
        store: of the run.
        cache: of the project, None for none.
    """

    store: ExperienceStore
    cache: EvaluationCache | None

    def measured(
        self, stage: _Relaxed | _Stable, batch: Screened, measure: Measure
    ) -> dict[str, Evaluation]:
        """What is known of the crystals that are left; the rest measured and recorded.

        As by :func:`nucleate.objectives.evaluate.evaluate`, costly measurements are made in parts,
        each kept in the cache as soon as it is done.
        """
        first: dict[str, int] = {}
        for row in batch.left:
            first.setdefault(batch.digests[row], row)
        known = self.store.lookup(first, stage.key)
        asked = [digest for digest in first if digest not in known]
        left = [s for digest in asked if (s := batch.structures[first[digest]]) is not None]
        names = asked if self.cache is None else [crystal_digest(structure) for structure in left]
        entries: dict[str, Evaluation] = {}
        cells: dict[str, Cell] = {}
        size = part_size(stage.cost, stage.potential)
        for kept, missing in in_parts(names, self.cache, stage.shared_as, size):
            entries |= kept
            if self.cache is not None:
                led = self.cache.cells(stage.shared_as, kept)
                cells |= {name: Cell(*cell) for name, cell in led.items()}
            if not missing:
                continue
            rows = missing.values()
            with metered() as meter:
                found, led_to = measure([left[row] for row in rows], [asked[row] for row in rows])
            share = meter.seconds / len(missing)
            new = {n: replace(found[asked[row]], seconds=share) for n, row in missing.items()}
            places = {n: led_to[d] for n, row in missing.items() if (d := asked[row]) in led_to}
            if self.cache is not None:
                self.cache.keep(stage.shared_as, new, places)
            entries, cells = entries | new, cells | places
        named = dict(zip(asked, names, strict=True))
        fresh = {digest: entries[name] for digest, name in named.items()}
        self.store.record(
            batch.step,
            stage.key,
            fresh,
            name=stage.name,
            unit=stage.unit,
            cost=stage.cost,
            reused=known,
            cells={digest: cells[name] for digest, name in named.items() if name in cells},
        )
        return {**known, **fresh}


class Screen:
    """The stages of a recipe.

    Args:
        settings: stages and thresholds.
        store: where relaxations and energies are looked up and recorded.
        cache: what other runs have measured; None to share nothing.
        potential: what the stages ``relaxed`` and ``stable`` ask; None if there are none.
        training: what ``novel`` is measured against if its reference is the training set.

    Raises:
        RecipeError: the potential's energies can't be compared with the hull's.
        InputError: no such hull or reference.
    """

    def __init__(
        self,
        settings: ScreenSettings,
        store: ExperienceStore,
        cache: EvaluationCache | None = None,
        *,
        potential: Potential | None = None,
        training: Known | None = None,
    ) -> None:
        self._stages: list[_Valid | _Relaxed | _Stable | _Unique | _Novel] = []
        self.judge: EnergyAboveHull | None = None
        self.keys: dict[str, str] = {}
        relaxed: _Relaxed | None = None
        records = _Records(store, cache)
        for stage in settings.stages:
            match stage:
                case ValidStage():
                    self._stages.append(_Valid(stage))
                case RelaxedStage():
                    assert potential is not None
                    relaxed = _Relaxed(stage, potential, records)
                    self._stages.append(relaxed)
                    self.keys["relaxed"] = relaxed.key
                case StableStage():
                    assert potential is not None
                    stable = _Stable(stage, potential, records, relaxed)
                    self._stages.append(stable)
                    self.judge, self.keys["stable"] = stable.judge, stable.key
                case UniqueStage():
                    self._stages.append(_Unique(stage))
                case NovelStage():
                    named = stage.reference != TRAINING
                    reference = ReferenceSet.open(stage.reference) if named else training
                    assert reference is not None
                    self._stages.append(_Novel(stage, reference))
        self.handed_on = "" if relaxed is None else relaxed.key
        self._thread: ThreadPoolExecutor | None = None
        if self.keys:
            self._thread = ThreadPoolExecutor(1, "nucleate-screen")

    @property
    def costs(self) -> list[tuple[str, CostClass]]:
        """Name and cost class of each stage that asks a potential."""
        return [(s.name, s.cost) for s in self._stages if isinstance(s, _Relaxed | _Stable)]

    @property
    def costly(self) -> bool:
        """Whether a potential is asked, so that :meth:`submit` returns before all is done."""
        return self._thread is not None

    def submit(
        self,
        structures: Sequence[Structure | None],
        reasons: Sequence[str],
        digests: Sequence[str],
        step: int,
    ) -> Future[Screened]:
        """Start screening a batch; batches are to be given in the order of their steps.

        Args:
            structures: B crystals, None where decoding failed.
            reasons: B strings, why it did.
            digests: B content hashes of the drawn crystals.
            step: step that is charged, and that the batch belongs to.
        """
        batch = Screened(list(structures), list(reasons), list(digests), step)
        for row, structure in enumerate(batch.structures):
            if structure is None:
                batch.fail(row, batch.reasons[row] or "undecodable", Status.INVALID)
        if self._thread is not None:
            return self._thread.submit(self._run, batch)
        done: Future[Screened] = Future()
        done.set_result(self._run(batch))
        return done

    def _run(self, batch: Screened) -> Screened:
        batch.passed["decodable"] = len(batch.left)
        for stage in self._stages:
            stage(batch)
            batch.passed[stage.name] = len(batch.left)
        return batch

    def state_dict(self, seen: int) -> dict[str, Any]:
        """What was unique among the first ``seen`` crystals of the run, for a checkpoint."""
        return {s.name: s.state(seen) for s in self._stages if isinstance(s, _Unique)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for stage in self._stages:
            if isinstance(stage, _Unique) and stage.name in state:
                stage.filter = UniqueFilter.restore(state[stage.name])

    def close(self) -> None:
        """Stop the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
