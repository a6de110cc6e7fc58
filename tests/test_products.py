"""Tests of the matrix products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nucleate import products


@pytest.mark.parametrize("shape", [(1, 5), (8, 5), (13, 5), (2, 7, 5), (3, 1, 2, 5), (0, 5)])
@pytest.mark.parametrize("biased", [True, False])
def test_products_and_derivatives_are_those_of_pytorch(
    shape: tuple[int, ...], biased: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    weight = torch.randn(4, 5, generator=generator, requires_grad=True)
    bias = torch.randn(4, generator=generator, requires_grad=True) if biased else None
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    values, gradients = [], []
    for product in (products.linear, F.linear):
        value = product(x, weight, bias)
        values.append(value)
        gradients.append(torch.autograd.grad(value.sin().sum(), inputs))
    assert values[0].shape == values[1].shape
    torch.testing.assert_close(*values)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("recorded", [True, False])
def test_gelu_of_a_product_is_that_of_pytorch(recorded: bool) -> None:
    x, weight, bias = torch.randn(13, 5), torch.randn(4, 5), torch.randn(4)
    with torch.set_grad_enabled(recorded):
        torch.testing.assert_close(
            products.linear_gelu(x, weight, bias), F.gelu(F.linear(x, weight, bias))
        )


def test_rows_do_not_depend_on_what_fills_up_their_number() -> None:
    x, weight = torch.randn(24, 16), torch.randn(8, 16)
    whole = products.linear(x, weight)
    for count in range(1, 24):
        torch.testing.assert_close(products.linear(x[:count], weight), whole[:count])


def test_other_precisions_are_left_to_pytorch() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x, weight = torch.randn(3, 5, dtype=dtype), torch.randn(4, 5, dtype=dtype)
        assert torch.equal(products.linear(x, weight), F.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(torch.randn(3, 5), torch.randn(4, 5)).dtype == torch.bfloat16


def test_a_layer_has_the_weights_of_a_plain_one() -> None:
    ours, plain = products.Linear(5, 4), torch.nn.Linear(5, 4)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5)
    torch.testing.assert_close(ours(x), plain(x))
