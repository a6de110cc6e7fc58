"""Write ``src/nucleate/data/normalizers.npz``: equivalent descriptions in each space group.

For each of the 230 groups this lists the affine maps x -> P x + p, one for each coset of the
group, that carry the group onto itself (International Tables, Vol. A, section 3.5), and where
each sends every Wyckoff position. P runs over the point operations of the lattice that keep the
form of the cell: all of the holohedry for tetragonal, trigonal, hexagonal and cubic lattices,
signed permutations of the axes for orthorhombic ones, sign changes and the exchange of a and c
that keep beta for monoclinic ones, and the inversion for triclinic ones. p runs over the grid of
1/24; along directions in which the origin is free (polar groups), only over the steps that the
group's own operations make there, since the continuous part is chosen by whoever uses the table.

Usage: ``python scripts/generate_normalizers.py [output.npz]`` (a minute).
"""

from __future__ import annotations

import itertools
import logging
import sys
from pathlib import Path

import numpy as np

from nucleate.structures.symmetry import N_LETTERS, N_SPACE_GROUPS, TRANSLATION_UNIT, tables

UNIT = TRANSLATION_UNIT
DEFAULT_OUTPUT = Path(__file__).parents[1] / "src" / "nucleate" / "data" / "normalizers.npz"

Affine = tuple[np.ndarray, np.ndarray]


def signed_permutations() -> list[np.ndarray]:
    """All 48 matrices with one entry of +1 or -1 in each row and column."""
    return [
        np.diag(signs) @ np.eye(3, dtype=int)[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]


def hexagonal_holohedry() -> list[np.ndarray]:
    """The 24 operations of 6/mmm in hexagonal axes."""
    generators = [
        np.array([[1, -1, 0], [1, 0, 0], [0, 0, 1]]),
        np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]]),
        -np.eye(3, dtype=int),
    ]
    found = {np.eye(3, dtype=int).tobytes(): np.eye(3, dtype=int)}
    frontier = list(found.values())
    while frontier:
        new = [a @ b for a in frontier for b in generators]
        frontier = [m for m in {m.tobytes(): m for m in new}.values() if m.tobytes() not in found]
        found |= {m.tobytes(): m for m in frontier}
    return list(found.values())


def lattice_operations(group: int) -> list[np.ndarray]:
    """Point operations that keep the form of the cell, lengths of free axes permuted."""
    permutations = signed_permutations()
    if group <= 2:
        return [np.eye(3, dtype=int), -np.eye(3, dtype=int)]
    if group <= 15:
        return [
            p
            for p in permutations
            if abs(p[1, 1]) == 1 and p[[0, 0, 2, 2], [0, 2, 0, 2]].sum() in (2, -2)
        ]
    if group <= 74 or group >= 195:
        return permutations
    if group <= 142:
        return [p for p in permutations if abs(p[2, 2]) == 1]
    return hexagonal_holohedry()


def key(rotation: np.ndarray, translation: np.ndarray) -> bytes:
    """Identity of an operation modulo lattice translations of the conventional cell."""
    return np.r_[rotation.ravel(), translation % UNIT].astype(np.int8).tobytes()


def free_origin(rotations: np.ndarray) -> np.ndarray:
    """(3,) bool, axes along which all operations leave the origin free."""
    like_identity = rotations == np.eye(3, dtype=int)
    free = like_identity.all((0, 2)) & like_identity.all((0, 1))
    dimension = round(np.trace(rotations.sum(0)) / len(rotations))
    if free.sum() != dimension:
        raise ValueError(f"the {dimension} free directions of the origin are not along axes")
    return free


