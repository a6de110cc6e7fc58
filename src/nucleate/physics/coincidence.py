"""The smallest area on which a film and a substrate repeat together.

Zur and McGill, J. Appl. Phys. 55, 378 (1984), by pymatgen's functions and with its tolerances. The
answer is that of its ``SubstrateAnalyzer``, found without slabs: a facet is the plane lattice of
the vectors in it, and superlattices are tried by growing area, so that the first match is the
smallest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from pymatgen.analysis.interfaces.zsl import gen_sl_transform_matrices, reduce_vectors

from nucleate.errors import InputError

if TYPE_CHECKING:
    from pymatgen.core import Structure

Facet = tuple[int, int, int]

AREA_TOLERANCE = 0.09  # of the ratio of areas
LENGTH_TOLERANCE = 0.03
ANGLE_TOLERANCE = 0.01
SYMPREC = 0.1  # Å, of the film's conventional cell


@dataclass(frozen=True)
class Coincidence:
    """Where a film fits a substrate.

    Attributes:
        area: Å², of the film's superlattice.
        film: Miller indices of the film's facet in its conventional cell.
        substrate: those of the substrate's.
        mismatch: the larger relative difference of the two lengths.
    """

    area: float
    film: Facet
    substrate: Facet
    mismatch: float


def facets(highest: int) -> list[Facet]:
    """All facets, each once, of Miller indices up to the highest."""
    found: list[Facet] = []
    indices = range(-highest, highest + 1)
    for hkl in product(indices, indices, indices):
        if any(hkl) and np.gcd.reduce(hkl) == 1 and next(i for i in hkl if i) > 0:
            found.append(hkl)
    return sorted(found, key=lambda hkl: (sum(map(abs, hkl)), [-i for i in hkl]))


def conventional_lattice(structure: Structure, symprec: float = SYMPREC) -> np.ndarray:
    """(3, 3) rows, Å, of the conventional standard cell (Setyawan and Curtarolo 2010).

    Raises:
        InputError: no symmetry can be found.
    """
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer, SymmetryUndeterminedError

    try:
        analyser = SpacegroupAnalyzer(structure, symprec=symprec)
    except SymmetryUndeterminedError as error:
        raise InputError("no symmetry could be found", str(error)) from error
    return np.array(analyser.get_conventional_standard_structure().lattice.matrix)


def surface_vectors(lattice: np.ndarray, facet: Facet) -> np.ndarray:
    """(2, 3) Å, the reduced vectors of a facet's plane lattice.

    Args:
        lattice: (3, 3) rows, Å.
        facet: Miller indices in that cell.
    """
    h, k, _ = facet
    g = int(np.gcd(h, k))
    if not g:
        basis = np.array([[1, 0, 0], [0, 1, 0]])
    else:
        # All integer solutions of h u + k v + l w = 0: one with w = 0, one with the least w.
        u, v = _bezout(h // g, k // g)
        l_ = facet[2]
        basis = np.array([[k // g, -(h // g), 0], [-l_ * u, -l_ * v, g]])
    return np.array(reduce_vectors(*(basis @ lattice)))


def _bezout(a: int, b: int) -> tuple[int, int]:
    """Integers (u, v) with a u + b v = 1 for coprime a and b."""
    u, v, s, t = 1, 0, 0, 1
    while b:
        q, (a, b) = a // b, (b, a % b)
        u, v, s, t = s, t, u - q * s, v - q * t
    return u * a, v * a


def smallest_coincidence(
    film: np.ndarray,
    substrate: np.ndarray,
    film_facets: Sequence[Facet],
    substrate_facets: Sequence[Facet],
    max_area: float = 400.0,
) -> Coincidence | None:
    """The match of the least area, and among those of the least mismatch.

    Args:
        film: (3, 3) rows, Å, the film's cell.
        substrate: (3, 3) rows, Å, the substrate's cell.
        film_facets: facets of the film.
        substrate_facets: facets of the substrate.
        max_area: Å², of the superlattices that are tried.

    Returns:
        The match; None if there is none.
    """
    films = _distinct(film, film_facets)
    substrates = _distinct(substrate, substrate_facets)
    pairs = [
        (i * _area(f), i, j, f_facet, f, s_facet, s)
        for f_facet, f in films.items()
        for s_facet, s in substrates.items()
        for i, j in _multiples(_area(f), _area(s), max_area)
    ]
    best: Coincidence | None = None
    shapes: dict[tuple[Facet, int], np.ndarray] = {}
    for area, i, j, f_facet, f, s_facet, s in sorted(pairs, key=lambda pair: pair[0]):
        if best is not None and area > best.area * (1 + 1e-6):
            break
        if (f_facet, i) not in shapes:
            shapes[f_facet, i] = _shapes(f, i)
        mismatch = _match(shapes[f_facet, i], _known_shapes(s.tobytes(), j))
        if mismatch is not None and (best is None or mismatch < best.mismatch - 1e-9):
            best = Coincidence(
                float(area if best is None else best.area), f_facet, s_facet, mismatch
            )
    return best


def _distinct(lattice: np.ndarray, wanted: Sequence[Facet]) -> dict[Facet, np.ndarray]:
    """Surface vectors by facet, without facets whose plane lattice is that of one before."""
    found: dict[Facet, np.ndarray] = {}
    seen: set[tuple[float, ...]] = set()
    for facet in wanted:
        vectors = surface_vectors(lattice, facet)
        shape = tuple(np.round(_shape(vectors), 4).tolist())
        if shape not in seen:
            seen.add(shape)
            found[facet] = vectors
    return found


def _multiples(film: float, substrate: float, most: float) -> Iterator[tuple[int, int]]:
    """Numbers of film and substrate cells of about equal area."""
    i, j = np.meshgrid(
        np.arange(1, int(np.ceil(most / film))),
        np.arange(1, int(np.ceil(most / substrate))),
        indexing="ij",
    )
    near = (np.abs(film / substrate - j / i) < AREA_TOLERANCE) | (
        np.abs(substrate / film - i / j) < AREA_TOLERANCE
    )
    return zip(i[near].tolist(), j[near].tolist(), strict=True)


def _area(vectors: np.ndarray) -> float:
    return float(np.linalg.norm(np.cross(*vectors)))


def _shape(vectors: np.ndarray) -> tuple[float, float, float]:
    """Both lengths, Å, and the angle, radians."""
    a, b = vectors
    return (
        float(np.linalg.norm(a)),
        float(np.linalg.norm(b)),
        float(np.arctan2(_area(vectors), a @ b)),
    )


def _shapes(vectors: np.ndarray, multiple: int) -> np.ndarray:
    """(K, 3) lengths and angle of all superlattices of so many cells."""
    return np.array(
        [
            _shape(np.array(reduce_vectors(*(matrix @ vectors))))
            for matrix in gen_sl_transform_matrices(multiple)
        ]
    )


@lru_cache(maxsize=2000)
def _known_shapes(vectors: bytes, multiple: int) -> np.ndarray:
    """:func:`_shapes` of a substrate, which is the same for all films."""
    return _shapes(np.frombuffer(vectors).reshape(2, 3), multiple)


def _match(film: np.ndarray, substrate: np.ndarray) -> float | None:
    """Least mismatch of lengths among superlattices that match, None if none does."""
    off = np.abs(substrate[None] / film[:, None] - 1)
    length = off[:, :, :2].max(2)
    fits = (length <= LENGTH_TOLERANCE) & (off[:, :, 2] <= ANGLE_TOLERANCE)
    return float(length[fits].min()) if fits.any() else None
