"""Crystal graphs for message-passing potentials, reduced by symmetry, many crystals at once.

A potential that sees only distances and angles gives equal features to atoms, bonds and angles
with equal surroundings. So one member of each class is enough, with a count. Classes are found
without a symmetry finder, by colour refinement (Weisfeiler and Leman 1968): a 64-bit colour of
every atom and short bond is hashed again and again with the multiset of its neighbours' colours,
distances and angles. Rock salt needs two atoms and about twenty messages instead of hundreds.

Distances that differ by less than :data:`LENGTH_TOLERANCE` inside one crystal are one distance,
their mean. By symmetry the energy is then in error only to second order in that tolerance.

Conventions: lattice vectors are rows, Å; a bond is stored once and has two directions; an angle
row belongs to an ordered pair of short bonds at one atom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nucleate.physics.cells import Bonds, Cell

LENGTH_TOLERANCE = 3e-5  # Å
ANGLE_TOLERANCE = 3e-5  # radians
COSINE_SCALE = 1.0 - 1e-6  # keeps acos differentiable at 0 and 180 degrees, as CHGNet does
N_LAYERS = 4  # message-passing layers for which the energy of the classes is exact

_K = tuple(
    np.uint64(k)
    for k in (
        0x9E3779B97F4A7C15,
        0xBF58476D1CE4E5B9,
        0x94D049BB133111EB,
        0xD6E8FEB86659FD93,
        0xA0761D6478BD642F,
        0xE7037ED1A0B428DB,
    )
)
_SHIFT = np.uint64(29)


@dataclass(frozen=True)
class ReducedGraph:
    """Classes of atoms, bonds and angles of a batch of crystals, and what is in each class.

    B crystals, N atoms, E bonds, P unordered pairs of short bond directions. Bond classes are
    numbered with the short ones first, so an index below ``n_short`` is a short class.

    Attributes:
        n_crystals: B.
        atom_class: (N,) int64 class of each atom.
        atom_number: (A,) int64 atomic number of each atom class.
        atom_crystal: (A,) int64 crystal of each atom class.
        atom_count: (A,) int64 atoms in each class.
        bond_length: (U,) float64, Å, of each bond class.
        n_short: number of short bond classes.
        message_centre, message_neighbour, message_bond: (M,) int64 classes of the messages that
            an atom of each class receives, sorted by centre.
        message_count: (M,) int64 equal messages.
        angle_first, angle_second: (T,) int64 short bond classes, sorted by first.
        angle_centre: (T,) int64 atom class.
        angle: (T,) float64 radians, :data:`COSINE_SCALE` included.
        angle_count: (T,) int64 equal angles at one bond of the first class.
        members: what maps gradients of classes back to all atoms; None unless asked for.
    """

    n_crystals: int
    atom_class: np.ndarray
    atom_number: np.ndarray
    atom_crystal: np.ndarray
    atom_count: np.ndarray
    bond_length: np.ndarray
    n_short: int
    message_centre: np.ndarray
    message_neighbour: np.ndarray
    message_bond: np.ndarray
    message_count: np.ndarray
    angle_first: np.ndarray
    angle_second: np.ndarray
    angle_centre: np.ndarray
    angle: np.ndarray
    angle_count: np.ndarray
    members: Members | None = None


@dataclass(frozen=True)
class Members:
    """Every bond and angle of a batch with its class.

    Attributes:
        crystal: (E,) int64 crystal of each bond.
        first, second: (E,) int64 atoms of each bond, numbered through the batch.
        vector: (E, 3) float64 Å.
        bond_class: (E,) int64.
        pair_bond: (P, 2) int64 the two short bonds of each unordered pair.
        pair_sign: (P, 2) float64, 1 where the bond leaves the centre, -1 where it arrives.
        pair_class: (P, 2) int64 angle rows of (first, second) and (second, first).
    """

    crystal: np.ndarray
    first: np.ndarray
    second: np.ndarray
    vector: np.ndarray
    bond_class: np.ndarray
    pair_bond: np.ndarray
    pair_sign: np.ndarray
    pair_class: np.ndarray


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble (n,) uint64 in place (the finaliser of splitmix64, shortened)."""
    x ^= x >> _SHIFT
    x *= _K[1]
    x ^= x >> _SHIFT
    x *= _K[2]
    x ^= x >> _SHIFT
    return x


