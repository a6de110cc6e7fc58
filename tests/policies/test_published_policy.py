"""The policy over the published network: what is sampled is what is scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nucleate.errors import CheckpointError
from nucleate.policies import lattice
from nucleate.policies.condition import Condition, element_mask
from nucleate.policies.published import PublishedConfig, PublishedTransformer
from nucleate.policies.published_policy import LENGTHS_AND_ANGLES, PublishedPolicy
from nucleate.structures.symmetry import symmetrise_lattice, tables
from nucleate.structures.wyckoff import decode

TINY = PublishedConfig(
    n_max=6,
    harmonics=2,
    coordinate_components=3,
    lattice_components=2,
    first_letter_width=8,
    embedding=6,
    width=12,
    layers=2,
    heads=2,
    key_size=4,
)
ALL_GROUPS = np.r_[0.0, np.ones(230)]
CONDITIONS = {
    "plain": Condition(ALL_GROUPS),
    "sharp": Condition(ALL_GROUPS, temperature=0.5, top_p=0.8),
    "masked": Condition(ALL_GROUPS, elements=element_mask(["Na", "Cl", "O"])),
}


def policy(lattice_parameters: str = "") -> PublishedPolicy:
    """Weights large enough for every draw to depend on those before it."""
    network = PublishedTransformer(TINY, torch.Generator().manual_seed(9)).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return PublishedPolicy(network, {"lattice_parameters": lattice_parameters})


@pytest.mark.parametrize("lattice_parameters", ["", LENGTHS_AND_ANGLES])
@pytest.mark.parametrize("name", CONDITIONS)
def test_sampled_log_probability_is_the_scored_one(name: str, lattice_parameters: str) -> None:
    drawn = policy(lattice_parameters)
    rollout = drawn.sample(100, CONDITIONS[name], torch.Generator().manual_seed(1))
    assert torch.isfinite(rollout.log_prob).all()
    np.testing.assert_allclose(drawn.log_prob(rollout), rollout.log_prob, rtol=0, atol=1e-4)


def test_every_sampled_crystal_can_be_decoded() -> None:
    condition = CONDITIONS["masked"]
    rollout = policy().sample(150, condition, torch.Generator().manual_seed(2))
    # random weights draw cells of any size; the sites must hold in a cell of ordinary size
    usual = np.tile([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], (150, 1))
    cells = lattice.to_lattice(usual, rollout.batch.n_atoms, rollout.batch.space_group)
    structures, reasons = decode(replace(rollout.batch, lattice=cells))
    assert reasons == [""] * 150
    assert all(structure is not None for structure in structures)
    assert (rollout.batch.n_sites <= TINY.max_sites).all()
    assert (rollout.batch.n_sites >= 1).all()
    primitive = rollout.batch.n_atoms // tables().centring_order[rollout.batch.space_group - 1]
    assert (primitive <= condition.max_atoms).all()
    assert set(np.unique(rollout.batch.species)) <= {0, 8, 11, 17}


@pytest.mark.parametrize("lattice_parameters", ["", LENGTHS_AND_ANGLES])
def test_cells_have_the_metric_of_the_crystal_system(lattice_parameters: str) -> None:
    batch = (
        policy(lattice_parameters)
        .sample(150, CONDITIONS["plain"], torch.Generator().manual_seed(2))
        .batch
    )
    np.testing.assert_allclose(
        symmetrise_lattice(batch.space_group, batch.lattice), batch.lattice, rtol=1e-6
    )


def test_the_seed_decides() -> None:
    condition = CONDITIONS["plain"]
    first, second, other = (
        policy().sample(70, condition, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first.log_prob, second.log_prob)
    np.testing.assert_array_equal(first.batch.lattice, second.batch.lattice)
    assert not torch.equal(first.log_prob, other.log_prob)


@pytest.mark.parametrize("lattice_parameters", ["", LENGTHS_AND_ANGLES])
def test_crystals_from_elsewhere_score_as_sampled_ones(lattice_parameters: str) -> None:
    drawn, condition = policy(lattice_parameters), CONDITIONS["plain"]
    rollout = drawn.sample(60, condition, torch.Generator().manual_seed(3))
    good = np.flatnonzero([not reason for reason in decode(rollout.batch)[1]])
    with torch.no_grad():
        found = drawn.log_prob_parts(drawn.tokens_of(rollout.batch[good]), condition).sum(1)
    np.testing.assert_allclose(found, rollout.log_prob[good], rtol=0, atol=2e-3)


def test_fixed_and_tied_coordinates_carry_no_density() -> None:
    drawn, condition = policy(), CONDITIONS["plain"]
    rollout = drawn.sample(200, condition, torch.Generator().manual_seed(4))
    with torch.no_grad():
        draws = drawn.log_prob_draws(drawn.tokens(rollout), condition)
    counted = np.bincount(draws.row[draws.part == 2], minlength=200)
    batch = rollout.batch
    free = tables().dof[batch.space_group[:, None] - 1, batch.wyckoff].sum(1)
    np.testing.assert_array_equal(counted, free)


def test_gradients_reach_every_weight() -> None:
    drawn, condition = policy(), CONDITIONS["plain"]
    rollout = drawn.sample(64, condition, torch.Generator().manual_seed(7))
    drawn.log_prob_parts(drawn.tokens(rollout), condition).sum().backward()
    for name, parameter in drawn.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_imported_policies_ask_for_space_groups() -> None:
    with pytest.raises(CheckpointError, match="space groups"):
        policy(LENGTHS_AND_ANGLES).training_space_groups()
