"""Which reduced formulas a training set holds, as a few bytes each.

A policy ships with this index, so that novelty can be judged without the training crystals. It is
the strict half of the question: a crystal of a new formula is new; one of a known formula may be a
new polymorph, which only :class:`nucleate.structures.identity.ReferenceSet` can tell.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from math import gcd
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING

import numpy as np

from nucleate.errors import InputError
from nucleate.structures.writing import replacing
from nucleate.structures.wyckoff import WyckoffBatch

if TYPE_CHECKING:
    from pymatgen.core import Structure


def composition_key(numbers: np.ndarray) -> int:
    """64-bit hash of the reduced formula, the same for every multiple of the formula unit.

    Args:
        numbers: (N,) atomic numbers.
    """
    return _key(np.asarray(numbers, dtype=np.int64).tobytes())


@lru_cache(maxsize=100_000)
def _key(numbers: bytes) -> int:
    counts = sorted(Counter(np.frombuffer(numbers, dtype=np.int64).tolist()).items())
    units = gcd(*(count for _, count in counts))
    content = [z for z, _ in counts] + [count // units for _, count in counts]
    packed = pack(f"<{len(content)}q", *content)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


class FormulaIndex:
    """A set of reduced formulas by their 64-bit keys.

    Args:
        keys: integers of :func:`composition_key`.
        source: description of the set, printed beside results.
    """

    def __init__(self, keys: np.ndarray, source: str = "") -> None:
        self.keys = np.unique(np.asarray(keys, dtype=np.uint64))
        self.source = source

    def __len__(self) -> int:
        return len(self.keys)

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """(B,) bool, True where the key is in the set."""
        keys = np.asarray(keys, dtype=np.uint64)
        if not len(self.keys):
            return np.zeros(len(keys), dtype=bool)
        place = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return self.keys[place] == keys

    def known_formula(self, structures: Iterable[Structure | None]) -> np.ndarray:
        """(B,) bool, True where the set holds the crystal's formula; False for None."""
        items = list(structures)
        present = np.array([s is not None for s in items], dtype=bool)
        keys = [composition_key(np.array(s.atomic_numbers)) for s in items if s is not None]
        known = np.zeros(len(items), dtype=bool)
        known[present] = self.contains(np.array(keys, dtype=np.uint64))
        return known

    def is_known(
        self, structures: Iterable[Structure | None]
    ) -> tuple[np.ndarray, list[str | None]]:
        """The same as :meth:`known_formula`: every crystal of a known formula counts as known."""
        known = self.known_formula(structures)
        return known, ["same formula" if k else None for k in known]

    @classmethod
    def from_batches(cls, batches: Iterable[WyckoffBatch], source: str = "") -> FormulaIndex:
        """The formulas of token batches."""
        keys = [batch_keys(batch) for batch in batches]
        return cls(np.concatenate(keys) if keys else np.zeros(0, np.uint64), source)

    def save(self, path: Path) -> None:
        """Write the keys as an ``.npy`` file."""
        with replacing(path, "wb") as stream:
            np.save(stream, self.keys, allow_pickle=False)

    @classmethod
    def load(cls, path: Path, source: str = "") -> FormulaIndex:
        """Read what :meth:`save` wrote."""
        try:
            keys = np.load(path, allow_pickle=False)
            if keys.ndim != 1 or keys.dtype != np.uint64:
                raise ValueError(f"it holds {keys.dtype} of shape {keys.shape}")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"can't read the formula index {path}",
                str(error),
                "copy it again from the folder of the model",
            ) from error
        return cls(keys, source)


def batch_keys(batch: WyckoffBatch) -> np.ndarray:
    """(B,) uint64 keys of the reduced formulas of a batch."""
    multiplicity = batch.multiplicity
    return np.array(
        [composition_key(np.repeat(batch.species[i], multiplicity[i])) for i in range(len(batch))],
        dtype=np.uint64,
    )
