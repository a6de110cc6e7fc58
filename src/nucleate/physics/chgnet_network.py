"""The network of CHGNet, evaluated on classes of equal atoms, bonds and angles.

Names follow Deng et al., Nature Machine Intelligence 5, 1031 (2023): messages to atoms from bonds
up to 6 Å (the atom graph) and to bonds from angles between bonds up to 3 Å (the bond graph).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from nucleate.physics.graphs import ReducedGraph

CUTOFF = 6.0  # Å, messages to atoms
SHORT_CUTOFF = 3.0  # Å, bonds that make angles
WIDTH = 64


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
        from torch.nn import functional as F

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
        states, moment = self.atom_states(graph, length, angle)
        return self.energies(states[-1]), moment

    def energies(self, atom: Tensor) -> Tensor:
        """(A, WIDTH) last states of atoms to (A,) energies as in :meth:`forward`."""
        from torch.nn import functional as F

        x = F.layer_norm(atom, (WIDTH,), *self.norm)
        for matrix, bias in self.readout[:-1]:
            x = F.silu(F.linear(x, matrix, bias))
        return F.linear(x, *self.readout[-1]).view(-1)

    def atom_states(
        self, graph: ReducedGraph, length: Tensor, angle: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """States of atom classes.

        Args:
            graph: the reduced graph.
            length: (U,) Å, its bond lengths as a tensor.
            angle: (T,) radians, its angles as a tensor.

        Returns:
            (A, WIDTH) states after each of the four layers, and (A,) magnetic moments, μ_B.
        """
        import torch

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

        states, moment = [], atom[:, 0]
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
            states.append(atom)
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
        return states, moment

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
    """Sum over (table, index) of ``table[index]``: (n, width)."""
    (table, index), *others = parts
    total = table.index_select(0, index)
    for table, index in others:
        total.add_(table.index_select(0, index))
    return total


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``total + left @ right``, in place if no gradient is needed."""
    if total.requires_grad:
        return total.addmm(left, right)
    return total.addmm_(left, right)