def origins(point: np.ndarray, rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """(M, 3) int, all p in 1/24 for which x -> P x + p carries the group onto itself."""
    inverse = np.round(np.linalg.inv(point)).astype(int)
    images = point @ rotations @ inverse
    by_rotation: dict[bytes, list[np.ndarray]] = {}
    for rotation, translation in zip(rotations, translations, strict=True):
        by_rotation.setdefault(rotation.tobytes(), []).append(translation)
    free = free_origin(rotations)
    grids = [np.arange(UNIT)] * 3
    if free.any():
        steps = np.unique(np.r_[0, (translations[:, free] % UNIT).ravel()])
        step = np.gcd.reduce(np.r_[UNIT, steps])
        grids = [np.arange(0, UNIT, step) if f else np.arange(UNIT) for f in free]
    p = np.stack(np.meshgrid(*grids, indexing="ij"), axis=-1).reshape(-1, 3)
    for image, translation in zip(images, translations, strict=True):
        allowed = by_rotation.get(np.ascontiguousarray(image).tobytes())
        if allowed is None:
            return p[:0]
        shifted = point @ translation + p @ (np.eye(3, dtype=int) - image).T
        fits = [((shifted - t) % UNIT == 0).all(1) for t in allowed]
        p = p[np.any(fits, axis=0)]
    return p


def within_steps(p: np.ndarray, translations: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Keep shifts whose free part is one that the group's operations make."""
    made = {tuple(t) for t in (translations[:, free] % UNIT).tolist()}
    return p[[tuple(v) in made for v in (p[:, free] % UNIT).tolist()]] if free.any() else p


def cosets(group: int) -> list[Affine]:
    """One map of each coset of the group in its normaliser, the identity first."""
    rotations, translations = (a.astype(int) for a in general(group))
    free = free_origin(rotations)
    seen: set[bytes] = set()
    found: list[Affine] = []
    points = sorted(lattice_operations(group), key=lambda m: (-np.trace(m), m.tolist()))
    for point in points:
        for p in within_steps(origins(point, rotations, translations), translations, free):
            if key(point, p) in seen:
                continue
            found.append((point, p))
            for rotation, translation in zip(rotations, translations, strict=True):
                seen.add(key(rotation @ point, rotation @ p + translation))
    return found


def general(group: int) -> Affine:
    """General operations, translations in 1/24."""
    table = tables()
    letter = int(table.n_letters[group - 1])
    first, m = table.first[group - 1, letter], table.multiplicity[group - 1, letter]
    return table.rotation[first : first + m], table.translation[first : first + m]


def transfer(group: int, letter: int, coset: Affine) -> tuple[int, np.ndarray, np.ndarray]:
    """Where a map sends the first operation of a position.

    Returns:
        The new letter, and the map (rotation, translation in 1/24) from a point on the first
        operation of ``letter`` to an equivalent point on that of the new letter.
    """
    table = tables()
    first = table.first[group - 1, letter]
    rotation = coset[0] @ table.rotation[first].astype(int)
    translation = coset[0] @ table.translation[first].astype(int) + coset[1]
    rotations, translations = (a.astype(int) for a in general(group))
    images_r = rotations @ rotation
    images_t = rotations @ translation + translations
    same = np.flatnonzero(
        (table.multiplicity[group - 1] == table.multiplicity[group - 1, letter])
        & (table.dof[group - 1] == table.dof[group - 1, letter])
        & (table.multiplicity[group - 1] > 0)
    )
    for other in same.tolist():
        o = table.first[group - 1, other]
        r0, t0 = table.rotation[o].astype(int), table.translation[o].astype(int)
        fits = (r0 @ images_r == images_r).all((1, 2))
        fits &= ((images_t @ r0.T + t0 - images_t) % UNIT == 0).all(1)
        if fits.any():
            k = int(np.argmax(fits))
            return other, images_r[k], images_t[k] % UNIT
    raise ValueError(f"group {group}: position {letter} is sent to none by {coset}")


def main(output: Path) -> None:
    """Collect the cosets of all groups and write them."""
    counts, points, shifts, frees = [], [], [], []
    letters, transfer_r, transfer_t, transfer_first = [], [], [], []
    total = 0
    for group in range(1, N_SPACE_GROUPS + 1):
        found = cosets(group)
        n = int(tables().n_letters[group - 1])
        for coset in found:
            row = np.zeros(N_LETTERS, np.int8)
            for letter in range(1, n + 1):
                row[letter], rotation, translation = transfer(group, letter, coset)
                transfer_r.append(rotation)
                transfer_t.append(translation)
            if sorted(row[1 : n + 1]) != list(range(1, n + 1)):
                raise ValueError(f"group {group}: letters are not permuted by {coset}: {row}")
            letters.append(row)
            transfer_first.append(total)
            total += n
            points.append(coset[0])
            shifts.append(coset[1])
        counts.append(len(found))
        frees.append(free_origin(general(group)[0].astype(int)))
        logging.info("group %d: %d cosets", group, len(found))
    np.savez_compressed(
        output,
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        rotation=np.array(points, np.int8),
        translation=np.array(shifts, np.int8),
        free_origin=np.array(frees),
        letter=np.array(letters),
        transfer_first=np.array(transfer_first, np.int32),
        transfer_rotation=np.array(transfer_r, np.int8),
        transfer_translation=np.array(transfer_t, np.int8),
    )
    logging.info("%d maps, %d bytes: %s", sum(counts), output.stat().st_size, output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUTPUT)
