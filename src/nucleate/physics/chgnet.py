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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nucleate.errors import InputError, MissingDependencyError
from nucleate.physics.graphs import (
    COSINE_SCALE,
    Bonds,
    Cell,
    ReducedGraph,
    as_cell,
    find_bonds,
    reduce_graphs,
)
from nucleate.protocols import PotentialResult

if TYPE_CHECKING:
    import torch
    from pymatgen.core import Structure
    from torch import Tensor

CUTOFF = 6.0  # Å, messages to atoms
SHORT_CUTOFF = 3.0  # Å, bonds that make angles
N_ELEMENTS = 94
WIDTH = 64
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


def _state(path: Path) -> dict[str, Tensor]:
    import torch

    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint["model"]["state_dict"]


def _gate(state: dict[str, Tensor], prefix: str, hidden: bool) -> dict[str, Tensor]:
    """Weights of a gated perceptron, core and gate side by side.

    The mean that layer normalisation subtracts is taken out of the weights before it instead.
    """
    import torch

    core, gate = f"{prefix}.mlp_core.layers.", f"{prefix}.mlp_gate.layers."

    def centred(name: str) -> Tensor:
        value = state[name].double()
        return (value - value.mean(0, keepdim=True)).to(state[name].dtype)

    out: dict[str, Tensor] = {}
    last = 3 if hidden else 1
    if hidden:
        out["first"] = torch.cat([state[f"{core}0.weight"], state[f"{gate}0.weight"]]).T
        out["first_bias"] = torch.cat([state[f"{core}0.bias"], state[f"{gate}0.bias"]])
        out["core"] = centred(f"{core}{last}.weight").T.contiguous()
        out["gate"] = centred(f"{gate}{last}.weight").T.contiguous()
        out["core_bias"] = centred(f"{core}{last}.bias")
        out["gate_bias"] = centred(f"{gate}{last}.bias")
    else:
        out["first"] = torch.cat(
            [centred(f"{core}{last}.weight"), centred(f"{gate}{last}.weight")]
        ).T
        out["first_bias"] = torch.cat(
            [centred(f"{core}{last}.bias"), centred(f"{gate}{last}.bias")]
        )
    for name, norm in (("core", "bn1"), ("gate", "bn2")):
        out[f"{name}_scale"] = state[f"{prefix}.{norm}.weight"]
        out[f"{name}_shift"] = state[f"{prefix}.{norm}.bias"]
    return out


