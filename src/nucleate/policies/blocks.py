"""What the networks of the default policy are built from: attention blocks and embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nucleate.policies.element_features import element_features
from nucleate.products import Linear, linear_gelu
from nucleate.structures import symmetry

N_LETTERS = 28
N_SPECIES = 119
N_STABILITY_CLASSES = 5

Rotary = tuple[torch.Tensor, torch.Tensor]
"""Cosines, and sines with their signs, of rotary positions: (P, heads, 2, size / 2), or the same
for each of B crystals. Written out for all heads, as few long rows are quicker than many short."""


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(Linear(inputs, hidden), nn.GELU(), Linear(hidden, outputs))


def finest(device: torch.device) -> torch.dtype:
    """Double precision where the device has it, else single."""
    return torch.float32 if device.type == "mps" else torch.float64


def precisely(layers: Iterable[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """What layers make of ``x``, in double precision where no derivative is asked for.

    Densities are sharp: single precision would lose digits of where they are between sampling
    and scoring. It is enough for a gradient.
    """
    dtype = torch.float32 if torch.is_grad_enabled() else finest(x.device)
    x = x.to(dtype)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = F.linear(x, layer.weight.to(dtype), layer.bias.to(dtype))
        else:
            x = layer(x)
    return x


def initialise(network: nn.Module, n_blocks: int) -> None:
    """Weights of unit gain; what a block adds to its input starts small."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for module in network.modules():
        if isinstance(module, Block):
            module.out.weight.data /= (2 * n_blocks) ** 0.5
            module.down.weight.data /= (2 * n_blocks) ** 0.5
        elif isinstance(module, CrystalEmbedding):
            nn.init.zeros_(module.position_table.weight)
            nn.init.zeros_(module.group_table.weight)


def start_small(*heads: nn.Sequential) -> None:
    """Bring what heads give out nearer to 0, so that training begins with broad distributions."""
    for head in heads:
        for weight in head[-1].parameters():
            weight.data *= 0.1


def fourier(frac_coords: torch.Tensor, harmonics: int) -> torch.Tensor:
    """(..., D) fractional coordinates to (..., D * 2 * harmonics) sines and cosines."""
    order = torch.arange(1, harmonics + 1, device=frac_coords.device)
    angle = 2 * torch.pi * frac_coords.unsqueeze(-1) * order
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By their size in bytes."""


def dropout(x: torch.Tensor, share: float, training: bool) -> torch.Tensor:
    """Set a share of the elements to 0 in training and scale up the rest.

    On a processor the random bits are numpy's, seeded by PyTorch's generator: sixteen for each
    element instead of a number. They choose between 0 and the bits of the scale; converting truth
    values to numbers would take PyTorch longer than all the rest.
    """
    if not training or share == 0 or x.device.type != "cpu":
        return F.dropout(x, share, training)
    limit = round(share * 2**16)
    scale = torch.tensor(2**16 / (2**16 - limit), dtype=x.dtype)
    bits = scale.view(_INTEGERS[x.element_size()]).numpy()
    seed = int(torch.randint(2**62, ()))
    words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))
    kept = (words.view(np.uint16)[: x.numel()] >= limit) * bits
    return x * torch.from_numpy(kept).view(x.dtype).view(x.shape)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention over few positions.

    The fused kernel is slow for bfloat16 on a CPU, so there the two products are written out. Where
    no derivative is asked for, single precision is summed in double precision: results then don't
    depend on how many positions there are beside those that a query sees, so that sampling, one
    position at a time, and scoring, all at once, agree.

    Args:
        query: (B, heads, Q, size).
        key: (B, heads, K, size).
        value: (B, heads, K, size).
        visible: (..., Q, K) bool, which keys a query sees; None shows all.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    if query.dtype == torch.float32:
        dtype = query.dtype if torch.is_grad_enabled() else torch.float64
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible).float()
    hidden = None if visible is None else ~visible
    return _Attention.apply(query, key, value, hidden)  # type: ignore[no-any-return]


def _columns(rows: torch.Tensor) -> torch.Tensor:
    """(..., K) to (K, N), along which PyTorch's softmax is ten times as fast if K is small."""
    return rows.reshape(-1, rows.shape[-1]).t().contiguous()


