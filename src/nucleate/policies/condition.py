"""What the user fixes of the crystals to be drawn.

A condition is enforced by masks inside sampling and inside ``log_prob`` alike, so that both
describe one distribution.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nucleate.errors import ConstraintError, counted, did_you_mean
from nucleate.structures import symmetry


@dataclass(frozen=True, eq=False)
class Condition:
    """Space groups, elements, cell size and sharpness of what is drawn.

    Attributes:
        space_groups: (231,) float64 weights of the space groups; row 0 is unused.
        elements: (119,) bool, elements that may be drawn; row 0 is unused.
        max_atoms: most atoms in the primitive cell.
        temperature: divides the logits of letters and species; 1 is the model itself.
        coordinate_temperature: divides log-weights, variances and inverse concentrations of
            coordinates and lattice; below 1 they keep nearer to the modes of the model.
        top_p: nucleus of letters and species that is kept; 1 keeps all.
        stability: stability class that the network is conditioned on, see ``pretraining``.
    """

    space_groups: np.ndarray
    elements: np.ndarray = field(default_factory=lambda: np.arange(119) > 0)
    max_atoms: int = 20
    temperature: float = 1.0
    coordinate_temperature: float = 1.0
    top_p: float = 1.0
    stability: int = 0

    def __post_init__(self) -> None:
        if not self.elements[1:].any():
            raise ConstraintError("no element is allowed", fix="allow at least one element")
        if not (np.isfinite(self.space_groups).all() and self.space_groups[1:].sum() > 0):
            raise ConstraintError("no space group is allowed", fix="name at least one of 1..230")
        if (
            min(self.temperature, self.coordinate_temperature) <= 0
            or not 0 < self.top_p <= 1
            or self.max_atoms < 1
        ):
            raise ConstraintError(
                f"temperatures {self.temperature} and {self.coordinate_temperature}, "
                f"top_p {self.top_p}, max_atoms {self.max_atoms}",
                fix="use temperatures > 0, 0 < top_p <= 1 and max_atoms >= 1",
            )
        needed = smallest_cell()[1:]
        empty = np.flatnonzero((self.space_groups[1:] > 0) & (needed > self.max_atoms)) + 1
        if len(empty):
            raise ConstraintError(
                f"space group {empty[0]} has no crystal with {counted(self.max_atoms, 'atom')}",
                f"its smallest Wyckoff position puts {needed[empty[0] - 1]} atoms in the cell",
                "raise max_atoms or leave the space group out",
            )

    def draw_space_groups(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """(n,) int64 space groups."""
        weights = torch.from_numpy(np.r_[0.0, self.space_groups[1:]]).to(generator.device)
        return torch.multinomial(weights, n, replacement=True, generator=generator)

    def to_dict(self) -> dict[str, object]:
        """Plain values for a JSON file, see :meth:`from_dict`."""
        present = np.flatnonzero(self.space_groups)
        return {
            "space_groups": {int(g): float(self.space_groups[g]) for g in present},
            "elements": [int(z) for z in np.flatnonzero(self.elements)],
            "max_atoms": self.max_atoms,
            "temperature": self.temperature,
            "coordinate_temperature": self.coordinate_temperature,
            "top_p": self.top_p,
            "stability": self.stability,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Condition:
        """The inverse of :meth:`to_dict`."""
        rest: dict[str, Any] = dict(values)
        groups, elements = np.zeros(231), np.zeros(119, dtype=bool)
        for group, weight in rest.pop("space_groups").items():
            groups[int(group)] = weight
        elements[rest.pop("elements")] = True
        return cls(groups, elements, **rest)


def smallest_cell() -> np.ndarray:
    """(231,) fewest atoms a primitive cell of each space group can hold; row 0 is 0."""
    tables = symmetry.tables()
    multiplicity = np.where(tables.multiplicity > 0, tables.multiplicity, 10_000)
    return np.r_[0, multiplicity.min(1) // tables.centring_order]


def element_mask(
    allow: Iterable[str] | None = None,
    deny: Iterable[str] = (),
    *,
    exclude: Iterable[int] = (),
) -> np.ndarray:
    """(119,) bool from element symbols.

    Args:
        allow: symbols that may be drawn; None allows all.
        deny: symbols that may not.
        exclude: atomic numbers that may not be drawn unless ``allow`` names them.

    Raises:
        ConstraintError: an unknown symbol, or no element is left.
    """
    from ase.data import atomic_numbers, chemical_symbols

    def numbers(symbols: Iterable[str]) -> list[int]:
        for symbol in symbols:
            if symbol == "X" or symbol not in atomic_numbers:
                raise ConstraintError(
                    f"unknown element {symbol!r}", fix=did_you_mean(symbol, chemical_symbols[1:])
                )
        return [atomic_numbers[symbol] for symbol in symbols]

    mask = np.zeros(119, dtype=bool)
    if allow is None:
        mask[1:] = True
        mask[list(exclude)] = False
    else:
        mask[numbers(list(allow))] = True
    mask[numbers(list(deny))] = False
    if not mask.any():
        raise ConstraintError(
            "no element is left", "every allowed element is also denied", "mend the two lists"
        )
    return mask
