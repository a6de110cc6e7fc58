"""The Wyckoff policy: crystals drawn site by site inside a space group.

The variables are those of CrystalFormer (arXiv:2403.15734): given the space group, a Wyckoff letter
and a species for each site, the coordinates that the position leaves free, and the lattice. All
letters and species are drawn first, then the geometry: the shape of the cell, coordinates, scale.
Where the published code scores another distribution than it samples, this one does not:

* a coordinate that the position fixes or ties to another carries no density;
* one component of the lattice mixture is drawn for all parameters together, and scored so;
* masks, temperature and top-p count in the log-probability;
* every lattice is valid by construction (``policies.lattice``).

A crystal that is finished leaves the batch; the trunk's keys and values are cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from nucleate.policies import lattice
from nucleate.policies.blocks import finest
from nucleate.policies.condition import Condition
from nucleate.policies.contacts import find_contacts
from nucleate.policies.distributions import (
    categorical,
    gaussian_mixture_log_prob,
    masked_log_softmax,
    sample_gaussian_mixture,
    sample_von_mises,
    von_mises_log_prob,
    wrapped,
)
from nucleate.policies.site_transformer import SiteTransformer
from nucleate.policies.tokens import Tokens, buckets
from nucleate.protocols import Rollout
from nucleate.structures import symmetry
from nucleate.structures.wyckoff import WyckoffBatch

PARTS = ("wyckoff", "species", "coordinates", "lattice")

GEOMETRY_BUCKET = 128
"""Crystals whose geometries are drawn together: keys and values of more fall out of the caches."""


@dataclass(frozen=True)
class _Tables:
    """Symmetry tables as tensors; row ``g`` is space group ``g``."""

    exists: torch.Tensor  # (231, 28)
    atoms: torch.Tensor  # (231, 28) atoms in the primitive cell
    fixed: torch.Tensor  # (231, 28) position without a free coordinate
    movable: torch.Tensor  # (231, 28) position with one
    free: torch.Tensor  # (231, 28, 3)
    rotation: torch.Tensor  # (231, 28, 3, 3)
    translation: torch.Tensor  # (231, 28, 3)
    free_lattice: torch.Tensor  # (231, 6)

    @classmethod
    def load(cls, device: torch.device) -> _Tables:
        tables = symmetry.tables()

        def padded(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            rows = np.concatenate([np.zeros_like(array[:1]), array])
            return torch.as_tensor(rows).to(device, dtype)

        exists = tables.multiplicity > 0
        return cls(
            exists=padded(exists, torch.bool),
            atoms=padded(tables.multiplicity // tables.centring_order[:, None], torch.int64),
            fixed=padded((tables.dof == 0) & exists, torch.bool),
            movable=padded((tables.dof > 0) & exists, torch.bool),
            free=padded(tables.free, torch.bool),
            rotation=padded(tables.first_rotation, torch.float32),
            translation=padded(tables.first_translation, torch.float32),
            free_lattice=torch.from_numpy(lattice.free_parameters()).to(device),
        )


@dataclass(frozen=True)
class Draws:
    """Log-probabilities of single draws.

    Attributes:
        value: (D,) nats.
        row: (D,) crystal that each belongs to.
        part: (D,) index into ``PARTS``.
        n: number of crystals.
    """

    value: torch.Tensor
    row: torch.Tensor
    part: torch.Tensor
    n: int

    def parts(self) -> torch.Tensor:
        """(B, 4) sums by crystal and part."""
        value = self.value.to(finest(self.value.device))
        zeros = value.new_zeros(self.n * len(PARTS))
        sums = zeros.index_add(0, self.row * len(PARTS) + self.part, value)
        return sums.to(self.value.dtype).view(self.n, -1)


class WyckoffPolicy:
    """A network and the distribution it parametrises.

    Args:
        network: a :class:`SiteTransformer`.
        metadata: what the checkpoint's card says; kept on save.
    """

    def __init__(
        self, network: SiteTransformer, metadata: Mapping[str, object] | None = None
    ) -> None:
        self.network = network
        self.metadata = dict(metadata or {})
        self._tables: _Tables | None = None

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device

    @property
    def tables(self) -> _Tables:
        """Symmetry tables on the network's device."""
        if self._tables is None or self._tables.exists.device != self.device:
            self._tables = _Tables.load(self.device)
        return self._tables

    def training_space_groups(self) -> np.ndarray:
        """(231,) weights of the space groups in the data that the policy learnt from."""
        weights = np.zeros(231)
        for group, count in self.metadata["space_groups"].items():  # type: ignore[attr-defined]
            weights[int(group)] = count
        return weights / weights.sum()

    # masks --------------------------------------------------------------------------------

    def _letters_allowed(
        self,
        space_group: torch.Tensor,
        previous: torch.Tensor,
        n_atoms: torch.Tensor,
        n_sites: torch.Tensor | int,
        condition: Condition,
    ) -> torch.Tensor:
        """Letters that may come next, (..., 28) bool; entry 0 is the stop.

        Letters ascend; a position without a free coordinate is taken once; the cell keeps to
        ``max_atoms``; a crystal has at least one site and at most the network's ``max_sites``.
        """
        tables = self.tables
        letter = torch.arange(28, device=self.device)
        last = previous.unsqueeze(-1)
        taken_once = tables.fixed[space_group, previous].unsqueeze(-1)
        allowed = tables.exists[space_group] & ((letter > last) | ((letter == last) & ~taken_once))
        allowed &= n_atoms.unsqueeze(-1) + tables.atoms[space_group] <= condition.max_atoms
        full = torch.as_tensor(n_sites, device=self.device) >= self.network.config.max_sites
        allowed &= ~full.unsqueeze(-1)
        allowed[..., 0] = previous > 0
        return allowed

    # scoring ------------------------------------------------------------------------------

    def log_prob_draws(
        self, tokens: Tokens, condition: Condition, *, continuous: bool = True
    ) -> Draws:
        """Log-probability of every single draw of B crystals, differentiable.

        Args:
            tokens: B crystals on the network's device; rows may be padded.
            condition: what was fixed when they were drawn.
            continuous: False leaves coordinates and lattice out, and their cost.
        """
        network = self.network
        states, positions = network.trunk(
            tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species
        )
        draws = [self._letter_draws(tokens, states, positions, condition)]
        row, site = (tokens.wyckoff > 0).nonzero(as_tuple=True)
        elements = torch.from_numpy(condition.elements).to(self.device).expand(len(row), -1)
        logits = network.species_logits(
            states[row, site], positions[row, tokens.wyckoff[row, site]]
        )
        draws.append((self._chosen(logits, elements, tokens.species[row, site], condition), row))
        if continuous:
            draws += self._geometry_draws(tokens, condition)
        return Draws(
            torch.cat([value for value, _ in draws]),
            torch.cat([row for _, row in draws]),
            torch.cat([torch.full_like(row, part) for part, (_, row) in enumerate(draws)]),
            len(tokens),
        )

    def _geometry_draws(
        self, tokens: Tokens, condition: Condition
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Coordinates and lattices: log-densities and the crystals they belong to."""
        geometry, temperature = self.network.geometry, condition.coordinate_temperature
        rows = torch.arange(len(tokens), device=self.device)
        free = self.tables.free_lattice[tokens.space_group]
        encoding = geometry.encode(
            tokens.space_group, tokens.stability, tokens.wyckoff, tokens.species
        )
        shape = tokens.parameters[:, 1:] * free[:, 1:]
        lattice_density = gaussian_mixture_log_prob(
            geometry.shape_raw(encoding), shape, free[:, 1:], temperature=temperature
        )
        position, n_movable = self._positions_to_draw(tokens.space_group, tokens.wyckoff)
        coords = tokens.frac_coords[rows[:, None], (position - 1).clamp(min=0)]
        states = geometry.decode(encoding, geometry.shape_state(shape), position, coords)
        row, rank = (position > 0).nonzero(as_tuple=True)
        coordinates = self._coordinate_draws(
            tokens, states[row, rank], row, position[row, rank] - 1, condition
        )
        raw = geometry.scale_raw(
            states[rows, n_movable],
            tokens.contact_species,
            tokens.contact_features,
            tokens.tight,
        )
        scale = (tokens.parameters[:, lattice.SCALE] - tokens.tight).unsqueeze(1)
        lattice_density = lattice_density + gaussian_mixture_log_prob(
            raw, scale, torch.ones_like(free[:, :1]), temperature=temperature
        )
        return [coordinates, (lattice_density, rows)]

    def _positions_to_draw(
        self, space_group: torch.Tensor, wyckoff: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder of the geometry draws, in order.

        Returns:
            (B, M) int64: 1 + index of each site with a free coordinate, then zeros, the first of
            which is the scale; and (B,) the number of such sites.
        """
        movable = self.tables.movable[space_group.unsqueeze(1), wyckoff]
        count = movable.sum(1)
        most = int(count.max())
        order = torch.argsort((~movable).to(torch.uint8), dim=1, stable=True)[:, :most] + 1
        rank = torch.arange(most, device=self.device)
        order = torch.where(rank < count.unsqueeze(1), order, 0)
        return torch.cat([order, order.new_zeros(len(order), 1)], 1), count

    def _coordinate_draws(
        self,
        tokens: Tokens,
        drawn: torch.Tensor,
        row: torch.Tensor,
        site: torch.Tensor,
        condition: Condition,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Free coordinates of the sites (row, site) whose drawn states are (N, width)."""
        coords = tokens.frac_coords[row, site]
        free = self.tables.free[tokens.space_group[row], tokens.wyckoff[row, site]]
        densities, rows = [], []
        for axis in range(3):
            index = free[:, axis].nonzero().squeeze(1)
            raw = self.network.geometry.coordinate_raw(axis, drawn[index], coords[index])
            densities.append(
                von_mises_log_prob(
                    raw, coords[index, axis], temperature=condition.coordinate_temperature
                )
            )
            rows.append(row[index])
        return torch.cat(densities), torch.cat(rows)

    def log_prob_parts(self, tokens: Tokens, condition: Condition) -> torch.Tensor:
        """Log-probability of crystals in four parts, differentiable.

        Returns:
            (B, 4) nats: letters, species, coordinates (per angle in radians), lattice (per unit
            of ``policies.lattice``); see ``PARTS``.
        """
        return self.log_prob_draws(tokens, condition).parts()

    def _letter_draws(
        self,
        tokens: Tokens,
        states: torch.Tensor,
        positions: torch.Tensor,
        condition: Condition,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Letters of all sites and the stop: log-probabilities and the crystals they belong to."""
        n, n_sites = tokens.wyckoff.shape
        none = tokens.wyckoff.new_zeros(n, 1)
        group = tokens.space_group.unsqueeze(1).expand(-1, n_sites + 1)
        letters = torch.cat([tokens.wyckoff, none], 1)
        previous = torch.cat([none, tokens.wyckoff], 1)
        atoms = self.tables.atoms[group[:, 1:], tokens.wyckoff].cumsum(1)
        counts = torch.arange(n_sites + 1, device=self.device).expand(n, -1)
        row, site = torch.cat([none == 0, tokens.wyckoff > 0], 1).nonzero(as_tuple=True)
        allowed = self._letters_allowed(
            group[row, site],
            previous[row, site],
            torch.cat([none, atoms], 1)[row, site],
            counts[row, site],
            condition,
        )
        logits = self.network.letter_logits(states, positions)[row, site]
        return self._chosen(logits, allowed, letters[row, site], condition), row

    @staticmethod
    def _chosen(
        logits: torch.Tensor, allowed: torch.Tensor, choice: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        """Log-probability of the choices; a choice at the edge of the nucleus stays inside."""
        log_prob = masked_log_softmax(
            logits.float(),
            allowed,
            temperature=condition.temperature,
            top_p=condition.top_p,
            chosen=choice,
        )
        return log_prob.gather(-1, choice.unsqueeze(-1)).squeeze(-1)

    def tokens(self, rollout: Rollout) -> Tokens:
        """Tensors of a rollout on the network's device."""
        return rollout.trace["tokens"].to(self.device)

    def log_prob(self, rollout: Rollout, *, batch_size: int = 64) -> torch.Tensor:
        """(B,) nats of a rollout under the current weights and the rollout's own condition."""
        return self.log_prob_by_part(rollout, batch_size=batch_size).sum(1)

    @torch.no_grad()
    def log_prob_by_part(
        self, rollout: Rollout, *, batch_size: int = 64, continuous: bool = True
    ) -> torch.Tensor:
        """The same in four parts, (B, 4), see ``PARTS``; zeros for those left out."""
        tokens, condition = self.tokens(rollout), rollout.trace["condition"]
        result = torch.zeros(len(tokens), len(PARTS), device=self.device)
        was_training = self.network.training
        self.network.eval()
        for rows in buckets(tokens.n_sites, batch_size):
            draws = self.log_prob_draws(tokens.select(rows), condition, continuous=continuous)
            result[rows] = draws.parts()
        self.network.train(was_training)
        return result.cpu()

    # sampling -----------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, condition: Condition, generator: torch.Generator) -> Rollout:
        """Draw ``n`` crystals; every one is decodable, few sites or many."""
        was_training = self.network.training
        self.network.eval()
        space_group = condition.draw_space_groups(n, generator).to(self.device)
        drawn = self._sample_sites(space_group, condition, generator)
        tokens, batch, log_prob = self._sample_lattice(drawn, condition, generator)
        self.network.train(was_training)
        log_prob = log_prob.cpu().float()
        trace = {"tokens": tokens.to("cpu"), "condition": condition, "discrete": log_prob[:, 0]}
        return Rollout(batch, log_prob.sum(1), trace)

    def _sample_sites(
        self, space_group: torch.Tensor, condition: Condition, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """All of B crystals but the scale: sites, shape, and the state that draws the scale."""
        drawn = self._sample_protostructures(space_group, condition, generator)
        drawn |= self._new_geometries(drawn)
        _, n_movable = self._positions_to_draw(space_group, drawn["wyckoff"])
        # crystals of like size together, so that little is spent on padding
        size = (drawn["wyckoff"] > 0).sum(1) * (drawn["wyckoff"].shape[1] + 1) + n_movable
        for rows in buckets(size, GEOMETRY_BUCKET):
            self._sample_geometry(drawn, rows, condition, generator)
        return drawn

    def _sample_protostructures(
        self, space_group: torch.Tensor, condition: Condition, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Letters and species of B crystals and their log-probability.

        The last is (B, 2): of letters and species, and of all else, 0 so far.
        """
        network, tables, n = self.network, self.tables, len(space_group)
        most = network.config.max_sites
        wyckoff = torch.zeros(n, most, dtype=torch.int64, device=self.device)
        species = torch.zeros_like(wyckoff)
        log_prob = torch.zeros(n, 2, dtype=finest(self.device), device=self.device)
        stability = torch.full_like(space_group, condition.stability)
        elements = torch.from_numpy(condition.elements).to(self.device)
        alive = torch.arange(n, device=self.device)
        decoding = network.start(space_group, stability)
        positions = network.embedding.positions(space_group)
        previous, n_atoms = torch.zeros_like(space_group), torch.zeros_like(space_group)
        for site in range(most + 1):
            group = decoding.space_group
            allowed = self._letters_allowed(group, previous, n_atoms, site, condition)
            logits = network.letter_logits(decoding.state.unsqueeze(1), positions).squeeze(1)
            letter = self._draw(logits, allowed, alive, log_prob, condition, generator)
            going = letter.nonzero().squeeze(1)
            if not len(going):
                break
            alive, letter, positions = alive[going], letter[going], positions[going]
            n_atoms, decoding = n_atoms[going], decoding.select(going)
            group = decoding.space_group
            position = positions[torch.arange(len(going), device=self.device), letter]
            logits = network.species_logits(decoding.state, position)
            kind = self._draw(
                logits, elements.expand(len(going), -1), alive, log_prob, condition, generator
            )
            wyckoff[alive, site], species[alive, site] = letter, kind
            n_atoms = n_atoms + tables.atoms[group, letter]
            decoding = network.finish_site(decoding, position, kind)
            previous = letter
        n_sites = int((wyckoff > 0).sum(1).max())
        return {
            "space_group": space_group,
            "stability": stability,
            "wyckoff": wyckoff[:, :n_sites],
            "species": species[:, :n_sites],
            "log_prob": log_prob,
        }

    def _new_geometries(self, drawn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Room for the geometries of B crystals; coordinates that need no draw are in place."""
        n, device = len(drawn["space_group"]), self.device
        fixed = self.tables.translation[drawn["space_group"].unsqueeze(1), drawn["wyckoff"]]
        coords = torch.remainder(fixed, 1.0) * (drawn["wyckoff"] > 0).unsqueeze(-1)
        return {
            "frac_coords": coords,
            "shape": torch.zeros(n, lattice.N_PARAMETERS - 1, device=device),
            "before_scale": torch.zeros(n, self.network.config.width, device=device),
        }

    def _sample_geometry(
        self,
        drawn: dict[str, torch.Tensor],
        rows: torch.Tensor,
        condition: Condition,
        generator: torch.Generator,
    ) -> None:
        """Shapes and coordinates of the crystals ``rows``, written into ``drawn``."""
        geometry, temperature = self.network.geometry, condition.coordinate_temperature
        _, n_movable = self._positions_to_draw(drawn["space_group"][rows], drawn["wyckoff"][rows])
        # the longest first: those that go on are the first ones
        rows = rows[torch.argsort(n_movable, descending=True, stable=True)]
        group = drawn["space_group"][rows]
        n_sites = int((drawn["wyckoff"][rows] > 0).sum(1).max())
        wyckoff, species = drawn["wyckoff"][rows, :n_sites], drawn["species"][rows, :n_sites]
        encoding = geometry.encode(group, drawn["stability"][rows], wyckoff, species)
        free = self.tables.free_lattice[group][:, 1:]
        raw = geometry.shape_raw(encoding)
        shape = sample_gaussian_mixture(raw, free.shape[1], generator, temperature=temperature)
        shape = shape * free
        log_prob = drawn["log_prob"]
        log_prob[rows, 1] += gaussian_mixture_log_prob(raw, shape, free, temperature=temperature)
        drawn["shape"][rows] = shape
        positions, n_movable = self._positions_to_draw(group, wyckoff)
        decoding = geometry.start(encoding, geometry.shape_state(shape), positions.shape[1])
        previous = torch.zeros_like(group)
        coords = torch.zeros(len(rows), 3, device=self.device)
        for rank in range(positions.shape[1]):
            n = int((n_movable >= rank).sum())
            position = positions[:n, rank]
            state = geometry.advance(decoding, position, previous[:n], coords[:n])
            drawn["before_scale"][rows[:n][position == 0]] = state[position == 0]
            n = int((position > 0).sum())
            previous, site = position[:n], position[:n] - 1
            letter = wyckoff[torch.arange(n, device=self.device), site]
            coords = self._draw_coordinates(
                state[:n], group[:n], letter, rows[:n], log_prob, condition, generator
            )
            drawn["frac_coords"][rows[:n], site] = coords

    @staticmethod
    def _draw(
        logits: torch.Tensor,
        allowed: torch.Tensor,
        alive: torch.Tensor,
        log_prob: torch.Tensor,
        condition: Condition,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Draw from masked logits and add the log-probability to the crystals ``alive``."""
        log_probs = masked_log_softmax(
            logits, allowed, temperature=condition.temperature, top_p=condition.top_p
        )
        choice = categorical(log_probs, generator)
        log_prob[alive, 0] += log_probs.gather(1, choice.unsqueeze(1)).squeeze(1)
        return choice

    def _draw_coordinates(
        self,
        state: torch.Tensor,
        group: torch.Tensor,
        letter: torch.Tensor,
        alive: torch.Tensor,
        log_prob: torch.Tensor,
        condition: Condition,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """(N, 3) coordinates on the position: free ones drawn, the others projected."""
        tables = self.tables
        rotation, shift = tables.rotation[group, letter], tables.translation[group, letter]
        free = tables.free[group, letter]
        xyz = torch.zeros(len(group), 3, device=self.device)
        for axis in range(3):
            tied = (rotation[:, axis] * xyz).sum(1) + shift[:, axis]
            xyz[:, axis] = wrapped(tied)
            index = free[:, axis].nonzero().squeeze(1)
            if len(index):
                raw = self.network.geometry.coordinate_raw(axis, state[index], xyz[index])
                value = sample_von_mises(
                    raw, generator, temperature=condition.coordinate_temperature
                )
                xyz[index, axis] = value
                log_prob[alive[index], 1] += von_mises_log_prob(
                    raw, value, temperature=condition.coordinate_temperature
                )
        return xyz

    def _sample_lattice(
        self, drawn: dict[str, torch.Tensor], condition: Condition, generator: torch.Generator
    ) -> tuple[Tokens, WyckoffBatch, torch.Tensor]:
        """Scales; the batch with its lattices and its (B, 2) log-probability."""
        temperature, space_group = condition.coordinate_temperature, drawn["space_group"]
        log_prob = drawn["log_prob"]
        batch = WyckoffBatch(
            space_group=space_group.cpu().numpy().astype(np.int16),
            wyckoff=drawn["wyckoff"].cpu().numpy().astype(np.int8),
            species=drawn["species"].cpu().numpy().astype(np.int8),
            frac_coords=drawn["frac_coords"].cpu().numpy(),
            lattice=np.ones((len(space_group), 6), dtype=np.float32),
        )
        parameters = np.concatenate([np.zeros((len(batch), 1)), drawn["shape"].cpu().numpy()], 1)
        contacts = find_contacts(batch, parameters)
        tight = torch.from_numpy(contacts.tight).to(self.device)
        raw = self.network.geometry.scale_raw(
            drawn["before_scale"],
            torch.from_numpy(contacts.species).to(self.device),
            torch.from_numpy(contacts.features).to(self.device),
            tight,
        )
        scale = sample_gaussian_mixture(raw, 1, generator, temperature=temperature) + tight[:, None]
        log_prob[:, 1] += gaussian_mixture_log_prob(  # of the number that is kept, as rounded
            raw, scale - tight[:, None], torch.ones_like(scale) > 0, temperature=temperature
        )
        parameters[:, lattice.SCALE] = scale.squeeze(1).cpu().numpy()
        cells = lattice.to_lattice(parameters, batch.n_atoms, batch.space_group)
        batch = WyckoffBatch(
            batch.space_group,
            batch.wyckoff,
            batch.species,
            batch.frac_coords,
            cells.astype(np.float32),
        )
        tokens = Tokens.from_batch(
            batch,
            stability=drawn["stability"].cpu().numpy(),
            parameters=parameters,
            contacts=contacts,
        )
        return tokens, batch, log_prob
