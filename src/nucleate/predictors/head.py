"""The head: a small network from the features of a crystal to a value or a symmetric tensor.

Classes of atoms go through a perceptron and are pooled by their mean, by a mean with learnt
weights, and by their maximum. Beside them stand statistics of the composition. A tensor is

    value * I + 1/N * sum over bonds of w(bond) * (r r^T - I/3),

with ``value`` from the pooled features, ``r`` the unit vector along a bond, N the number of atoms,
and ``w`` a perceptron of the two atoms, the length and the pooled features, none of which depend on
directions. So the tensor turns with the crystal and has its symmetry, and the mean of its
eigenvalues is ``value``. What ``w`` reads is learnt for ``value`` alone: gradients stop there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from nucleate.physics.chgnet import N_ELEMENTS
from nucleate.physics.chgnet_network import CUTOFF
from nucleate.predictors.features import N_FEATURES

if TYPE_CHECKING:
    from torch import Tensor

    from nucleate.predictors.features import FeatureBatch

ELEMENT_PROPERTIES = (
    "X",
    "atomic_radius",
    "row",
    "group",
    "mendeleev_no",
    "ionization_energy",
    "electron_affinity",
    "max_oxidation_state",
    "min_oxidation_state",
    "average_ionic_radius",
)
"""Of pymatgen's elements; their mean, standard deviation and extremes describe a composition."""
N_STATISTICS = 4 * len(ELEMENT_PROPERTIES) + 1
N_RADIAL = 16  # Gaussians of a bond's length
LARGEST_FEATURE = 6.0  # standard deviations; beyond the training data features are cut off there
PAIR_WIDTH = 64


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of a head.

    Attributes:
        tensor: with the part that depends on directions.
        width: of the hidden layers.
        embedding: numbers that describe an element.
        dropout: while training.
    """

    tensor: bool = False
    width: int = 128
    embedding: int = 16
    dropout: float = 0.1


class Head(nn.Module):
    """One member of a predictor; gives standardised values.

    Args:
        config: sizes.
    """

    elements: Tensor
    atom_mean: Tensor
    atom_scale: Tensor
    statistic_mean: Tensor
    statistic_scale: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(N_ELEMENTS + 1, config.embedding)
        self.atom = nn.Sequential(
            nn.Linear(N_FEATURES + config.embedding, width),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.attention = nn.Linear(width, 1)
        self.crystal = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(3 * width + N_STATISTICS, width),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.value = nn.Linear(width, 1)
        if config.tensor:
            self.pair = nn.Sequential(
                nn.Linear(3 * width + N_RADIAL, PAIR_WIDTH), nn.SiLU(), nn.Linear(PAIR_WIDTH, 1)
            )
        shape = (N_ELEMENTS + 1, len(ELEMENT_PROPERTIES))
        self.register_buffer("elements", torch.zeros(shape))
        self.register_buffer("atom_mean", torch.zeros(N_FEATURES))
        self.register_buffer("atom_scale", torch.ones(N_FEATURES))
        self.register_buffer("statistic_mean", torch.zeros(N_STATISTICS))
        self.register_buffer("statistic_scale", torch.ones(N_STATISTICS))

    def standardise(self, batch: FeatureBatch) -> None:
        """Take mean and standard deviation of the features from the training crystals."""
        self.elements.copy_(torch.from_numpy(element_properties()))
        for name, features in (("atom", batch.atoms), ("statistic", self._statistics(batch))):
            getattr(self, f"{name}_mean").copy_(features.mean(0))
            getattr(self, f"{name}_scale").copy_(features.std(0, correction=0).clamp_min(1e-3))

    def forward(self, batch: FeatureBatch) -> tuple[Tensor, Tensor | None]:
        """Standardised predictions for B crystals.

        Returns:
            (B,) values, and for a tensor the (B, 6) components of its traceless part in the same
            unit, or None.
        """
        atoms = _scaled(batch.atoms, self.atom_mean, self.atom_scale)
        statistics = _scaled(self._statistics(batch), self.statistic_mean, self.statistic_scale)
        hidden = self.atom(torch.cat([atoms, self.embedding(batch.numbers)], dim=1))
        weight = self.attention(hidden)[:, 0].clamp(-10, 10).exp() * batch.count
        pooled = (
            _mean(hidden, batch.count, batch),
            _mean(hidden, weight, batch),
            _extreme(hidden, batch, "amax"),
            statistics,
        )
        crystal = self.crystal(torch.cat(pooled, dim=1))
        value = self.value(crystal)[:, 0]
        if not self.config.tensor or not len(batch.bond_length):
            return value, None
        hidden = hidden.detach()
        first = hidden.index_select(0, batch.bond_first)
        second = hidden.index_select(0, batch.bond_second)
        surroundings = crystal.detach().index_select(0, batch.bond_crystal)
        pair = torch.cat(
            [first + second, first * second, _radial(batch.bond_length), surroundings], dim=1
        )
        part = self.pair(pair) * batch.orientation
        summed = part.new_zeros(batch.size, 6).index_add(0, batch.bond_crystal, part)
        return value, summed / _sum(batch.count, batch)[:, None]

    def _statistics(self, batch: FeatureBatch) -> Tensor:
        """(B, N_STATISTICS) of the composition, and the volume."""
        properties = self.elements.index_select(0, batch.numbers)
        mean = _mean(properties, batch.count, batch)
        square = (properties - mean.index_select(0, batch.crystal)) ** 2
        return torch.cat(
            [
                mean,
                _mean(square, batch.count, batch).sqrt(),
                _extreme(properties, batch, "amin"),
                _extreme(properties, batch, "amax"),
                batch.volume.log()[:, None],
            ],
            dim=1,
        )


def element_properties() -> np.ndarray:
    """(N_ELEMENTS + 1, len(ELEMENT_PROPERTIES)) float32, standardised; unknown ones are 0."""
    import warnings

    from pymatgen.core import Element

    values = np.full((N_ELEMENTS + 1, len(ELEMENT_PROPERTIES)), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of values that it lacks
        for number in range(1, N_ELEMENTS + 1):
            element = Element.from_Z(number)
            for column, name in enumerate(ELEMENT_PROPERTIES):
                value = getattr(element, name)
                values[number, column] = np.nan if value is None else float(value)
    mean, scale = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    return np.nan_to_num((values - mean) / scale, nan=0.0).astype(np.float32)


def _scaled(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return ((features - mean) / scale).clamp(-LARGEST_FEATURE, LARGEST_FEATURE)


def _sum(values: Tensor, batch: FeatureBatch) -> Tensor:
    """Sum of (A, ...) over the atom classes of each crystal: (B, ...)."""
    return values.new_zeros(batch.size, *values.shape[1:]).index_add(0, batch.crystal, values)


def _mean(values: Tensor, weight: Tensor, batch: FeatureBatch) -> Tensor:
    """Mean of (A, n) over the atom classes of each crystal, weighted by (A,): (B, n)."""
    return _sum(values * weight[:, None], batch) / _sum(weight, batch)[:, None]


def _extreme(values: Tensor, batch: FeatureBatch, which: str) -> Tensor:
    """Least ("amin") or largest ("amax") of (A, n) in each crystal: (B, n)."""
    index = batch.crystal[:, None].expand_as(values)
    start = values.new_zeros(batch.size, values.shape[1])
    return start.scatter_reduce(0, index, values, which, include_self=False)


def _radial(length: Tensor) -> Tensor:
    """(U,) Å to (U, N_RADIAL): Gaussians whose width is their distance."""
    centre = torch.linspace(1.0, CUTOFF, N_RADIAL)
    return torch.exp(-(((length[:, None] - centre) / (centre[1] - centre[0])) ** 2))
