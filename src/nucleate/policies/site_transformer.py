"""The default network: a protostructure first, its geometry second.

The random variables are CrystalFormer's (space group given; letter, species, coordinates of each
site; lattice), in another order: all letters and species come first, one position of a causal
trunk for each site, then the geometry (:mod:`nucleate.policies.geometry`), which so sees the whole
composition before it draws the first coordinate. Small heads draw what a position holds: each
sees the state of the trunk and what the site has drawn already.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn

from nucleate.policies.blocks import (
    N_LETTERS,
    N_SPECIES,
    Blocks,
    CrystalEmbedding,
    RotaryPositions,
    attention,
    dropout,
    initialise,
    mlp,
    start_small,
)
from nucleate.policies.geometry import GeometryTransformer
from nucleate.products import Linear


@dataclass(frozen=True)
class SiteTransformerConfig:
    """Sizes of a :class:`SiteTransformer`.

    Attributes:
        width: of all states.
        layers: of the trunk that draws letters and species.
        encoder_layers, decoder_layers: of the geometry.
        heads: of attention.
        embedding: of species and Wyckoff positions.
        harmonics: of the Fourier features of coordinates.
        coordinate_components, shape_components, scale_components: of the mixtures.
        dropout: of embeddings and of what each block adds.
        max_sites: most sites of a crystal.
    """

    width: int = 256
    layers: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 3
    heads: int = 8
    embedding: int = 64
    harmonics: int = 8
    coordinate_components: int = 16
    shape_components: int = 8
    scale_components: int = 4
    dropout: float = 0.1
    max_sites: int = 20

    network = "site"

    def to_dict(self) -> dict[str, object]:
        """Plain values for a JSON file."""
        return asdict(self)


@dataclass
class DecodingState:
    """What the trunk knows of B unfinished protostructures.

    Attributes:
        space_group: (B,) 1..230.
        state: (B, width) trunk output at the last position.
        keys, values: for each layer (B, heads, P, width / heads), P positions so far.
    """

    space_group: torch.Tensor
    state: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    def select(self, index: torch.Tensor) -> DecodingState:
        """The rows ``index``, in that order."""
        return DecodingState(
            self.space_group[index],
            self.state[index],
            [key[index] for key in self.keys],
            [value[index] for value in self.values],
        )


class SiteTransformer(nn.Module):
    """Network of the default policy. See the module docstring.

    Shapes: B crystals, S sites; a position of the trunk holds the space group (the first) or a
    finished site.
    """

    def __init__(self, config: SiteTransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SiteTransformerConfig()
        width, size = config.width, config.embedding
        self.embedding = CrystalEmbedding(width, size)
        self.site_input = mlp(2 * size, 2 * width, width)
        self.blocks = Blocks(config.layers, width, config.heads, config.dropout)
        self.norm = nn.LayerNorm(width)
        self.letter_query = mlp(width, width, size)
        self.letter_bias = Linear(width, N_LETTERS)
        self.letter_to_width = Linear(size, width)
        self.species_head = mlp(width, width, size)
        self.species_bias = nn.Parameter(torch.zeros(N_SPECIES))
        self.rotary = RotaryPositions(width, config.heads, config.max_sites)
        initialise(self, config.layers)
        nn.init.zeros_(self.letter_bias.weight)
        start_small(self.letter_query, self.species_head)
        self.geometry = GeometryTransformer(config)

    # heads --------------------------------------------------------------------------------

    def letter_logits(self, state: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B, P, width) states and (B, 28, size) positions to (B, P, 28); 0 is the stop."""
        query = self.letter_query(state)
        return query @ positions.transpose(1, 2).to(query.dtype) + self.letter_bias(state)

    def species_logits(self, state: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """(..., width) states and (..., size) drawn positions to (..., 119)."""
        hidden = self.species_head(state + self.letter_to_width(position))
        return hidden @ self.embedding.species().T.to(hidden.dtype) + self.species_bias

    # trunk --------------------------------------------------------------------------------

    def trunk(
        self,
        space_group: torch.Tensor,
        stability: torch.Tensor,
        wyckoff: torch.Tensor,
        species: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, S + 1, width) before each site and at the stop; positions (B, 28, size)."""
        first = self.embedding.crystal(space_group, stability).unsqueeze(1)
        sites, positions = self.embedding.sites(space_group, wyckoff, species)
        x = torch.cat([first, self.site_input(sites).to(first.dtype)], dim=1)
        length = x.shape[1]
        rotary = self.rotary(slice(0, length))
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        x = dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x, rotary, causal)
        return self.norm(x), positions

    def start(self, space_group: torch.Tensor, stability: torch.Tensor) -> DecodingState:
        """Begin B protostructures."""
        n, heads = len(space_group), self.config.heads
        empty = torch.zeros(n, heads, 0, self.config.width // heads, device=space_group.device)
        state = DecodingState(
            space_group, empty, [empty] * len(self.blocks), [empty] * len(self.blocks)
        )
        return self._advance(state, self.embedding.crystal(space_group, stability))

    def finish_site(
        self, state: DecodingState, position: torch.Tensor, species: torch.Tensor
    ) -> DecodingState:
        """Append a finished site: position (B, size), species (B,)."""
        drawn = torch.cat([position, self.embedding.species()[species]], -1)
        return self._advance(state, self.site_input(drawn))

    def _advance(self, state: DecodingState, x: torch.Tensor) -> DecodingState:
        done = state.keys[0].shape[2]
        rotary = self.rotary(slice(done, done + 1))
        x, keys, values = x.unsqueeze(1), [], []
        for layer, block in enumerate(self.blocks):
            query, key, value = block.query_key_value(x, rotary)
            keys.append(torch.cat([state.keys[layer], key], 2))
            values.append(torch.cat([state.values[layer], value], 2))
            x = block.add(x, attention(query, keys[-1], values[-1]))
        return DecodingState(state.space_group, self.norm(x).squeeze(1), keys, values)
