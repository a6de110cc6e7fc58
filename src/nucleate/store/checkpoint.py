"""Checkpoints: any nesting of tensors, arrays and plain values, written all or nothing.

A checkpoint is a folder ``step_00000012`` with ``state.safetensors`` (tensors) and ``state.json``
(the nesting, plain values, and the hash of the tensors' file). It is written under a temporary
name, flushed to disk and renamed, so that its name exists only when it is whole. Random
generators go in as what they give out: ``torch.Generator.get_state()`` is a tensor, and
``numpy.random.Generator.bit_generator.state`` a dictionary.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import CheckpointError
from nucleate.store.filesystem import (
    fsync_directory,
    sha256_file,
    storage_errors,
    write_durably,
)

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
TENSORS_FILE = "state.safetensors"
STATE_FILE = "state.json"
_NAME = re.compile(r"step_(\d{8,})$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        step: last step that it contains.
        state: what was saved, same nesting and types.
        path: its folder.
        skipped: newer checkpoints that could not be used, with the reason, newest first.
    """

    step: int
    state: Any
    path: Path
    skipped: tuple[str, ...] = field(default_factory=tuple)


def pack_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a nesting into named tensors and JSON.

    Args:
        state: dictionaries (keys str or int), lists, tuples, tensors, numpy arrays and numbers,
            str, bool, int, float, None.

    Returns:
        Tensors by path, and the nesting as JSON values.

    Raises:
        TypeError: a value of another type.
    """
    import torch

    tensors: dict[str, Tensor] = {}

    def pack(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
            return {"tensor": path}
        if isinstance(value, np.ndarray):
            tensors[path] = torch.from_numpy(np.ascontiguousarray(value).copy())
            return {"array": path}
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, (str, int)) or isinstance(key, bool):
                    raise TypeError(f"checkpoint key {key!r} at {path or 'top'}: not str or int")
            items = [[key, pack(entry, f"{path}/{key}")] for key, entry in value.items()]
            return {"dict": items}
        if isinstance(value, (list, tuple)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [pack(entry, f"{path}/{i}") for i, entry in enumerate(value)]}
        raise TypeError(f"a checkpoint can't hold {type(value).__name__} at {path or 'top'}")

    structure = pack(state, "")
    return tensors, structure


def unpack_state(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """The inverse of :func:`pack_state`."""
    if isinstance(structure, (list,)):
        raise CheckpointError("A checkpoint's state.json holds a bare list.")
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: unpack_state(tensors, entry) for key, entry in content}
    entries = [unpack_state(tensors, entry) for entry in content]
    return tuple(entries) if kind == "tuple" else entries


def write_checkpoint(folder: Path, step: int, state: Any) -> Path:
    """Write the checkpoint of a step below ``folder``, all or nothing.

    Raises:
        StorageError: disk full or not writable; nothing is left of the attempt.
    """
    from safetensors.torch import save

    if step < 0:
        raise ValueError(f"checkpoint of step {step}: steps are counted from 0")
    tensors, structure = pack_state(state)
    data = save(tensors)
    description = {
        "format": FORMAT,
        "step": step,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        "state": structure,
    }
    text = json.dumps(description, allow_nan=False)
    seal = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest()})
    final = folder / f"step_{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    with storage_errors(final, "write the checkpoint"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            write_durably(temporary / TENSORS_FILE, data)
            write_durably(temporary / STATE_FILE, f"{seal}\n{text}\n".encode())
            fsync_directory(temporary)
            if final.exists():  # left by an earlier attempt at this step
                shutil.rmtree(final)
            temporary.replace(final)
            fsync_directory(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _verified(path: Path) -> dict[str, Any]:
    """The description of a checkpoint whose two files are whole.

    Raises:
        CheckpointError: missing, truncated or altered.
    """

    def broken(why: str) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint {path} can't be used.",
            why,
            "Resume from an earlier checkpoint or start the run again.",
        )

    try:
        seal, _, rest = (path / STATE_FILE).read_text(encoding="utf-8").partition("\n")
        text = rest.removesuffix("\n")
        stated = json.loads(seal)["sha256"]
        if hashlib.sha256(text.encode()).hexdigest() != stated:
            raise broken(f"{STATE_FILE} is truncated or altered.")
        description: dict[str, Any] = json.loads(text)
        if description["format"] != FORMAT:
            raise broken(f"Its format is {description['format']}, this release reads {FORMAT}.")
        if sha256_file(path / TENSORS_FILE) != description["tensors_sha256"]:
            raise broken(f"{TENSORS_FILE} is truncated or altered.")
    except OSError as error:
        raise broken(f"{error.strerror}: {error.filename}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise broken(f"{STATE_FILE} is truncated or altered.") from error
    return description


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder, hashes checked.

    Raises:
        CheckpointError: missing, truncated or altered.
    """
    from safetensors.torch import load_file

    description = _verified(path)
    tensors = load_file(path / TENSORS_FILE)
    return Checkpoint(description["step"], unpack_state(tensors, description["state"]), path)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _NAME.search(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there are none at all.

    Raises:
        CheckpointError: there are some, but none is whole.
    """
    skipped: list[str] = []
    last_error: CheckpointError | None = None
    for path in checkpoints(folder):
        try:
            found = read_checkpoint(path)
        except CheckpointError as error:
            skipped.append(f"{path.name}: {error.why.rstrip('.')}")
            last_error = error
            continue
        return Checkpoint(found.step, found.state, found.path, tuple(skipped))
    if last_error is not None:
        raise CheckpointError(
            f"None of the {len(skipped)} checkpoints in {folder} can be used.",
            f"{'; '.join(skipped)}.",
            "Start the run again; its evaluations stay in run.sqlite.",
        ) from last_error
    return None


def checkpoint_problem(path: Path) -> str:
    """Why a checkpoint folder can't be used; empty if it can."""
    try:
        _verified(path)
    except CheckpointError as error:
        return error.why
    return ""


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what crashed attempts left."""
    for path in checkpoints(folder)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
