"""What a run remembers: which formulas it has paid for, and how its samples have moved."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, ClassVar

import numpy as np

from nucleate.recipe import GuardSettings
from nucleate.structures.formulas import FormulaIndex
from nucleate.structures.symmetry import tables
from nucleate.structures.wyckoff import WyckoffBatch

logger = logging.getLogger(__name__)


class NoveltyBonus:
    """A reward for stable crystals of formulas new to the training set and to the run.

    The first such crystal of a formula earns ``bonus``, later ones linearly less, down to 0 after
    ``uses`` appearances.

    Args:
        known: formulas of the training set.
        bonus: reward of the first.
        uses: appearances over which it falls to 0.
    """

    def __init__(self, known: FormulaIndex, bonus: float, uses: int) -> None:
        self.known, self.bonus, self.uses = known, bonus, uses
        self.seen: dict[int, int] = {}

    def __call__(self, keys: np.ndarray, stable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bonus of a batch in order, and which crystals are new.

        Args:
            keys: (B,) uint64 formula keys.
            stable: (B,) bool.

        Returns:
            (B,) bonus, and (B,) bool: stable and the first of a formula that is not in the
            training set.
        """
        bonus, new = np.zeros(len(keys)), np.zeros(len(keys), dtype=bool)
        for i in np.flatnonzero(stable & ~self.known.contains(keys)):
            times = self.seen.get(int(keys[i]), 0)
            new[i] = times == 0
            bonus[i] = self.bonus * max(0.0, 1.0 - times / self.uses)
            self.seen[int(keys[i])] = times + 1
        return bonus, new

    def state_dict(self) -> dict[str, Any]:
        """Arrays for a checkpoint."""
        return {
            "keys": np.array(list(self.seen), dtype=np.uint64).view(np.int64),
            "times": np.array(list(self.seen.values()), dtype=np.int64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        keys = np.asarray(state["keys"]).astype(np.int64).view(np.uint64)
        self.seen = dict(zip(keys.tolist(), np.asarray(state["times"]).tolist(), strict=True))


def diversity(batch: WyckoffBatch) -> dict[str, float]:
    """How varied a batch is: what the guard watches and the log shows.

    Returns:
        ``n_systems`` and ``n_space_groups`` (distinct in the batch), ``mean_sites``, ``mean_atoms``
        (primitive cell) and ``element_entropy`` (nats, over crystals that hold each element).
    """
    systems = {tuple(np.unique(row[row > 0])) for row in batch.species}
    counts = np.bincount([z for system in systems for z in system], minlength=119)
    counts = counts[counts > 0] / max(1, counts.sum())
    centring = tables().centring_order[batch.space_group.astype(int) - 1]
    return {
        "n_systems": float(len(systems)),
        "n_space_groups": float(len(np.unique(batch.space_group))),
        "mean_sites": float(batch.n_sites.mean()),
        "mean_atoms": float((batch.n_atoms / centring).mean()),
        "element_entropy": float(-(counts * np.log(counts)).sum()),
    }


class Guard:
    """Sees a policy collapse onto few systems, few groups or small cells.

    Averages over a window are compared with those of the first window.
    """

    LIMITS: ClassVar[dict[str, str]] = {
        "n_systems": "min_systems",
        "n_space_groups": "min_space_groups",
        "mean_sites": "min_sites",
        "mean_atoms": "min_atoms",
        "element_entropy": "min_entropy",
    }

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.start: list[dict[str, float]] = []
        self.recent: deque[dict[str, float]] = deque(maxlen=settings.window)

    def __call__(self, measured: dict[str, float]) -> str:
        """What has collapsed, in words; empty if nothing has."""
        if self.settings.action == "off":
            return ""
        if len(self.start) < self.settings.window:
            self.start.append(dict(measured))
        self.recent.append(dict(measured))
        if len(self.recent) < self.settings.window:
            return ""
        for name, limit in self.LIMITS.items():
            before = float(np.mean([m[name] for m in self.start]))
            now = float(np.mean([m[name] for m in self.recent]))
            least = getattr(self.settings, limit)
            if now < least * before:
                what = name.removeprefix("n_").replace("_", " ")
                return (
                    f"{what} fell to {now:.3g}, {now / before:.0%} of the {before:.3g} at the "
                    f"start (the guard's limit is {least:.0%})"
                )
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"start": list(self.start), "recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.start = [dict(m) for m in state["start"]]
        self.recent = deque((dict(m) for m in state["recent"]), maxlen=self.settings.window)