def _cluster(value: np.ndarray, group: np.ndarray, tolerance: float) -> tuple[np.ndarray, ...]:
    """Merge nearly equal values inside each group.

    Args:
        value: (n,) float64 in [0, 8).
        group: (n,) int64.
        tolerance: values nearer than this to the next one are merged; a chain of them is cut
            at eight tolerances, so that a continuum isn't one cluster.

    Returns:
        (n,) int64 cluster of each value, and (clusters,) float64 means.
    """
    if not len(value):
        return np.zeros(0, np.int64), np.zeros(0)
    key = value + 8.0 * group
    order = np.argsort(key)
    ordered = key[order]
    new = np.empty(len(value), dtype=bool)
    new[0] = True
    np.greater(np.diff(ordered), tolerance, out=new[1:])
    start = np.flatnonzero(new)
    width = np.append(ordered[start[1:] - 1], ordered[-1]) - ordered[start]
    if width.max() > 8 * tolerance:
        chain = np.cumsum(new) - 1
        piece = ((ordered - ordered[start][chain]) / (8 * tolerance)).astype(np.int64)
        new[1:] |= np.diff(piece) > 0
        start = np.flatnonzero(new)
    cluster = np.empty(len(value), dtype=np.int64)
    cluster[order] = np.cumsum(new) - 1
    count = np.diff(np.append(start, len(value)))
    mean = np.add.reduceat(value[order], start) / count
    return cluster, mean


