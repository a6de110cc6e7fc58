"""The batch of crystals written as Wyckoff tokens, and how its coordinates are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from nucleate.structures.symmetry import N_SPACE_GROUPS, tables

SNAP = 1e-4  # fractional; closer coordinates count as equal when an orbit's atom is chosen


@dataclass(frozen=True, eq=False)
class WyckoffBatch:
    """B crystals as tokens, padded to S sites.

    Attributes:
        space_group: (B,) int16, 1..230; 0 marks a row that holds no crystal.
        wyckoff: (B, S) int8, 0 = no site, a = 1, b = 2, ..., "A" = 27.
        species: (B, S) int8, atomic number; 0 = no site.
        frac_coords: (B, S, 3) float32 in [0, 1), on the position's first operation; 0 where
            there is no site.
        lattice: (B, 6) float32: a, b, c in Å, alpha, beta, gamma in degrees, conventional cell.
    """

    space_group: np.ndarray
    wyckoff: np.ndarray
    species: np.ndarray
    frac_coords: np.ndarray
    lattice: np.ndarray

    def __post_init__(self) -> None:
        b, s = self.wyckoff.shape
        wanted = {"space_group": (b,), "species": (b, s), "frac_coords": (b, s, 3)}
        wanted["lattice"] = (b, 6)
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                found = getattr(self, name).shape
                raise ValueError(f"WyckoffBatch.{name} has shape {found}, expected {shape}")

    def __len__(self) -> int:
        return len(self.space_group)

    def __getitem__(self, index: np.ndarray | slice | Sequence[int]) -> WyckoffBatch:
        """Rows by slice, integer array or mask; still a batch."""
        if not isinstance(index, slice):
            index = np.atleast_1d(np.asarray(index))
        return WyckoffBatch(*(getattr(self, f.name)[index] for f in fields(self)))

    @property
    def n_sites(self) -> np.ndarray:
        """(B,) int64, number of orbits."""
        return (self.wyckoff > 0).sum(axis=1)

    @property
    def multiplicity(self) -> np.ndarray:
        """(B, S) int16, atoms of each orbit in the conventional cell; 0 where no site."""
        group = np.clip(self.space_group.astype(np.int64) - 1, 0, N_SPACE_GROUPS - 1)
        return tables().multiplicity[group[:, None], self.wyckoff]

    @property
    def n_atoms(self) -> np.ndarray:
        """(B,) int64, atoms in the conventional cell."""
        return self.multiplicity.sum(axis=1, dtype=np.int64)

    @staticmethod
    def empty(n: int, sites: int) -> WyckoffBatch:
        """``n`` rows of zeros with room for ``sites`` sites."""
        return WyckoffBatch(
            np.zeros(n, np.int16),
            np.zeros((n, sites), np.int8),
            np.zeros((n, sites), np.int8),
            np.zeros((n, sites, 3), np.float32),
            np.zeros((n, 6), np.float32),
        )

    @staticmethod
    def concatenate(batches: Sequence[WyckoffBatch]) -> WyckoffBatch:
        """One batch from several, padded to the longest."""
        width = max((b.wyckoff.shape[1] for b in batches), default=0)
        padded = [b.padded(width) for b in batches] or [WyckoffBatch.empty(0, 0)]
        names = [f.name for f in fields(WyckoffBatch)]
        return WyckoffBatch(*(np.concatenate([getattr(b, n) for b in padded]) for n in names))

    def padded(self, sites: int) -> WyckoffBatch:
        """The same crystals with room for ``sites`` sites (at least the present number)."""
        extra = sites - self.wyckoff.shape[1]
        if extra < 0 and (self.wyckoff[:, sites:] > 0).any():
            raise ValueError(f"{int(self.n_sites.max())} sites don't fit into {sites}")
        if extra < 0:
            kept = (self.wyckoff[:, :sites], self.species[:, :sites], self.frac_coords[:, :sites])
        else:
            pad = ((0, 0), (0, extra))
            kept = (
                np.pad(self.wyckoff, pad),
                np.pad(self.species, pad),
                np.pad(self.frac_coords, (*pad, (0, 0))),
            )
        return WyckoffBatch(self.space_group, *kept, self.lattice)

    def composition(self, i: int) -> dict[int, int]:
        """Atoms of each atomic number in the conventional cell of crystal ``i``."""
        counts: dict[int, int] = {}
        for z, m in zip(self.species[i].tolist(), self.multiplicity[i].tolist(), strict=True):
            if m:
                counts[z] = counts.get(z, 0) + m
        return counts

    def formula(self, i: int) -> str:
        """Reduced formula of crystal ``i``, as pymatgen writes it."""
        from pymatgen.core import Composition, Element

        counts = {Element.from_Z(z): n for z, n in self.composition(i).items()}
        return Composition(counts).reduced_formula

    def digest(self, i: int) -> str:
        """Stable hash of the content of crystal ``i``, whatever the padding.

        Coordinates count in steps of 1e-4, lengths of 1e-3 Å and angles of 1e-2 degrees.
        """
        sites = self.wyckoff[i] > 0
        steps = np.round(self.frac_coords[i][sites].astype(np.float64) * 1e4).astype(np.int64)
        cell = np.round(self.lattice[i].astype(np.float64) * ([1e3] * 3 + [1e2] * 3))
        content = np.concatenate(
            [
                [int(self.space_group[i])],
                self.wyckoff[i][sites].astype(np.int64),
                self.species[i][sites].astype(np.int64),
                (steps % 10_000).ravel(),
                cell.astype(np.int64),
            ]
        )
        return hashlib.sha256(content.astype("<i8").tobytes()).hexdigest()[:32]


def wrapped(frac_coords: np.ndarray) -> np.ndarray:
    """Fractional coordinates brought into [0, 1); those within 1e-4 below 1 become 0."""
    inside = frac_coords - np.floor(frac_coords)
    inside[inside > 1.0 - SNAP] = 0.0
    return inside


def steps_of(frac_coords: np.ndarray) -> np.ndarray:
    """One integer for each position, ordered as x, then y, then z in steps of 1e-4.

    Args:
        frac_coords: (..., 3) in [0, 1).

    Returns:
        (...,) int64.
    """
    edge = 0.3819660112501051  # keeps the edges of the steps away from round decimals
    steps = np.floor(frac_coords / SNAP + edge).astype(np.int64)
    return (steps[..., 0] * 16384 + steps[..., 1]) * 16384 + steps[..., 2]
