"""The five-tokens-a-site network: size, causality, and decoding with a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from nucleate.errors import RecipeError
from nucleate.policies.published import PublishedConfig, PublishedHeads, PublishedTransformer
from nucleate.structures.symmetry import tables

if TYPE_CHECKING:
    from conftest import Reference

TINY = PublishedConfig(
    n_max=6,
    harmonics=3,
    coordinate_components=4,
    lattice_components=2,
    first_letter_width=8,
    embedding=6,
    width=12,
    layers=2,
    heads=2,
    key_size=4,
)


def tiny(config: PublishedConfig = TINY) -> PublishedTransformer:
    """Weights large enough for outputs to depend on inputs."""
    network = PublishedTransformer(config, torch.Generator().manual_seed(0)).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return network


def crystals(n: int, most: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Random tokens with 1..most sites; letters exist, nothing else is meant by them."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    group = integers(16, 231, n)
    n_sites = integers(1, most + 1, n)
    n_sites[0] = most
    present = torch.arange(most) < n_sites[:, None]
    letters = torch.from_numpy(tables().n_letters.astype("int64"))[group - 1]
    wyckoff = (1 + integers(0, 27, n, most) % letters[:, None]) * present
    species = integers(1, 119, n, most) * present
    coords = torch.rand(n, most, 3, generator=generator, dtype=torch.float64) * present[..., None]
    return group, wyckoff, species, coords


def test_table_s1_has_the_parameters_of_the_paper() -> None:
    network = PublishedTransformer(PublishedConfig())
    assert sum(p.numel() for p in network.parameters()) == 4_833_575
    assert network.config.output_width == 171


def test_initial_weights_are_small_and_seeded() -> None:
    first, second = (PublishedTransformer(TINY, torch.Generator().manual_seed(3)) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
        if "norm" not in name:
            assert value.abs().max() <= 0.02


@pytest.mark.parametrize("visited", ["all heads", "letters and species only", "last axis only"])
def test_decoding_gives_what_teacher_forcing_gives(visited: str) -> None:
    network, inputs = tiny(), crystals(9, 4, seed=1)
    with torch.no_grad():
        wanted = network.teacher_forced(*inputs)
        axes = {"all heads": (0, 1, 2), "last axis only": (2,)}.get(visited, ())
        assert decoding_deviation(network, inputs, wanted, axes) < 1e-12


def test_decoding_at_full_size_in_single_precision(table_s1: Reference) -> None:
    network = table_s1.network(torch.float32)
    longest = int((table_s1.inputs()[1] > 0).sum(1).max())
    group, wyckoff, species, coords = table_s1.inputs()
    inputs = (group, wyckoff[:, :longest], species[:, :longest], coords[:, :longest])
    with torch.no_grad():
        wanted = network.teacher_forced(*inputs)
        assert decoding_deviation(network, inputs, wanted, (0, 1, 2)) < 1e-5


def decoding_deviation(
    network: PublishedTransformer,
    inputs: tuple[torch.Tensor, ...],
    wanted: PublishedHeads,
    axes: tuple[int, ...],
) -> float:
    """Largest difference between stepwise and teacher-forced outputs; the finished leave."""
    group, wyckoff, species, coords = inputs
    n_sites = (wyckoff > 0).sum(1)
    rows, state, differences = torch.arange(len(group)), network.start(group), []
    for site in range(wyckoff.shape[1] + 1):
        differences.append(network.wyckoff_head(state) - wanted.wyckoff_logits[rows, site])
        ended = n_sites[rows] == site
        stopping = network.select(state, ended)
        differences.append(network.lattice_head(stopping) - wanted.lattice[rows[ended]])
        state, rows = network.select(state, ~ended), rows[~ended]
        if not len(rows):
            break
        w, a, x = wyckoff[rows, site], species[rows, site], coords[rows, site]
        differences.append(network.species_head(state, w) - wanted.species_logits[rows, site])
        for axis in axes:
            unseen = x.clone()
            unseen[:, axis:] = torch.nan
            raw = network.coordinate_head(state, axis, w, a, unseen)
            differences.append(raw - wanted.coordinates[rows, site, axis])
        state = network.finish_site(state, w, a, x)
    assert not len(rows)
    return max(float(d.abs().max()) for d in differences if d.numel())


def test_lattice_head_leaves_the_state_where_it_is() -> None:
    network = tiny()
    with torch.no_grad():
        state = network.start(torch.tensor([62, 225]))
        letter = torch.tensor([1, 2])
        state = network.finish_site(state, letter, letter, torch.zeros(2, 3))
        before = network.wyckoff_head(state)
        first, second = network.lattice_head(state), network.lattice_head(state)
        assert torch.equal(first, second)
        assert torch.equal(network.wyckoff_head(state), before)
        undisturbed = network.species_head(network.select(state, torch.tensor([0, 1])), letter)
        assert torch.equal(network.species_head(state, letter), undisturbed)


def test_heads_out_of_order_are_refused() -> None:
    network = tiny()
    letter = torch.tensor([1])
    state = network.start(torch.tensor([62]))
    network.coordinate_head(state, 1, letter, letter, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="go W, A, X, Y, Z"):
        network.species_head(state, letter)
    with pytest.raises(ValueError, match="half read"):
        network.wyckoff_head(state)


def test_padding_changes_nothing() -> None:
    network, (group, wyckoff, species, coords) = tiny(), crystals(7, 3, seed=2)
    with torch.no_grad():
        short = network.teacher_forced(group, wyckoff, species, coords)
        pad = torch.nn.functional.pad
        long = network.teacher_forced(
            group, pad(wyckoff, (0, 3)), pad(species, (0, 3)), pad(coords, (0, 0, 0, 3))
        )
    torch.testing.assert_close(long.lattice, short.lattice, rtol=0, atol=1e-12)
    torch.testing.assert_close(long.coordinates[:, :3], short.coordinates, rtol=0, atol=1e-12)
    torch.testing.assert_close(long.wyckoff_logits[:, :4], short.wyckoff_logits, rtol=0, atol=1e-12)


def test_no_output_depends_on_a_later_draw() -> None:
    network, (group, wyckoff, species, coords) = tiny(), crystals(5, 4, seed=3)
    wyckoff = wyckoff.clamp(min=1)
    species = species.clamp(min=1)
    with torch.no_grad():
        before = network.teacher_forced(group, wyckoff, species, coords)
        coords = coords.clone()
        coords[:, 2, 1] += 0.3
        after = network.teacher_forced(group, wyckoff, species, coords)
    changed = (after.coordinates != before.coordinates).any(-1).any(0)
    assert changed.tolist() == [
        [False, False, False],
        [False, False, False],
        [False, False, True],
        [True, True, True],
    ]
    letters = (after.wyckoff_logits != before.wyckoff_logits).any(-1).any(0)
    assert letters.tolist() == [False, False, False, True, True]


def test_coordinates_are_periodic() -> None:
    network, (group, wyckoff, species, coords) = tiny(), crystals(5, 4, seed=4)
    with torch.no_grad():
        here = network.teacher_forced(group, wyckoff, species, coords)
        there = network.teacher_forced(group, wyckoff, species, coords + 1)
    torch.testing.assert_close(there.lattice, here.lattice, rtol=0, atol=1e-9)


def test_dropout_acts_in_training_alone() -> None:
    network, inputs = tiny(), crystals(3, 2, seed=5)
    first, second = (network.teacher_forced(*inputs).lattice for _ in range(2))
    assert torch.equal(first, second)
    network.train()
    first, second = (network.teacher_forced(*inputs).lattice for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"dropout": 1.0}, {"key_size": 3}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        PublishedConfig(**wrong)