def _split(first: Tensor, n_parts: int) -> list[Tensor]:
    """Rows of a first linear map, one (64, 128) block for each concatenated input."""
    return [part.contiguous() for part in first.split(first.shape[0] // n_parts)]


class Network:
    """The forward pass of CHGNet on a reduced graph.

    Args:
        state: the checkpoint's state dictionary.
        device: torch device.
        dtype: "float32" or "float64" of all tensors.
    """

    def __init__(
        self, state: dict[str, Tensor], device: str = "cpu", dtype: str = "float32"
    ) -> None:
        import torch

        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        state = {name: value.to(self.device, self.dtype) for name, value in state.items()}
        expansion = "bond_basis_expansion.rbf_expansion_"
        self.frequencies_ag = state[f"{expansion}ag.frequencies"]
        self.frequencies_bg = state[f"{expansion}bg.frequencies"]
        self.frequencies_angle = state["angle_basis_expansion.fourier_expansion.frequencies"]
        self.embedding = state["atom_embedding.embedding.weight"]
        self.bond_embedding = state["bond_embedding.weight"].T.contiguous()
        self.bond_weight_ag = state["bond_weights_ag.weight"].T.contiguous()
        self.bond_weight_bg = state["bond_weights_bg.weight"].T.contiguous()
        self.angle_embedding = state["angle_embedding.weight"].T.contiguous()
        self.reference = state["composition_model.fc.weight"].view(-1).double().cpu().numpy()
        self.atom_layers = [
            self._layer(state, f"atom_conv_layers.{k}", "twoBody_atom", 3) for k in range(4)
        ]
        self.bond_layers = [
            self._layer(state, f"bond_conv_layers.{k}", "twoBody_bond", 4) for k in range(3)
        ]
        self.angle_layers = [
            self._layer(state, f"angle_layers.{k}", "twoBody_bond", 4, hidden=False)
            for k in range(2)
        ]
        # From the radial basis of a bond straight to its part in each atom layer's messages.
        self.long_part = torch.cat(
            [self.bond_embedding @ layer["parts"][1] for layer in self.atom_layers], dim=1
        )
        self.site = (state["site_wise.weight"].T.contiguous(), state["site_wise.bias"])
        self.norm = (state["readout_norm.weight"], state["readout_norm.bias"])
        self.readout = [
            (state[f"mlp.layers.{k}.weight"], state[f"mlp.layers.{k}.bias"]) for k in (0, 2, 4, 7)
        ]

    @staticmethod
    def _layer(
        state: dict[str, Tensor], prefix: str, gate: str, n_parts: int, hidden: bool = True
    ) -> dict[str, Any]:
        layer: dict[str, Any] = dict(_gate(state, f"{prefix}.{gate}", hidden))
        layer["parts"] = _split(layer.pop("first"), n_parts)
        if hidden:
            layer["out"] = state[f"{prefix}.mlp_out.layers.1.weight"].T.contiguous()
        return layer

    def _radial(self, length: Tensor, frequencies: Tensor, cutoff: float) -> Tensor:
        """(n,) Å to (n, 31): Bessel functions times a polynomial that is 0 at the cutoff."""
        import torch

        x = (length / cutoff)[:, None]
        x8 = x**8
        envelope = 1 - 45 * x8 + 80 * x8 * x - 36 * x8 * x * x
        envelope = torch.where(x < 1, envelope, torch.zeros_like(x))
        return (2 / cutoff) ** 0.5 * torch.sin(frequencies * x) / length[:, None] * envelope

    def _angular(self, angle: Tensor) -> Tensor:
        """(n,) radians to (n, 31): Fourier series."""
        import torch

        wave = torch.outer(angle, self.frequencies_angle)
        constant = torch.full_like(angle[:, None], 0.5**0.5)
        return torch.cat([constant, torch.sin(wave), torch.cos(wave)], dim=1) / np.pi**0.5

    @staticmethod
    def _normalised(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Layer normalisation of (n, 64) rows whose mean is already 0."""
        import torch

        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        inverse = torch.rsqrt(norm * norm * (1 / WIDTH) + 1e-5)
        return torch.addcmul(shift, x * inverse, scale)

    def _gated(self, layer: dict[str, Any], hidden: Tensor) -> Tensor:
        """(n, 128) sums of the first linear map to (n, 64) messages."""
        import torch
        from torch.nn import functional as F  # noqa: N812

        if "core" in layer:
            hidden = F.silu(hidden, inplace=not hidden.requires_grad)
            core = torch.addmm(layer["core_bias"], hidden[:, :WIDTH], layer["core"])
            gate = torch.addmm(layer["gate_bias"], hidden[:, WIDTH:], layer["gate"])
        else:
            core, gate = hidden[:, :WIDTH], hidden[:, WIDTH:]
        core = self._normalised(core, layer["core_scale"], layer["core_shift"])
        gate = self._normalised(gate, layer["gate_scale"], layer["gate_shift"])
        if core.requires_grad:
            return F.silu(core) * torch.sigmoid(gate)
        return F.silu(core, inplace=True).mul_(gate.sigmoid_())

    def forward(self, graph: ReducedGraph, length: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Energies of atom classes.

        Args:
            graph: the reduced graph.
            length: (U,) Å, its bond lengths as a tensor.
            angle: (T,) radians, its angles as a tensor.

        Returns:
            (A,) energy of an atom of each class, eV, without the elements' reference energies,
            and (A,) magnetic moments, μ_B.
        """
        import torch
        from torch.nn import functional as F  # noqa: N812

        to = self.tensor
        n_short, n_atoms, n_angles = graph.n_short, len(graph.atom_number), len(graph.angle)
        basis = self._radial(length, self.frequencies_ag, CUTOFF)
        weight_ag = basis @ self.bond_weight_ag
        bond = basis[:n_short] @ self.bond_embedding
        long_parts = (basis[n_short:] @ self.long_part).split(2 * WIDTH, dim=1)
        atom = self.embedding.index_select(0, to(graph.atom_number - 1))
        centre, neighbour = to(graph.message_centre), to(graph.message_neighbour)
        via = to(graph.message_bond)
        weight = weight_ag.index_select(0, via) * to(graph.message_count, True)[:, None]
        if n_angles:
            angle_state = self._angular(angle) @ self.angle_embedding
            first, second = to(graph.angle_first), to(graph.angle_second)
            angle_centre = to(graph.angle_centre)
            short = self._radial(length[:n_short], self.frequencies_bg, SHORT_CUTOFF)
            weight_bg = short @ self.bond_weight_bg
            angle_weight = weight_bg.index_select(0, first) * weight_bg.index_select(0, second)
            angle_weight = angle_weight * to(graph.angle_count, True)[:, None]

        moment = atom[:, 0]
        for k, layer in enumerate(self.atom_layers):
            from_centre, from_bond, from_neighbour = layer["parts"]
            hidden = _gather_sum(
                (torch.addmm(layer["first_bias"], atom, from_centre), centre),
                (atom @ from_neighbour, neighbour),
                (torch.cat([bond @ from_bond, long_parts[k]]), via),
            )
            message = self._gated(layer, hidden) * weight
            summed = message.new_zeros(n_atoms, WIDTH).index_add(0, centre, message)
            atom = torch.addmm(atom, summed, layer["out"])
            if k == 2:
                moment = torch.addmm(self.site[1], atom, self.site[0]).abs().view(-1)
            if k < 3 and n_angles:
                parts = (bond, atom, angle_state, first, second, angle_centre)
                message = (
                    self._gated(
                        self.bond_layers[k], self._angle_hidden(self.bond_layers[k], *parts)
                    )
                    * angle_weight
                )
                summed = message.new_zeros(n_short, WIDTH).index_add(0, first, message)
                bond = torch.addmm(bond, summed, self.bond_layers[k]["out"])
                if k < 2:
                    parts = (bond, atom, angle_state, first, second, angle_centre)
                    hidden = self._angle_hidden(self.angle_layers[k], *parts)
                    angle_state = angle_state + self._gated(self.angle_layers[k], hidden)
        x = F.layer_norm(atom, (WIDTH,), *self.norm)
        for matrix, bias in self.readout[:-1]:
            x = F.silu(F.linear(x, matrix, bias))
        return F.linear(x, *self.readout[-1]).view(-1), moment

    @staticmethod
    def _angle_hidden(
        layer: dict[str, Any],
        bond: Tensor,
        atom: Tensor,
        angle_state: Tensor,
        first: Tensor,
        second: Tensor,
        centre: Tensor,
    ) -> Tensor:
        """(T, 128) first linear map of [bond, bond, angle, centre atom]."""
        import torch

        from_first, from_second, from_angle, from_atom = layer["parts"]
        hidden = _gather_sum(
            (torch.addmm(layer["first_bias"], atom, from_atom), centre),
            (bond @ from_first, first),
            (bond @ from_second, second),
        )
        return _accumulate(hidden, angle_state, from_angle)

    def tensor(self, array: np.ndarray, floating: bool = False) -> Tensor:
        """An array on the network's device, in its floating type if asked for."""
        import torch

        return torch.from_numpy(array).to(self.device, self.dtype if floating else None)


def _gather_sum(*parts: tuple[Tensor, Tensor]) -> Tensor:
    """Sum over (table, index) of ``table[index]``: (n, width), without copies if no gradient."""
    total = None
    for table, index in parts:
        rows = table.index_select(0, index)
        total = rows if total is None else total.add_(rows)
    return total


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``total + left @ right``, in place if no gradient is needed."""
    if total.requires_grad:
        return total.addmm(left, right)
    return total.addmm_(left, right)


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

    def __init__(self, device: str = "cpu", dtype: str = "float32") -> None:
        path = weights_path()
        self.weights_hash = hashlib.sha256(path.read_bytes()).hexdigest()
        self._network = Network(_state(path), device, dtype)

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
        results: list[PotentialResult | Exception | None] = [None] * len(structures)
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
            for i, result in zip(
                index, self._evaluate_batch(cells, bonds, forces, stress, magmoms), strict=True
            ):
                results[i] = result
        for i, j in copies:
            results[i] = results[j]
        return results  # type: ignore[return-value]  # every entry is set above

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
        force_of = stress_of = moment_of = [None] * len(cells)
        if gradient:
            all_forces, all_stress = _assemble(graph, cells, slope_length, slope_angle)
            force_of = np.split(all_forces, cut) if forces else force_of
            stress_of = list(all_stress) if stress else stress_of
        if magmoms:
            moment_of = np.split(moment.detach().cpu().numpy()[graph.atom_class], cut)
        return [
            PotentialResult(float(energies[k]), force_of[k], stress_of[k], moment_of[k])
            if np.isfinite(energies[k])
            else InputError("CHGNet gave an energy that is not finite")
            for k in range(len(cells))
        ]


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
