"""CHGNet (Deng et al., Nature Machine Intelligence 5, 1031, 2023) as a fast batched potential.

The weights are those of the ``chgnet`` wheel and the energies equal the package's own to 1e-5
eV/atom; the network is evaluated in another way:

- on classes of equal atoms, bonds and angles instead of on all of them (:mod:`.graphs`);
- the first linear map of each message, which sees [centre, bond, neighbour] concatenated, is
  applied to atoms and bonds before they are gathered, not to every message;
- bonds longer than 3 Å never change, so what depends on them alone is computed once;
- the last angle update, which nothing reads, is left out;
- an energy alone builds no autograd graph, forces and stress share one first-order backward pass
  to the distances and angles of the classes, and the chain rule from there to atoms and cell is
  numpy in float64.

Forces and stresses therefore have exactly the symmetry of the crystal. Results depend on the
other crystals in a batch by float32 rounding only (below 1e-6 eV/atom).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from nucleate.errors import InputError, MissingDependencyError
from nucleate.physics.cells import Bonds, Cell, as_cell, find_bonds
from nucleate.physics.chgnet_network import CUTOFF, SHORT_CUTOFF, Network
from nucleate.physics.graphs import COSINE_SCALE, ReducedGraph, reduce_graphs
from nucleate.protocols import PotentialResult

if TYPE_CHECKING:
    from pymatgen.core import Structure

Result = TypeVar("Result")
N_ELEMENTS = 94
BONDS_PER_BATCH = 8_000  # bonds before reduction; larger batches fall out of the cache
WEIGHTS = "pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"


def weights_path() -> Path:
    """The checkpoint inside the installed ``chgnet`` package (which isn't imported).

    Raises:
        MissingDependencyError: if chgnet is not installed.
    """
    spec = importlib.util.find_spec("chgnet")
    path = Path(spec.origin).parent / WEIGHTS if spec and spec.origin else None
    if path is None or not path.is_file():
        raise MissingDependencyError(
            "the weights of CHGNet 0.3.0 were not found",
            "they come with the package chgnet",
            'pip install "chgnet>=0.4"',
        )
    return path


def load_network(device: str = "cpu", dtype: str = "float32") -> tuple[Network, str]:
    """The network of the installed package, and the sha256 of its checkpoint.

    Raises:
        MissingDependencyError: if chgnet is not installed.
    """
    import torch

    path = weights_path()
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]["state_dict"]
    return Network(state, device, dtype), hashlib.sha256(path.read_bytes()).hexdigest()


class ChgnetPotential:
    """CHGNet 0.3.0: PBE(+U) with the Materials Project's 2020 corrections; 94 elements.

    Args:
        device: torch device.
        dtype: "float32", or "float64" where slopes are checked by finite differences.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> rock_salt = Structure.from_spacegroup(
        ...     "Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0, 0]])
        >>> [result] = ChgnetPotential().evaluate([rock_salt])
        >>> round(result.energy, 2)
        -3.39
    """

    name = "chgnet"
    level_of_theory = "PBE(+U)"
    correction = "MP2020"
    accepts_cells = True

    def __init__(self, device: str = "cpu", dtype: str = "float32") -> None:
        self._network, self.weights_hash = load_network(device, dtype)

    def evaluate(
        self,
        structures: Sequence[Structure | Cell],
        *,
        forces: bool = False,
        stress: bool = False,
        magmoms: bool = False,
    ) -> list[PotentialResult | Exception]:
        """Energies, and what else is asked for, of B crystals, order kept.

        Args:
            structures: crystals, as structures or as arrays; equal ones are computed once.
            forces: also (N, 3) forces, eV/Å.
            stress: also (3, 3) stress, eV/Å³, tension positive.
            magmoms: also (N,) magnetic moments, μ_B.

        Returns:
            For each crystal a result, or an exception with the reason why it has none.
        """
        return evaluate_in_batches(
            structures,
            lambda cells, bonds: self._evaluate_batch(cells, bonds, forces, stress, magmoms),
        )

    def _evaluate_batch(
        self,
        cells: Sequence[Cell],
        bonds: Sequence[Bonds],
        forces: bool,
        stress: bool,
        magmoms: bool,
    ) -> list[PotentialResult | Exception]:
        import torch

        network, gradient = self._network, forces or stress
        graph = reduce_graphs(cells, bonds, members=gradient)
        with torch.inference_mode(not gradient), torch.set_grad_enabled(gradient):
            length = network.tensor(graph.bond_length, True).requires_grad_(gradient)
            angle = network.tensor(graph.angle, True).requires_grad_(gradient)
            energy, moment = network.forward(graph, length, angle)
            site = energy.detach().cpu().numpy().astype(np.float64)
            if gradient:
                total = (energy * network.tensor(graph.atom_count, True)).sum()
                slopes = torch.autograd.grad(total, (length, angle), allow_unused=True)
                slope_length, slope_angle = (
                    np.zeros(len(x)) if g is None else g.cpu().numpy().astype(np.float64)
                    for g, x in zip(slopes, (length, angle), strict=True)
                )
        n_atoms = np.array([len(c.numbers) for c in cells])
        site += network.reference[graph.atom_number - 1]
        energies = (
            np.bincount(graph.atom_crystal, site * graph.atom_count, minlength=len(cells)) / n_atoms
        )
        cut = np.cumsum(n_atoms)[:-1]
        nothing: list[np.ndarray | None] = [None] * len(cells)
        force_of, stress_of, moment_of = nothing, nothing, nothing
        if gradient:
            all_forces, all_stress = _assemble(graph, cells, slope_length, slope_angle)
            force_of = [*np.split(all_forces, cut)] if forces else nothing
            stress_of = [*all_stress] if stress else nothing
        if magmoms:
            moment_of = [*np.split(moment.detach().cpu().numpy()[graph.atom_class], cut)]
        return [
            PotentialResult(float(energies[k]), force_of[k], stress_of[k], moment_of[k])
            if np.isfinite(energies[k])
            else InputError("CHGNet gave an energy that is not finite")
            for k in range(len(cells))
        ]


def evaluate_in_batches(
    structures: Sequence[Structure | Cell],
    evaluate: Callable[[Sequence[Cell], Sequence[Bonds]], Sequence[Result | Exception]],
) -> list[Result | Exception]:
    """Find the bonds of B crystals and evaluate batches of similar size.

    Args:
        structures: crystals, as structures or as arrays; equal ones are evaluated once.
        evaluate: from cells and their bonds to one result for each.

    Returns:
        For each crystal, order kept, a result, or an exception with the reason why it has none.
    """
    results: list[Result | Exception | None] = [None] * len(structures)
    first_with: dict[tuple[bytes, ...], int] = {}
    copies: list[tuple[int, int]] = []
    work: list[tuple[int, Cell, Bonds]] = []
    for i, structure in enumerate(structures):
        try:
            cell = as_cell(structure)
            key = tuple(array.tobytes() for array in cell)
            if (j := first_with.setdefault(key, i)) != i:
                copies.append((i, j))
                continue
            _check_elements(cell)
            work.append((i, cell, find_bonds(cell, CUTOFF, SHORT_CUTOFF)))
        except (InputError, ValueError, AttributeError, np.linalg.LinAlgError) as error:
            results[i] = error
    work.sort(key=lambda item: len(item[2].first))
    for batch in _batches(work):
        index, cells, bonds = zip(*batch, strict=True)
        for i, result in zip(index, evaluate(cells, bonds), strict=True):
            results[i] = result
    for i, j in copies:
        results[i] = results[j]
    return results  # type: ignore[return-value]  # every entry is set above


def _check_elements(cell: Cell) -> None:
    if cell.numbers.min() < 1 or cell.numbers.max() > N_ELEMENTS:
        raise InputError(
            f"CHGNet knows the elements 1 to {N_ELEMENTS}",
            f"the structure holds atomic numbers {sorted(set(cell.numbers.tolist()))}",
        )


def _batches(work: list[tuple[int, Cell, Bonds]]) -> list[list[tuple[int, Cell, Bonds]]]:
    """Split sorted work so that no batch holds more than BONDS_PER_BATCH bonds."""
    batches: list[list[tuple[int, Cell, Bonds]]] = []
    room = 0
    for item in work:
        size = len(item[2].first)
        if size > room or not batches:
            batches.append([])
            room = BONDS_PER_BATCH
        batches[-1].append(item)
        room -= size
    return batches


def _assemble(
    graph: ReducedGraph,
    cells: Sequence[Cell],
    slope_length: np.ndarray,
    slope_angle: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Forces and stresses from the slopes of the energy with respect to the classes.

    Args:
        graph: a reduced graph with its members.
        cells: the B crystals.
        slope_length: (U,) dE/d(length of the class), eV/Å.
        slope_angle: (T,) dE/d(angle of the class), eV/radian.

    Returns:
        (N, 3) forces, eV/Å, and (B, 3, 3) stresses, eV/Å³.
    """
    m = graph.members
    if m is None:
        raise ValueError("the graph was reduced without its members")
    length = np.sqrt((m.vector**2).sum(1))
    unit = m.vector / length[:, None]
    share = slope_length / np.maximum(np.bincount(m.bond_class, minlength=len(slope_length)), 1)
    pull = share[m.bond_class, None] * unit  # (E, 3) dE/d(bond vector)
    if len(m.pair_bond):
        members = np.bincount(m.pair_class.ravel(), minlength=len(slope_angle))
        slope = (slope_angle / np.maximum(members, 1))[m.pair_class].sum(1)
        left, right = m.pair_bond.T
        u, v = unit[left] * m.pair_sign[:, :1], unit[right] * m.pair_sign[:, 1:]
        cosine = np.einsum("pk,pk->p", u, v)[:, None]
        slope = (-COSINE_SCALE * slope)[:, None] / np.sqrt(1 - (COSINE_SCALE * cosine) ** 2)
        on_left = slope * (v - cosine * u) / length[left, None] * m.pair_sign[:, :1]
        on_right = slope * (u - cosine * v) / length[right, None] * m.pair_sign[:, 1:]
        for axis in range(3):
            pull[:, axis] += np.bincount(left, on_left[:, axis], minlength=len(pull))
            pull[:, axis] += np.bincount(right, on_right[:, axis], minlength=len(pull))
    n = len(graph.atom_class)
    forces = np.stack(
        [
            np.bincount(m.first, pull[:, k], minlength=n)
            - np.bincount(m.second, pull[:, k], minlength=n)
            for k in range(3)
        ],
        axis=1,
    )
    virial = m.vector[:, :, None] * pull[:, None, :]
    stress = np.zeros((len(cells), 3, 3))
    for a in range(3):
        for b in range(3):
            stress[:, a, b] = np.bincount(m.crystal, virial[:, a, b], minlength=len(cells))
    volume = np.array([abs(np.linalg.det(c.lattice)) for c in cells])
    return forces, stress / volume[:, None, None]
