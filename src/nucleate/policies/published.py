"""The network of CrystalFormer-RL: five tokens a site, causal attention, rotary positions.

Architecture and Table S1 of arXiv:2504.02367 (CrystalFormer, arXiv:2403.15734). Each site is
written as five tokens, ``W A X Y Z``: Wyckoff letter, species, and three fractional coordinates.
The space group is not a token; its embedding is part of every token's input. What a token's
output says:

=======  =========================================================================
token    parameters read from its output
=======  =========================================================================
(none)   letter of the first site, by a small perceptron on the space group
W        species of this site; at the stop (W = 0), the lattice
A, X, Y  von Mises mixture of x, y and z
Z        letter of the next site
=======  =========================================================================

:meth:`PublishedTransformer.teacher_forced` gives the parameters of every draw of given crystals
in one pass; :meth:`PublishedTransformer.start` and its companions give the same numbers one draw
at a time with cached keys and values. Likelihoods as the original defines them are in
:mod:`nucleate.policies.compatible`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from nucleate.errors import RecipeError
from nucleate.policies.attention import Block
from nucleate.structures import symmetry

N_SPACE_GROUPS = 230
N_LETTERS = 28
N_SPECIES = 119
LATTICE_NUMBERS = 6
TOKENS_PER_SITE = 5
LETTER, SPECIES, COORDINATE = 0, 1, 2  # kinds of token; x, y, z are COORDINATE + axis
INITIAL_STD = 0.01
CACHE_TOKENS = 15  # room that a cache has or gains for tokens to come


@dataclass(frozen=True)
class PublishedConfig:
    """Hyper-parameters; the defaults are Table S1 of arXiv:2504.02367.

    Attributes:
        n_max: rows of a crystal, at least one of them left for the stop.
        harmonics: harmonics of a coordinate token (``Nf``).
        coordinate_components: von Mises components of a coordinate (``Kx``).
        lattice_components: Gaussian components of the lattice (``Kl``).
        first_letter_width: hidden units of the perceptron for the first letter; 0 makes it a
            table with one row for each space group (``h0_size``).
        embedding: width of the embeddings of space group, letter and species.
        width: width of the residual stream; the feed-forward layers are four times wider.
        layers: transformer blocks.
        heads: attention heads.
        key_size: width of the keys and of the values of a head, even.
        dropout: on both residual branches, while training.
        attention_dropout: on attention weights, while training.
    """

    n_max: int = 21
    harmonics: int = 5
    coordinate_components: int = 16
    lattice_components: int = 4
    first_letter_width: int = 256
    embedding: int = 32
    width: int = 64
    layers: int = 16
    heads: int = 16
    key_size: int = 64
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name in ("dropout", "attention_dropout"):
                valid, wanted = 0.0 <= value < 1.0, "in [0, 1)"
            else:
                lowest = 0 if name == "first_letter_width" else 1
                valid, wanted = value >= lowest, f"at least {lowest}"
            if not valid:
                raise RecipeError(
                    f"The published network can't have {name} = {value}.",
                    fix=f"Give {name} {wanted}.",
                )
        if self.key_size % 2:
            raise RecipeError(
                f"The published network can't have key_size = {self.key_size}.",
                "Rotary positions turn pairs of numbers.",
                "Give an even key_size.",
            )

    network = "published"

    def to_dict(self) -> dict[str, int | float]:
        """Plain values for a JSON file."""
        return asdict(self)

    @property
    def max_sites(self) -> int:
        """Most sites of a crystal that leaves a row for the stop."""
        return self.n_max - 1

    @property
    def lattice_width(self) -> int:
        """Numbers that describe the lattice mixture: weights, means and raw sigmas."""
        return self.lattice_components * (1 + 2 * LATTICE_NUMBERS)

    @property
    def output_width(self) -> int:
        """Width of an output row: the widest of what the tokens must say."""
        return max(N_SPECIES + self.lattice_width, 3 * self.coordinate_components, N_LETTERS)


@dataclass(frozen=True)
class PublishedHeads:
    """Raw parameters of every draw of B crystals with S sites; nothing masked or normalised.

    Attributes:
        wyckoff_logits: (B, S + 1, 28); row i is for site i, row ``n_sites`` for the stop.
        species_logits: (B, S, 119).
        coordinates: (B, S, 3, 3 Kx): log-weights, locations (rad), concentrations before softplus.
        lattice: (B, 13 Kl): log-weights, means and sigmas before softplus, at the stop.
    """

    wyckoff_logits: torch.Tensor
    species_logits: torch.Tensor
    coordinates: torch.Tensor
    lattice: torch.Tensor


@dataclass
class DecodingState:
    """B unfinished crystals: what the network remembers of their tokens.

    The heads advance it in place; only :meth:`select` copies.

    Attributes:
        space_group: (B,) 1..230.
        keys: for each layer (capacity, B, heads, key size), rotated; the first ``length`` count.
        values: likewise.
        length: tokens read so far.
        last: (B, model size) trunk output of the last token; None before the first.
    """

    space_group: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    length: int = 0
    last: torch.Tensor | None = None

    def select(self, index: torch.Tensor) -> DecodingState:
        """A copy of the crystals at ``index``: (b,) integers, or (B,) bool."""
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        return DecodingState(
            space_group=self.space_group[index],
            keys=[_with_room(cache, self.length, index) for cache in self.keys],
            values=[_with_room(cache, self.length, index) for cache in self.values],
            length=self.length,
            last=None if self.last is None else self.last[index],
        )


class PublishedTransformer(nn.Module):
    """The five-tokens-a-site network.

    Args:
        config: hyper-parameters.
        generator: source of the initial weights: normal, truncated at two standard deviations
            of 0.01; biases 0.
    """

    multiplicity: torch.Tensor

    def __init__(self, config: PublishedConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        size = config.embedding
        self.space_group_embedding = nn.Embedding(N_SPACE_GROUPS, size)
        self.letter_embedding = nn.Embedding(N_LETTERS, size)
        self.species_embedding = nn.Embedding(N_SPECIES, size)
        self.first_letter: nn.Module
        if config.first_letter_width:
            self.first_letter = nn.Sequential(
                nn.Linear(size, config.first_letter_width),
                nn.GELU(approximate="tanh"),
                nn.Linear(config.first_letter_width, N_LETTERS),
            )
        else:
            self.first_letter = nn.Embedding(N_SPACE_GROUPS, N_LETTERS)
        coordinate = size + 2 * config.harmonics
        input_widths = (2 * size + 1, 2 * size, coordinate, coordinate, coordinate)
        self.token_inputs = nn.ModuleList(
            nn.Linear(size_in, config.width) for size_in in input_widths
        )
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.key_size,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
            )
            for _ in range(config.layers)
        )
        self.output_norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.output_width)
        self.register_buffer("multiplicity", _multiplicity_table(), persistent=False)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(
                    module.weight,
                    std=INITIAL_STD,
                    a=-2 * INITIAL_STD,
                    b=2 * INITIAL_STD,
                    generator=generator,
                )
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    # -- every draw of given crystals --------------------------------------------------------
    def teacher_forced(
        self,
        space_group: torch.Tensor,
        wyckoff: torch.Tensor,
        species: torch.Tensor,
        frac_coords: torch.Tensor,
    ) -> PublishedHeads:
        """Parameters of every draw, given the draws before it.

        Args:
            space_group: (B,) 1..230.
            wyckoff: (B, S) letters, a = 1; 0 after the last site. S may be below ``n_max``.
            species: (B, S) atomic numbers, 0 after the last site.
            frac_coords: (B, S, 3) in [0, 1).

        Returns:
            Raw parameters; rows after the stop mean nothing.
        """
        hidden = self.trunk(space_group, wyckoff, species, frac_coords)
        return self.heads(space_group, wyckoff, hidden)

    def heads(
        self, space_group: torch.Tensor, wyckoff: torch.Tensor, hidden: torch.Tensor
    ) -> PublishedHeads:
        """Parameters of every draw from the output (B, 5 S + 1, width) of :meth:`trunk`."""
        n_rows, n_sites = wyckoff.shape[1], (wyckoff > 0).sum(1)
        sites = hidden[:, :-1].unflatten(1, (n_rows, TOKENS_PER_SITE))
        first = self.first_letter_logits(space_group)
        later = self._read(sites[:, :, 4], 0, N_LETTERS)
        stop = hidden[torch.arange(len(hidden), device=hidden.device), TOKENS_PER_SITE * n_sites]
        return PublishedHeads(
            wyckoff_logits=torch.cat([first.unsqueeze(1), later], dim=1),
            species_logits=self._read(sites[:, :, 0], 0, N_SPECIES),
            coordinates=self._read(sites[:, :, 1:4], 0, 3 * self.config.coordinate_components),
            lattice=self.lattice_parameters(stop),
        )

    def trunk(
        self,
        space_group: torch.Tensor,
        wyckoff: torch.Tensor,
        species: torch.Tensor,
        frac_coords: torch.Tensor,
        multiplicity: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Trunk output of all tokens and of one more W = 0, where a full crystal stops.

        Args:
            space_group: (B,) 1..230.
            wyckoff: (B, S).
            species: (B, S).
            frac_coords: (B, S, 3).
            multiplicity: (B, S) atoms in each orbit; looked up if not given.

        Returns:
            (B, 5 S + 1, model size), in the order W A X Y Z W A ...
        """
        group = space_group.long()[:, None]
        letter, species = wyckoff.long(), species.long()
        coords = frac_coords.to(self.dtype)
        if multiplicity is None:
            multiplicity = self.multiplicity[group, letter]
        tokens = [self._letter_token(group, letter, multiplicity.to(self.dtype))]
        tokens.append(self._species_token(group, species))
        tokens.extend(self._coordinate_token(group, axis, coords[..., axis]) for axis in range(3))
        stop = torch.zeros_like(group)
        hidden = torch.cat(
            [
                torch.stack(tokens, dim=2).flatten(1, 2),
                self._letter_token(group, stop, stop.to(self.dtype)),
            ],
            dim=1,
        )
        rotation = self._rotation(0, hidden.shape[1])
        for block in self.blocks:
            hidden = block(hidden, rotation)
        return self.output_norm(hidden)

    def first_letter_logits(self, space_group: torch.Tensor) -> torch.Tensor:
        """(B, 28) logits of the first site's letter."""
        index = space_group.long() - 1
        if self.config.first_letter_width:
            return self.first_letter(self.space_group_embedding(index))
        return self.first_letter(index)

    def lattice_parameters(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., 13 Kl) raw lattice parameters from the trunk outputs (..., width) of W tokens."""
        return self._read(hidden, N_SPECIES, N_SPECIES + self.config.lattice_width)

    # -- one draw after another, with cached keys and values ----------------------------------
    def start(self, space_group: torch.Tensor) -> DecodingState:
        """An empty crystal in each of the space groups (B,)."""
        layers = self.config.layers
        shape = (CACHE_TOKENS, len(space_group), self.config.heads, self.config.key_size)
        empty = [self.output.weight.new_empty(shape) for _ in range(2 * layers)]
        return DecodingState(space_group.long(), keys=empty[:layers], values=empty[layers:])

    def wyckoff_head(self, state: DecodingState) -> torch.Tensor:
        """(B, 28) logits of the next letter; after :meth:`start` or :meth:`finish_site`."""
        if state.last is None:
            return self.first_letter_logits(state.space_group)
        self._expect(state, 0)
        return self._read(state.last, 0, N_LETTERS)

    def species_head(self, state: DecodingState, wyckoff: torch.Tensor) -> torch.Tensor:
        """(B, 119) logits of the species at a site with the letters (B,)."""
        hidden = self._advance(state, SPECIES, wyckoff, wyckoff, wyckoff)
        return self._read(hidden, 0, N_SPECIES)

    def coordinate_head(
        self,
        state: DecodingState,
        axis: int,
        wyckoff: torch.Tensor,
        species: torch.Tensor,
        frac_coords: torch.Tensor,
    ) -> torch.Tensor:
        """(B, 3 Kx) mixture of one coordinate, given those before it.

        Args:
            state: the crystals.
            axis: 0, 1, 2 for x, y, z.
            wyckoff: (B,) letter of the site.
            species: (B,) its species.
            frac_coords: (B, 3); only the entries before ``axis`` are read.
        """
        hidden = self._advance(state, COORDINATE + axis, wyckoff, species, frac_coords)
        return self._read(hidden, 0, 3 * self.config.coordinate_components)

    def finish_site(
        self,
        state: DecodingState,
        wyckoff: torch.Tensor,
        species: torch.Tensor,
        frac_coords: torch.Tensor,
    ) -> DecodingState:
        """Read what is left of the site: letters (B,), species (B,), coordinates (B, 3)."""
        self._advance(state, TOKENS_PER_SITE, wyckoff, species, frac_coords)
        return state

    def lattice_head(self, state: DecodingState) -> torch.Tensor:
        """(B, 13 Kl) lattice parameters of crystals whose next letter is the stop.

        The state stays where it is.
        """
        self._expect(state, 0)
        ended = replace(state, keys=list(state.keys), values=list(state.values))
        stop = torch.zeros_like(state.space_group)
        hidden = self._advance(ended, SPECIES, stop, stop, stop)
        return self.lattice_parameters(hidden)

    def select(self, state: DecodingState, index: torch.Tensor) -> DecodingState:
        """:meth:`DecodingState.select`."""
        return state.select(index)

    def _expect(self, state: DecodingState, phase: int) -> None:
        if state.length % TOKENS_PER_SITE != phase:
            raise ValueError(
                f"a site of the crystal is half read ({state.length % TOKENS_PER_SITE} of 5 "
                "tokens): call finish_site first"
            )

    def _advance(
        self,
        state: DecodingState,
        upto: int,
        wyckoff: torch.Tensor,
        species: torch.Tensor,
        frac_coords: torch.Tensor,
    ) -> torch.Tensor:
        """Read the site's tokens before kind ``upto``; the trunk output (B, width) of the last.

        Tokens that an earlier head has read are not read again.
        """
        phase = state.length % TOKENS_PER_SITE
        if phase > upto:
            raise ValueError(f"the site's first {phase} tokens are read: heads go W, A, X, Y, Z")
        group = state.space_group[:, None]
        for kind in range(phase, upto):
            if kind == LETTER:
                letter = wyckoff.long()[:, None]
                token = self._letter_token(group, letter, self.multiplicity[group, letter])
            elif kind == SPECIES:
                token = self._species_token(group, species.long()[:, None])
            else:
                axis = kind - COORDINATE
                coordinate = frac_coords[:, axis, None].to(self.dtype)
                token = self._coordinate_token(group, axis, coordinate)
            self._decode(state, token)
        assert state.last is not None
        return state.last

    def _decode(self, state: DecodingState, token: torch.Tensor) -> None:
        """Append one token (B, 1, width)."""
        here, hidden = state.length, token
        rotation = self._rotation(here, here + 1)
        for layer, module in enumerate(self.blocks):
            block = cast(Block, module)
            query, key, value = block.projections(hidden, rotation)
            for cache, new in ((state.keys, key), (state.values, value)):
                if here == len(cache[layer]):
                    cache[layer] = _with_room(cache[layer], here)
                cache[layer][here] = new.squeeze(2)
            keys, values = state.keys[layer][: here + 1], state.values[layer][: here + 1]
            scores = (query.squeeze(2) * keys).sum(-1, keepdim=True) / self.config.key_size**0.5
            attended = (scores.softmax(0) * values).sum(0)
            hidden = block.finish(hidden, attended.unsqueeze(2))
        state.length = here + 1
        state.last = self.output_norm(hidden.squeeze(1))

    # -- pieces -------------------------------------------------------------------------------
    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.output.weight.dtype

    def _read(self, hidden: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """Columns ``begin`` to ``end`` of the output layer."""
        return F.linear(hidden, self.output.weight[begin:end], self.output.bias[begin:end])

    def _input(self, kind: int, group: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        """Token input of the space groups (B, 1) and features (B, S, ...): (B, S, width)."""
        space_group = self.space_group_embedding(group - 1)
        space_group = space_group.expand(*features[0].shape[:-1], -1)
        return self.token_inputs[kind](torch.cat([space_group, *features], dim=-1))

    def _letter_token(
        self, group: torch.Tensor, letter: torch.Tensor, multiplicity: torch.Tensor
    ) -> torch.Tensor:
        features = [self.letter_embedding(letter), multiplicity.unsqueeze(-1)]
        return self._input(LETTER, group, features)

    def _species_token(self, group: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
        return self._input(SPECIES, group, [self.species_embedding(species)])

    def _coordinate_token(
        self, group: torch.Tensor, axis: int, coordinate: torch.Tensor
    ) -> torch.Tensor:
        count = self.config.harmonics
        harmonic = torch.arange(1, count + 1, device=coordinate.device, dtype=coordinate.dtype)
        angle = 2 * math.pi * harmonic * coordinate.unsqueeze(-1)
        fourier = torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(-2)
        return self._input(COORDINATE + axis, group, [fourier])

    def _rotation(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine (T, key size / 2) of the rotary angles at positions begin..end-1."""
        size, device = self.config.key_size, self.output.weight.device
        pair = torch.arange(0, size, 2, device=device, dtype=self.dtype)
        position = torch.arange(begin, end, device=device, dtype=self.dtype)
        angle = position[:, None] * 10000.0 ** (-pair / size)
        return angle.cos(), angle.sin()


def _multiplicity_table() -> torch.Tensor:
    """(231, 28) atoms in the orbits of each space group's positions."""
    table = torch.zeros(N_SPACE_GROUPS + 1, N_LETTERS)
    table[1:] = torch.from_numpy(symmetry.tables().multiplicity.astype("float32"))
    return table


def _with_room(cache: torch.Tensor, length: int, index: torch.Tensor | None = None) -> torch.Tensor:
    """A copy of the first ``length`` entries (of crystals ``index``) with room for more."""
    n_crystals = cache.shape[1] if index is None else len(index)
    grown = cache.new_empty(length + CACHE_TOKENS, n_crystals, *cache.shape[2:])
    grown[:length] = cache[:length] if index is None else cache[:length, index]
    return grown
