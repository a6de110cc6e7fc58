"""What a predictor sees of a crystal: the states that a frozen CHGNet gives its atoms.

CHGNet has learnt energies, forces and magnetic moments of a million and a half configurations
(Deng et al., Nature Machine Intelligence 5, 1031, 2023). The states of an atom after each of its
four layers describe wider and wider surroundings; the readout turns the last one into an energy.
Atoms with equal surroundings have equal states, so each class of them is
kept once, with a count.

For tensors a crystal also has its bonds, in classes of equal ones. The sum over a class of
``r r^T - I/3``, with ``r`` the unit vector along a bond, turns with the crystal, and so does every
linear combination whose coefficients don't depend on directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from nucleate.physics.chgnet import evaluate_in_batches, load_network
from nucleate.physics.chgnet_network import WIDTH
from nucleate.physics.graphs import N_LAYERS, Members, ReducedGraph, reduce_graphs

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from torch import Tensor

    from nucleate.physics.cells import Bonds, Cell

N_FEATURES = N_LAYERS * WIDTH + 1  # of an atom: its states, and its magnetic moment
COMPONENTS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Rows and columns of the six components of a symmetric tensor, in the order of Voigt."""


@dataclass(frozen=True)
class BondFeatures:
    """The bonds up to 6 Å of one crystal, in U classes of equal ones.

    Attributes:
        first, second: (U,) int64 atom classes at the ends.
        length: (U,) float32, Å.
        orientation: (U, 6) float32, sum over the bonds of a class of ``r r^T - I/3``.
    """

    first: np.ndarray
    second: np.ndarray
    length: np.ndarray
    orientation: np.ndarray


@dataclass(frozen=True)
class CrystalFeatures:
    """One crystal, its atoms in A classes of equal ones.

    Attributes:
        numbers: (A,) int64 atomic numbers.
        count: (A,) float32 atoms in each class.
        atoms: (A, N_FEATURES) float32.
        volume: Å³ an atom.
        bonds: None unless asked for.
    """

    numbers: np.ndarray
    count: np.ndarray
    atoms: np.ndarray
    volume: float
    bonds: BondFeatures | None = None


class FrozenChgnet:
    """CHGNet without its readout.

    Attributes:
        weights_hash: sha256 of its weights.
    """

    def __init__(self) -> None:
        self._network, self.weights_hash = load_network()

    def features(
        self, structures: Sequence[Structure | Cell], *, bonds: bool = False
    ) -> list[CrystalFeatures | Exception]:
        """Features of B crystals, order kept.

        Args:
            structures: crystals, as structures or as arrays.
            bonds: also what tensors need.

        Returns:
            For each crystal its features, or an exception with the reason why it has none.
        """
        return evaluate_in_batches(structures, partial(self._of_batch, with_bonds=bonds))

    def _of_batch(
        self, cells: Sequence[Cell], bonds: Sequence[Bonds], with_bonds: bool
    ) -> list[CrystalFeatures]:
        graph = reduce_graphs(cells, bonds, members=with_bonds)
        length = self._network.tensor(graph.bond_length, True)
        angle = self._network.tensor(graph.angle, True)
        with torch.inference_mode():
            states, moment = self._network.atom_states(graph, length, angle)
        atoms = torch.cat([*states, moment[:, None]], dim=1).numpy()
        bonded: list[BondFeatures | None] = [None] * len(cells)
        if graph.members is not None:
            bonded = [*_bond_features(graph, graph.members)]
        found = []
        for k, cell in enumerate(cells):
            own = graph.atom_crystal == k
            volume = abs(float(np.linalg.det(cell.lattice))) / len(cell.numbers)
            count = graph.atom_count[own].astype(np.float32)
            found.append(
                CrystalFeatures(graph.atom_number[own], count, atoms[own], volume, bonded[k])
            )
        return found


@lru_cache(maxsize=1)
def frozen_chgnet() -> FrozenChgnet:
    """The network that all predictors of a process share."""
    return FrozenChgnet()


def _bond_features(graph: ReducedGraph, members: Members) -> list[BondFeatures]:
    """Bonds of the B crystals of a batch."""
    n_classes = len(graph.bond_length)
    direction = members.vector / np.sqrt((members.vector**2).sum(1))[:, None]
    orientation = np.stack(
        [
            np.bincount(
                members.bond_class, direction[:, a] * direction[:, b] - (a == b) / 3, n_classes
            )
            for a, b in COMPONENTS
        ],
        axis=1,
    ).astype(np.float32)
    classes, bond = np.unique(members.bond_class, return_index=True)
    crystal = members.crystal[bond]
    ends = graph.atom_class[np.stack([members.first[bond], members.second[bond]])]
    first_atom = np.searchsorted(graph.atom_crystal, np.arange(graph.n_crystals))
    ends = ends - first_atom[crystal]
    length = graph.bond_length[classes].astype(np.float32)
    return [
        BondFeatures(ends[0, own], ends[1, own], length[own], orientation[classes[own]])
        for own in (crystal == k for k in range(graph.n_crystals))
    ]


@dataclass(frozen=True)
class FeatureBatch:
    """B crystals laid end to end, as tensors.

    Attributes:
        size: B.
        crystal: (A,) int64 crystal of each atom class.
        numbers: (A,) int64.
        count: (A,) float32.
        atoms: (A, N_FEATURES) float32.
        volume: (B,) float32, Å³ an atom.
        bond_crystal, bond_first, bond_second: (U,) int64, the latter numbered through the batch;
            empty where the crystals have no bonds.
        bond_length: (U,) float32, Å.
        orientation: (U, 6) float32.
    """

    size: int
    crystal: Tensor
    numbers: Tensor
    count: Tensor
    atoms: Tensor
    volume: Tensor
    bond_crystal: Tensor
    bond_first: Tensor
    bond_second: Tensor
    bond_length: Tensor
    orientation: Tensor

    @classmethod
    def of(cls, crystals: Sequence[CrystalFeatures]) -> FeatureBatch:
        """Lay crystals end to end."""
        sizes = np.array([len(c.numbers) for c in crystals])
        index = np.arange(len(crystals))
        bonds = [c.bonds for c in crystals if c.bonds is not None]
        if len(bonds) == len(crystals):
            n_bonds = np.array([len(b.length) for b in bonds])
            shift = np.repeat(np.cumsum(sizes) - sizes, n_bonds)
            bonded = (
                np.repeat(index, n_bonds),
                np.concatenate([b.first for b in bonds]) + shift,
                np.concatenate([b.second for b in bonds]) + shift,
                np.concatenate([b.length for b in bonds]),
                np.concatenate([b.orientation for b in bonds]),
            )
        else:
            none = np.zeros(0, np.int64)
            empty = np.zeros(0, np.float32)
            bonded = (none, none, none, empty, np.zeros((0, 6), np.float32))
        return cls(
            len(crystals),
            *map(
                torch.from_numpy,
                (
                    np.repeat(index, sizes),
                    np.concatenate([c.numbers for c in crystals]),
                    np.concatenate([c.count for c in crystals]),
                    np.concatenate([c.atoms for c in crystals]),
                    np.array([c.volume for c in crystals], np.float32),
                    *bonded,
                ),
            ),
        )
