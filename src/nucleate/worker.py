"""A worker in another interpreter: calls functions and ASE calculators that are asked for in JSON.

Run as a file, ``/path/to/other/python worker.py``, it needs Python 3.8 and the standard library;
nucleate itself need not be installed there. :mod:`nucleate.execution.remote` is the other end.

Protocol, version 1. A message is one line of ASCII: a JSON object, with NaN and Infinity as Python
writes them. The worker greets, then answers one request after the other:

    worker   {"nucleate_worker": 1, "python": "3.11.7", "packages": {"ase": "3.29.0"}}
    request  {"id": 1, "load": 0, "target": "my.py:f", "sha256": "...", "structures": "ase",
              "calculator": null}
    answer   {"id": 1, "value": null}
    request  {"id": 2, "call": 0, "args": [[{"lattice": ..., "numbers": ..., "frac_coords": ...}]],
              "kwargs": {}}
    answer   {"id": 2, "value": [1.5]}
    answer   {"id": 2, "error": {"type": "ValueError", "message": "...", "traceback": "..."}}

``load`` makes a function ready under a number: ``target`` is ``path.py:function`` or
``module:function``. Where ``calculator`` holds keyword arguments, ``target`` makes an ASE
calculator with them, what is called is :func:`calculate_all` with it, and the answer holds the hash
of its weights. A structure among the arguments is an object of ``lattice`` (3 rows, Å), ``numbers``
and ``frac_coords``; it reaches the function as that ("dict"), as ``ase.Atoms`` ("ase") or as a
pymatgen ``Structure`` ("pymatgen").

What the function prints goes to standard error. The end of the requests ends the worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import queue
import sys
import threading
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType
    from typing import Any, BinaryIO

PROTOCOL = 1
GRACE = 2.0  # seconds that a busy worker may go on after the last request
PACKAGES = ("ase", "numpy", "pymatgen", "pymatgen-core", "torch")
_STRUCTURE = {"lattice", "numbers", "frac_coords"}


# structures -----------------------------------------------------------------------------------


def _as_atoms(structure: Mapping[str, Any]) -> Any:
    import ase

    return ase.Atoms(
        numbers=structure["numbers"],
        cell=structure["lattice"],
        scaled_positions=structure["frac_coords"],
        pbc=True,
    )


def _as_pymatgen(structure: Mapping[str, Any]) -> Any:
    from pymatgen.core import Structure

    return Structure(structure["lattice"], structure["numbers"], structure["frac_coords"])


_CONVERTERS: dict[str, tuple[str, Callable[[Any], Any]]] = {  # package needed, function
    "dict": ("", dict),
    "ase": ("ase", _as_atoms),
    "pymatgen": ("pymatgen", _as_pymatgen),
}


def _converted(value: Any, convert: Callable[[Any], Any]) -> Any:
    """Arguments with each structure in them converted."""
    if isinstance(value, list):
        return [_converted(entry, convert) for entry in value]
    if isinstance(value, dict):
        if set(value) == _STRUCTURE:
            return convert(value)
        return {key: _converted(entry, convert) for key, entry in value.items()}
    return value


# functions and calculators --------------------------------------------------------------------


def load_file(path: str, sha256: str = "") -> ModuleType:
    """Run a Python file and return it as a module.

    Args:
        path: the file.
        sha256: that its content must have; any if empty.

    Raises:
        OSError: it can't be read.
        ValueError: its content has another hash.
        Exception: whatever its code raises.
    """
    with open(path, "rb") as stream:  # noqa: PTH123
        content = stream.read()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 and digest != sha256:
        raise ValueError(f"{path} was changed while it was in use")
    name = f"nucleate_custom_{digest[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        exec(compile(content, path, "exec"), vars(module))  # noqa: S102
    except BaseException:
        del sys.modules[name]
        raise
    return module


def resolve(target: str, sha256: str = "") -> Any:
    """What ``path.py:function`` or ``module:attribute`` names.

    Raises:
        ValueError: it reads otherwise.
        AttributeError: there is no such name.
        Exception: whatever importing raises.
    """
    source, _, name = target.rpartition(":")
    if not source:
        raise ValueError(f"{target!r} reads neither path.py:function nor module:function")
    found = load_file(source, sha256) if source.endswith(".py") else importlib.import_module(source)
    for part in name.split("."):
        if not hasattr(found, part):
            raise AttributeError(f"{source} has no {name!r}")
        found = getattr(found, part)
    return found


def make_calculator(target: str, arguments: Mapping[str, Any], sha256: str = "") -> Any:
    """The ASE calculator that ``target(**arguments)`` makes.

    Raises:
        TypeError: it made something else.
        Exception: whatever making it raises.
    """
    made = resolve(target, sha256)(**arguments)
    if not hasattr(made, "calculate") or not hasattr(made, "get_property"):
        raise TypeError(f"{target} made {type(made).__name__}, which is no ASE calculator")
    return made


def weights_hash(calculator: Any) -> str:
    """sha256 of the weights of a calculator's torch modules, else of its class and parameters."""
    kind = type(calculator)
    digest = hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}".encode())
    modules = _torch_modules(calculator)
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(_tensor_bytes(tensor))
    if not modules:
        parameters = getattr(calculator, "parameters", None) or {}
        digest.update(repr(sorted(parameters.items())).encode())
    return digest.hexdigest()


