"""Proximal policy optimisation towards a reward, held near a prior.

Maximises E[r(x) - tau ln(p(x) / p_prior(x))] over whole crystals (arXiv:2504.02367, appendix C).

``form: published`` is the paper's algorithm. The advantage A = R - b is a constant in each step,
R(x) = r(x) - tau ln(p(x) / p_prior(x)), and b_k = 0.95 b_(k-1) + 0.05 mean(R) (eqs. S1-S3); the
objective is the clipped surrogate over the whole batch, one ratio for each crystal.

``form: default`` differs in two things. Ratios start from the policy at the beginning of the
update rather than from the one that drew the batch, which is an update older when scoring overlaps
with sampling: the clip then bounds how far an update moves (Hilton et al., arXiv:2110.00641), and
no crystal is out of bounds from the start. Ratios of single tokens do so in both forms. And the KL
gradient is taken outside the clipped surrogate, so that clipping a crystal's ratio never releases
it from the prior. With a score-function estimate,
grad KL(p || p_prior) = E[(ln p/p_prior - mean) grad ln p].

``continuous_weight`` says how much coordinates and lattices count in the ratio and in the KL
divergence. At 0 only letters and species are reinforced: which atoms on which positions is what
the reward is about, while the densities of coordinates and lattice are so sharp that their score
function is mostly noise, and drowns the rest. They still follow from what is drawn before them.

Both forms take the same options: minibatches, whitening, what the baseline is, a ratio for each
token, an adaptive tau, a reward for entropy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nucleate.policies.tokens import Tokens, buckets
from nucleate.policies.wyckoff import Draws, WyckoffPolicy
from nucleate.protocols import Rollout
from nucleate.recipe import PPOSettings

MICRO_BATCH = 16
"""Crystals in one forward and backward pass, sorted by number of sites."""


@dataclass
class Baseline:
    """Running means of the reward: over everything, of each space group, of each size.

    The overall mean counts a batch before that is compared with it, as published; the other means
    only afterwards, for the few of a group or size must not be their own baseline. A space
    group's mean starts from the overall mean of its time, and moves towards its own rewards as
    these come in. A size is a number of sites; its mean is that of the reward beyond the
    baseline. Taking ``size_neutrality`` of it away too takes away as much of the incentive to
    draw small crystals, which are easier to make stable, instead of better ones.

    Attributes:
        decay: memory, per crystal of a group or size and per batch overall.
        size_neutrality: share of a size's mean that is subtracted.
    """

    decay: float
    size_neutrality: float = 0.0
    overall: float | None = None
    groups: dict[int, float] = field(default_factory=dict)
    sizes: dict[int, float] = field(default_factory=dict)

    def __call__(
        self, kind: str, reward: np.ndarray, space_group: np.ndarray, n_sites: np.ndarray
    ) -> np.ndarray:
        """(B,) baseline for this batch, and update from it."""
        mean = float(reward.mean())
        overall = mean if self.overall is None else self.overall
        self.overall = self.decay * overall + (1 - self.decay) * mean
        if kind == "batch":
            baseline = np.full(len(reward), mean)
        elif kind == "batch_ema":
            baseline = np.full(len(reward), self.overall)
        else:
            baseline = np.array([self.groups.get(int(g), overall) for g in space_group])
        beyond = reward - baseline
        of_size = np.array([self.sizes.get(int(n), 0.0) for n in n_sites])
        self._move(self.groups, space_group, reward, overall)
        self._move(self.sizes, n_sites, beyond, 0.0)
        return baseline + self.size_neutrality * of_size

    def _move(
        self, means: dict[int, float], labels: np.ndarray, values: np.ndarray, start: float
    ) -> None:
        """Move the mean of each label towards its values."""
        for label in np.unique(labels):
            rows = labels == label
            weight = self.decay ** int(rows.sum())
            before = means.get(int(label), start)
            means[int(label)] = weight * before + (1 - weight) * float(values[rows].mean())

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "overall": self.overall,
            "groups": {str(k): v for k, v in self.groups.items()},
            "sizes": {str(k): v for k, v in self.sizes.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.overall = state["overall"]
        self.groups = {int(k): v for k, v in state["groups"].items()}
        self.sizes = {int(k): v for k, v in state["sizes"].items()}


class PPO:
    """One policy, its optimiser and its prior.

    Args:
        policy: updated in place.
        prior: what the KL divergence is measured to; never changed.
        settings: see :class:`nucleate.recipe.PPOSettings`.
    """

    def __init__(self, policy: WyckoffPolicy, prior: WyckoffPolicy, settings: PPOSettings) -> None:
        self.policy, self.prior, self.settings = policy, prior, settings
        self.policy.network.eval()  # no dropout: ratios compare densities
        self.optimiser = torch.optim.Adam(
            policy.network.parameters(), lr=settings.learning_rate, fused=True
        )
        self.baseline = Baseline(settings.baseline_decay, settings.size_neutrality)
        self.kl_weight = settings.kl_weight
        self.average: dict[str, torch.Tensor] = {}
        self.updates = 0

    # one update ---------------------------------------------------------------------------

    def update(
        self, rollout: Rollout, reward: np.ndarray, generator: torch.Generator
    ) -> dict[str, float]:
        """Move the policy by one batch.

        Args:
            rollout: B crystals with the log-probability under which they were drawn.
            reward: (B,) finite.
            generator: shuffles minibatches.

        Returns:
            Metrics of the step, log-probabilities in nats a crystal.
        """
        settings, condition = self.settings, rollout.trace["condition"]
        tokens, continuous = self.policy.tokens(rollout), settings.continuous_weight > 0
        if settings.form == "published":
            discrete = rollout.trace["discrete"]
            parts = torch.stack([discrete, rollout.log_prob - discrete], dim=1)
        else:
            parts = self.policy.log_prob_by_part(rollout, continuous=continuous)
        drawn_log_prob = self._weighted(parts)
        prior_log_prob = self._weighted(self.prior.log_prob_by_part(rollout, continuous=continuous))
        divergence = drawn_log_prob - prior_log_prob
        target = torch.as_tensor(reward, dtype=torch.float32, device=self.policy.device)
        baselined = reward - settings.entropy_weight * drawn_log_prob.cpu().numpy()
        if settings.form == "published":
            baselined = baselined - self.kl_weight * divergence.cpu().numpy()
        drawn = rollout.batch
        baseline = self.baseline(settings.baseline, baselined, drawn.space_group, drawn.n_sites)
        advantage = target + torch.as_tensor(
            baselined - reward - baseline, dtype=torch.float32, device=target.device
        )
        scale = float(advantage.std()) + 1e-6 if settings.whiten and len(reward) > 1 else 1.0
        centre = advantage.mean() if settings.whiten else 0.0
        batch = _Batch(
            tokens,
            drawn_log_prob,
            prior_log_prob,
            (advantage - centre) / scale,
            divergence.mean(),
            self.kl_weight / scale,
            (self.kl_weight + settings.entropy_weight) / scale,
            self._draws(tokens, condition) if settings.ratio == "token" else (),
        )
        size = settings.minibatch or len(reward)
        totals: dict[str, float] = {"clip_fraction": 0.0, "gradient_norm": 0.0, "updates": 0.0}
        for _ in range(settings.inner_steps):
            order = torch.randperm(len(reward), generator=generator)
            for rows in order.split(size):
                step = self._step(batch, rows.to(self.policy.device), condition)
                for name, value in step.items():
                    totals[name] += value
                totals["updates"] += 1
        self._update_average()
        kl = float(divergence.mean())
        self._adapt(kl)
        return {
            "kl": kl,
            "kl_weight": self.kl_weight,
            "entropy": -float(rollout.log_prob.mean()),
            "baseline": float(baseline.mean()),
            "advantage_scale": scale,
            "clip_fraction": totals["clip_fraction"] / totals["updates"],
            "gradient_norm": totals["gradient_norm"] / totals["updates"],
        }

    @torch.no_grad()
    def _draws(self, tokens: Tokens, condition: Any) -> tuple[torch.Tensor, ...]:
        """Log-probabilities of the single draws of each crystal under the policy as it is."""
        values = [torch.zeros(0)] * len(tokens)
        for rows in buckets(tokens.n_sites, MICRO_BATCH):
            draws = self.policy.log_prob_draws(
                tokens.select(rows), condition, continuous=self.settings.continuous_weight > 0
            )
            order, counts = _by_crystal(draws)
            pieces = draws.value[order].split(counts.tolist())
            for row, piece in zip(rows.tolist(), pieces, strict=True):
                values[row] = piece
        return tuple(values)

    def _weighted(self, parts: torch.Tensor) -> torch.Tensor:
        """(B,) log-probability with coordinates and lattice at their weight.

        Args:
            parts: (B, 2) discrete and continuous, or (B, 4) as in ``policies.wyckoff.PARTS``.
        """
        half = parts.shape[1] // 2
        discrete, continuous = parts[:, :half].sum(1), parts[:, half:].sum(1)
        return (discrete + self.settings.continuous_weight * continuous).to(self.policy.device)

    def _step(self, batch: _Batch, rows: torch.Tensor, condition: Any) -> dict[str, float]:
        """One step of the optimiser on some rows of the batch."""
        self.optimiser.zero_grad(set_to_none=True)
        clipped = 0.0
        for part in buckets(batch.tokens.n_sites[rows], MICRO_BATCH):
            index = rows[part]
            draws = self.policy.log_prob_draws(
                batch.tokens.select(index),
                condition,
                continuous=self.settings.continuous_weight > 0,
            )
            surrogate, outside = self._surrogate(batch, index, draws)
            (-surrogate.sum() / len(rows)).backward()
            clipped += float(outside)
        norm = torch.nn.utils.clip_grad_norm_(
            self.policy.network.parameters(), self.settings.gradient_clip
        )
        if torch.isfinite(norm):
            self.optimiser.step()
        return {"clip_fraction": clipped / len(rows), "gradient_norm": float(norm)}

    def _surrogate(
        self, batch: _Batch, index: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is maximised for each crystal (b,), and how many ratios were clipped."""
        epsilon, advantage = self.settings.clip_epsilon, batch.advantage[index]
        log_prob = self._weighted(draws.parts())
        if self.settings.form == "published":
            # R holds the current policy's ln p; its change since sampling is added here
            moved = (log_prob - batch.drawn_log_prob[index]).detach()
            advantage = advantage - batch.log_prob_weight * moved
        if self.settings.ratio == "sequence":
            ratio = torch.exp((log_prob - batch.drawn_log_prob[index]).clamp(-20, 20))
            bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
            surrogate = torch.minimum(ratio * advantage, bounded * advantage)
            outside = ((ratio - 1).abs() > epsilon).sum()
        else:
            order, _ = _by_crystal(draws)
            row = draws.row[order]
            before = torch.cat([batch.draws[i] for i in index.tolist()])
            ratio = torch.exp((draws.value[order] - before).clamp(-20, 20))
            each = advantage[row]
            bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
            weight = torch.where(draws.part[order] < 2, 1.0, self.settings.continuous_weight)
            terms = weight * torch.minimum(ratio * each, bounded * each)
            surrogate = torch.zeros_like(advantage).index_add(0, row, terms)
            share = ((ratio - 1).abs() > epsilon).float().mean()
            outside = share * len(index)
        if self.settings.form == "default":
            divergence = (log_prob - batch.prior_log_prob[index]).detach() - batch.mean_divergence
            weight = torch.exp((log_prob - batch.drawn_log_prob[index]).detach().clamp(-2, 2))
            surrogate = surrogate - batch.kl_weight * weight * divergence * log_prob
        return surrogate, outside

    def _adapt(self, kl: float) -> None:
        """Move tau so that the divergence stays at its target (Ziegler et al. 2019, eq. 4)."""
        if self.settings.kl_target is None:
            return
        error = float(np.clip(kl / self.settings.kl_target - 1, -1, 1))
        self.kl_weight = max(1e-6, self.kl_weight * (1 + self.settings.kl_rate * error))

    def widen(self, factor: float = 2.0) -> None:
        """Hold the policy nearer to the prior from now on."""
        self.kl_weight = max(self.kl_weight, 1e-3) * factor

    # average ------------------------------------------------------------------------------

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the average of the weights that this update reinforced."""
        self.updates += 1
        decay = min(self.settings.average, (1 + self.updates) / (10 + self.updates))
        for name, weight in self.policy.network.named_parameters():
            if weight.grad is not None:
                average = self.average.setdefault(name, weight.detach().clone())
                average.lerp_(weight, 1 - decay)

    @torch.no_grad()
    def use_average(self) -> None:
        """Give the policy the average of its weights: the noise of the last steps is left out."""
        weights = dict(self.policy.network.named_parameters())
        for name, average in self.average.items():
            weights[name].copy_(average)

    # state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside the prior."""
        return {
            "network": self.policy.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "baseline": self.baseline.state_dict(),
            "kl_weight": self.kl_weight,
            "average": dict(self.average),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.policy.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.baseline.load_state_dict(state["baseline"])
        self.kl_weight = state["kl_weight"]
        self.average = {
            name: value.to(self.policy.device) for name, value in state["average"].items()
        }
        self.updates = state["updates"]


@dataclass(frozen=True)
class _Batch:
    """One rollout during its update; rows are crystals."""

    tokens: Tokens
    drawn_log_prob: torch.Tensor
    prior_log_prob: torch.Tensor
    advantage: torch.Tensor
    mean_divergence: torch.Tensor
    kl_weight: float
    log_prob_weight: float
    draws: tuple[torch.Tensor, ...]


def _by_crystal(draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Order that puts the draws of each crystal together, and how many there are of each.

    Within a crystal the order depends on the crystal alone, whatever batch it is scored in.
    """
    return torch.argsort(draws.row, stable=True), torch.bincount(draws.row, minlength=draws.n)
