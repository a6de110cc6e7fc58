"""Attention sees what it may see, rotations encode distances, embeddings say what is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nucleate.policies.blocks import (
    Block,
    Blocks,
    CrystalEmbedding,
    RotaryPositions,
    attention,
    dropout,
    fourier,
    initialise,
    rotate,
)
from nucleate.structures.symmetry import tables
from tiny import generator


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_average_over_what_is_visible(dtype):
    query, key, value = (drawn(2, 3, n, 8, seed=n).to(dtype) for n in (4, 5, 5))
    visible = torch.rand(2, 1, 4, 5, generator=generator(1)) < 0.6
    visible[..., 0] = True
    scores = torch.einsum("bhqd,bhkd->bhqk", query.double(), key.double()) / 8**0.5
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    expected = weights @ value.double()
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    seen = attention(query, key, value, visible)
    assert seen.dtype == dtype
    torch.testing.assert_close(seen.double(), expected, atol=tolerance, rtol=0)
    everything = torch.ones_like(visible)
    torch.testing.assert_close(
        attention(query, key, value),
        attention(query, key, value, everything),
        atol=tolerance,
        rtol=0,
    )
    # what is hidden has no influence at all
    hidden = ~visible.any((0, 1, 2))
    visible[..., 3], hidden[3] = False, True
    moved_key, moved_value = key.clone(), value.clone()
    moved_key[:, :, hidden], moved_value[:, :, hidden] = 100.0, -100.0
    assert torch.equal(
        attention(query, key, value, visible), attention(query, moved_key, moved_value, visible)
    )


def test_derivatives_of_written_out_attention():
    """In double precision, which takes the way of bfloat16."""
    query, key, value = (drawn(2, 3, n, 4, seed=n).double().requires_grad_() for n in (4, 5, 5))
    visible = torch.rand(2, 1, 4, 5, generator=generator(1)) < 0.6
    visible[..., 0] = True
    torch.autograd.gradcheck(lambda *x: attention(*x, visible), (query, key, value))
    torch.autograd.gradcheck(attention, (query, key, value))


def test_rotary_products_depend_on_the_difference_of_positions():
    rotary = RotaryPositions(8, 1, 20)
    query, key = drawn(8, seed=1), drawn(8, seed=2)

    def product(at: int, to: int) -> float:
        one, two = (
            rotate(x.expand(1, 1, -1), rotary(torch.tensor([[position]])))
            for x, position in ((query, at), (key, to))
        )
        return float((one * two).sum())

    assert product(3, 1) == pytest.approx(product(20, 18), abs=1e-4)
    assert product(4, 4) == pytest.approx(float(query @ key), abs=1e-4)
    assert abs(product(3, 1) - product(1, 3)) > 1e-2
    # positions of each crystal, or the same for all
    x = drawn(2, 4, 3 * 8)
    own = rotary(torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))
    turned = rotate(x, own)
    assert torch.equal(turned[0], rotate(x, rotary(slice(0, 4)))[0])
    assert torch.equal(turned[1], rotate(x.flip(1), rotary(slice(0, 4))).flip(1)[1])


def test_every_head_is_rotated_as_complex_numbers_are():
    """Halves of a head are real and imaginary parts; each pair turns at its own rate."""
    x = drawn(2, 5, 3 * 4 * 6).double().requires_grad_()  # three numbers of size 6 for 4 heads
    cos, sin = RotaryPositions(4 * 6, 4, 4)(slice(0, 5))
    real, imaginary = x.view(2, 5, 12, 2, 3).unbind(3)
    rate = 10000 ** (-torch.arange(3) / 3)
    turn = torch.polar(torch.ones(5, 3), torch.arange(5)[:, None] * rate)
    expected = torch.view_as_real(torch.complex(real, imaginary) * turn[:, None])
    expected = expected.movedim(-1, 3).reshape(x.shape)
    torch.testing.assert_close(rotate(x, (cos, sin)), expected, atol=1e-6, rtol=0)
    torch.autograd.gradcheck(lambda y: rotate(y, (cos, sin)), x)


def test_blocks_drop_out_in_training_only():
    torch.manual_seed(0)
    blocks = Blocks(2, 16, 2, 0.5)
    rotary = RotaryPositions(16, 2, 4)(slice(0, 4))
    x = drawn(3, 4, 16)

    def through() -> torch.Tensor:
        result = x
        for block in blocks:
            result = block(result, rotary)
        return result

    assert [type(block) for block in blocks] == [Block, Block]
    assert not torch.equal(through(), through())
    blocks.eval()
    assert torch.equal(through(), through())


def test_fourier_features_are_those_of_the_circle():
    x = torch.rand(5, 3, generator=generator(0))
    features = fourier(x, 4)
    assert features.shape == (5, 3 * 2 * 4)
    by_axis = features.view(5, 3, 2, 4)
    for order in range(1, 5):
        angle = 2 * np.pi * order * x
        torch.testing.assert_close(by_axis[:, :, 0, order - 1], angle.sin(), atol=1e-5, rtol=0)
        torch.testing.assert_close(by_axis[:, :, 1, order - 1], angle.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(fourier(x + 1, 4), features, atol=1e-4, rtol=0)


@torch.no_grad()
def test_sites_are_embedded_by_position_and_species():
    torch.manual_seed(0)
    embedding = CrystalEmbedding(32, 16)
    group = torch.tensor([2, 225])
    wyckoff, species = torch.tensor([[9, 1], [3, 0]]), torch.tensor([[8, 26], [11, 0]])
    sites, positions = embedding.sites(group, wyckoff, species)
    assert sites.shape == (2, 2, 32) and positions.shape == (2, 28, 16)
    for crystal, site in ((0, 0), (0, 1), (1, 0)):
        letter, kind = wyckoff[crystal, site], species[crystal, site]
        assert torch.equal(sites[crystal, site, :16], positions[crystal, letter])
        assert torch.equal(sites[crystal, site, 16:], embedding.species()[kind])
    assert embedding.crystal(group, torch.tensor([0, 1])).shape == (2, 32)


@torch.no_grad()
def test_before_training_positions_and_groups_are_what_is_known_of_them():
    """Tables start at 0, so that what a rare position means is learnt from its operation."""
    torch.manual_seed(0)
    embedding = CrystalEmbedding(32, 16)
    initialise(embedding, 1)
    general = tables().multiplicity.argmax(1)
    features = embedding.operations[torch.arange(1, 231), torch.from_numpy(general)]
    assert torch.equal(features[:, :22], features[:1, :22].expand(230, -1))  # x, y, z
    order = torch.from_numpy(tables().multiplicity.max(1))
    torch.testing.assert_close(features[:, 22], order.float().log())
    # P2 and Pm have general positions of equal order, P1 has none of its own
    positions = embedding.positions(torch.tensor([1, 3, 6]))
    first, second, third = (positions[i, general[g - 1]] for i, g in enumerate((1, 3, 6)))
    assert torch.equal(second, third) and not torch.equal(first, second)
    assert torch.equal(embedding.group_table.weight, torch.zeros(231, 32))
    nothing = torch.cat([embedding.operations[0], embedding.operations[:, 0]])
    assert not nothing.any()


def test_space_groups_are_described_by_system_centring_and_order():
    systems = CrystalEmbedding(8, 8).systems
    assert (systems[1:, :7].sum(1) == 1).all() and (systems[1:, 7:12].sum(1) == 1).all()
    assert not systems[0].any()
    for group, system, centring, order in ((1, 0, 1, 1), (62, 2, 1, 8), (225, 6, 4, 192)):
        assert systems[group, system] == 1 and systems[group, 7 + centring] == 1
        assert systems[group, 12] == pytest.approx(np.log(order))
        assert systems[group, 13] == pytest.approx(np.log(order / centring))


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_leaves_the_mean_and_is_repeated_by_a_seed(
    share: float, dtype: torch.dtype
) -> None:
    x = torch.ones(200, 300, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    once = dropout(x, share, True)
    torch.manual_seed(3)
    assert torch.equal(once, dropout(x, share, True))
    assert not torch.equal(once, dropout(x, share, True))
    lost = (once == 0).double().mean()
    assert abs(float(lost) - share) < 0.01
    kept = once[once > 0]
    precise = max(1e-4, torch.finfo(dtype).eps)
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)), rtol=precise, atol=0)
    once.sum().backward()
    torch.testing.assert_close(x.grad, once.detach())
    assert dropout(x, share, False) is x