def _first_seen(key: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes of equal keys in order of first appearance: (first index, inverse, count)."""
    _, first, inverse, count = np.unique(
        key, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.argsort(first)
    position = np.empty_like(rank)
    position[rank] = np.arange(len(rank))
    return first[rank], position[inverse], count[rank]


@dataclass
class _Flat:
    """The bonds of a batch laid end to end, short ones first, with colours of lengths."""

    crystal: np.ndarray
    first: np.ndarray
    second: np.ndarray
    vector: np.ndarray
    length: np.ndarray
    n_short: int
    colour: np.ndarray


def _flatten(bonds: Sequence[Bonds], n_atoms: np.ndarray) -> _Flat:
    """Concatenate the bonds of B crystals; n_atoms is (B,)."""
    offset = np.concatenate([[0], np.cumsum(n_atoms)[:-1]])
    n_short = np.array([b.n_short for b in bonds])
    n_long = np.array([len(b.first) for b in bonds]) - n_short
    index = np.arange(len(bonds))
    crystal = np.concatenate([np.repeat(index, n_short), np.repeat(index, n_long)])

    def join(name: str) -> np.ndarray:
        parts = [getattr(b, name) for b in bonds]
        return np.concatenate(
            [p[: b.n_short] for p, b in zip(parts, bonds, strict=True)]
            + [p[b.n_short :] for p, b in zip(parts, bonds, strict=True)]
        )

    shift = offset[crystal]
    total = int(n_short.sum())
    cluster, mean = _cluster(join("length"), crystal, LENGTH_TOLERANCE)
    colour = _mix((cluster.astype(np.uint64) + np.uint64(1)) * _K[0])
    return _Flat(
        crystal,
        join("first") + shift,
        join("second") + shift,
        join("vector"),
        mean[cluster],
        total,
        colour,
    )


@dataclass
class _Pairs:
    """Unordered pairs of short directed bonds at one atom, and the angle between them."""

    first: np.ndarray  # (P,) directed bond: index below n_short leaves, above arrives
    second: np.ndarray
    centre: np.ndarray
    angle: np.ndarray
    colour: np.ndarray


def _pairs(flat: _Flat) -> _Pairs:
    n = flat.n_short
    centre = np.concatenate([flat.first[:n], flat.second[:n]])
    order = np.argsort(centre, kind="stable")
    ordered = centre[order]
    degree = np.bincount(ordered) if len(ordered) else np.zeros(0, np.int64)
    end = np.cumsum(degree)[ordered] if len(ordered) else ordered
    position = np.arange(len(ordered))
    later = end - position - 1  # partners after this one at the same atom
    left = np.repeat(position, later)
    ahead = np.arange(len(left)) - np.repeat(np.cumsum(later) - later, later)
    first, second = order[left], order[left + 1 + ahead]
    vector = flat.vector[:n] / np.sqrt((flat.vector[:n] ** 2).sum(1))[:, None]
    vector = np.concatenate([vector, -vector])
    cosine = np.einsum("pk,pk->p", vector[first], vector[second])
    angle = np.arccos(np.clip(cosine, -1.0, 1.0) * COSINE_SCALE)
    at = centre[first]
    cluster, mean = _cluster(angle, flat.crystal[first % n] if n else first, ANGLE_TOLERANCE)
    colour = _mix((cluster.astype(np.uint64) + np.uint64(1)) * _K[3])
    return _Pairs(first, second, at, mean[cluster] if len(cluster) else angle, colour)


def _refine(
    numbers: np.ndarray, atom_crystal: np.ndarray, flat: _Flat, pairs: _Pairs, rounds: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Colours of (N,) atoms and (E,) bonds, uint64, after some rounds or, for None, when stable."""
    n, n_atoms = flat.n_short, len(numbers)
    atom = _mix((numbers + 128 * (atom_crystal + 1)).astype(np.uint64) * _K[0])
    bond = flat.colour.copy()
    first, second = (pairs.first % n, pairs.second % n) if n else (pairs.first, pairs.second)
    done, n_classes = 0, (0, 0)
    while rounds is None or done < rounds:
        weighted, total = atom * _K[4], np.zeros(n_atoms, np.uint64)
        np.add.at(total, flat.first, _mix(weighted[flat.second] + bond))
        np.add.at(total, flat.second, _mix(weighted[flat.first] + bond))
        atom = _mix(atom + total)
        if n:
            total = (atom[flat.first[:n]] + atom[flat.second[:n]]) * _K[3]
            base = pairs.colour + (atom * _K[5])[pairs.centre]
            weighted = bond[:n] * _K[4]
            np.add.at(total, first, _mix(base + weighted[second]))
            np.add.at(total, second, _mix(base + weighted[first]))
            bond[:n] = _mix(bond[:n] + total)
        done += 1
        if rounds is None and done >= 3:
            before, n_classes = n_classes, (len(np.unique(atom)), len(np.unique(bond[:n])))
            if n_classes == before:
                break
    bond = _mix(bond + (atom[flat.first] + atom[flat.second]) * _K[3])
    return atom, bond


def _messages(
    flat: _Flat, atom: np.ndarray, bond: np.ndarray, is_representative: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distinct messages into representative atoms: (centre, neighbour, bond, count).

    The first three are indices of atoms and bonds, not of classes.
    """
    forward = np.flatnonzero(is_representative[flat.first])
    backward = np.flatnonzero(is_representative[flat.second])
    edge = np.concatenate([forward, backward])
    centre = np.concatenate([flat.first[forward], flat.second[backward]])
    neighbour = np.concatenate([flat.second[forward], flat.first[backward]])
    key = _mix(atom[centre] * _K[4] + atom[neighbour] * _K[5] + bond[edge])
    first, _, count = _first_seen(key)
    return centre[first], neighbour[first], edge[first], count


def reduce_graphs(
    cells: Sequence[Cell], bonds: Sequence[Bonds], *, members: bool = False
) -> ReducedGraph:
    """Find the classes of a batch of crystals.

    Args:
        cells: B crystals.
        bonds: their bonds, from :func:`nucleate.physics.cells.find_bonds`.
        members: keep what gradients with respect to all atoms need.

    Returns:
        The reduced graph. It depends on the other crystals of the batch only in numbering.
    """
    n_atoms = np.array([len(c.numbers) for c in cells])
    numbers = np.concatenate([c.numbers for c in cells])
    atom_crystal = np.repeat(np.arange(len(cells)), n_atoms)
    flat = _flatten(bonds, n_atoms)
    pairs = _pairs(flat)
    # Four layers of messages can't see further than four rounds; their gradients can.
    atom, bond = _refine(numbers, atom_crystal, flat, pairs, None if members else N_LAYERS)
    atom_first, atom_class, atom_count = _first_seen(atom)
    is_representative = np.zeros(len(numbers), dtype=bool)
    is_representative[atom_first] = True
    centre, neighbour, edge, count = _messages(flat, atom, bond, is_representative)
    order = np.argsort(atom_class[centre], kind="stable")
    centre, neighbour, edge, count = centre[order], neighbour[order], edge[order], count[order]

    n = flat.n_short
    used = np.concatenate([np.sort(edge[edge < n]), edge[edge >= n]])
    bond_first, bond_inverse, _ = _first_seen(bond[used])
    representative = used[bond_first]  # one bond of each class, short classes first
    n_short = int((representative < n).sum())
    used_class = np.empty(len(flat.first), dtype=np.int64)
    used_class[used] = bond_inverse
    sorted_colour = np.sort(bond[representative])
    class_of_sorted = np.argsort(bond[representative])

    def class_of(colour: np.ndarray) -> np.ndarray:
        return class_of_sorted[np.searchsorted(sorted_colour, colour)]

    angles, pair_key = _angles(flat, pairs, atom, bond, representative[:n_short])
    row_first, row_second, row_centre, row_angle, row_count, row_key = angles
    angle_first = class_of(bond[row_first])
    order = np.argsort(angle_first, kind="stable")
    found = None
    if members:
        found = _members(flat, pairs, class_of(bond), row_key[order], pair_key)
    return ReducedGraph(
        n_crystals=len(cells),
        atom_class=atom_class,
        atom_number=numbers[atom_first],
        atom_crystal=atom_crystal[atom_first],
        atom_count=atom_count,
        bond_length=flat.length[representative],
        n_short=n_short,
        message_centre=atom_class[centre],
        message_neighbour=atom_class[neighbour],
        message_bond=used_class[edge],
        message_count=count,
        angle_first=angle_first[order],
        angle_second=class_of(bond[row_second])[order],
        angle_centre=atom_class[row_centre][order],
        angle=row_angle[order],
        angle_count=row_count[order],
        members=found,
    )


def _angles(
    flat: _Flat, pairs: _Pairs, atom: np.ndarray, bond: np.ndarray, representative: np.ndarray
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, np.ndarray]]:
    """Distinct angles at representative short bonds, and the keys of all ordered pairs."""
    n = flat.n_short
    if not len(pairs.first):
        none = np.zeros(0, np.int64)
        empty = np.zeros(0, np.uint64)
        return (none, none, none, np.zeros(0), none, empty), (empty, empty)
    first, second = pairs.first % n, pairs.second % n
    base = pairs.colour + atom[pairs.centre] * _K[5]
    colour4, colour0 = bond[:n] * _K[4], bond[:n] * _K[0]
    forward = _mix(base + colour4[first] + colour0[second])
    backward = _mix(base + colour4[second] + colour0[first])
    wanted = np.zeros(n, dtype=bool)
    wanted[representative] = True
    f, b = np.flatnonzero(wanted[first]), np.flatnonzero(wanted[second])
    key = np.concatenate([forward[f], backward[b]])
    row_first = np.concatenate([first[f], second[b]])
    row_second = np.concatenate([second[f], first[b]])
    row_pair = np.concatenate([f, b])
    at, _, count = _first_seen(key)
    pair = row_pair[at]
    rows = (row_first[at], row_second[at], pairs.centre[pair], pairs.angle[pair], count, key[at])
    return rows, (forward, backward)


def _members(
    flat: _Flat,
    pairs: _Pairs,
    bond_class: np.ndarray,
    row_key: np.ndarray,
    pair_key: tuple[np.ndarray, np.ndarray],
) -> Members:
    n = flat.n_short
    order = np.argsort(row_key)
    ordered = row_key[order]

    def row(key: np.ndarray) -> np.ndarray:
        return order[np.searchsorted(ordered, key)] if len(order) else np.zeros(0, np.int64)

    pair = np.stack([pairs.first, pairs.second], 1)
    return Members(
        crystal=flat.crystal,
        first=flat.first,
        second=flat.second,
        vector=flat.vector,
        bond_class=bond_class,
        pair_bond=pair % n if n else pair,
        pair_sign=np.where(pair < n, 1.0, -1.0),
        pair_class=np.stack([row(pair_key[0]), row(pair_key[1])], 1),
    )