def _torch_modules(calculator: Any) -> list[Any]:
    """Networks among a calculator's attributes, in the order of their names."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    values = [value for _, value in sorted(vars(calculator).items())]
    flat = [x for value in values for x in (value if isinstance(value, (list, tuple)) else [value])]
    return [value for value in flat if isinstance(value, torch.nn.Module)]


def _tensor_bytes(tensor: Any) -> bytes:
    if not hasattr(tensor, "detach"):
        return repr(tensor).encode()
    plain = tensor.detach().cpu().contiguous().flatten()
    content: bytes = plain.view(sys.modules["torch"].uint8).numpy().tobytes()
    return f"{tensor.dtype}{tuple(tensor.shape)}".encode() + content


def calculate(
    calculator: Any,
    structure: Mapping[str, Any],
    *,
    forces: bool = False,
    stress: bool = False,
    magmoms: bool = False,
) -> dict[str, Any]:
    """What an ASE calculator says of one crystal.

    Args:
        calculator: the calculator.
        structure: ``lattice`` (3, 3), rows, Å; ``numbers`` (N,); ``frac_coords`` (N, 3).
        forces: also the forces.
        stress: also the stress.
        magmoms: also the magnetic moments.

    Returns:
        ``energy`` (eV/atom), ``forces`` ((N, 3) eV/Å), ``stress`` ((3, 3) eV/Å³, tension positive),
        ``magmoms`` ((N,) μ_B); None where not asked for, or where it has no moments.

    Raises:
        ValueError: a number is not finite.
        Exception: whatever the calculator raises.
    """
    import numpy as np
    from ase.calculators.calculator import PropertyNotImplementedError

    atoms = _as_atoms(structure)
    atoms.calc = calculator
    found: dict[str, Any] = dict.fromkeys(("energy", "forces", "stress", "magmoms"))
    if forces:
        found["forces"] = np.array(atoms.get_forces())
    if stress:
        found["stress"] = np.array(atoms.get_stress(voigt=False))
    if magmoms:
        with contextlib.suppress(PropertyNotImplementedError):
            found["magmoms"] = np.array(atoms.get_magnetic_moments())
    found["energy"] = float(atoms.get_potential_energy()) / len(atoms)
    for name, value in found.items():
        if value is not None and not np.isfinite(value).all():
            raise ValueError(f"the calculator gave a value of {name} that is not finite")
    return found


def calculate_all(
    calculator: Any, structures: Sequence[Mapping[str, Any]], **wanted: bool
) -> list[dict[str, Any]]:
    """:func:`calculate` for B structures; ``{"error": ...}`` where that structure alone failed."""
    results = []
    for structure in structures:
        try:
            results.append(calculate(calculator, structure, **wanted))
        except Exception as error:  # a calculator may raise anything
            results.append({"error": describe_error(error)})
    return results


# messages -------------------------------------------------------------------------------------


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception as it travels."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(lines),
    }


def _plain(value: Any) -> Any:
    """An array, tensor or numpy number as JSON can hold it."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} can't be sent; return numbers, text, lists or dicts")


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class _Server:
    """Answers requests; keeps what was loaded."""

    def __init__(self) -> None:
        self._loaded: dict[int, tuple[Callable[..., Any], Callable[[Any], Any]]] = {}

    def answer(self, line: bytes) -> str:
        """The line that answers a line."""
        request = json.loads(line)
        message = {"id": request["id"]}
        try:
            act = self._load if "load" in request else self._call
            return json.dumps({**message, "value": act(request)}, default=_plain)
        except (Exception, SystemExit) as error:  # anybody's code runs here
            return json.dumps({**message, "error": describe_error(error)})

    def _load(self, request: Mapping[str, Any]) -> Any:
        package, convert = _CONVERTERS[request["structures"]]
        if package:
            importlib.import_module(package)
        target, sha256, arguments = request["target"], request["sha256"], request["calculator"]
        if arguments is None:
            function = resolve(target, sha256)
            if not callable(function):
                raise TypeError(f"{target} is no function")
            self._loaded[request["load"]] = function, convert
            return None
        calculator = make_calculator(target, arguments, sha256)
        self._loaded[request["load"]] = partial(calculate_all, calculator), dict
        return {"weights_hash": weights_hash(calculator)}

    def _call(self, request: Mapping[str, Any]) -> Any:
        function, convert = self._loaded[request["call"]]
        arguments = _converted([request["args"], request["kwargs"]], convert)
        return function(*arguments[0], **arguments[1])


def _listen(requests: BinaryIO, inbox: queue.SimpleQueue[bytes | None]) -> None:
    """Hand requests on; after the last one, end the process even if it is busy."""
    for line in requests:
        inbox.put(line)
    inbox.put(None)
    time.sleep(GRACE)
    os._exit(1)


def main() -> None:
    """Greet and answer until the requests end."""
    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]  # noqa: PTH100
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def send(line: str) -> None:
        answers.write(line.encode("ascii") + b"\n")
        answers.flush()

    version = ".".join(map(str, sys.version_info[:3]))
    send(json.dumps({"nucleate_worker": PROTOCOL, "python": version, "packages": _versions()}))
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, inbox), daemon=True).start()
    server = _Server()
    while True:
        line = inbox.get()
        if line is None:
            return
        send(server.answer(line))


if __name__ == "__main__":
    main()
