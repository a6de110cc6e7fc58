"""Causal attention with rotary positions, as CrystalFormer has it (arXiv:2403.15734)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Pre-norm attention and feed-forward layers with residual connections.

    Args:
        width: of the residual stream; the feed-forward layer is four times wider.
        heads: attention heads.
        key_size: width of the keys and of the values of a head, even.
        dropout: on both residual branches, while training.
        attention_dropout: on attention weights, while training.
    """

    def __init__(
        self, width: int, heads: int, key_size: int, *, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        inner = heads * key_size
        self.heads, self.key_size = heads, key_size
        self.dropout, self.attention_dropout = dropout, attention_dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * inner)
        self.attention_output = nn.Linear(inner, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def projections(
        self, hidden: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and keys, rotated, and values of (B, T, width): each (B, heads, T, key size)."""
        projected = self.query_key_value(self.attention_norm(hidden))
        shape = (*hidden.shape[:2], 3, self.heads, self.key_size)
        query, key, value = projected.view(shape).permute(2, 0, 3, 1, 4)
        return rotate(query, rotation), rotate(key, rotation), value

    def finish(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Add the attention and feed-forward branches to the residual stream."""
        drop = self.dropout if self.training else 0.0
        merged = self.attention_output(attended.transpose(1, 2).flatten(2))
        hidden = hidden + F.dropout(merged, drop, training=self.training)
        branch = self.feed_forward(self.feed_forward_norm(hidden))
        return hidden + F.dropout(branch, drop, training=self.training)

    def forward(
        self, hidden: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """All tokens at once, each attending to itself and those before it."""
        query, key, value = self.projections(hidden, rotation)
        drop = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=drop)
        return self.finish(hidden, attended)


def rotate(vectors: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary position embedding (arXiv:2104.09864), number i paired with i + half.

    Args:
        vectors: (..., T, key size).
        rotation: cosine and sine, each (T, key size / 2).
    """
    cosine, sine = rotation
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
