"""A property from any function ``f(structures) -> list[float | None]``.

From Python the function itself is given; from a recipe ``path/to/file.py:function``. None, or a
number that is not finite, means "no value for this crystal". Values stand in the order of the
structures, which is checked on two of them; a dictionary of values by position has no order to
lose. With a pool, a function from a file runs in the workers, where a crash or a hang costs one
crystal; with ``python``, in workers of another interpreter, which has the packages that the
function needs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate import worker
from nucleate.errors import InputError, NucleateError, RecipeError, did_you_mean
from nucleate.physics.potentials import WorkerCrashError
from nucleate.protocols import CostClass, Scores, Status

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pymatgen.core import Structure

    from nucleate.execution.pool import Pool

PropertyFunction = Callable[
    [Sequence["Structure"]], "Sequence[float | None] | Mapping[int, float | None]"
]

Start = Callable[[Sequence["Structure"]], "dict[Future[list[Any]], range]"]

_CHUNK = 16  # most crystals in one call of a worker, where they are not costly
_COSTLY = (CostClass.RELAXATION, CostClass.DFT)
_HOPELESS = 8  # so many crystals that all raise are a broken function, not bad crystals


class CustomProperty:
    """A user's function as a property.

    Args:
        function: takes B structures and returns B numbers, None where there is no value.
        name: name of the property; the function's by default.
        unit: its unit.
        cost: its order of cost.
        key: cache key; by default it changes with the function's source and the plain values
            that it captures. Give one where the result depends on something else, such as a
            file of weights.

    Example:
        >>> def atoms(structures):
        ...     return [len(structure) for structure in structures]
        >>> CustomProperty(atoms).name
        'atoms'
    """

    def __init__(
        self,
        function: PropertyFunction,
        *,
        name: str | None = None,
        unit: str = "",
        cost: CostClass = CostClass.MODEL,
        key: str | None = None,
    ) -> None:
        if not callable(function):
            raise RecipeError(
                f"{function!r} is not a function.", fix="Give f(structures) -> list of numbers."
            )
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.unit = unit
        self.cost = cost
        self._function = function
        self._order_checked = False
        self._start: Start | None = None
        self._here = threading.Lock()  # a function in this process is called by one thread
        self._key = key or f"custom/{self.name}/{_source_hash(function)}"

    @classmethod
    def from_file(
        cls,
        path: Path,
        function: str,
        *,
        pool: Pool | None = None,
        timeout: float | None = 60.0,
        name: str | None = None,
        unit: str = "",
        cost: str = CostClass.MODEL,
        python: str | None = None,
        workers: int = 1,
        structures: str = "pymatgen",
    ) -> CustomProperty:
        """The property of a function in a Python file, which is run to load it.

        Args:
            path: the file.
            function: name in it.
            pool: where to call it; in this process if None.
            timeout: seconds for one crystal in the pool.
            name: name of the property; the function's by default.
            unit: its unit.
            cost: "composition", "model", "relaxation" or "dft"; from "relaxation" on a worker is
                given one crystal at a time.
            python: another interpreter, by path, to load and call the function in.
            workers: processes of that interpreter.
            structures: what the function is given there: "pymatgen" Structures, "ase" Atoms, or
                a "dict" of lattice (rows, Å), numbers and frac_coords.

        Raises:
            InputError: the file can't be read or run, or there is no such interpreter.
            RecipeError: it has no such function.
            MissingDependencyError: the other interpreter lacks a package.
        """
        content_hash = _file_hash(path)
        name = name or function
        key = f"custom/{name}/{content_hash}/{function}"
        called: PropertyFunction
        start = None
        if python is not None:
            from nucleate.execution.isolated import IsolatedPool
            from nucleate.execution.remote import Remote

            isolated = IsolatedPool(python, workers, timeout=timeout)
            remote = Remote(f"{path}:{function}", content_hash, structures)
            isolated.load(remote)
            start = partial(_start, isolated, remote, timeout, cost)
            key += f"/{structures}/{isolated.python}"
        else:
            called = _load(str(path), function, content_hash)
            if pool is not None:
                work = partial(_call_file, str(path), function, content_hash)
                start = partial(_start, pool, work, timeout, cost)
        if start is not None:
            called = partial(_call_in_pool, name, start)
        made = cls(called, name=name, unit=unit, cost=CostClass(cost), key=key)
        made._start = start
        return made

    @property
    def key(self) -> str:
        """Cache key: name and hash of the source."""
        return self._key

    def evaluate(self, structures: Sequence[Structure]) -> Scores:
        """Values of B structures, order kept.

        Raises:
            InputError: the function returned another number of values than it was given.
            NucleateError: it gives values in another order than it is given structures.
        """
        answers = _call(self._function, self.name, structures)
        self._check_order(structures, answers)
        return _scores(self.name, answers)

    def _check_order(self, structures: Sequence[Structure], answers: Sequence[Any]) -> None:
        """Ask again for two crystals of the first list that has two values, each alone."""
        if self._order_checked:
            return
        numbers = [_number(answer) for answer in answers]
        rows = {x: i for i, x in enumerate(numbers) if np.isfinite(x)}
        if len(rows) < 2:
            return
        self._order_checked = True
        for i in list(rows.values())[:2]:
            alone = float("nan")
            with contextlib.suppress(Exception):  # the user's own; says nothing of the order
                alone = _number(_call(self._function, self.name, [structures[i]])[0])
            if numbers[i] != alone and alone in numbers:
                raise NucleateError(
                    f"The property {self.name!r} gives values in another order than it is given "
                    "structures, or values that depend on the other structures.",
                    f"A crystal has {alone:g} alone; among {len(answers)} it had {numbers[i]:g}, "
                    f"and another crystal {alone:g}.",
                    "Return values in the order of the structures, or a dictionary of values by "
                    "position.",
                )

    def stream(self, structures: Sequence[Structure]) -> Iterator[tuple[Sequence[int], Scores]]:
        """Rows of B structures and their values, as workers give them.

        Raises:
            InputError: after all is given, if the function raised on each of many crystals.
        """
        if self._start is None:
            size = 1 if self.cost in _COSTLY else len(structures)
            for rows in _chunks(len(structures), size):
                with self._here:
                    scores = self.evaluate([structures[i] for i in rows])
                yield rows, scores
            return
        answers: list[Any] = []
        chunks = self._start(structures)
        for chunk in concurrent.futures.as_completed(chunks):
            found, rows = chunk.result(), chunks[chunk]
            answers += found
            self._check_order([structures[i] for i in rows], found)
            yield rows, _scores(self.name, found)
        _check_hopeless(self.name, answers)


def _chunks(n: int, size: int) -> list[range]:
    return [range(first, min(first + size, n)) for first in range(0, n, max(size, 1))]


def _start(
    pool: Pool, work: Any, timeout: float | None, cost: str, structures: Sequence[Structure]
) -> dict[Future[list[Any]], range]:
    """Values on their way, and the rows that they belong to, in order."""
    share = len(structures) // (3 * pool.n_workers)
    size = 1 if cost in _COSTLY else min(max(share, 1), _CHUNK)
    chunks = pool.map_chunks(work, structures, size, timeout=timeout)
    return dict(zip(chunks, _chunks(len(structures), size), strict=True))


def _call_in_pool(
    name: str,
    start: Start,
    structures: Sequence[Structure],
) -> list[Any]:
    """A value, or the exception in its place, for each structure."""
    answers = [answer for chunk in start(structures) for answer in chunk.result()]
    _check_hopeless(name, answers)
    return answers


def _check_hopeless(name: str, answers: Sequence[Any]) -> None:
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    if len(errors) == len(answers) >= _HOPELESS:
        raise InputError(
            f"The property {name!r} raised on each of {len(answers)} crystals.",
            f"{_told(errors[0]).rstrip('.')}.",
            "It takes a list of structures and gives a number for each; mend the file.",
        ) from errors[0]


def _scores(name: str, answers: Sequence[Any]) -> Scores:
    value = np.full(len(answers), np.nan)
    status = [Status.OK] * len(answers)
    reason = [""] * len(answers)
    for i, answer in enumerate(answers):
        if isinstance(answer, Exception):
            status[i] = _status(answer)
            reason[i] = _reason(name, answer)
            continue
        try:
            number = np.nan if answer is None else float(answer)
        except (TypeError, ValueError):
            status[i], reason[i] = Status.FAILED, f"{name} gave {answer!r}, which is no number"
            continue
        if np.isfinite(number):
            value[i] = number
        elif answer is None:
            status[i], reason[i] = Status.UNSUPPORTED, f"{name} gave no value"
        else:
            status[i], reason[i] = Status.FAILED, f"{name} gave {number}"
    return Scores(value, status, reason)


def _number(answer: Any) -> float:
    try:
        return float(answer)
    except (TypeError, ValueError):  # an exception, None, or no number
        return float("nan")


def _status(error: Exception) -> Status:
    if isinstance(error, TimeoutError):
        return Status.TIMEOUT
    return Status.CRASHED if isinstance(error, WorkerCrashError) else Status.FAILED


def _reason(name: str, error: Exception) -> str:
    """Why there is no value; what stands before the colon is what failures are counted by."""
    from nucleate.execution.remote import RemoteError

    ours = isinstance(error, (NucleateError, TimeoutError)) and not isinstance(error, RemoteError)
    return f"{name}{':' if ours else ' raised'} {_told(error)}"


def _told(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, NucleateError):
        told = " ".join(part for part in (error.what, error.why) if part)
    elif isinstance(error, TimeoutError):
        told = str(error)
    else:
        told = f"{type(error).__name__}: {error}"
    return " ".join(told.split())


def _call(function: PropertyFunction, name: str, structures: Sequence[Structure]) -> list[Any]:
    answer = function(structures)
    if isinstance(answer, Mapping):
        strange = [key for key in answer if key not in range(len(structures))]
        if strange:
            raise InputError(
                f"The property {name!r} returned a value for {strange[0]!r}.",
                f"It was given {len(structures)} structures.",
                "The keys of a dictionary are positions in the list, counted from 0.",
            )
        answer = [answer.get(i) for i in range(len(structures))]
    if isinstance(answer, str) or not hasattr(answer, "__len__") or not hasattr(answer, "__iter__"):
        raise InputError(
            f"The property {name!r} returned {type(answer).__name__} instead of a list.",
            f"It was given {len(structures)} structures.",
            "Return one number, or None, for each structure of the list that it is given.",
        )
    answers = list(answer)
    if len(answers) != len(structures):
        raise InputError(
            f"The property {name!r} returned {len(answers)} values for {len(structures)} "
            "structures.",
            fix="Return one number, or None, for each structure, in the same order.",
        )
    return answers


def _call_file(path: str, function: str, content_hash: str, structures: list[Any]) -> list[Any]:
    """What a worker runs."""
    return _call(_load(path, function, content_hash), function, structures)


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(
            f"{path} can't be read.", f"{error.strerror}.", "Check the path."
        ) from error


@lru_cache(maxsize=32)
def _load(path: str, function: str, content_hash: str) -> PropertyFunction:
    """The function of a file whose content has this hash."""
    try:
        module = worker.load_file(path, content_hash)
    except Exception as error:  # the user's own code may raise anything
        raise InputError(
            f"{path} can't be run.", f"{type(error).__name__}: {error}.", "Mend the file."
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        functions = [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise RecipeError(
            f"{path} has no function {function!r}.",
            fix=did_you_mean(function, functions) if functions else "Define it there.",
        )
    loaded: PropertyFunction = found
    return loaded


def _source_hash(function: Any) -> str:
    """Hash of a function's source and compiled code, and of the plain values that it captures.

    The source alone does not tell two lambdas of one line apart.
    """
    parts = []
    with contextlib.suppress(OSError, TypeError):
        parts.append(inspect.getsource(function))
    code = getattr(function, "__code__", None)
    if code is None:
        parts.append(f"{type(function).__module__}.{type(function).__qualname__}")
        parts.append(_plain(vars(function)) if hasattr(function, "__dict__") else "")
    else:
        parts.append(_code_text(code))
        parts.append(_plain(function.__defaults__))
        cells = [_plain(cell.cell_contents) for cell in function.__closure__ or ()]
        parts.append(repr(cells))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _code_text(code: CodeType) -> str:
    constants = [
        _code_text(value) if isinstance(value, CodeType) else repr(value)
        for value in code.co_consts
    ]
    return f"{code.co_code.hex()} {constants} {code.co_names}"


def _plain(value: Any) -> str:
    """A text of plain values that is the same in every process; else the type's name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_plain(entry) for entry in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_plain(entry)}' for key, entry in value.items())}}}"
    return type(value).__qualname__
