"""Wyckoff tokens as tensors, with all that a network reads of a crystal."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from nucleate.policies import lattice
from nucleate.policies.contacts import Contacts, find_contacts
from nucleate.structures.wyckoff import WyckoffBatch


@dataclass(frozen=True)
class Tokens:
    """B crystals with at most S sites.

    Attributes:
        space_group: (B,) int64, 1..230.
        stability: (B,) int64, stability class that the network is conditioned on.
        wyckoff, species: (B, S) int64, 0 where there is no site.
        frac_coords: (B, S, 3) float32.
        parameters: (B, 6) float32, see ``policies.lattice``.
        contact_species, contact_features, tight: see ``policies.contacts``.
    """

    space_group: torch.Tensor
    stability: torch.Tensor
    wyckoff: torch.Tensor
    species: torch.Tensor
    frac_coords: torch.Tensor
    parameters: torch.Tensor
    contact_species: torch.Tensor
    contact_features: torch.Tensor
    tight: torch.Tensor

    def __len__(self) -> int:
        return len(self.space_group)

    @property
    def n_sites(self) -> torch.Tensor:
        """(B,) occupied Wyckoff positions."""
        return (self.wyckoff > 0).sum(1)

    def select(self, index: torch.Tensor | slice) -> Tokens:
        """Rows ``index``, cut to the most sites among them: no compute is spent on padding."""
        chosen = replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})
        longest = int(chosen.n_sites.max()) if len(chosen) else 0
        return replace(
            chosen,
            wyckoff=chosen.wyckoff[:, :longest],
            species=chosen.species[:, :longest],
            frac_coords=chosen.frac_coords[:, :longest],
        )

    def to(self, device: torch.device | str) -> Tokens:
        """The same on another device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return replace(self, **moved)

    @classmethod
    def from_batch(
        cls,
        batch: WyckoffBatch,
        *,
        stability: np.ndarray | int = 0,
        parameters: np.ndarray | None = None,
        contacts: Contacts | None = None,
    ) -> Tokens:
        """Tensors of a batch; contacts are computed unless they are at hand."""
        if parameters is None:
            parameters = lattice.to_parameters(batch.lattice, batch.n_atoms)
        if contacts is None:
            contacts = find_contacts(batch, parameters)
        classes = np.broadcast_to(np.asarray(stability, dtype=np.int64), (len(batch),)).copy()
        return cls(
            space_group=torch.from_numpy(batch.space_group.astype(np.int64)),
            stability=torch.from_numpy(classes),
            wyckoff=torch.from_numpy(batch.wyckoff.astype(np.int64)),
            species=torch.from_numpy(batch.species.astype(np.int64)),
            frac_coords=torch.from_numpy(batch.frac_coords.astype(np.float32)),
            parameters=torch.from_numpy(np.asarray(parameters, dtype=np.float32)),
            contact_species=torch.from_numpy(contacts.species),
            contact_features=torch.from_numpy(contacts.features),
            tight=torch.from_numpy(contacts.tight),
        )


def buckets(n_sites: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Split crystals into groups of at most ``size`` with nearly equal numbers of sites."""
    order = torch.argsort(n_sites, stable=True)
    return list(order.split(size))
