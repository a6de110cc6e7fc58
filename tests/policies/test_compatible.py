"""Conformance: outputs, log-probabilities and gradients of the original code."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.special import i0e, log_softmax, logsumexp

from nucleate.errors import InputError
from nucleate.policies import compatible
from nucleate.policies.compatible import PARTS, normalised_outputs, token_log_prob
from nucleate.policies.importers import state_dict
from nucleate.structures import symmetry
from nucleate.structures.wyckoff import WyckoffBatch

if TYPE_CHECKING:
    from conftest import Reference

REFERENCE_PRECISION = 2e-5
"""The reference was computed in float32; its own rounding is what float64 differs by."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", ["small", "table_s1"])
def test_every_output_equals_the_original(
    model: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    reference = request.getfixturevalue(model)
    wanted = torch.from_numpy(reference.arrays["h"]).to(dtype)
    with torch.no_grad():
        found = normalised_outputs(
            reference.network(dtype),
            *reference.inputs(),
            torch.from_numpy(reference.arrays["M"]),
        )
    impossible = wanted < -1e9
    assert torch.equal(found < -1e9, impossible)
    assert float((found - wanted)[~impossible].abs().max()) < REFERENCE_PRECISION


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", ["small", "table_s1"])
def test_log_probability_equals_the_original(
    model: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    reference = request.getfixturevalue(model)
    lattice = torch.from_numpy(reference.arrays["L"])
    with torch.no_grad():
        parts = token_log_prob(reference.network(dtype), *reference.inputs(), lattice)
    for part, wanted in reference.log_prob().items():
        np.testing.assert_allclose(parts[part], wanted, rtol=0, atol=REFERENCE_PRECISION)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_the_original(small: Reference, dtype: torch.dtype) -> None:
    network = small.network(dtype)
    lattice = torch.from_numpy(small.arrays["L"])
    parts = token_log_prob(network, *small.inputs(), lattice)
    loss = -sum(part.mean() for part in parts.values())
    assert loss.item() == pytest.approx(float(small.arrays["loss"]), abs=REFERENCE_PRECISION)
    loss.backward()
    wanted = state_dict(network.config, small.gradients, Path("gradients"))
    for name, parameter in network.named_parameters():
        assert float((parameter.grad - wanted[name]).abs().max()) < REFERENCE_PRECISION, name


def test_double_precision_equals_a_plain_statement_of_the_network(small: Reference) -> None:
    network = small.network(torch.float64)
    with torch.no_grad():
        lattice = torch.from_numpy(small.arrays["L"])
        parts = token_log_prob(network, *small.inputs(), lattice)
    for row in range(8):
        wanted = plain_log_prob(small, row)
        for part in PARTS:
            assert parts[part][row].item() == pytest.approx(wanted[part], abs=1e-10)


def plain_log_prob(reference: Reference, row: int) -> dict[str, float]:
    """One crystal in numpy float64, from the definitions, token by token."""
    p = {
        f"{module}|{name}": array.astype(np.float64)
        for module, arrays in reference.parameters.items()
        for name, array in arrays.items()
    }
    g = int(reference.arrays["G"][row])
    letters, species, mult = (reference.arrays[name][row] for name in "WAM")
    xyz = reference.arrays["XYZ"][row].astype(np.float64)
    cell = reference.arrays["L"][row].astype(np.float64)
    n_sites = int((letters > 0).sum())

    def linear(module: str, x: np.ndarray) -> np.ndarray:
        return x @ p[f"{module}|w"] + p[f"{module}|b"]

    def norm(module: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred / scale * p[f"{module}|scale"] + p[f"{module}|offset"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    group = p["~|g_embeddings"][g - 1]
    tokens = []
    for i in range(n_sites + 1):
        w = [group, p["~|w_embeddings"][letters[i]], [float(mult[i])]]
        tokens.append(linear("linear_2", np.concatenate(w)))
        a = [group, p["~|a_embeddings"][species[i]]]
        tokens.append(linear("linear_3", np.concatenate(a)))
        for axis in range(3):
            waves = [f(2 * np.pi * k * xyz[i, axis]) for k in (1, 2, 3) for f in (np.sin, np.cos)]
            tokens.append(linear(f"linear_{4 + axis}", np.concatenate([group, waves])))
    h = np.array(tokens)
    turn = np.arange(len(h))[:, None] * 10000.0 ** (-np.arange(4) / 4)
    turn = np.exp(1j * turn)[:, None]

    def rotated(x: np.ndarray) -> np.ndarray:
        z = (x[..., :4] + 1j * x[..., 4:]) * turn
        return np.concatenate([z.real, z.imag], -1)

    for layer in range(2):
        suffix = f"_{layer}" if layer else ""
        x = norm(f"layer_norm{f'_{2 * layer}' if layer else ''}", h)
        q, k, v = (
            linear(f"multi_head_attention{suffix}/{name}", x).reshape(len(h), 3, 8)
            for name in ("query", "key", "value")
        )
        scores = np.einsum("thc,shc->hts", rotated(q), rotated(k)) / math.sqrt(8)
        scores = np.where(np.tri(len(h), dtype=bool), scores, -np.inf)
        weights = np.exp(log_softmax(scores, -1))
        attended = np.einsum("hts,shc->thc", weights, v).reshape(len(h), 24)
        h = h + linear(f"multi_head_attention{suffix}/linear", attended)
        x = norm(f"layer_norm_{2 * layer + 1}", h)
        h = h + linear(f"linear_{8 + 2 * layer}", gelu(linear(f"linear_{7 + 2 * layer}", x)))
    out = linear("linear_11", norm("layer_norm_4", h))

    table = symmetry.tables()
    letter_part = species_part = xyz_part = 0.0
    previous = 0
    logits = linear("linear_1", gelu(linear("linear", group)))
    for i in range(n_sites + 1):
        allowed = np.arange(28) <= table.n_letters[g - 1]
        if i:
            repeat = table.dof[g - 1, previous] > 0
            above = np.arange(28) >= previous + (0 if repeat else 1)
            allowed &= above | (np.arange(28) == 0)
        else:
            allowed[0] = False
        letter_part += log_softmax(np.where(allowed, logits, -np.inf))[letters[i]]
        if i == n_sites:
            break
        previous = letters[i]
        kinds = out[5 * i, :119].copy()
        kinds[0] = -np.inf
        species_part += log_softmax(kinds)[species[i]]
        rotation = table.operations(g, previous)[0][0]
        for axis in range(3):
            if rotation[axis].any():
                weight, mu, kappa = out[5 * i + 1 + axis, :12].reshape(3, 4)
                kappa = np.logaddexp(0, kappa)
                theta = 2 * np.pi * (xyz[i, axis] - 0.5)
                vm = kappa * (np.cos(theta - mu) - 1) - np.log(2 * np.pi * i0e(kappa))
                xyz_part += logsumexp(log_softmax(weight) + vm)
        logits = out[5 * i + 4, :28]
    lattice = out[5 * n_sites, 119:158]
    weight, mu = lattice[:3], lattice[3:21].reshape(3, 6)
    sigma = np.logaddexp(0, lattice[21:].reshape(3, 6)) + 1e-3
    normal = -0.5 * ((cell - mu) / sigma) ** 2 - np.log(sigma * math.sqrt(2 * np.pi))
    each = logsumexp(log_softmax(weight)[:, None] + normal, axis=0)
    lattice_part = each[symmetry.free_lattice_mask(np.array(g))].sum()
    return {
        "wyckoff": letter_part,
        "coordinates": xyz_part,
        "species": species_part,
        "lattice": lattice_part,
    }


def test_batches_of_crystals_take_angstroms_and_degrees(small: Reference) -> None:
    arrays = small.arrays
    n_atoms = arrays["M"].sum(1)
    lengths = arrays["L"][:, :3] * np.cbrt(n_atoms)[:, None]
    batch = WyckoffBatch(
        arrays["G"].astype(np.int16),
        arrays["W"].astype(np.int8),
        arrays["A"].astype(np.int8),
        arrays["XYZ"],
        np.concatenate([lengths, np.rad2deg(arrays["L"][:, 3:])], 1),
    )
    assert (batch.n_atoms == n_atoms).all()
    with torch.no_grad():
        parts = compatible.compatible_log_prob(small.network(torch.float64), batch)
    for part, wanted in small.log_prob().items():
        # narrow lattice mixtures magnify the rounding of the lengths
        np.testing.assert_allclose(parts[part], wanted, rtol=0, atol=1e-3)


def test_lattice_parameters_round_trip() -> None:
    generator = np.random.default_rng(0)
    group = np.arange(1, 231)
    cells = np.concatenate(
        [generator.uniform(2, 9, (230, 3)), generator.uniform(70, 110, (230, 3))], 1
    )
    cells = symmetry.symmetrise_lattice(group, cells)
    n_atoms = generator.integers(1, 40, 230)
    parameters = compatible.to_parameters(cells, n_atoms)
    again = compatible.to_lattice(parameters, n_atoms, group)
    np.testing.assert_allclose(again, cells, rtol=1e-12)


def test_a_full_crystal_neither_scores_nor_reads_the_stop(small: Reference) -> None:
    network = small.network(torch.float64)
    network.config = replace(network.config, n_max=5)
    group, wyckoff, species, coords = (array[:4] for array in small.inputs())
    full = (wyckoff > 0).sum(1) == 5
    assert full.any()
    lattice = torch.from_numpy(small.arrays["L"])[:4]
    with torch.no_grad():
        parts = token_log_prob(network, group, wyckoff, species, coords, lattice)
        outputs = normalised_outputs(network, group, wyckoff, species, coords)
    letters = outputs[:, 0:25:5, :28].gather(2, wyckoff[:, :5, None].long())[..., 0]
    torch.testing.assert_close(parts["wyckoff"][full], letters.sum(1)[full])
    hidden = network.trunk(group, wyckoff, species, coords)[:, 20]
    free = torch.from_numpy(symmetry.free_lattice_mask(group.numpy()))
    at_last_site = compatible.lattice_log_density(
        network.lattice_parameters(hidden), lattice.double(), free
    )
    torch.testing.assert_close(parts["lattice"][full], at_last_site[full])


def test_too_many_sites_are_refused(small: Reference) -> None:
    network = small.network(torch.float32)
    network.config = replace(network.config, n_max=3)
    with pytest.raises(InputError, match="at most 3"):
        token_log_prob(network, *small.inputs(), torch.from_numpy(small.arrays["L"]))


def test_letters_are_the_original_ones(shared: Path) -> None:
    stored = np.load(shared / "fixtures/crystalformer/tables.npz")
    group = torch.arange(1, 231)
    for previous in range(28):
        letter = torch.full((230, 1), previous)
        first, later = compatible.letters_allowed(group, letter).unbind(1)
        index = np.arange(28)
        exists = index <= stored["wmax"][:, None]
        np.testing.assert_array_equal(first, exists & (index > 0))
        lowest = previous + stored["dof0"][:, previous].astype(int)[:, None]
        wanted = exists & (index >= lowest) | (index == 0) if previous else index == 0
        valid = stored["mult"][:, previous] > 0 if previous else np.ones(230, bool)
        np.testing.assert_array_equal(later[valid], np.broadcast_to(wanted, (230, 28))[valid])
    scored = compatible._masks(torch.device("cpu")).scored[1:].numpy()
    np.testing.assert_array_equal(scored[:, 1:], stored["fc_mask"][:, 1:])
