"""Is this a crystal at all: cell, volume, distances; and, reported apart, charge balance.

The structural test is the field's usual one (shortest periodic distance above 0.5 Å, cell volume
above 0.1 Å³: Xie et al., "Crystal Diffusion Variational Autoencoder", ICLR 2022), with wide bounds
on cell lengths, angles and volume per atom added so that no potential is ever asked for the energy
of an absurd cell. Charge balance is a statement about the composition alone and is kept apart:
many real intermetallics have no balanced set of oxidation states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from nucleate.errors import MissingDependencyError

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure


@dataclass(frozen=True)
class Limits:
    """Bounds of a sane crystal; the defaults refuse no relaxed crystal of the Materials Project.

    Attributes:
        min_distance: shortest allowed distance of two atoms, images included, Å; below 0 it is
            not looked at.
        min_volume: smallest allowed cell volume, Å³.
        volume_per_atom: allowed range, Å³ per atom.
        length: allowed range of a, b and c, Å.
        angle: allowed range of alpha, beta and gamma, degrees.
    """

    min_distance: float = 0.5
    min_volume: float = 0.1
    volume_per_atom: tuple[float, float] = (1.0, 400.0)
    length: tuple[float, float] = (0.7, 200.0)
    angle: tuple[float, float] = (4.0, 176.0)


DEFAULT_LIMITS = Limits()


@lru_cache(maxsize=8)
def _shifts(reach: tuple[int, int, int]) -> tuple[np.ndarray, int]:
    """All integer lattice shifts within +-reach, (M, 3), and the row of the zero shift."""
    shifts = np.array(list(product(*(range(-n, n + 1) for n in reach))), dtype=float)
    return shifts, len(shifts) // 2


@lru_cache(maxsize=64)
def _pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of all pairs i < j of n atoms."""
    first, second = np.triu_indices(n, k=1)
    return first, second


def _shortest(matrix: np.ndarray, frac: np.ndarray, reach: tuple[int, int, int]) -> float:
    """Shortest distance over image shifts within +-reach, Å; each atom meets its own images too."""
    shifts, zero = _shifts(reach)
    first, second = _pairs(len(frac))
    delta = frac[second] - frac[first]
    delta -= np.round(delta)
    images = shifts @ matrix
    own = np.einsum("ij,ij->i", images, images)
    own[zero] = np.inf
    shortest = float(own.min())
    if len(delta):
        vectors = delta @ matrix
        squared = (
            np.einsum("ij,ij->i", vectors, vectors)[:, None]
            + 2.0 * vectors @ images.T
            + np.where(np.isinf(own), 0.0, own)[None, :]
        )
        shortest = min(shortest, float(squared.min()))
    return float(np.sqrt(max(shortest, 0.0)))


def minimum_distance(lattice: np.ndarray, frac_coords: np.ndarray) -> float:
    """Shortest distance between two atoms of a periodic crystal, own images included, Å.

    Exact for any cell: with h_i the spacing of the lattice planes across axis i, no shift beyond
    d / h_i + 1/2 can beat a distance d already found, so the search is widened only where a skew
    or thin cell needs it.

    Args:
        lattice: (3, 3), row vectors, Å, right or left handed, of non-zero volume.
        frac_coords: (N, 3), fractional, any range.

    Returns:
        Å; infinity for a crystal without atoms. Below about 1e-6 Å rounding dominates.
    """
    matrix = np.asarray(lattice, dtype=float)
    frac = np.asarray(frac_coords, dtype=float).reshape(-1, 3)
    if len(frac) == 0:
        return float("inf")
    spacing = 1.0 / np.linalg.norm(np.linalg.inv(matrix), axis=0)
    distance = _shortest(matrix, frac, (1, 1, 1))
    needed = np.floor(distance / spacing + 0.5).astype(int)
    if (needed > 1).any():
        n_a, n_b, n_c = (int(n) for n in np.clip(needed, 1, 30))
        distance = _shortest(matrix, frac, (n_a, n_b, n_c))
    return distance