class _Attention(torch.autograd.Function):
    """Attention written out, with first derivatives."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        hidden: torch.Tensor | None,
    ) -> torch.Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        scores = (query @ key.transpose(-1, -2)).mul_(query.shape[-1] ** -0.5)
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
        weights = _columns(scores).softmax(0)
        ctx.save_for_backward(query, key, value, weights)
        return weights.t().reshape(scores.shape) @ value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_weights = gradient @ value.transpose(-1, -2)
        rows = weights.t().reshape(to_weights.shape)
        to_value = rows.transpose(-1, -2) @ gradient
        columns = torch.ops.aten._softmax_backward_data(
            _columns(to_weights), weights, 0, weights.dtype
        )
        to_scores = columns.mul_(query.shape[-1] ** -0.5).t().reshape(to_weights.shape)
        return to_scores @ key, to_scores.transpose(-1, -2) @ query, to_value, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    halves = x.unflatten(-1, (-1, *cos.shape[-3:]))
    swapped = torch.cat([halves[..., 1:, :], halves[..., :1, :]], -2)
    turned = (halves * cos.unsqueeze(-4)).add_(swapped.mul_(sin.unsqueeze(-4)))
    return turned.view(x.shape)


class _Rotation(torch.autograd.Function):
    """Turning back is all there is to the derivative."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin), None, None


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021), half-split pairs; has first derivatives only.

    Args:
        x: (B, P, K * heads * size), K numbers of each size for each head.
        rotary: of its positions.
    """
    cos, sin = rotary
    return _Rotation.apply(x, cos.to(x.dtype), sin.to(x.dtype))  # type: ignore[no-any-return]


class RotaryPositions(nn.Module):
    """Rotary angles of positions 0 to ``most``."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, width: int, heads: int, most: int) -> None:
        super().__init__()
        half = width // heads // 2
        angle = torch.arange(most + 1)[:, None] * 10000 ** (-torch.arange(half) / half)
        cos, sin = angle.cos(), angle.sin()
        for name, pair in (("cos", (cos, cos)), ("sin", (-sin, sin))):
            table = torch.stack(pair, 1).unsqueeze(1).repeat(1, heads, 1, 1)
            self.register_buffer(name, table, persistent=False)

    def forward(self, position: torch.Tensor | slice) -> Rotary:
        """Of a slice of positions, or of (B, P) positions that differ between crystals."""
        return self.cos[position], self.sin[position]


