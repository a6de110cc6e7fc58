"""Likelihoods of the published network exactly as CrystalFormer defines them.

For weights trained with the original code (arXiv:2403.15734, arXiv:2504.02367): their outputs,
normalised, and the four parts of the log-probability with the original's conventions, two of
which are not those of a sampled density:

* coordinates that another coordinate of the site determines, such as the y of (x, x, z), count
  as drawn;
* each lattice parameter has its own mixture over the components, although one component is
  drawn for all of them.

Lattice parameters here are ``a, b, c`` in Å divided by N^(1/3), N atoms in the conventional cell,
and ``alpha, beta, gamma`` in radians. Coordinates have densities over the angle 2 pi (x - 1/2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from nucleate.errors import InputError
from nucleate.policies.published import (
    LATTICE_NUMBERS,
    N_LETTERS,
    N_SPECIES,
    TOKENS_PER_SITE,
    PublishedTransformer,
)
from nucleate.structures import symmetry

if TYPE_CHECKING:
    from nucleate.structures.wyckoff import WyckoffBatch

FORBIDDEN = -1e10
"""Log-probability that the original writes where a draw is impossible."""

MIN_SIGMA = 1e-3
"""Smallest standard deviation of a lattice parameter."""

PARTS = ("wyckoff", "coordinates", "species", "lattice")


@dataclass(frozen=True)
class _Masks:
    """What the original's masks read, for space groups 0..230 (row 0 unused).

    Attributes:
        n_letters: (231,) highest letter.
        fixed: (231, 28) bool, no coordinate is free, so that the letter can't be used twice;
            True for no site.
        scored: (231, 28, 3) bool, coordinates that vary along the position.
        free_lattice: (231, 6) bool, parameters that the crystal system leaves free.
    """

    n_letters: torch.Tensor
    fixed: torch.Tensor
    scored: torch.Tensor
    free_lattice: torch.Tensor


@lru_cache(maxsize=4)
def _masks(device: torch.device) -> _Masks:
    table = symmetry.tables()
    varies = (table.first_rotation != 0).any(-1)
    groups = np.arange(1, symmetry.N_SPACE_GROUPS + 1)
    arrays = (
        table.n_letters.astype(np.int64),
        table.dof == 0,
        varies,
        symmetry.free_lattice_mask(groups),
    )
    padded = (np.concatenate([np.zeros_like(array[:1]), array]) for array in arrays)
    return _Masks(*(torch.from_numpy(array).to(device) for array in padded))


def letters_allowed(space_group: torch.Tensor, wyckoff: torch.Tensor) -> torch.Tensor:
    """Letters that each row may hold, given the letter of the row before.

    Args:
        space_group: (B,) 1..230.
        wyckoff: (B, S).

    Returns:
        (B, S + 1, 28) bool. The first site can't be the stop; after the stop only 0 follows;
        letters ascend, and a letter without free coordinates is not repeated.
    """
    masks = _masks(space_group.device)
    letter = torch.arange(N_LETTERS, device=space_group.device)
    exists = (letter <= masks.n_letters[space_group, None])[:, None]
    first = (exists & (letter > 0)).expand(-1, 1, -1)
    previous = wyckoff[..., None]
    lowest = previous + masks.fixed[space_group[:, None], wyckoff][..., None].long()
    later = exists & ((letter >= lowest) | (letter == 0)) & ((previous > 0) | (letter == 0))
    return torch.cat([first, later], dim=1)


def species_allowed(wyckoff: torch.Tensor) -> torch.Tensor:
    """(..., 119) bool: an element where there is a site, none elsewhere."""
    return (torch.arange(N_SPECIES, device=wyckoff.device) > 0) == (wyckoff > 0)[..., None]


def normalised_outputs(
    network: PublishedTransformer,
    space_group: torch.Tensor,
    wyckoff: torch.Tensor,
    species: torch.Tensor,
    frac_coords: torch.Tensor,
    multiplicity: torch.Tensor | None = None,
) -> torch.Tensor:
    """All outputs of the network as the original returns them.

    Args:
        network: the network.
        space_group: (B,) 1..230.
        wyckoff: (B, S) letters; 0 after the last site.
        species: (B, S).
        frac_coords: (B, S, 3).
        multiplicity: (B, S); looked up if not given.

    Returns:
        (B, 5 S + 1, output width): row 0 the first letter, then one row a token. Letters and
        species are log-probabilities with -1e10 where impossible; mixture weights are
        log-probabilities; concentrations and sigmas are positive; unused columns are 0.
    """
    config, group, letter = network.config, space_group.long(), wyckoff.long()
    hidden = network.trunk(group, letter, species, frac_coords, multiplicity)[:, :-1]
    raw = network.output(hidden).unflatten(1, (-1, TOKENS_PER_SITE))
    allowed = letters_allowed(group, letter)
    letters = torch.cat(
        [network.first_letter_logits(group)[:, None], raw[:, :, 4, :N_LETTERS]], dim=1
    )
    letters = _widen(_log_softmax(letters, allowed), config.output_width)
    kinds = _log_softmax(raw[:, :, 0, :N_SPECIES], species_allowed(letter))
    lattice = raw[:, :, 0, N_SPECIES : N_SPECIES + config.lattice_width]
    weights, mean, sigma = split_lattice(lattice)
    after_letter = torch.cat([kinds, weights, mean.flatten(-2), sigma.flatten(-2)], dim=-1)
    mixture = raw[:, :, 1:4, : 3 * config.coordinate_components]
    mixture = torch.cat(split_coordinates(mixture), dim=-1)
    rows = torch.cat(
        [
            _widen(after_letter, config.output_width)[:, :, None],
            _widen(mixture, config.output_width),
            letters[:, 1:, None],
        ],
        dim=2,
    )
    return torch.cat([letters[:, :1], rows.flatten(1, 2)], dim=1)


def compatible_log_prob(
    network: PublishedTransformer, batch: WyckoffBatch
) -> dict[str, torch.Tensor]:
    """The original's log-probability of crystals, part by part.

    Args:
        network: the network.
        batch: B crystals; lattices in Å and degrees.

    Returns:
        For each of :data:`PARTS` (B,) nats in the type of the weights; their sum is the
        original's log-probability.
    """
    batch = batch.padded(int(batch.n_sites.max(initial=0)))
    arrays = (
        batch.space_group.astype(np.int64),
        batch.wyckoff.astype(np.int64),
        batch.species.astype(np.int64),
        batch.frac_coords,
        to_parameters(batch.lattice, batch.n_atoms),
    )
    device = network.output.weight.device
    return token_log_prob(network, *(torch.from_numpy(array).to(device) for array in arrays))


def token_log_prob(
    network: PublishedTransformer,
    space_group: torch.Tensor,
    wyckoff: torch.Tensor,
    species: torch.Tensor,
    frac_coords: torch.Tensor,
    lattice: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """:func:`compatible_log_prob` of tensors.

    Args:
        network: the network.
        space_group: (B,) 1..230.
        wyckoff: (B, S) letters; 0 after the last site. S may be below ``n_max``.
        species: (B, S).
        frac_coords: (B, S, 3).
        lattice: (B, 6) normalised parameters, see the module.
    """
    group, letter, species = space_group.long(), wyckoff.long(), species.long()
    n_sites, longest = (letter > 0).sum(1), network.config.n_max
    if letter.shape[1] > longest and int(n_sites.max()) > longest:
        raise InputError(
            f"A crystal has {int(n_sites.max())} sites.",
            f"The network reads at most {longest}.",
            f"Leave out crystals with more than {longest} sites.",
        )
    coords, lattice = frac_coords.to(network.dtype), lattice.to(network.dtype)
    hidden = network.trunk(group, letter, species, coords)
    heads = network.heads(group, letter, hidden)
    # A crystal that fills every row has no row for the stop: the original neither scores the
    # stop nor has an output for it, and reads the lattice at the last site.
    full = n_sites >= longest
    stop = TOKENS_PER_SITE * torch.where(full, longest - 1, n_sites)
    raw_lattice = network.lattice_parameters(
        hidden[torch.arange(len(hidden), device=hidden.device), stop]
    )
    letters = _log_softmax(heads.wyckoff_logits, letters_allowed(group, letter))
    drawn = F.pad(letter, (0, 1))
    log_letter = letters.gather(-1, drawn[..., None])[..., 0]
    beyond = torch.arange(drawn.shape[1], device=drawn.device) >= longest
    log_letter = log_letter.masked_fill(full[:, None] & beyond, 0.0)
    kinds = _log_softmax(heads.species_logits, species_allowed(letter))
    density = von_mises_log_density(heads.coordinates, coords)
    masks = _masks(group.device)
    scored = masks.scored[group[:, None], letter]
    return {
        "wyckoff": log_letter.sum(1),
        "coordinates": torch.where(scored, density, 0.0).sum((1, 2)),
        "species": kinds.gather(-1, species[..., None])[..., 0].sum(1),
        "lattice": lattice_log_density(raw_lattice, lattice, masks.free_lattice[group]),
    }


def von_mises_log_density(raw: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Log-density of the angles 2 pi (x - 1/2).

    Args:
        raw: (..., 3 Kx).
        fraction: (...) x.
    """
    weights, location, concentration = split_coordinates(raw)
    angle = 2 * math.pi * (fraction[..., None] - 0.5)
    log_density = (
        concentration * (torch.cos(angle - location) - 1)
        - torch.log(torch.special.i0e(concentration))
        - math.log(2 * math.pi)
    )
    return torch.logsumexp(weights + log_density, dim=-1)


