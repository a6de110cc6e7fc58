"""Proximal policy optimisation towards a reward, held near a prior.

Maximises E[r(x) - tau ln(p(x) / p_prior(x))] over whole crystals (arXiv:2504.02367, appendix C).

``form: published`` is the paper's algorithm. The advantage A = R - b is a constant in each step,
R(x) = r(x) - tau ln(p(x) / p_prior(x)), and b is a running mean of R (eqs. S1-S3); the objective
is the clipped surrogate over the whole batch, one ratio for each crystal.

``form: default`` differs in this: the KL gradient is taken outside the clipped surrogate, so that
clipping a crystal's ratio never releases it from the prior. With a score-function estimate,
grad KL(p || p_prior) = E[(ln p/p_prior - mean) grad ln p].

Both forms take the same options: minibatches, whitening, what the baseline is, a ratio for each
token, an adaptive tau.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nucleate.policies.tokens import Tokens, buckets
from nucleate.policies.wyckoff import Draws, WyckoffPolicy
from nucleate.protocols import Rollout
from nucleate.recipe import PPOSettings

MICRO_BATCH = 64
"""Crystals in one forward and backward pass, sorted by number of sites."""


@dataclass
class Baseline:
    """Running means of the reward: over everything, and of each space group.

    A space group's mean starts from the overall mean of its time, and moves towards its own
    rewards as these come in.
    """

    decay: float
    overall: float | None = None
    groups: dict[int, float] | None = None

    def __call__(self, kind: str, reward: np.ndarray, space_group: np.ndarray) -> np.ndarray:
        """(B,) baseline for this batch, then update from it."""
        mean = float(reward.mean())
        if self.overall is None:
            self.overall, self.groups = mean, {}
        assert self.groups is not None
        if kind == "batch":
            baseline = np.full(len(reward), mean)
        elif kind == "batch_ema":
            baseline = np.full(len(reward), self.overall)
        else:
            baseline = np.array([self.groups.get(int(g), self.overall) for g in space_group])
        for group in np.unique(space_group):
            rows = space_group == group
            before = self.groups.get(int(group), self.overall)
            weight = self.decay ** rows.sum()
            self.groups[int(group)] = weight * before + (1 - weight) * float(reward[rows].mean())
        self.overall = self.decay * self.overall + (1 - self.decay) * mean
        return baseline


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
        self.optimiser = torch.optim.Adam(policy.network.parameters(), lr=settings.learning_rate)
        self.baseline = Baseline(settings.baseline_decay)
        self.kl_weight = settings.kl_weight

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
        tokens = self.policy.tokens(rollout)
        drawn_log_prob = rollout.log_prob.to(self.policy.device)
        prior_log_prob = self.prior.log_prob(rollout).to(self.policy.device)
        divergence = drawn_log_prob - prior_log_prob
        target = torch.as_tensor(reward, dtype=torch.float32, device=self.policy.device)
        if settings.form == "published":
            baselined = reward - self.kl_weight * divergence.cpu().numpy()
        else:
            baselined = reward - settings.entropy_weight * drawn_log_prob.cpu().numpy()
        space_group = rollout.batch.space_group
        baseline = self.baseline(settings.baseline, baselined, space_group)
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
        kl = float(divergence.mean())
        self._adapt(kl)
        return {
            "kl": kl,
            "kl_weight": self.kl_weight,
            "entropy": -float(drawn_log_prob.mean()),
            "baseline": float(baseline.mean()),
            "advantage_scale": scale,
            "clip_fraction": totals["clip_fraction"] / totals["updates"],
            "gradient_norm": totals["gradient_norm"] / totals["updates"],
        }

    def _step(self, batch: _Batch, rows: torch.Tensor, condition: Any) -> dict[str, float]:
        """One step of the optimiser on some rows of the batch."""
        self.optimiser.zero_grad(set_to_none=True)
        clipped = 0.0
        old = self._old_draws(batch, rows, condition) if self.settings.ratio == "token" else None
        for i, part in enumerate(buckets(batch.tokens.n_sites[rows], MICRO_BATCH)):
            index = rows[part]
            draws = self.policy.log_prob_draws(batch.tokens.select(index), condition)
            surrogate, outside = self._surrogate(
                batch, index, draws, None if old is None else old[i]
            )
            (-surrogate.sum() / len(rows)).backward()
            clipped += float(outside)
        norm = torch.nn.utils.clip_grad_norm_(
            self.policy.network.parameters(), self.settings.gradient_clip
        )
        if torch.isfinite(norm):
            self.optimiser.step()
        return {"clip_fraction": clipped / len(rows), "gradient_norm": float(norm)}

    def _surrogate(
        self, batch: _Batch, index: torch.Tensor, draws: Draws, old: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is maximised for each crystal (b,), and how many ratios were clipped."""
        epsilon, advantage = self.settings.clip_epsilon, batch.advantage[index]
        log_prob = draws.parts().sum(1)
        if self.settings.form == "published":
            # R holds the current policy's divergence; the part since sampling is added here
            moved = (log_prob - batch.drawn_log_prob[index]).detach()
            advantage = advantage - batch.kl_weight * moved
        if old is None:
            ratio = torch.exp((log_prob - batch.drawn_log_prob[index]).clamp(-20, 20))
            bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
            surrogate = torch.minimum(ratio * advantage, bounded * advantage)
            outside = ((ratio - 1).abs() > epsilon).sum()
        else:
            ratio = torch.exp((draws.value - old).clamp(-20, 20))
            each = advantage[draws.row]
            bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
            terms = torch.minimum(ratio * each, bounded * each)
            surrogate = torch.zeros_like(advantage).index_add(0, draws.row, terms)
            share = ((ratio - 1).abs() > epsilon).float().mean()
            outside = share * len(index)
        if self.settings.form == "default":
            divergence = (log_prob - batch.prior_log_prob[index]).detach() - batch.mean_divergence
            weight = torch.exp((log_prob - batch.drawn_log_prob[index]).detach().clamp(-2, 2))
            surrogate = surrogate - batch.kl_weight * weight * divergence * log_prob
        return surrogate, outside

    @torch.no_grad()
    def _old_draws(self, batch: _Batch, rows: torch.Tensor, condition: Any) -> list[torch.Tensor]:
        """Log-probabilities of single draws before this step, bucket by bucket."""
        return [
            self.policy.log_prob_draws(batch.tokens.select(rows[part]), condition).value
            for part in buckets(batch.tokens.n_sites[rows], MICRO_BATCH)
        ]

    def _adapt(self, kl: float) -> None:
        """Move tau so that the divergence stays at its target (Ziegler et al. 2019, eq. 4)."""
        if self.settings.kl_target is None:
            return
        error = float(np.clip(kl / self.settings.kl_target - 1, -1, 1))
        self.kl_weight = max(1e-6, self.kl_weight * (1 + self.settings.kl_rate * error))

    def widen(self, factor: float = 2.0) -> None:
        """Hold the policy nearer to the prior from now on."""
        self.kl_weight = max(self.kl_weight, 1e-3) * factor

    # state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside the prior."""
        return {
            "network": self.policy.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "baseline": self.baseline.overall,
            "baseline_groups": {str(k): v for k, v in (self.baseline.groups or {}).items()},
            "kl_weight": self.kl_weight,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.policy.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.baseline.overall = state["baseline"]
        self.baseline.groups = {int(k): v for k, v in state["baseline_groups"].items()}
        self.kl_weight = state["kl_weight"]


@dataclass(frozen=True)
class _Batch:
    """One rollout during its update; rows are crystals."""

    tokens: Tokens
    drawn_log_prob: torch.Tensor
    prior_log_prob: torch.Tensor
    advantage: torch.Tensor
    mean_divergence: torch.Tensor
    kl_weight: float
