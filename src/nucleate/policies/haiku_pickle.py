"""CrystalFormer's checkpoints: pickles of Haiku parameters, read without running any of them.

The content is ``{"params": {module: {name: array}}, "opt_state": ...}``. A pickle can name any
function for its reader to call. The reader here knows a few names, all of them its own inert
stand-ins for arrays and optimiser records, refuses every other, and calls neither numpy nor jax
on behalf of the file.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nucleate.errors import CheckpointError

Parameters = Mapping[str, Mapping[str, np.ndarray]]
"""Haiku parameters: module name, then array name."""

_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What reading a truncated or altered pickle raises."""


def read_parameters(content: bytes, path: Path) -> Parameters:
    """Haiku parameters from the bytes of a checkpoint; ``path`` is for messages."""
    try:
        stored = _Reader(io.BytesIO(content), path).load()
    except _BROKEN as error:
        truncated = isinstance(error, EOFError) or "truncated" in str(error)
        why = "The file ends too early." if truncated else f"It is no checkpoint: {error}."
        raise CheckpointError(
            f"{path} can't be read.", why, "Download it again, or name another file."
        ) from error
    modules = stored.get("params") if isinstance(stored, dict) else None
    if not isinstance(modules, dict) or not modules:
        raise CheckpointError(
            f"{path} holds no parameters.",
            "A checkpoint of CrystalFormer has an entry 'params'.",
            "Name a file epoch_*.pkl.",
        )
    return {str(module): _arrays(module, arrays, path) for module, arrays in modules.items()}


def _arrays(module: object, arrays: object, path: Path) -> dict[str, np.ndarray]:
    """The arrays of one module, checked."""
    if not isinstance(arrays, dict):
        raise CheckpointError(f"{path}: {module!r} is no module of a Haiku network.")
    result = {}
    for name, stored in arrays.items():
        if not isinstance(stored, _Array):
            raise CheckpointError(f"{path}: {module}/{name} is no array.")
        array = stored.numpy(f"{path}: {module}/{name}")
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"{path}: {module}/{name} holds infinities or NaN.",
                "The training it comes from diverged.",
                "Name an earlier checkpoint.",
            )
        result[str(name)] = array
    return result


_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _Dtype:
    """Stands for numpy.dtype: a type code and a byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        if self.code not in _NUMBERS or self.order not in ("<", ">", "=", "|"):
            raise CheckpointError(
                f"The checkpoint holds an array of type {self.code!r}.",
                f"Only plain numbers are read: {', '.join(sorted(_NUMBERS))}.",
                "Save the parameters as float32.",
            )
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for numpy.ndarray: shape, type, order and bytes, not yet trusted."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def numpy(self, name: str) -> np.ndarray:
        """The array, if shape, type and bytes agree."""
        try:
            _, shape, dtype, fortran, content = self.state
            numbers = np.frombuffer(content, dtype.numpy())
            if math.prod(shape) != numbers.size:
                raise ValueError(f"{numbers.size} numbers for the shape {shape}")
            return numbers.reshape(shape, order="F" if fortran else "C")
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{name} is no valid array.", str(error), "Download the file again."
            ) from error


class _Record(tuple[object, ...]):
    """Stands for a named tuple of the optimiser."""

    def __new__(cls, *entries: object) -> _Record:
        return tuple.__new__(cls, entries)


def _empty_array(*_: object) -> _Array:
    """Stands for numpy's _reconstruct."""
    return _Array()


def _jax_array(make: object, _arguments: object, state: tuple[Any, ...], *_: object) -> _Array:
    """Stands for jax's _reconstruct_array."""
    if make is not _empty_array:
        raise CheckpointError("The checkpoint builds an array by a function of its own.")
    array = _Array()
    array.__setstate__(state)
    return array


def _array_from_buffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    """Stands for numpy's _frombuffer, which pickles of protocol 5 call."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _number(dtype: _Dtype, content: bytes) -> _Array:
    """Stands for numpy's scalar."""
    array = _Array()
    array.__setstate__((1, (), dtype, False, content))
    return array


_ALLOWED: dict[tuple[str, str], Any] = {
    ("jax._src.array", "_reconstruct_array"): _jax_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", _empty_array),
        ("multiarray", "scalar", _number),
        ("numeric", "_frombuffer", _array_from_buffer),
    )
}

_RECORDS = {
    "EmptyState",
    "MaskedNode",
    "ScaleByAdamState",
    "ScaleByScheduleState",
    "TraceState",
    "AddDecayedWeightsState",
    "ClipState",
    "ClipByGlobalNormState",
}


class _Reader(pickle.Unpickler):
    """Reads arrays, containers and optimiser records, and nothing else."""

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name that checkpoints hold; an error for any other."""
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.startswith("optax._src.") and name in _RECORDS:
            return _Record
        raise CheckpointError(
            f"{self._path} asks for {module}.{name}.",
            "A checkpoint of CrystalFormer holds arrays and optimiser records alone; this file "
            "may be an attack. Nothing of it was run.",
            "Take the checkpoint from its publisher again.",
        )

    def persistent_load(self, pid: object) -> Any:
        """Refuse references to things outside the file."""
        raise CheckpointError(f"{self._path} refers to an object outside the file ({pid!r}).")