def lattice_log_density(
    raw: torch.Tensor, lattice: torch.Tensor, free: torch.Tensor
) -> torch.Tensor:
    """Sum over the free parameters of the log-density of each one's own mixture.

    Args:
        raw: (B, 13 Kl).
        lattice: (B, 6) normalised parameters.
        free: (B, 6) bool.
    """
    weights, mean, sigma = split_lattice(raw)
    z = (lattice[:, None] - mean) / sigma
    log_density = -0.5 * z.square() - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
    each = torch.logsumexp(weights[..., None] + log_density, dim=1)
    return torch.where(free, each, 0.0).sum(1)


def split_coordinates(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(..., 3 Kx) outputs as log-weights, locations (rad) and concentrations, each (..., Kx)."""
    weights, location, concentration = raw.chunk(3, dim=-1)
    return F.log_softmax(weights, dim=-1), location, F.softplus(concentration)


def split_lattice(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(..., 13 Kl) outputs as log-weights (..., Kl), means and sigmas (..., Kl, 6)."""
    components = raw.shape[-1] // (1 + 2 * LATTICE_NUMBERS)
    size = components * LATTICE_NUMBERS
    weights, mean, sigma = raw.split([components, size, size], dim=-1)
    shape = (components, LATTICE_NUMBERS)
    sigma = F.softplus(sigma.unflatten(-1, shape)) + MIN_SIGMA
    return F.log_softmax(weights, dim=-1), mean.unflatten(-1, shape), sigma


def to_parameters(lattice: np.ndarray, n_atoms: np.ndarray) -> np.ndarray:
    """Cells (B, 6) in Å and degrees as normalised parameters (B, 6) float64, see the module."""
    lattice = np.asarray(lattice, dtype=np.float64)
    lengths = lattice[:, :3] / np.cbrt(np.maximum(n_atoms, 1))[:, None]
    return np.concatenate([lengths, np.deg2rad(lattice[:, 3:])], axis=1)


def to_lattice(parameters: np.ndarray, n_atoms: np.ndarray, space_group: np.ndarray) -> np.ndarray:
    """Normalised parameters (B, 6) as cells (B, 6) in Å and degrees, symmetrised.

    The mixture is not confined to cells that exist: a drawn length may be negative.
    """
    parameters = np.asarray(parameters, dtype=np.float64)
    lengths = parameters[:, :3] * np.cbrt(np.maximum(n_atoms, 1))[:, None]
    lattice = np.concatenate([lengths, np.rad2deg(parameters[:, 3:])], axis=1)
    return symmetry.symmetrise_lattice(space_group, lattice)


def _log_softmax(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    log_prob = F.log_softmax(logits.masked_fill(~allowed, -torch.inf), dim=-1)
    return log_prob.masked_fill(~allowed, FORBIDDEN)


def _widen(values: torch.Tensor, width: int) -> torch.Tensor:
    """Zeros after the last column, up to ``width``."""
    return F.pad(values, (0, width - values.shape[-1]))