def by_head(x: torch.Tensor, heads: int, width: int) -> torch.Tensor:
    """(B, P, K * width) to (K, B, heads, P, width / heads)."""
    return x.view(*x.shape[:2], -1, heads, width // heads).permute(2, 0, 3, 1, 4)


class Block(nn.Module):
    """Pre-norm transformer block with rotary positions."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)

    def query_key_value(
        self, x: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, P, width) to three of (B, heads, P, width / heads), the first two rotated."""
        width = x.shape[-1]
        turning, value = self.qkv(self.norm_attention(x)).split([2 * width, width], -1)
        query, key = by_head(rotate(turning, rotary), self.heads, width)
        return query, key, by_head(value, self.heads, width)[0]

    def add(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What the block makes of its input (B, P, width) and (B, heads, P, size) attended."""
        attended = self.out(attended.transpose(1, 2).reshape(x.shape))
        x = x + dropout(attended, self.dropout, self.training)
        hidden = linear_gelu(self.norm_mlp(x), self.up.weight, self.up.bias)
        hidden = self.down(hidden)
        return x + dropout(hidden, self.dropout, self.training)

    def forward(
        self, x: torch.Tensor, rotary: Rotary, visible: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, P, width) to the same; ``visible`` as in :func:`attention`."""
        query, key, value = self.query_key_value(x, rotary)
        return self.add(x, attention(query, key, value, visible))


class Blocks(nn.ModuleList):
    """Blocks, one after another."""

    def __init__(self, count: int, width: int, heads: int, dropout: float) -> None:
        super().__init__(Block(width, heads, dropout) for _ in range(count))

    def __iter__(self) -> Iterator[Block]:
        return cast("Iterator[Block]", super().__iter__())


class CrystalEmbedding(nn.Module):
    """Species, Wyckoff positions and space groups as vectors.

    Beside a table of its own, each is embedded through what is known of it: a species by the
    features of the periodic table, a Wyckoff position by its coordinate operation, a space group
    by its crystal system, centring and order. So the rare learn from the frequent.
    """

    elements: torch.Tensor
    operations: torch.Tensor
    systems: torch.Tensor

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        elements, operations, systems = element_features(), _operations(), _systems()
        self.register_buffer("elements", torch.from_numpy(elements), persistent=False)
        self.register_buffer("operations", torch.from_numpy(operations), persistent=False)
        self.register_buffer("systems", torch.from_numpy(systems), persistent=False)
        self.species_table = nn.Embedding(N_SPECIES, size)
        self.species_features = Linear(elements.shape[1], size)
        self.position_table = nn.Embedding(231 * N_LETTERS, size)
        self.position_features = mlp(operations.shape[2], 2 * size, size)
        self.group_table = nn.Embedding(231, width)
        self.group_features = Linear(systems.shape[1], width)
        self.class_table = nn.Embedding(N_STABILITY_CLASSES, width)

    def species(self) -> torch.Tensor:
        """(119, size)."""
        return self.species_table.weight + self.species_features(self.elements)

    def positions(self, space_group: torch.Tensor) -> torch.Tensor:
        """(B, 28, size), the Wyckoff positions of each crystal's space group."""
        table = self.position_table.weight.view(231, N_LETTERS, -1)
        return table[space_group] + self.position_features(self.operations[space_group])

    def crystal(self, space_group: torch.Tensor, stability: torch.Tensor) -> torch.Tensor:
        """(B, width), the space group and the stability class."""
        group = self.group_table(space_group) + self.group_features(self.systems[space_group])
        return group + self.class_table(stability)

    def sites(
        self, space_group: torch.Tensor, wyckoff: torch.Tensor, species: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, 2 size), position and species of each site; positions (B, 28, size)."""
        positions = self.positions(space_group)
        index = wyckoff.unsqueeze(-1).expand(-1, -1, positions.shape[-1])
        return torch.cat([positions.gather(1, index), self.species()[species]], -1), positions


def _operations() -> np.ndarray:
    """(231, 28, F) float32: operation, multiplicity and freedom of every Wyckoff position."""
    tables = symmetry.tables()
    features = np.zeros((231, N_LETTERS, 9 + 6 + 4 + 3 + 1), dtype=np.float32)
    rotation = tables.first_rotation.reshape(230, N_LETTERS, 9)
    angle = 2 * np.pi * tables.first_translation
    features[1:, :, :9] = rotation
    features[1:, :, 9:12], features[1:, :, 12:15] = np.sin(angle), np.cos(angle) - 1
    features[1:, :, 15:19] = np.eye(4)[tables.dof]
    features[1:, :, 19:22] = tables.free
    features[1:, :, 22] = np.log(np.maximum(tables.multiplicity, 1))
    features[1:, 0] = 0
    return features


def _systems() -> np.ndarray:
    """(231, 17) float32: crystal system, centring and order of every space group."""
    features = np.zeros((231, 17), dtype=np.float32)
    tables = symmetry.tables()
    for group in range(1, 231):
        features[group, symmetry.crystal_system(np.array(group))] = 1
        general = int(tables.multiplicity[group - 1].max())
        centring = int(tables.centring_order[group - 1])
        features[group, 7 + min(centring, 4)] = 1
        features[group, 12] = np.log(general)
        features[group, 13] = np.log(general / centring)
        features[group, 14] = tables.n_letters[group - 1] / 10
    return features
