"""From a protostructure to a crystal: the shape of the cell, free coordinates, scale.

A protostructure is a space group with a species on each occupied Wyckoff position. An encoder
reads it whole; the shape of the cell is drawn from the encoding, then a decoder draws the sites
that have free coordinates, one position for each, seeing the protostructure, the shape and the
coordinates drawn so far. Sites whose position fixes them cost nothing here. The scale of the cell
comes last, from a head that sees the shortest contacts between the atoms of the finished crystal,
so that it learns radii and not crystals by heart.

The network shares no weight with the one that draws protostructures: when reinforcement moves
that one, geometries stay what they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from nucleate.policies.blocks import (
    Blocks,
    CrystalEmbedding,
    RotaryPositions,
    attention,
    by_head,
    dropout,
    fourier,
    initialise,
    mlp,
    precisely,
    rotate,
    start_small,
)
from nucleate.policies.contacts import CONTACT_FEATURES, N_CONTACTS
from nucleate.products import Linear

if TYPE_CHECKING:
    from nucleate.policies.site_transformer import SiteTransformerConfig


@dataclass(frozen=True)
class Encoding:
    """B protostructures as read by the encoder.

    Attributes:
        states: (B, S + 1, width); the first is the crystal's own, then its sites.
        present: (B, S + 1) bool, False where a crystal has no such site.
    """

    states: torch.Tensor
    present: torch.Tensor

    def at(self, position: torch.Tensor) -> torch.Tensor:
        """States (B, M, width) at positions (B, M)."""
        return self.states.gather(1, position.unsqueeze(-1).expand(-1, -1, self.states.shape[-1]))


@dataclass
class GeometryDecoding:
    """What the decoder knows of B unfinished crystals: keys and values of each layer.

    Attributes:
        encoding: of their protostructures.
        shape: (B, width), the shape of the cell.
        keys, values: for each layer (B, heads, S + 1 + M, size): those of the protostructure,
            then of up to M positions drawn.
        done: positions drawn so far.
    """

    encoding: Encoding
    shape: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    done: int = 0


class GeometryTransformer(nn.Module):
    """Network of the geometry. See the module docstring.

    Shapes: B crystals, S sites, M positions of the decoder: 1 + index of the site that a position
    draws, or 0 for the one that draws the scale.
    """

    def __init__(self, config: SiteTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, size = config.width, config.embedding
        n_fourier = 2 * config.harmonics
        block = width, config.heads, config.dropout
        self.embedding = CrystalEmbedding(width, size)
        self.site_input = mlp(2 * size, 2 * width, width)
        self.encoder = Blocks(config.encoder_layers, *block)
        self.decoder = Blocks(config.decoder_layers, *block)
        self.norm_encoder, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.memory = nn.ModuleList(Linear(width, 2 * width) for _ in self.decoder)
        self.shape_input = mlp(5, width, width)
        self.previous_input = Linear(width + 3 * n_fourier, width)
        self.nothing_before = nn.Parameter(torch.zeros(width))
        self.shape_head = mlp(width, width, config.shape_components * 11)
        self.coordinate_input = nn.ModuleList(
            Linear(width + axis * n_fourier, width) for axis in range(3)
        )
        self.coordinate_output = nn.ModuleList(
            Linear(width, 4 * config.coordinate_components) for _ in range(3)
        )
        self.contact_input = Linear(size + CONTACT_FEATURES, 128)
        self.contact_to_width = Linear(128 + 1, width)
        self.scale_head = mlp(width, width, config.scale_components * 3)
        self.rotary = RotaryPositions(width, config.heads, config.max_sites)
        initialise(self, config.encoder_layers + config.decoder_layers)
        start_small(self.shape_head, self.scale_head)

    # the protostructure -------------------------------------------------------------------

    def encode(
        self,
        space_group: torch.Tensor,
        stability: torch.Tensor,
        wyckoff: torch.Tensor,
        species: torch.Tensor,
    ) -> Encoding:
        """Read B protostructures: (B,) groups and stability classes, (B, S) letters, species."""
        crystal = self.embedding.crystal(space_group, stability).unsqueeze(1)
        sites, _ = self.embedding.sites(space_group, wyckoff, species)
        x = torch.cat([crystal, self.site_input(sites).to(crystal.dtype)], 1)
        present = F.pad(wyckoff > 0, (1, 0), value=True)
        visible = None if present.all() else present[:, None, None, :]
        rotary = self.rotary(slice(0, x.shape[1]))
        x = dropout(x, self.config.dropout, self.training)
        for block in self.encoder:
            x = block(x, rotary, visible)
        return Encoding(self.norm_encoder(x), present)

    def _memory(self, encoding: Encoding, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the protostructure for a layer of the decoder."""
        heads, width = self.config.heads, self.config.width
        key, value = self.memory[layer](encoding.states).chunk(2, -1)
        key = rotate(key, self.rotary(slice(0, encoding.states.shape[1])))
        return by_head(key, heads, width)[0], by_head(value, heads, width)[0]

    # the decoder --------------------------------------------------------------------------

    def _inputs(
        self,
        encoding: Encoding,
        shape: torch.Tensor,
        position: torch.Tensor,
        previous: torch.Tensor,
        frac_coords: torch.Tensor,
    ) -> torch.Tensor:
        """(B, M, width): what is to be drawn, and the site drawn before it with coordinates."""
        drawn = torch.cat([encoding.at(previous), fourier(frac_coords, self.config.harmonics)], -1)
        before = self.previous_input(drawn)
        before = torch.where((previous > 0).unsqueeze(-1), before, self.nothing_before)
        return encoding.at(position) + before.to(encoding.states.dtype) + shape.unsqueeze(1)

    def shape_state(self, shape: torch.Tensor) -> torch.Tensor:
        """(B, 5) drawn shape parameters to (B, width)."""
        return self.shape_input(shape)

    def decode(
        self,
        encoding: Encoding,
        shape: torch.Tensor,
        position: torch.Tensor,
        frac_coords: torch.Tensor,
    ) -> torch.Tensor:
        """States of all draws of finished crystals.

        Args:
            encoding: of the B protostructures.
            shape: (B, width) of :meth:`shape_state`.
            position: (B, M) positions to draw, in order; the first 0 of a crystal draws its scale.
            frac_coords: (B, M, 3) coordinates of the sites at these positions.

        Returns:
            (B, M, width) states, each before its own draw.
        """
        previous = F.pad(position[:, :-1], (1, 0))
        coords = F.pad(frac_coords[:, :-1], (0, 0, 1, 0))
        x = self._inputs(encoding, shape, position, previous, coords)
        x = dropout(x, self.config.dropout, self.training)
        n, length = position.shape
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        visible = torch.cat(
            [
                encoding.present[:, None, :].expand(-1, length, -1),
                causal.expand(n, -1, -1),
            ],
            -1,
        ).unsqueeze(1)
        rotary = self.rotary(position)
        for layer, block in enumerate(self.decoder):
            key, value = self._memory(encoding, layer)
            query, own_key, own_value = block.query_key_value(x, rotary)
            key, value = torch.cat([key, own_key], 2), torch.cat([value, own_value], 2)
            x = block.add(x, attention(query, key, value, visible))
        return self.norm(x)

    def start(self, encoding: Encoding, shape: torch.Tensor, n_positions: int) -> GeometryDecoding:
        """Begin to decode; up to ``n_positions`` will be drawn."""
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for layer in range(len(self.decoder)):
            for kept, known in zip((keys, values), self._memory(encoding, layer), strict=True):
                kept.append(F.pad(known, (0, 0, 0, n_positions)))
        return GeometryDecoding(encoding, shape, keys, values)

    def advance(
        self,
        decoding: GeometryDecoding,
        position: torch.Tensor,
        previous: torch.Tensor,
        frac_coords: torch.Tensor,
    ) -> torch.Tensor:
        """States (N, width) of the next draws of the first N crystals.

        Args:
            decoding: of B >= N crystals; changed in place.
            position: (N,) positions to draw.
            previous: (N,) those drawn before, 0 at the beginning.
            frac_coords: (N, 3) coordinates drawn there.
        """
        n, length = len(position), decoding.encoding.states.shape[1]
        slot = length + decoding.done
        encoding = Encoding(decoding.encoding.states[:n], decoding.encoding.present[:n])
        x = self._inputs(
            encoding,
            decoding.shape[:n],
            position.unsqueeze(1),
            previous.unsqueeze(1),
            frac_coords.unsqueeze(1),
        )
        visible = F.pad(encoding.present, (0, decoding.done + 1), value=True)[:, None, None, :]
        rotary = self.rotary(position.unsqueeze(1))
        for layer, block in enumerate(self.decoder):
            query, key, value = block.query_key_value(x, rotary)
            keys, values = decoding.keys[layer], decoding.values[layer]
            keys[:n, :, slot : slot + 1], values[:n, :, slot : slot + 1] = key, value
            known = slice(None), slice(None), slice(0, slot + 1)
            x = block.add(x, attention(query, keys[:n][known], values[:n][known], visible))
        decoding.done += 1
        return self.norm(x).squeeze(1)

    # heads, in full precision ---------------------------------------------------------------

    def shape_raw(self, encoding: Encoding) -> torch.Tensor:
        """(B, 11 components), mixtures over the five shape parameters."""
        with torch.autocast(encoding.states.device.type, enabled=False):
            return precisely(self.shape_head, encoding.states[:, 0])

    def coordinate_raw(
        self, axis: int, state: torch.Tensor, frac_coords: torch.Tensor
    ) -> torch.Tensor:
        """Mixture of coordinate ``axis`` from (N, width) states and (N, 3) coordinates.

        The locations are angles of vectors, so that a coordinate which repeats, mirrors or shifts
        an earlier one is a linear map of that one's sine and cosine.

        Returns:
            (N, 3 components): log-weights, locations (rad), raw concentrations.
        """
        with torch.autocast(state.device.type, enabled=False):
            inputs = state
            if axis:
                earlier = fourier(frac_coords[..., :axis], self.config.harmonics)
                inputs = torch.cat([state, earlier], -1)
            layers = self.coordinate_input[axis], nn.GELU(), self.coordinate_output[axis]
            logits, sine, cosine, concentration = precisely(layers, inputs).chunk(4, -1)
            return torch.cat([logits, torch.atan2(sine, cosine), concentration], -1)

    def scale_raw(
        self,
        state: torch.Tensor,
        contact_species: torch.Tensor,
        contacts: torch.Tensor,
        tight: torch.Tensor,
    ) -> torch.Tensor:
        """Mixture over the scale, given the shortest contacts.

        Args:
            state: (B, width) of the position that draws the scale.
            contact_species: (B, K, 2) atomic numbers, 0 where there are fewer contacts.
            contacts: (B, K, CONTACT_FEATURES), see ``policies.contacts``.
            tight: (B,) scale at which the tightest contact equals the sum of covalent radii.

        Returns:
            (B, 3 components): log-weights, means and raw sigmas; the means are relative to
            ``tight``.
        """
        with torch.autocast(state.device.type, enabled=False):
            species = self.embedding.species()
            pair = species[contact_species[..., 0]] + species[contact_species[..., 1]]
            hidden = F.gelu(self.contact_input(torch.cat([pair, contacts], -1)))
            present = (contact_species[..., 0] > 0).unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * present).sum(1) / N_CONTACTS
            pooled = torch.cat([pooled, tight.unsqueeze(-1)], -1)
            return precisely(self.scale_head, state + self.contact_to_width(pooled))
