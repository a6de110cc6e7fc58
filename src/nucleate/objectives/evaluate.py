"""Evaluating one property on a list of crystals, whoever wrote the property."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleate import plugins
from nucleate.errors import NucleateError
from nucleate.execution.local import PooledPotential
from nucleate.protocols import Property, Scores, Status
from nucleate.store.experience import Evaluation

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from nucleate.execution.chunks import Pool

_HOPELESS = 8  # so many crystals that all raise are a broken property, not bad crystals


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
    pool: Pool | None = resources.get("pool")
    if pool is not None:
        potential = potential_of_workers(name, given, pool.workers_here > 0)
        if potential is not None:
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
    prop: Property, digests: Sequence[str], structures: Sequence[Structure]
) -> dict[str, Evaluation]:
    """Evaluations by digest; what raises on the whole batch is tried crystal by crystal."""
    started = time.perf_counter()
    try:
        scores = _checked(prop, structures)
    except NucleateError:
        raise
    except Exception as error:  # a property is anybody's code
        return dict(zip(digests, _one_by_one(prop, structures, error), strict=True))
    seconds = (time.perf_counter() - started) / max(len(structures), 1)
    return dict(zip(digests, evaluations_of(scores, range(len(structures)), seconds), strict=True))


def _one_by_one(
    prop: Property, structures: Sequence[Structure], whole: Exception
) -> list[Evaluation]:
    evaluations, raised = [], 0
    for structure in structures:
        started = time.perf_counter()
        try:
            scores = _checked(prop, [structure])
        except Exception as error:  # a property is anybody's code
            raised += 1
            reason = f"{prop.name} raised {type(error).__name__}: {error}"
            evaluations.append(Evaluation(math.nan, Status.FAILED, reason))
            continue
        evaluations += evaluations_of(scores, [0], time.perf_counter() - started)
    if raised == len(structures) >= _HOPELESS:
        raise NucleateError(
            f"The property {prop.name!r} raised on each of {raised} crystals.",
            f"{type(whole).__name__}: {whole}.",
            "It takes a list of structures and gives one value for each; mend it and try again.",
        ) from whole
    return evaluations


def _checked(prop: Property, structures: Sequence[Structure]) -> Scores:
    scores = prop.evaluate(structures)
    if len(scores) != len(structures):
        raise NucleateError(
            f"The property {prop.name!r} gave {len(scores)} values for {len(structures)} crystals.",
            fix="A property gives one value for each crystal, in the same order.",
        )
    return scores


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
