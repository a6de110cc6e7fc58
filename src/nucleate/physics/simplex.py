"""Many small linear programmes at once: the lower convex hull above given points.

The energy of the hull at a composition x is the cheapest mixture of the known phases that has
this composition,

    minimise  sum_p w_p e_p   subject to   sum_p w_p a_p = x,   w >= 0,

with one equation for each element (Ong et al., Chem. Mater. 20, 1798 (2008), treat the same
problem through the facets of the hull). Each programme has few equations (the elements of one
crystal) and some dozen phases, so the revised simplex method (Dantzig) with the explicit inverse
of the basis is exact and short; here it advances all programmes of a batch together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REDUCED_COST_TOLERANCE = 1e-10  # eV/atom; bounds the error of the optimum, as the weights sum to 1
PIVOT_TOLERANCE = 1e-10
DANTZIG_STEPS = 60  # after these the rule of Bland, which cannot cycle
MAX_STEPS = 2000


@dataclass(frozen=True)
class Optimum:
    """Solutions of a batch of programmes.

    Attributes:
        energy: (B,) eV/atom, NaN where not converged.
        phases: (B, k) int, indices of the phases in the optimal mixture.
        weights: (B, k) their fractions (of atoms), >= 0.
        converged: (B,) bool.
    """

    energy: np.ndarray
    phases: np.ndarray
    weights: np.ndarray
    converged: np.ndarray


def cheapest_mixture(fractions: np.ndarray, energies: np.ndarray, targets: np.ndarray) -> Optimum:
    """Energy of the lower hull at each target composition.

    Args:
        fractions: (B, P, k) atomic fractions of P phases over the k elements of the target. The
            first k phases are the elements themselves, in order (the identity), which make the
            first feasible basis.
        energies: (B, P) eV/atom; ``inf`` marks padding.
        targets: (B, k) atomic fractions, each > 0, summing to 1.
    """
    count, _, k = fractions.shape
    basis = np.tile(np.arange(k), (count, 1))
    inverse = np.tile(np.eye(k), (count, 1, 1))
    costs = np.take_along_axis(energies, basis, axis=1)
    weights = targets.copy()
    converged = np.zeros(count, dtype=bool)
    open_ = np.arange(count)
    a, e, b, inv, c, w = fractions, energies, basis, inverse, costs, weights
    for step in range(MAX_STEPS):
        bland = step >= DANTZIG_STEPS
        dual = np.matmul(c[:, None, :], inv)[:, 0]
        reduced = e - np.matmul(a, dual[:, :, None])[:, :, 0]
        if bland:
            entering = np.argmax(reduced < -REDUCED_COST_TOLERANCE, axis=1)
        else:
            entering = np.argmin(reduced, axis=1)
        rows = np.arange(len(open_))
        done = reduced[rows, entering] >= -REDUCED_COST_TOLERANCE
        if done.any():
            basis[open_[done]], converged[open_[done]] = b[done], True
            keep = ~done
            open_ = open_[keep]
            if not len(open_):
                break
            a, e, b, inv, c, w = a[keep], e[keep], b[keep], inv[keep], c[keep], w[keep]
            entering, rows = entering[keep], rows[: len(open_)]
        column = a[rows, entering]
        direction = np.matmul(inv, column[:, :, None])[:, :, 0]
        leaving, length = _ratio_test(w, direction, b, bland)
        pivot_row = inv[rows, leaving] / direction[rows, leaving][:, None]
        inv = inv - direction[:, :, None] * pivot_row[:, None, :]
        inv[rows, leaving] = pivot_row
        w = np.maximum(w - direction * length[:, None], 0.0)
        w[rows, leaving] = length
        b, c = b.copy(), c.copy()
        b[rows, leaving], c[rows, leaving] = entering, e[rows, entering]
    return _finish(fractions, energies, targets, basis, converged)


def _ratio_test(
    weights: np.ndarray, direction: np.ndarray, basis: np.ndarray, bland: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which phase leaves each basis, and how far the entering one can grow; (B,) and (B,)."""
    positive = direction > PIVOT_TOLERANCE
    ratio = np.where(positive, weights / np.where(positive, direction, 1.0), np.inf)
    length = ratio.min(axis=1)
    tied = ratio <= length[:, None] + 1e-14
    if bland:
        return np.argmin(np.where(tied, basis, np.iinfo(basis.dtype).max), axis=1), length
    return np.argmax(np.where(tied, direction, -np.inf), axis=1), length  # the stablest pivot


def _finish(
    fractions: np.ndarray,
    energies: np.ndarray,
    targets: np.ndarray,
    basis: np.ndarray,
    converged: np.ndarray,
) -> Optimum:
    """Solve the final bases afresh, so that no rounding of the updates remains."""
    matrix = np.take_along_axis(fractions, basis[:, :, None], axis=1)  # (B, k, k), row = phase
    matrix[~converged] = np.eye(fractions.shape[2])
    weights = np.linalg.solve(matrix.transpose(0, 2, 1), targets[:, :, None])[:, :, 0]
    energy = (weights * np.take_along_axis(energies, basis, axis=1)).sum(axis=1)
    energy[~converged] = np.nan
    return Optimum(energy, basis, np.maximum(weights, 0.0), converged)
