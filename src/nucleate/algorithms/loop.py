"""The one loop: sample, screen, score, update, record.

Scoring runs in other processes while this one samples the next batch and updates the policy: batch
k + 1 is drawn, by the policy that batches up to k - 1 have made, before the scores of batch k are
awaited, so every batch is one update old when it is learnt from. The order of events does not
depend on how long anything takes, so on one machine's processor a run that was killed and resumed
takes the same steps as one that was not, bit by bit. Where it ends is the same too if steps or
evaluations end it. A limit in minutes or core-hours does so by the clock: it counts the seconds of
the steps that the checkpoints hold, so that what an interruption lost is not counted, and how many
steps fit depends on the speed of the machine.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nucleate.algorithms.memory import Guard, NoveltyBonus, diversity
from nucleate.algorithms.ppo import PPO
from nucleate.errors import counted
from nucleate.objectives.objective import Objective, ObjectiveResult, PendingScores
from nucleate.policies.condition import Condition
from nucleate.policies.tokens import Tokens
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.protocols import Rollout, Status
from nucleate.recipe import STABILITY, Recipe
from nucleate.screen.screen import Screen, Screened
from nucleate.screen.settings import StableStage
from nucleate.store.experience import Reward, SampledCrystal, tally
from nucleate.store.packing import pack_batch
from nucleate.store.rundir import RunDirectory
from nucleate.structures.formulas import FormulaIndex, batch_keys
from nucleate.structures.wyckoff import WyckoffBatch, decode

DRAWS = ("discrete",)  # of a rollout's trace, beside tokens and condition

HOPELESS = 8
"""So many crystals that all fail are a broken objective, not bad crystals."""
IDLE = 50
"""Steps in a row without a new evaluation after which a run ends."""

logger = logging.getLogger(__name__)


@dataclass
class _Submitted:
    """A batch on its way through screen and scoring; ``pending`` once the screen is passed."""

    rollout: Rollout
    digests: list[str]
    step: int
    screening: Future[Screened]
    seconds_sampling: float
    pending: PendingScores | None = None


class Loop:
    """Reinforcement of one policy by one objective in one run directory.

    Args:
        recipe: what to do.
        policy: updated in place.
        prior: what the KL divergence is measured to.
        objective: scores crystals; writes to the run's store.
        screen: what crystals pass before they are scored.
        condition: what sampling is held to.
        known: formulas of the training set, for the novelty bonus and the ``new`` count.
        run: where everything is written.
        on_step: called with the metrics of each step.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: WyckoffPolicy,
        prior: WyckoffPolicy,
        objective: Objective,
        screen: Screen,
        condition: Condition,
        known: FormulaIndex,
        run: RunDirectory,
        *,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.recipe, self.objective, self.condition = recipe, objective, condition
        self.screen = screen
        self.policy, self.run_directory, self.on_step = policy, run, on_step
        settings = recipe.algorithm
        self.algorithm = PPO(policy, prior, settings)
        self.bonus = NoveltyBonus(known, settings.novelty_bonus, settings.novelty_uses)
        self.guard = Guard(settings.guard)
        self.front = objective.front() if len(objective.terms) > 1 else None
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.step, self.seconds, self.stopped = 0, 0.0, ""
        self.evaluations = self.idle = 0
        self.answered = False
        self._next: _Submitted | None = None
        self._resumed_tokens: dict[str, Any] | None = None

    @property
    def store(self) -> Any:
        """The run's store."""
        return self.objective.store

    # the loop -----------------------------------------------------------------------------

    def run(self) -> str:
        """Go on to the end of the budget.

        Returns:
            Why the run stopped.
        """
        clock = time.monotonic()
        reason = self.stopped or self._exhausted(0)
        if self._resumed_tokens is not None and not reason:
            restored = self._restored_rollout(self._resumed_tokens)
            self._next = self._submit(restored, self.step, 0.0)
            self._resumed_tokens = None
        while not reason:
            if self._next is None:
                self._next = self._sample_and_submit(self.step)
            current, self._next = self._next, None
            if not self._exhausted(len(current.rollout)):
                self._next = self._sample_and_submit(self.step + 1)
            self.stopped = self._finish(current)
            self.step += 1
            self.seconds += time.monotonic() - clock
            clock = time.monotonic()
            reason = self.stopped or self._exhausted(0)
            if reason or self.step % self.recipe.output.checkpoint_every == 0:
                self.checkpoint()
        logger.info("stopped after %d steps: %s", self.step, reason)
        return reason

    def _exhausted(self, in_flight: int) -> str:
        """Which limit leaves no room for another batch beside what is in flight."""
        budget = self.recipe.budget
        steps = self.step + (1 if in_flight else 0)
        if budget.steps is not None and steps >= budget.steps:
            return f"{counted(budget.steps, 'step')} done"
        if budget.evaluations is not None:
            spent = self.objective.evaluations_spent() + in_flight
            if spent + budget.batch_size > budget.evaluations:
                return f"{counted(self.objective.evaluations_spent(), 'evaluation')} spent"
        if budget.minutes is not None and self.seconds >= 60 * budget.minutes:
            return f"{counted(budget.minutes, 'minute')} passed"
        spending = self.store.spending(self.step - 1)
        for name, limit in budget.limits.items():
            done = sum(e.evaluations for e in spending if name in (e.name, e.cost))
            asked = [(name, p.cost) for name, p in self.objective.properties.items()]
            asking = [entry for entry in [*asked, *self.screen.costs] if name in entry]
            if done + in_flight * len(asking) >= limit:
                return f"{counted(done, 'evaluation')} of {name} spent"
        if budget.core_hours is not None:
            hours = sum(entry.seconds for entry in spending) / 3600
            if hours >= budget.core_hours:
                return f"{hours:.3g} core-hours of evaluation spent"
        return ""

    def _sample_and_submit(self, step: int) -> _Submitted:
        started = time.monotonic()
        rollout = self.policy.sample(self.recipe.budget.batch_size, self.condition, self.generator)
        return self._submit(rollout, step, time.monotonic() - started)

    def _submit(self, rollout: Rollout, step: int, seconds: float) -> _Submitted:
        """Hand a batch to the screen, and on to the objective if no potential is waited for."""
        structures, reasons = decode(rollout.batch)
        digests = [rollout.batch.digest(i) for i in range(len(rollout))]
        screening = self.screen.submit(structures, reasons, digests, step)
        submitted = _Submitted(rollout, digests, step, screening, seconds)
        if not self.screen.costly:
            self._hand_on(submitted)
        return submitted

    def _hand_on(self, submitted: _Submitted) -> PendingScores:
        """Hand what passed the screen to the objective, once; waits for the screen."""
        if submitted.pending is None:
            screened = submitted.screening.result()
            submitted.pending = self.objective.submit(
                screened.structures,
                submitted.digests,
                step=submitted.step,
                reasons=screened.reasons,
                statuses=screened.statuses,
            )
        return submitted.pending

    def _finish(self, current: _Submitted) -> str:
        """Await scores, update, record; returns why the guard stops the run, or nothing."""
        waiting = time.monotonic()
        result = self._hand_on(current).result()
        screened = current.screening.result()
        batch = current.rollout.batch
        stable, new, bonus = self._stable(result, screened), None, np.zeros(len(batch))
        if stable is not None:
            bonus, new = self.bonus(batch_keys(batch), stable & result.ok)
        reward = result.reward + bonus
        updating = time.monotonic()
        learnt = self.algorithm.update(current.rollout, reward, self.generator)
        done = time.monotonic()
        measured = diversity(batch)
        metrics = self._metrics(current, result, reward, stable, new) | learnt | measured
        spending = self.store.spending(self.step)
        metrics["spent"] = tally(spending, "evaluations")
        timings: dict[str, Any] = {
            "spent_cached": tally(spending, "cached"),
            "spent_seconds": tally(spending, "seconds"),
            "seconds_sampling": current.seconds_sampling,
            "seconds_scoring": updating - waiting,
            "seconds_updating": done - updating,
        }
        formulas = [batch.formula(i) for i in range(len(batch))]
        self.store.record_step(
            self.step,
            [
                SampledCrystal(digest, int(group), formula, tokens, float(log_prob))
                for digest, group, formula, tokens, log_prob in zip(
                    current.digests,
                    batch.space_group,
                    formulas,
                    pack_batch(batch),
                    current.rollout.log_prob,
                    strict=True,
                )
            ],
            [
                Reward(float(r), float(b), status, reason)
                for r, b, status, reason in zip(
                    reward, bonus, result.status, result.reason, strict=True
                )
            ],
            metrics,
            timings=timings,
        )
        self.run_directory.log(
            self.step, metrics | timings, tensorboard=self.recipe.output.tensorboard
        )
        if self.on_step is not None:
            best = np.argsort(-reward, kind="stable")[:3]
            shown = [(formulas[i], int(batch.space_group[i]), float(reward[i])) for i in best]
            self.on_step(metrics | timings | {"step": self.step, "best": shown})
        answered = bool(result.answered[screened.left].any())
        refused = any(status is Status.FILTERED for status in screened.statuses)
        self.answered |= answered or refused
        if not answered:
            why = next(iter(result.counts))
            if len(screened.left) >= HOPELESS or not screened.passed["valid"]:
                return f"no crystal of step {self.step} could be scored: {why}"
            logger.warning("no crystal of step %d was scored: %s", self.step, why)
        spent = self.objective.evaluations_spent()
        self.idle = 0 if spent > self.evaluations else self.idle + 1
        self.evaluations = spent
        if self.idle >= IDLE:
            return f"nothing new to evaluate in {IDLE} steps"
        return self._judge(self.guard(measured))

    def _judge(self, collapsed: str) -> str:
        """Act on what the guard saw."""
        if not collapsed:
            return ""
        action = self.recipe.algorithm.guard.action
        if action == "stop":
            return f"collapse: {collapsed}"
        if action == "widen":
            self.algorithm.widen()
            self.guard.recent.clear()
        logger.warning("collapse: %s", collapsed)
        return ""

    def _stable(self, result: ObjectiveResult, screened: Screened) -> np.ndarray | None:
        """(B,) bool: stable by the screen, or scored and stable; None where neither says so."""
        if self.recipe.screen.stage(StableStage) is not None:
            return screened.stable
        scores = result.scores.get(STABILITY)
        if scores is None:
            return None
        with np.errstate(invalid="ignore"):
            return result.ok & (scores.value < self.recipe.evaluation.stable_below)

    def _metrics(
        self,
        current: _Submitted,
        result: ObjectiveResult,
        reward: np.ndarray,
        stable: np.ndarray | None,
        new: np.ndarray | None,
    ) -> dict[str, Any]:
        """Numbers of a step; NaN, null in log and store, for what is not measured."""
        size = len(reward)
        screened = current.screening.result()
        metrics: dict[str, Any] = {
            "evaluations": self.objective.evaluations_spent(),
            "reward_mean": float(reward.mean()),
            "objective_mean": float(result.reward.mean()),
            "valid_fraction": screened.passed["valid"] / size,
            "scored_fraction": float(result.ok.mean()),
            "stable_fraction": float("nan") if stable is None else float(stable.mean()),
            "new_fraction": float("nan") if new is None else float(new.mean()),
            "funnel": {"sampled": size, **screened.passed, "scored": int(result.ok.sum())},
            "failures": {k: v for k, v in result.counts.items() if k != "ok"},
            "elements": dict(
                Counter(
                    int(z) for row in current.rollout.batch.species for z in np.unique(row[row > 0])
                )
            ),
        }
        if self.front is not None:
            self.front.add(result.points, current.digests)
            metrics |= {"pareto_size": len(self.front), "hypervolume": self.front.hypervolume}
        if stable is not None and new is not None:
            metrics["funnel"].setdefault("stable", int(stable.sum()))
            metrics["funnel"]["new"] = int(new.sum())
        if np.isfinite(screened.rmsd).any():
            metrics["median_rmsd"] = float(np.nanmedian(screened.rmsd))
        for name, scores in result.scores.items():
            values = scores.value[scores.ok]
            metrics[f"median_{name}"] = float(np.median(values)) if len(values) else None
        return metrics

    # checkpoints --------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Write all that a resumed run needs."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "idle": [self.evaluations, self.idle],
            "answered": self.answered,
            "algorithm": self.algorithm.state_dict(),
            "bonus": self.bonus.state_dict(),
            "guard": self.guard.state_dict(),
            "generator": self.generator.get_state(),
            "next": None if self._next is None else _pack_rollout(self._next.rollout),
            "screen": self.screen.state_dict(self.step * self.recipe.budget.batch_size),
        }
        self.run_directory.checkpoint(self.step - 1, state)

    def restore(self) -> int:
        """Go back to the newest checkpoint of the run directory, or to the start.

        Returns:
            Steps that are done.
        """
        checkpoint = self.run_directory.latest_checkpoint()
        last = -1 if checkpoint is None else checkpoint.step
        self.store.rollback(last)
        self.run_directory.truncate_log(last)
        if self.front is not None:
            self.front = self.objective.front()
        if checkpoint is not None:
            state = checkpoint.state
            self.step, self.seconds = state["step"], state["seconds"]
            self.stopped = state["stopped"]
            self.evaluations, self.idle = state.get("idle", (0, 0))
            self.answered = state.get("answered", True)
            self.algorithm.load_state_dict(state["algorithm"])
            self.bonus.load_state_dict(state["bonus"])
            self.guard.load_state_dict(state["guard"])
            self.generator.set_state(state["generator"])
            self.screen.load_state_dict(state.get("screen", {}))
            self._resumed_tokens = state["next"]
        return self.step

    def _restored_rollout(self, packed: dict[str, Any]) -> Rollout:
        batch = WyckoffBatch(**{k: np.asarray(v) for k, v in packed["batch"].items()})
        tokens = Tokens(**{k: torch.as_tensor(v) for k, v in packed["tokens"].items()})
        kept = {name: torch.as_tensor(value) for name, value in packed["draws"].items()}
        trace = {"tokens": tokens, "condition": self.condition, **kept}
        return Rollout(batch, torch.as_tensor(packed["log_prob"]), trace)


def _pack_rollout(rollout: Rollout) -> dict[str, Any]:
    return {
        "batch": dict(vars(rollout.batch)),
        "tokens": dict(vars(rollout.trace["tokens"])),
        "log_prob": rollout.log_prob,
        "draws": {name: rollout.trace[name] for name in DRAWS if name in rollout.trace},
    }
