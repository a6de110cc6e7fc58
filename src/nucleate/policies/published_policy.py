"""The Wyckoff policy over the published network, five tokens a site.

The distribution is that of :class:`WyckoffPolicy`: what is sampled is what is scored, under every
mask and temperature, without the two conventions that :mod:`nucleate.policies.compatible` keeps.
The lattice mixture is over the parameters of :mod:`nucleate.policies.lattice`, or, for imported
weights, over lengths divided by N^(1/3) and angles in radians; of the latter a few draws are no
cell, and decoding says so.
"""

from __future__ import annotations

import numpy as np
import torch

from nucleate.errors import CheckpointError
from nucleate.policies import compatible, lattice
from nucleate.policies.condition import Condition
from nucleate.policies.contacts import CONTACT_FEATURES, N_CONTACTS, Contacts
from nucleate.policies.distributions import (
    gaussian_mixture_log_prob,
    sample_gaussian_mixture,
    sample_von_mises,
    von_mises_log_prob,
)
from nucleate.policies.published import LATTICE_NUMBERS, DecodingState, PublishedTransformer
from nucleate.policies.tokens import Tokens
from nucleate.policies.wyckoff import Draws, WyckoffPolicy
from nucleate.structures import symmetry
from nucleate.structures.wyckoff import WyckoffBatch

LENGTHS_AND_ANGLES = "lengths and angles"
"""Value of ``metadata["lattice_parameters"]`` for imported weights."""

CPU_CHUNK, GPU_CHUNK = 64, 512
"""Crystals decoded together: keys and values of more fall out of the caches."""


