"""Errors that say what went wrong, why, and how to mend it.

Every error that a user can cause is a :class:`NucleateError`. The command line prints its three
sentences and leaves with its ``exit_code``; Python users catch it like any exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NucleateError(Exception):
    """What happened, why, and how to mend it.

    Args:
        what: the failure, naming the file, field or index.
        why: the cause, where it is known.
        fix: the user's next step.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__("\n".join(part for part in (what, why, fix) if part))

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        parts = (part.strip().rstrip(".") for part in (self.what, self.why, self.fix) if part)
        return "; ".join(parts)

    def __reduce__(self) -> tuple[type[NucleateError], tuple[str, str, str]]:
        """Survive the trip between processes."""
        return type(self), (self.what, self.why, self.fix)


class RecipeError(NucleateError):
    """A recipe or an option holds an unknown key or a value out of range."""

    exit_code = 2


class InputError(NucleateError):
    """A file or structure given by the user can't be used."""

    exit_code = 3


class ConstraintError(NucleateError):
    """What was asked of the sampler can't be satisfied by any crystal."""

    exit_code = 4


class CheckpointError(NucleateError):
    """A checkpoint or run directory is truncated, foreign or locked."""

    exit_code = 5


class StorageError(NucleateError):
    """Nothing can be written: a full disk or a missing permission."""

    exit_code = 6


class MissingDependencyError(NucleateError):
    """An optional package is absent; the message names the extra that brings it."""

    exit_code = 7


class UnscoredError(NucleateError):
    """No crystal of a whole run could be scored; to go on with it is of no use."""

    exit_code = 8


def counted(number: float, what: str) -> str:
    """A number with its noun, ``1 step``, ``2,000 steps`` or ``0.5 minutes``."""
    text = f"{number:g}" if isinstance(number, float) else f"{number:,}"
    return f"{text} {what}" if number == 1 else f"{text} {what}s"


def cause(error: OSError | ValueError) -> str:
    """Why a file can't be used, without the number of the error and the name again."""
    if isinstance(error, UnicodeDecodeError):
        return "It is not a text file."
    return f"{getattr(error, 'strerror', None) or error}."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known name, or all of them if none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names)}."
