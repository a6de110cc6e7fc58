"""Is this installation fit for work: versions, optional packages, cores, shipped files, folder."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from nucleate import plugins
from nucleate.errors import NucleateError

REQUIRED = (
    "torch",
    "numpy",
    "scipy",
    "pymatgen",
    "ase",
    "moyopy",
    "chgnet",
    "pydantic",
    "pebble",
    "safetensors",
    "pyarrow",
    "typer",
)
OPTIONAL = {
    "phonopy": ("eval", "heat_capacity and phonon_stability"),
    "smact": ("eval", "charge_balance, and that of the crystals that are judged"),
    "parsl": ("cluster", "evaluations in batch jobs on SLURM, PBS or Kubernetes"),
    "tensorboard": ("track", "curves of a run in TensorBoard"),
}
"""Package: the extra that brings it, and what it is for."""


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"  # works, but less than it could
    PROBLEM = "problem"


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what.
        level: how it ended.
        detail: what was found, and for a problem the remedy.
    """

    name: str
    level: Level
    detail: str


def examine(folder: str | Path = ".") -> Iterator[Check]:
    """All checks, one after another.

    Args:
        folder: where runs would be written.
    """
    yield Check("python", Level.OK, f"{platform.python_version()} on {platform.platform()}")
    yield from _packages()
    yield from _computing()
    yield from _plugins()
    yield from _models()
    yield from _hulls()
    yield writable(Path(folder))


def _packages() -> Iterator[Check]:
    for name in REQUIRED:
        try:
            yield Check(name, Level.OK, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, Level.PROBLEM, f"not installed; run: pip install {name}")
    for name, (extra, purpose) in OPTIONAL.items():
        if find_spec(name) is not None:
            yield Check(name, Level.OK, f"{metadata.version(name)} ({purpose})")
        else:
            fix = f'not installed; for {purpose}: pip install "nucleate[{extra}]"'
            yield Check(name, Level.NOTE, fix)


def _computing() -> Iterator[Check]:
    import torch

    from nucleate.execution.local import available_cores

    threads = torch.get_num_threads()
    yield Check("processor", Level.OK, f"{available_cores()} cores, torch uses {threads} threads")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Check("gpu", Level.OK, ", ".join(names))
    else:
        yield Check("gpu", Level.NOTE, "none seen by torch; everything runs on the processor")


def _plugins() -> Iterator[Check]:
    for group in (plugins.PROPERTIES, plugins.POTENTIALS):
        kind = group.split(".")[1]
        for name, plugin in plugins.available(group).items():
            try:
                plugins.load(group, name)
            except NucleateError as error:
                yield Check(f"{kind}/{name}", Level.PROBLEM, f"{error.why} {error.fix}".strip())
            else:
                absent = _absent(name) if group == plugins.POTENTIALS else None
                if absent is None:
                    yield Check(f"{kind}/{name}", Level.OK, plugin.provider)
                else:
                    fix = f"needs {absent}: pip install {absent}, or name an interpreter that "
                    yield Check(f"{kind}/{name}", Level.NOTE, f"{fix}has it with 'python: ...'")


def _absent(potential: str) -> str | None:
    """The package that a published potential needs and that is not installed."""
    from nucleate.physics.pretrained import FAMILIES

    if potential not in FAMILIES:
        return None
    try:
        metadata.version(FAMILIES[potential].package)
    except metadata.PackageNotFoundError:
        return FAMILIES[potential].package
    return None


def _models() -> Iterator[Check]:
    from nucleate.policies.checkpoint import SHIPPED, load_policy

    for name in SHIPPED:
        try:
            policy = load_policy(name)
        except NucleateError as error:
            yield Check(f"model/{name}", Level.PROBLEM, f"{error.what}: {error.why}")
        else:
            size = sum(p.numel() for p in policy.network.parameters())
            digest = str(policy.metadata["weights_sha256"])[:12]
            detail = f"{size / 1e6:.1f} million weights, sha256 {digest}... verified"
            yield Check(f"model/{name}", Level.OK, detail)


def _hulls() -> Iterator[Check]:
    from nucleate.physics.hull import Hull
    from nucleate.physics.hull_card import SHIPPED

    for name in SHIPPED:
        try:
            hull = Hull.load(name)
        except NucleateError as error:
            yield Check(f"hull/{name}", Level.PROBLEM, f"{error.what}: {error.why}")
        else:
            detail = f"{len(hull):,} phases, {len(hull.elements)} elements, sha256 verified"
            yield Check(f"hull/{name}", Level.OK, detail)


def writable(folder: Path) -> Check:
    """May files be written into this folder?"""
    name = f"writing to {folder.resolve()}"
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as stream:
            stream.write(b"\0" * 65536)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        why = error.strerror or str(error)
        return Check(name, Level.PROBLEM, f"{why}; work in a folder that you may write to")
    return Check(name, Level.OK, "yes")