class PublishedPolicy(WyckoffPolicy):
    """A :class:`PublishedTransformer` and the distribution it parametrises."""

    network: PublishedTransformer  # type: ignore[assignment]

    @property
    def lengths_and_angles(self) -> bool:
        """Whether the lattice mixture is over lengths and angles, as for imported weights."""
        return self.metadata.get("lattice_parameters") == LENGTHS_AND_ANGLES

    def tokens_of(self, batch: WyckoffBatch) -> Tokens:
        """Tensors of crystals that the policy didn't sample, on the network's device."""
        convert = compatible.to_parameters if self.lengths_and_angles else lattice.to_parameters
        parameters = convert(batch.lattice, batch.n_atoms)
        contacts = _no_contacts(len(batch))
        return Tokens.from_batch(batch, parameters=parameters, contacts=contacts).to(self.device)

    def training_space_groups(self) -> np.ndarray:
        """(231,) weights of the space groups in the data that the policy learnt from.

        Raises:
            CheckpointError: the policy was imported; published checkpoints don't say.
        """
        if "space_groups" not in self.metadata:
            raise CheckpointError(
                "The policy doesn't say which space groups it learnt from.",
                "Published checkpoints hold weights alone.",
                "Name the space groups to sample, or import it again with --data.",
            )
        return super().training_space_groups()

    # scoring ------------------------------------------------------------------------------

    def log_prob_draws(
        self, tokens: Tokens, condition: Condition, *, continuous: bool = True
    ) -> Draws:
        """Log-probability of every single draw of B crystals, differentiable.

        Args:
            tokens: B crystals on the network's device; rows may be padded.
            condition: what was fixed when they were drawn.
            continuous: False leaves coordinates and lattice out.
        """
        group, temperature = tokens.space_group, condition.coordinate_temperature
        heads = self.network.teacher_forced(
            group, tokens.wyckoff, tokens.species, tokens.frac_coords
        )
        draws = [self._scored_letters(tokens, heads.wyckoff_logits, condition)]
        row, site = (tokens.wyckoff > 0).nonzero(as_tuple=True)
        letter, species = tokens.wyckoff[row, site], tokens.species[row, site]
        elements = torch.from_numpy(condition.elements).to(self.device).expand(len(row), -1)
        logits = heads.species_logits[row, site]
        draws.append((self._chosen(logits, elements, species, condition), row))
        if continuous:
            free = self.tables.free[group[row], letter]
            raw, value = heads.coordinates[row, site][free], tokens.frac_coords[row, site][free]
            density = von_mises_log_prob(raw, value, temperature=temperature)
            draws.append((density, row[:, None].expand(-1, 3)[free]))
            density = gaussian_mixture_log_prob(
                heads.lattice, tokens.parameters, self._free_lattice(group), temperature=temperature
            )
            draws.append((density, torch.arange(len(tokens), device=self.device)))
        return Draws(
            torch.cat([value for value, _ in draws]),
            torch.cat([row for _, row in draws]),
            torch.cat([torch.full_like(row, part) for part, (_, row) in enumerate(draws)]),
            len(tokens),
        )

    def _scored_letters(
        self, tokens: Tokens, logits: torch.Tensor, condition: Condition
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Letters of all sites and the stop: log-probabilities and the crystals they belong to."""
        none = tokens.wyckoff.new_zeros(len(tokens), 1)
        letters = torch.cat([tokens.wyckoff, none], 1)
        previous = torch.cat([none, tokens.wyckoff], 1)
        atoms = self.tables.atoms[tokens.space_group[:, None], tokens.wyckoff].cumsum(1)
        row, site = torch.cat([none == 0, tokens.wyckoff > 0], 1).nonzero(as_tuple=True)
        allowed = self._letters_allowed(
            tokens.space_group[row],
            previous[row, site],
            torch.cat([none, atoms], 1)[row, site],
            site,
            condition,
        )
        return self._chosen(logits[row, site], allowed, letters[row, site], condition), row

    def _free_lattice(self, space_group: torch.Tensor) -> torch.Tensor:
        """(B, 6) lattice parameters that the space groups leave free."""
        if not self.lengths_and_angles:
            return self.tables.free_lattice[space_group]
        free = symmetry.free_lattice_mask(space_group.cpu().numpy())
        return torch.from_numpy(free).to(self.device)

    # sampling -----------------------------------------------------------------------------

    def _sample_sites(
        self, space_group: torch.Tensor, condition: Condition, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Sites of B crystals, raw lattice mixtures and the log-probability so far."""
        size = CPU_CHUNK if self.device.type == "cpu" else GPU_CHUNK
        chunks = [
            self._sample_chunk(groups, condition, generator) for groups in space_group.split(size)
        ]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _sample_chunk(
        self, space_group: torch.Tensor, condition: Condition, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        network, n = self.network, len(space_group)
        most = network.config.max_sites
        wyckoff = torch.zeros(n, most, dtype=torch.int64, device=self.device)
        species, coords = torch.zeros_like(wyckoff), torch.zeros(n, most, 3, device=self.device)
        log_prob = torch.zeros(n, 2, device=self.device)  # discrete, continuous draws
        raw_lattice = torch.zeros(n, network.config.lattice_width, device=self.device)
        elements = torch.from_numpy(condition.elements).to(self.device)
        alive, decoding = torch.arange(n, device=self.device), network.start(space_group)
        previous, n_atoms = torch.zeros_like(space_group), torch.zeros_like(space_group)
        for site in range(most + 1):
            allowed = self._letters_allowed(
                decoding.space_group, previous, n_atoms, site, condition
            )
            logits = network.wyckoff_head(decoding)
            letter = self._draw(logits, allowed, alive, log_prob, condition, generator)
            ended = letter == 0
            if ended.any():
                raw_lattice[alive[ended]] = network.lattice_head(decoding.select(ended))
                decoding = decoding.select(~ended)
                alive, letter, n_atoms = alive[~ended], letter[~ended], n_atoms[~ended]
            if not len(alive):
                break
            logits, allowed = network.species_head(decoding, letter), elements
            allowed = allowed.expand(len(alive), -1)
            kind = self._draw(logits, allowed, alive, log_prob, condition, generator)
            xyz, density = self._sample_coordinates(decoding, letter, kind, condition, generator)
            log_prob[alive, 1] += density
            wyckoff[alive, site], species[alive, site], coords[alive, site] = letter, kind, xyz
            n_atoms = n_atoms + self.tables.atoms[decoding.space_group, letter]
            decoding, previous = network.finish_site(decoding, letter, kind, xyz), letter
        return {
            "space_group": space_group,
            "wyckoff": wyckoff,
            "species": species,
            "frac_coords": coords,
            "lattice": raw_lattice,
            "log_prob": log_prob,
        }

    def _sample_coordinates(
        self,
        decoding: DecodingState,
        letter: torch.Tensor,
        species: torch.Tensor,
        condition: Condition,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3) coordinates on the positions, free ones drawn; log-density (N,) of the draws."""
        tables, group = self.tables, decoding.space_group
        rotation, shift = tables.rotation[group, letter], tables.translation[group, letter]
        free = tables.free[group, letter]
        xyz = torch.zeros(len(group), 3, device=self.device)
        log_density = torch.zeros(len(group), device=self.device)
        for axis in range(3):
            xyz[:, axis] = torch.remainder((rotation[:, axis] * xyz).sum(1) + shift[:, axis], 1.0)
            index = free[:, axis].nonzero().squeeze(1)
            if len(index):
                raw = self.network.coordinate_head(decoding, axis, letter, species, xyz)[index]
                value = sample_von_mises(
                    raw, generator, temperature=condition.coordinate_temperature
                )
                xyz[index, axis] = torch.where(value >= 1.0, 0.0, value)
                log_density[index] += von_mises_log_prob(
                    raw, xyz[index, axis], temperature=condition.coordinate_temperature
                )
        return torch.where(xyz >= 1.0, torch.zeros_like(xyz), xyz), log_density

    def _sample_lattice(
        self, drawn: dict[str, torch.Tensor], condition: Condition, generator: torch.Generator
    ) -> tuple[Tokens, WyckoffBatch, torch.Tensor]:
        """Lattices; the batch with them and its (B, 2) log-probability."""
        space_group, temperature = drawn["space_group"], condition.coordinate_temperature
        free, raw = self._free_lattice(space_group), drawn["lattice"]
        drawn_parameters = sample_gaussian_mixture(
            raw, LATTICE_NUMBERS, generator, temperature=temperature
        )
        drawn_parameters = drawn_parameters * free
        log_prob = drawn["log_prob"]
        log_prob[:, 1] += gaussian_mixture_log_prob(
            raw, drawn_parameters, free, temperature=temperature
        )
        n_sites = int((drawn["wyckoff"] > 0).sum(1).max())
        sites = WyckoffBatch(
            space_group=space_group.cpu().numpy().astype(np.int16),
            wyckoff=drawn["wyckoff"][:, :n_sites].cpu().numpy().astype(np.int8),
            species=drawn["species"][:, :n_sites].cpu().numpy().astype(np.int8),
            frac_coords=drawn["frac_coords"][:, :n_sites].cpu().numpy(),
            lattice=np.ones((len(space_group), 6), dtype=np.float32),
        )
        parameters = drawn_parameters.cpu().numpy()
        convert = compatible.to_lattice if self.lengths_and_angles else lattice.to_lattice
        cells = convert(parameters, sites.n_atoms, sites.space_group).astype(np.float32)
        batch = WyckoffBatch(
            sites.space_group, sites.wyckoff, sites.species, sites.frac_coords, cells
        )
        contacts = _no_contacts(len(batch))
        tokens = Tokens.from_batch(
            batch, stability=condition.stability, parameters=parameters, contacts=contacts
        )
        return tokens, batch, log_prob


def _no_contacts(n: int) -> Contacts:
    """Placeholders: the network doesn't read contacts."""
    return Contacts(
        np.zeros((n, N_CONTACTS, 2), dtype=np.int64),
        np.zeros((n, N_CONTACTS, CONTACT_FEATURES), dtype=np.float32),
        np.zeros(n, dtype=np.float32),
    )
