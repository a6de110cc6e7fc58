"""A causal transformer with one position for each Wyckoff site.

The random variables and their order are CrystalFormer's (space group given; letter, species, x, y,
z of each site; lattice at the stop), but a site takes one position of the trunk instead of five.
Small heads draw what a site holds: each sees the state of the trunk and what the site has drawn
already. Three things carry chemistry and symmetry from the frequent to the rare:

* species are embedded, and predicted, through the features of the periodic table;
* Wyckoff positions are embedded, and predicted, through their own coordinate operations;
* the scale of the cell is drawn last, from a head that sees the shortest contacts between the
  atoms of the finished crystal, so that it learns radii and not crystals by heart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nucleate.policies.contacts import CONTACT_FEATURES, N_CONTACTS
from nucleate.policies.element_features import element_features
from nucleate.structures import symmetry

N_LETTERS = 28
N_SPECIES = 119
N_STABILITY_CLASSES = 5


@dataclass(frozen=True)
class SiteTransformerConfig:
    """Sizes of a :class:`SiteTransformer`."""

    width: int = 256
    layers: int = 6
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
    """What the trunk knows of B unfinished crystals.

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


def _position_features() -> np.ndarray:
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


def _group_features() -> np.ndarray:
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


class _Block(nn.Module):
    """Pre-norm transformer block with rotary positions and an optional cache."""

    def __init__(self, config: SiteTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cache: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, P, width) to the same, with the keys and values of all positions so far."""
        n, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(n, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = _rotate(query, rotary), _rotate(key, rotary)
        if cache is not None:
            key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
        attended = _attention(query, key, value, causal=cache is None)
        attended = self.out(attended.transpose(1, 2).reshape(n, length, width))
        x = x + F.dropout(attended, self.dropout, self.training)
        hidden = self.down(F.gelu(self.up(self.norm_mlp(x))))
        return x + F.dropout(hidden, self.dropout, self.training), key, value


def _rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021), half-split pairs."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(x.dtype)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool
) -> torch.Tensor:
    """Scaled dot-product attention over few positions, (B, heads, P, size).

    The fused kernel is slow for bfloat16 on a CPU (2.8 times at seven positions), so there the
    two products are written out.
    """
    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    if causal:
        future = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ value


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class SiteTransformer(nn.Module):
    """Network of the default policy. See the module docstring.

    Shapes: B crystals, S sites; a position holds the space group (the first) or a finished site.
    """

    elements: torch.Tensor
    positions: torch.Tensor
    groups: torch.Tensor
    rotary_cos: torch.Tensor
    rotary_sin: torch.Tensor

    def __init__(self, config: SiteTransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SiteTransformerConfig()
        width, size = config.width, config.embedding
        elements, positions, groups = element_features(), _position_features(), _group_features()
        self.register_buffer("elements", torch.from_numpy(elements), persistent=False)
        self.register_buffer("positions", torch.from_numpy(positions), persistent=False)
        self.register_buffer("groups", torch.from_numpy(groups), persistent=False)
        self.species_table = nn.Embedding(N_SPECIES, size)
        self.species_features = nn.Linear(elements.shape[1], size)
        self.position_table = nn.Embedding(231 * N_LETTERS, size)
        self.position_features = _mlp(positions.shape[2], 2 * size, size)
        self.group_table = nn.Embedding(231, width)
        self.group_features = nn.Linear(groups.shape[1], width)
        self.class_table = nn.Embedding(N_STABILITY_CLASSES, width)
        self.site_input = _mlp(2 * size + 6 * config.harmonics, 2 * width, width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.letter_query = _mlp(width, width, size)
        self.letter_bias = nn.Linear(width, N_LETTERS)
        self.letter_to_width = nn.Linear(size, width)
        self.species_to_width = nn.Linear(size, width)
        self.species_head = _mlp(width, width, size)
        self.species_bias = nn.Parameter(torch.zeros(N_SPECIES))
        fourier, outputs = 2 * config.harmonics, 3 * config.coordinate_components
        self.coordinate_input = nn.ModuleList(
            nn.Linear(width + axis * fourier, width) for axis in range(3)
        )
        self.coordinate_output = nn.ModuleList(nn.Linear(width, outputs) for _ in range(3))
        self.shape_head = _mlp(width, width, config.shape_components * 11)
        self.shape_to_width = nn.Linear(5, width)
        self.contact_input = nn.Linear(size + CONTACT_FEATURES, 128)
        self.contact_to_width = nn.Linear(128 + 1, width)
        self.scale_head = _mlp(width, width, config.scale_components * 3)
        self._initialise()
        half = width // config.heads // 2
        frequency = 10000 ** (-torch.arange(half) / half)
        angle = torch.arange(config.max_sites + 1)[:, None] * frequency
        self.register_buffer("rotary_cos", angle.cos(), persistent=False)
        self.register_buffer("rotary_sin", angle.sin(), persistent=False)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                parameter.data /= (2 * self.config.layers) ** 0.5
            if name.endswith("_head.2.weight") or name == "letter_query.2.weight":
                parameter.data *= 0.1
        for table in (self.position_table, self.group_table):
            nn.init.zeros_(table.weight)
        nn.init.zeros_(self.letter_bias.weight)

    # embeddings ---------------------------------------------------------------------------

    def _species(self) -> torch.Tensor:
        """(119, size)."""
        return self.species_table.weight + self.species_features(self.elements)

    def _positions(self, space_group: torch.Tensor) -> torch.Tensor:
        """(B, 28, size), the Wyckoff positions of each crystal's space group."""
        table = self.position_table.weight.view(231, N_LETTERS, -1)
        return table[space_group] + self.position_features(self.positions[space_group])

    def _group(self, space_group: torch.Tensor, stability: torch.Tensor) -> torch.Tensor:
        """(B, width), the first position."""
        group = self.group_table(space_group) + self.group_features(self.groups[space_group])
        return group + self.class_table(stability)

    def _fourier(self, frac_coords: torch.Tensor) -> torch.Tensor:
        """(..., D) fractional coordinates to (..., D * 2 * harmonics)."""
        order = torch.arange(1, self.config.harmonics + 1, device=frac_coords.device)
        angle = 2 * torch.pi * frac_coords.unsqueeze(-1) * order
        return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)

    def _sites(
        self, position: torch.Tensor, species: torch.Tensor, frac_coords: torch.Tensor
    ) -> torch.Tensor:
        """Embedding of finished sites: position (..., size), species (...), coords (..., 3)."""
        drawn = self._species()[species]
        return self.site_input(torch.cat([position, drawn, self._fourier(frac_coords)], -1))

    # heads --------------------------------------------------------------------------------

    def letter_logits(self, state: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B, P, width) states and (B, 28, size) positions to (B, P, 28); 0 is the stop."""
        query = self.letter_query(state)
        return query @ positions.transpose(1, 2).to(query.dtype) + self.letter_bias(state)

    def species_logits(self, state: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """(..., width) states and (..., size) drawn positions to (..., 119)."""
        hidden = self.species_head(state + self.letter_to_width(position))
        return hidden @ self._species().T.to(hidden.dtype) + self.species_bias

    def coordinate_raw(
        self, axis: int, state: torch.Tensor, frac_coords: torch.Tensor
    ) -> torch.Tensor:
        """Mixture of coordinate ``axis`` from (N, width) drawn states, (N, 3) coordinates."""
        inputs = state
        if axis:
            inputs = torch.cat([state, self._fourier(frac_coords[..., :axis])], -1)
        return self.coordinate_output[axis](F.gelu(self.coordinate_input[axis](inputs)))

    def drawn_state(
        self, state: torch.Tensor, position: torch.Tensor, species: torch.Tensor
    ) -> torch.Tensor:
        """Trunk state with the letter and species that the site has drawn, (..., width)."""
        return (
            state + self.letter_to_width(position) + self.species_to_width(self._species()[species])
        )

    def shape_raw(self, state: torch.Tensor) -> torch.Tensor:
        """(B, width) states at the stop to mixtures over the five shape parameters."""
        return self.shape_head(state)

    def scale_raw(
        self,
        state: torch.Tensor,
        shape: torch.Tensor,
        contact_species: torch.Tensor,
        contacts: torch.Tensor,
        tight: torch.Tensor,
    ) -> torch.Tensor:
        """Mixture over the scale, given the shape and the shortest contacts.

        Args:
            state: (B, width) at the stop.
            shape: (B, 5) drawn shape parameters.
            contact_species: (B, K, 2) atomic numbers, 0 where there are fewer contacts.
            contacts: (B, K, CONTACT_FEATURES), see ``policies.contacts``.
            tight: (B,) scale at which the tightest contact equals the sum of covalent radii.

        Returns:
            (B, 3 components): log-weights, means and raw sigmas; the means are relative to
            ``tight``.
        """
        species = self._species()
        pair = species[contact_species[..., 0]] + species[contact_species[..., 1]]
        hidden = F.gelu(self.contact_input(torch.cat([pair, contacts], -1)))
        present = (contact_species[..., 0] > 0).unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * present).sum(1) / N_CONTACTS
        pooled = torch.cat([pooled, tight.unsqueeze(-1).to(pooled.dtype)], -1)
        return self.scale_head(state + self.shape_to_width(shape) + self.contact_to_width(pooled))

    # trunk --------------------------------------------------------------------------------

    def trunk(
        self,
        space_group: torch.Tensor,
        stability: torch.Tensor,
        wyckoff: torch.Tensor,
        species: torch.Tensor,
        frac_coords: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, S + 1, width) before each site and at the stop; positions (B, 28, size)."""
        positions = self._positions(space_group)
        drawn = torch.gather(
            positions, 1, wyckoff.unsqueeze(-1).expand(-1, -1, positions.shape[-1])
        )
        first = self._group(space_group, stability).unsqueeze(1)
        x = torch.cat([first, self._sites(drawn, species, frac_coords).to(first.dtype)], dim=1)
        rotary = (self.rotary_cos[: x.shape[1]], self.rotary_sin[: x.shape[1]])
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x, _, _ = block(x, rotary)
        return self.norm(x), positions

    def start(self, space_group: torch.Tensor, stability: torch.Tensor) -> DecodingState:
        """Begin B crystals."""
        n, heads = len(space_group), self.config.heads
        empty = torch.zeros(n, heads, 0, self.config.width // heads, device=space_group.device)
        state = DecodingState(
            space_group, empty, [empty] * len(self.blocks), [empty] * len(self.blocks)
        )
        return self._advance(state, self._group(space_group, stability))

    def finish_site(
        self,
        state: DecodingState,
        position: torch.Tensor,
        species: torch.Tensor,
        frac_coords: torch.Tensor,
    ) -> DecodingState:
        """Append a finished site: position (B, size), species (B,), coordinates (B, 3)."""
        return self._advance(state, self._sites(position, species, frac_coords))

    def _advance(self, state: DecodingState, x: torch.Tensor) -> DecodingState:
        done = state.keys[0].shape[2]
        rotary = (self.rotary_cos[done : done + 1], self.rotary_sin[done : done + 1])
        x, keys, values = x.unsqueeze(1), [], []
        for block, key, value in zip(self.blocks, state.keys, state.values, strict=True):
            x, key, value = block(x, rotary, (key, value))
            keys.append(key)
            values.append(value)
        return DecodingState(state.space_group, self.norm(x).squeeze(1), keys, values)
