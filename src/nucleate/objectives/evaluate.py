"""Evaluating one property on a list of crystals, whoever wrote the property."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleate import plugins
from nucleate.errors import InputError, NucleateError
from nucleate.execution.local import PooledPotential
from nucleate.execution.meter import Meter, metered
from nucleate.protocols import (
    CostClass,
    MeasuredProperty,
    Measurements,
    Property,
    Scores,
    Status,
)
from nucleate.store.cache import EvaluationCache, crystal_digest
from nucleate.store.experience import Evaluation

if TYPE_CHECKING:
    from pymatgen.core import Structure

_HOPELESS = 8  # so many crystals that all raise are a broken property, not bad crystals
PART = {CostClass.RELAXATION: 256, CostClass.DFT: 1}
"""Crystals that are evaluated together, and kept together, by cost class; else all at once. Of
relaxations there are three at least for each worker."""


def make_property(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    resources: Mapping[str, Any] | None = None,
    base: Path = Path(),
) -> Property:
    """A property by name or ``path.py:function``.

    Args:
        name: name of a plug-in, or a file and function.
        settings: its settings.
        resources: objects handed to those of its parameters that have these names; a ``pool``
            also evaluates a potential that the settings name.
        base: folder that a file is relative to beside the working directory.

    Raises:
        RecipeError: unknown name or setting.
        InputError: the file can't be run.
    """
    resources = resources or {}
    if plugins.is_custom(name):
        from nucleate.properties.custom import CustomProperty

        plugins.check_custom_settings(settings or {}, f"property {name!r}")
        path, function = plugins.custom_path(name, base, f"property {name!r}")
        return CustomProperty.from_file(
            path, function, pool=resources.get("pool"), **dict(settings or {})
        )
    parameters = inspect.signature(plugins.load(plugins.PROPERTIES, name)).parameters
    given = {key: value for key, value in resources.items() if key in parameters}
    given |= settings or {}
    if (pool := resources.get("pool")) is not None:
        potential = potential_of_workers(name, given, pool.workers_here > 0)
        if potential is not None:
            plugins.check_settings(plugins.PROPERTIES, name, given, f"property {name!r}")
            given["potential"] = PooledPotential(potential, pool)
    made: Property = plugins.create(plugins.PROPERTIES, name, given)
    return made


def potential_of_workers(
    name: str, settings: Mapping[str, Any], here: bool = True
) -> str | Mapping[str, Any] | None:
    """The potential that worker processes compute for a property, by name or mapping.

    Args:
        name: of the property.
        settings: of the property.
        here: whether the workers are on this machine.

    Returns:
        None where there is none, or not for them: one of another interpreter has processes of its
        own, and one on a GPU of this machine needs no second copy.
    """
    if plugins.is_custom(name):
        return None
    parameters = inspect.signature(plugins.load(plugins.PROPERTIES, name)).parameters
    if "potential" not in parameters:
        return None
    potential = settings.get("potential", parameters["potential"].default)
    if isinstance(potential, Mapping):
        on_gpu = potential.get("device", "cpu") != "cpu"
        return None if potential.get("python") is not None or (on_gpu and here) else potential
    return potential if isinstance(potential, str) else None


def evaluate(
    prop: Property,
    digests: Sequence[str],
    structures: Sequence[Structure],
    cache: EvaluationCache | None = None,
    shared: Measurements | None = None,
) -> dict[str, Evaluation]:
    """Evaluations by digest: what the cache knows, and what is computed now and kept there.

    Costly properties are evaluated in parts, each kept as soon as it is done, so that a crash
    costs no more than what was under way. The parts follow from the digests alone: what was in
    one part is computed in the same company whenever a run is repeated or resumed, which for
    potentials in batches decides the last bits of a value. What the cache takes for one crystal is
    computed once, so that it has one value before and after a crash.

    Args:
        prop: the property.
        digests: B names of the crystals, all different.
        structures: B crystals.
        cache: of the project; None to compute all. It is not asked for properties of the class
            ``composition``, which are computed faster than they are looked up.
        shared: what other properties of these crystals are read from, and may have measured.

    Raises:
        NucleateError: the property can't be evaluated at all, or raised on each of many crystals.
        StorageError: the cache can't be read or written.
    """
    if prop.cost is CostClass.COMPOSITION:
        cache = None
    found: dict[str, Evaluation] = {}
    errors: list[Exception] = []
    size = 0 if streams(prop) else part_size(prop.cost, getattr(prop, "potential", None))
    names = digests if cache is None else [crystal_digest(s) for s in structures]
    for known, missing in in_parts(names, cache, prop.key, size):
        found |= known
        asked = {name: structures[row] for name, row in missing.items()}
        for part in _computed(prop, asked, errors, shared) if asked else ():
            if cache is not None:
                cache.keep(prop.key, part)
            found |= part
    if len(errors) == len(set(names)) >= _HOPELESS:
        first = errors[0]
        told = f"{type(first).__name__}: {first}"
        if isinstance(first, NucleateError):
            told = first.sentence
        raise NucleateError(
            f"The property {prop.name!r} raised on each of {len(errors)} crystals.",
            f"{told.rstrip('.')}.",
            "It takes a list of structures and gives one value for each; mend it and try again.",
        ) from first
    return {digest: found[name] for digest, name in zip(digests, names, strict=True)}


def in_parts(
    names: Sequence[str], cache: EvaluationCache | None, key: str, size: int
) -> Iterator[tuple[dict[str, Evaluation], dict[str, int]]]:
    """B crystals by name, in parts of ``size``, 0 for all, to be evaluated one after another.

    Yields of the names that no earlier part had what the cache knows, and the rows of the others.
    """
    seen: set[str] = set()
    size = size or len(names) or 1
    for start in range(0, len(names), size):
        rows: dict[str, int] = {}
        for row, name in enumerate(names[start : start + size], start):
            if name not in seen:
                rows.setdefault(name, row)
        seen |= rows.keys()
        known = {} if cache is None else cache.lookup(rows, key)
        yield known, {name: row for name, row in rows.items() if name not in known}


def part_size(cost: CostClass, potential: Any) -> int:
    """Crystals that are evaluated and kept together, 0 for all; enough for all workers.

    Args:
        cost: of the property.
        potential: what it asks, if any.
    """
    size = PART.get(cost, 0)
    pool = getattr(potential, "pool", None)
    return size if size < 2 or pool is None else max(size, 3 * pool.n_workers)


def _computed(
    prop: Property,
    asked: Mapping[str, Structure],
    errors: list[Exception],
    shared: Measurements | None,
) -> Iterator[dict[str, Evaluation]]:
    """Evaluations as they come; what raises on several crystals is tried crystal by crystal.

    What was raised on a single crystal is added to ``errors``.
    """
    digests, structures = list(asked), list(asked.values())
    left = set(range(len(digests)))
    raised: Exception | None = None
    try:
        for rows, scores, seconds in _parts(prop, structures, shared):
            left -= set(rows)
            share = seconds / max(len(rows), 1)
            evaluations = evaluations_of(scores, range(len(rows)), share)
            yield {digests[i]: e for i, e in zip(rows, evaluations, strict=True)}
    except NucleateError as error:
        if not isinstance(error, InputError) or not left:
            raise  # it is not about these crystals
        raised = error
    except Exception as error:  # a property is anybody's code
        raised = error
    if not left:
        return
    if raised is None:
        raised = ValueError(f"gave no value for {len(left)} of {len(digests)} crystals")
    if len(left) == len(digests) == 1:
        errors.append(raised)
        told = raised.what if isinstance(raised, NucleateError) else str(raised)
        reason = f"{prop.name} raised {type(raised).__name__}: {' '.join(told.split())}"
        yield {digests[0]: Evaluation(math.nan, Status.FAILED, reason)}
    else:
        for i in sorted(left):
            yield from _computed(prop, {digests[i]: structures[i]}, errors, shared)


def _parts(
    prop: Property, structures: Sequence[Structure], shared: Measurements | None
) -> Iterator[tuple[Sequence[int], Scores, float]]:
    """Rows, their scores, and the seconds that these took, as they come.

    Raises:
        ValueError: another number of values than crystals.
    """
    parts = iter(_stream(prop, structures, shared))
    meter, started, counted = Meter(), time.perf_counter(), 0.0
    while True:
        with metered(meter):
            part = next(parts, None)
        if part is None:
            return
        rows, scores = part
        if len(scores) != len(rows):
            raise ValueError(f"gave {len(scores)} values for {len(rows)} crystals")
        now, total = time.perf_counter(), meter.seconds
        yield rows, scores, total - counted if meter.tasks else now - started
        started, counted = now, total


def _stream(
    prop: Property, structures: Sequence[Structure], shared: Measurements | None
) -> Iterator[tuple[Sequence[int], Scores]]:
    if streams(prop):
        yield from prop.stream(structures)  # type: ignore[attr-defined]
    elif isinstance(prop, MeasuredProperty):
        yield range(len(structures)), prop.evaluate(structures, shared)
    else:
        yield range(len(structures)), prop.evaluate(structures)


def streams(prop: Property) -> bool:
    """Whether a property is a :class:`~nucleate.protocols.StreamedProperty`."""
    return callable(getattr(prop, "stream", None))


def evaluations_of(scores: Scores, rows: Sequence[int] | range, seconds: float) -> list[Evaluation]:
    """Evaluations of some rows of scores; an OK that is not finite becomes a failure."""
    evaluations = []
    for i in rows:
        value, status, reason = float(scores.value[i]), scores.status[i], scores.reason[i]
        if status is Status.OK and not math.isfinite(value):
            status, reason = Status.FAILED, "no finite number"
        if status is not Status.OK:
            value = math.nan
        extra = {name: float(column[i]) for name, column in scores.extra.items()}
        evaluations.append(Evaluation(value, status, reason, seconds, extra))
    return evaluations
