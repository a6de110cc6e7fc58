"""Properties of crystals in files: energies above hull, densities, or anybody's function.

Every crystal that is found gets a row, whether it could be scored or not::

    import nucleate

    rows = nucleate.score(["mine.cif"], "e_above_hull", {"hull": "mp2020"})
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from nucleate import plugins
from nucleate.errors import InputError
from nucleate.objectives.evaluate import evaluate, make_property, potential_of_workers
from nucleate.protocols import Property, Status
from nucleate.store.cache import EvaluationCache, crystal_digest
from nucleate.store.experience import Evaluation
from nucleate.structures.io import Record, read, source_files

CHUNK = 500
COLUMNS = ("source", "id", "formula", "unit", "status", "reason")
"""Of a table of scores, beside the property and what it measured on the way."""
POOL_FROM = 64
"""So many crystals are worth the seconds that worker processes take to start."""


def read_all(sources: Sequence[str | Path]) -> Iterator[Record]:
    """Crystals of files, folders and globs; a defect is an entry with its reason.

    Only a single file of a single crystal raises, as there is nothing else to go on with.

    Raises:
        InputError: a source does not exist, or the only crystal asked for can't be used.
    """
    for source in sources:
        source_files(source)  # a mistyped name is found before any work
        if (Path(source) / "meta.json").is_file():
            raise InputError(
                f"{source} holds prepared tokens, not files of crystals.",
                "They were made for training, and for --reference.",
                "Name the files that they were prepared from.",
            )
    if len(sources) == 1:
        yield from read(sources[0])
        return
    for source in sources:
        try:
            yield from read(source, strict=False)
        except InputError as error:
            reason = f"unreadable file: {error.why or error.what}"
            yield Record(None, str(source), reason, {}, str(source))


def score(
    sources: Sequence[str | Path],
    prop: str = "e_above_hull",
    settings: Mapping[str, Any] | None = None,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """One property of all crystals in files, order kept.

    Args:
        sources: files, folders or globs.
        prop: name of a property, or ``path.py:function``.
        settings: of the property, such as ``{"hull": "chgnet", "relax": True}``.
        workers: processes that evaluate; 0 for one on each core, 1 for this process, None for
            processes where there are enough crystals to be worth it.
        cache: file of evaluations, such as ``runs/evaluations.sqlite``: crystals that it knows
            are not evaluated again, and what is computed is kept there.
        progress: called with the number of crystals done.

    Returns:
        A row for each crystal: source, id, formula, the value under the property's name, unit,
        status and reason, and whatever the property measured on the way.

    Raises:
        RecipeError: no such property or setting.
        InputError: a source can't be used at all.
        CheckpointError: the cache is none.
        NucleateError: the property raised on each of many crystals.
    """
    settings = dict(settings or {})
    check_property(prop, settings)
    records = read_all(sources)
    first = list(islice(records, POOL_FROM))
    if workers is None:
        workers = 0 if len(first) == POOL_FROM else 1
    rows: list[dict[str, Any]] = []
    with (
        nullcontext() if cache is None else EvaluationCache(cache, "score") as known,
        _property(prop, settings, workers) as made,
    ):
        chunk = first + list(islice(records, CHUNK - len(first)))
        while chunk:
            rows += _score_chunk(made, chunk, known)
            if progress is not None:
                progress(len(rows))
            chunk = list(islice(records, CHUNK))
    if not rows:
        raise InputError(f"{', '.join(map(str, sources))}: no crystal found.")
    return rows


def check_property(prop: str, settings: Mapping[str, Any]) -> None:
    """Refuse an unknown property or setting.

    Raises:
        RecipeError: with the nearest known name.
    """
    where = "--property"
    if plugins.is_custom(prop):
        plugins.check_custom_settings(settings, where)
        plugins.custom_path(prop, Path(), where)
    else:
        plugins.check_settings(plugins.PROPERTIES, prop, settings, where)


@contextmanager
def _property(prop: str, settings: Mapping[str, Any], workers: int) -> Iterator[Property]:
    """The property, with worker processes behind it if they are of use to it."""
    potential = potential_of_workers(prop, settings)
    if workers == 1 or not (potential is not None or _takes_pool(prop)):
        yield make_property(prop, settings)
        return
    from nucleate.execution.local import ProcessPool

    with ProcessPool(workers or None, potential=potential) as pool:
        yield make_property(prop, settings, resources={"pool": pool})


def _takes_pool(prop: str) -> bool:
    """True for a function in a file, and a property that spreads its own work."""
    loaded = None if plugins.is_custom(prop) else plugins.load(plugins.PROPERTIES, prop)
    return loaded is None or "pool" in inspect.signature(loaded).parameters


def _score_chunk(
    prop: Property, records: Sequence[Record], cache: EvaluationCache | None
) -> list[dict[str, Any]]:
    crystals = {
        crystal_digest(record.structure): record.structure
        for record in records
        if record.structure is not None
    }
    if prop.name in COLUMNS:
        raise InputError(
            f"A property can't be called {prop.name!r}: that is a column of every table.",
            fix=f"Choose a name other than {', '.join(COLUMNS)}.",
        )
    evaluations = evaluate(prop, list(crystals), list(crystals.values()), cache)
    columns = dict.fromkeys(name for entry in evaluations.values() for name in entry.extra)
    rows = []
    for record in records:
        row: dict[str, Any] = {"source": record.source, "id": record.id, "formula": ""}
        found = Evaluation(math.nan, Status.INVALID, record.reason)
        if record.structure is not None:
            row["formula"] = record.structure.composition.reduced_formula
            found = evaluations[crystal_digest(record.structure)]
        row |= {prop.name: found.value, "unit": prop.unit}
        row |= {"status": str(found.status), "reason": found.reason}
        if record.structure is not None:
            row |= {name: found.extra.get(name, math.nan) for name in columns}
        rows.append(row)
    return rows