def check_cell(
    lattice: np.ndarray, frac_coords: np.ndarray, limits: Limits = DEFAULT_LIMITS
) -> str:
    """Why these arrays are no valid crystal; empty if they are one.

    Args:
        lattice: (3, 3), row vectors, Å.
        frac_coords: (N, 3), fractional.
        limits: bounds.
    """
    matrix = np.asarray(lattice, dtype=float)
    frac = np.asarray(frac_coords, dtype=float).reshape(-1, 3)
    if len(frac) == 0:
        return "no atoms"
    if not (np.isfinite(matrix).all() and np.isfinite(frac).all()):
        return "non-finite: the cell or a coordinate is not a finite number"
    volume = abs(float(np.linalg.det(matrix)))
    if not volume > limits.min_volume:
        return f"cell volume: {volume:.3g} Å³, at most {limits.min_volume:g}"
    lengths = np.linalg.norm(matrix, axis=1)
    low, high = limits.length
    if lengths.min() < low or lengths.max() > high:
        return f"cell length: {lengths.round(3).tolist()} Å outside {low:g} to {high:g}"
    unit = matrix / lengths[:, None]
    cosines = np.array([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]])
    angles = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
    low, high = limits.angle
    if angles.min() < low or angles.max() > high:
        return f"cell angle: {angles.round(2).tolist()} degrees outside {low:g} to {high:g}"
    per_atom = volume / len(frac)
    low, high = limits.volume_per_atom
    if not low <= per_atom <= high:
        return f"volume per atom: {per_atom:.3g} Å³ outside {low:g} to {high:g}"
    if limits.min_distance < 0:
        return ""
    distance = minimum_distance(matrix, frac)
    if not distance > limits.min_distance:
        return f"distance: two atoms {distance:.3f} Å apart, at most {limits.min_distance:g}"
    return ""


def check(structure: Structure | None, limits: Limits = DEFAULT_LIMITS) -> str:
    """Why a crystal is not valid; empty if it is.

    The reason begins with a short class before the colon ("distance", "cell volume", ...), by
    which funnels count. ``None`` (a crystal that could not be decoded) is "undecodable".
    """
    if structure is None:
        return "undecodable"
    return check_cell(structure.lattice.matrix, structure.frac_coords, limits)


def check_all(structures: Sequence[Structure | None], limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """:func:`check` of each, order kept."""
    return [check(structure, limits) for structure in structures]


def charge_balance(
    compositions: Iterable[Composition | Structure | str | None],
    *,
    alloys: bool = True,
    pauling: bool = True,
    oxidation_states: str | None = None,
) -> list[bool | None]:
    """Has each composition a charge-neutral set of oxidation states, by SMACT.

    Davies et al., "SMACT: Semiconducting Materials by Analogy and Chemical Theory", JOSS 4 (2019)
    1361. Verdicts are kept by reduced formula, since the test is slow for many elements.

    Args:
        compositions: compositions, crystals or formulas; ``None`` gives ``None``.
        alloys: accept any composition of metals only. Without it most real intermetallics count
            as unbalanced.
        pauling: require anions to be more electronegative than cations.
        oxidation_states: name of a SMACT set of oxidation states ("smact14", "icsd24", ...);
            SMACT's default without it.

    Returns:
        A verdict for each, order kept.

    Raises:
        MissingDependencyError: SMACT is not installed.
    """
    try:
        import smact.screening  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "Charge balance needs SMACT, which is not installed.",
            str(error),
            'Install it with: pip install "nucleate[eval]"',
        ) from error
    return [
        None
        if item is None
        else _smact_verdict(_reduced_formula(item), alloys, pauling, oxidation_states)
        for item in compositions
    ]


def _reduced_formula(item: Composition | Structure | str) -> str:
    """Reduced formula of a composition, crystal or formula."""
    from pymatgen.core import Composition

    if isinstance(item, str):
        return Composition(item).reduced_formula
    composition = item if isinstance(item, Composition) else item.composition
    return composition.element_composition.reduced_formula


@lru_cache(maxsize=100_000)
def _smact_verdict(formula: str, alloys: bool, pauling: bool, states: str | None) -> bool | None:
    """SMACT's verdict on one reduced formula; None where it knows an element not at all."""
    import warnings

    from smact.screening import smact_validity

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(
                smact_validity(
                    formula,
                    use_pauling_test=pauling,
                    include_alloys=alloys,
                    oxidation_states_set=states,
                )
            )
    except (KeyError, NameError, TypeError):
        return None
