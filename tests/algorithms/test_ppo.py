"""The update is the gradient that the formulas say, and it raises a reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nucleate.algorithms.ppo import PPO, Baseline
from nucleate.policies.wyckoff import WyckoffPolicy
from nucleate.protocols import Rollout
from nucleate.recipe import PPOSettings
from tiny import condition, generator, tiny_policy

HELD = condition(2, 62, 225, max_atoms=40)
WHOLE = {"continuous_weight": 1.0, "inner_steps": 1, "size_neutrality": 0.0}
"""Whole crystals in one pass: what the formulas are written for."""
PUBLISHED = {
    "form": "published",
    "minibatch": None,
    "whiten": False,
    "baseline": "batch_ema",
    "kl_weight": 0.1,
}


def ppo(policy: WyckoffPolicy, *, move: float = 0.0, **settings: object) -> PPO:
    """An algorithm whose optimiser records gradients, and moves the weights after the first."""
    made = PPO(policy, tiny_policy(1), PPOSettings.model_validate(WHOLE | settings))
    made.gradients = []  # type: ignore[attr-defined]

    def record() -> None:
        made.gradients.append(  # type: ignore[attr-defined]
            torch.cat(
                [
                    torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
                    for p in made.policy.network.parameters()
                ]
            )
        )
        if move and len(made.gradients) == 1:  # type: ignore[attr-defined]
            _push(policy, move)

    made.optimiser.step = record  # type: ignore[method-assign, assignment]
    return made


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    """Crystals drawn by another policy than the one updated, so that ratios differ from 1."""
    return tiny_policy(0).sample(90, HELD, generator(0))


@pytest.fixture(scope="module")
def reward() -> np.ndarray:
    """Any numbers."""
    return np.random.default_rng(0).normal(size=90)


def moved(seed: int = 0, by: float = 0.004) -> WyckoffPolicy:
    """The policy that drew, with its weights a little off."""
    policy = tiny_policy(seed)
    _push(policy, by)
    return policy


def _push(policy: WyckoffPolicy, by: float) -> None:
    noise = generator(9)
    with torch.no_grad():
        for weight in policy.network.parameters():
            weight += by * torch.randn(weight.shape, generator=noise)


def log_prob(policy: WyckoffPolicy, rollout: Rollout) -> torch.Tensor:
    return policy.log_prob_parts(policy.tokens(rollout), rollout.trace["condition"]).sum(1)


def gradient(policy: WyckoffPolicy, objective: torch.Tensor) -> torch.Tensor:
    """Gradient of what is minimised, all weights in a row."""
    weights = list(policy.network.parameters())
    parts = torch.autograd.grad(-objective, weights, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(w) if g is None else g).flatten()
            for w, g in zip(weights, parts, strict=True)
        ]
    )


def assert_same(one: torch.Tensor, two: torch.Tensor) -> None:
    scale = two.norm()
    assert scale > 0
    assert (one - two).norm() / scale < 1e-3


def test_published_form_is_the_papers_formula(rollout, reward):
    policy = moved()
    algorithm = ppo(policy, gradient_clip=1e9, inner_steps=1, **PUBLISHED)
    measured = algorithm.update(rollout, reward, generator(0))
    prior = tiny_policy(1)
    now, then = log_prob(policy, rollout), rollout.log_prob
    before = log_prob(prior, rollout).detach()
    total = torch.tensor(reward) - 0.1 * (now.detach() - before)  # R, constant in the gradient
    baseline = (torch.tensor(reward) - 0.1 * (then - before)).mean()
    advantage = total - baseline
    ratio = torch.exp(now - then)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    outside = ((ratio - 1).abs() > 0.2).float().mean()
    assert 0.1 < outside < 0.9
    assert_same(algorithm.gradients[0], gradient(policy, surrogate.mean()))
    assert measured["clip_fraction"] == pytest.approx(float(outside))
    assert measured["baseline"] == pytest.approx(float(baseline), rel=1e-4)
    assert measured["kl"] == pytest.approx(float((then - before).mean()), rel=1e-4)
    assert measured["entropy"] == pytest.approx(-float(then.mean()), rel=1e-4)


def test_published_form_with_a_reward_for_entropy(rollout, reward):
    policy = moved()
    settings = PUBLISHED | {"entropy_weight": 0.05, "baseline": "batch"}
    algorithm = ppo(policy, gradient_clip=1e9, **settings)
    algorithm.update(rollout, reward, generator(0))
    now, then = log_prob(policy, rollout), rollout.log_prob
    before = log_prob(tiny_policy(1), rollout).detach()
    fixed = torch.tensor(reward) + 0.1 * before
    advantage = fixed - 0.15 * now.detach() - (fixed - 0.15 * then).mean()
    ratio = torch.exp(now - then)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    assert_same(algorithm.gradients[0], gradient(policy, surrogate.mean()))


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_continuous_draws_count_by_their_weight(rollout, reward, weight, ratio):
    """Only letters and species are reinforced, and held to the prior, at weight 0."""
    policy, drew = tiny_policy(0), tiny_policy(0)
    shares = torch.tensor([1.0, 1.0, weight, weight])

    def weighted(which: WyckoffPolicy) -> torch.Tensor:
        return which.log_prob_parts(which.tokens(rollout), HELD) @ shares

    settings = {"minibatch": None, "baseline": "batch", "whiten": False, "kl_weight": 0.2}
    settings |= {"ratio": ratio, "continuous_weight": weight, "inner_steps": 2}
    algorithm = ppo(policy, gradient_clip=1e9, move=0.001, **settings)
    measured = algorithm.update(rollout, reward, generator(0))
    now, then = weighted(policy), weighted(drew).detach()
    prior = weighted(tiny_policy(1)).detach()
    advantage = torch.tensor(reward - reward.mean())
    change = torch.exp(now - then)
    surrogate = torch.minimum(change * advantage, change.clamp(0.8, 1.2) * advantage)
    if ratio == "token":
        one, two = (p.log_prob_draws(p.tokens(rollout), HELD) for p in (policy, drew))
        change = torch.exp(one.value - two.value.detach())
        each = advantage[one.row]
        terms = torch.minimum(change * each, change.clamp(0.8, 1.2) * each) * shares[one.part]
        surrogate = torch.zeros(90, dtype=terms.dtype).index_add(0, one.row, terms)
    factor = torch.exp((now - then).detach().clamp(-2, 2))
    divergence = (now - prior).detach() - (then - prior).mean()
    objective = surrogate - 0.2 * factor * divergence * now
    assert_same(algorithm.gradients[1], gradient(policy, objective.mean()))
    assert measured["kl"] == pytest.approx(float((then - prior).mean()), rel=1e-3)
    reached = [
        parameter.grad is not None
        for name, parameter in policy.network.named_parameters()
        if name.startswith("geometry.")
    ]
    assert len(reached) > 20 and set(reached) == {weight > 0}


@pytest.mark.parametrize("settings", [{}, {"ratio": "token"}, {"form": "published"}])
def test_reinforced_letters_and_species_leave_every_geometry_as_it_was(settings):
    """Bit by bit: whatever tuning does, a protostructure keeps its distribution of geometries."""
    policy, before = tiny_policy(0), tiny_policy(0).network.state_dict()
    settings = {"learning_rate": 1e-2, "continuous_weight": 0.0, "kl_target": 1.0} | settings
    made = PPO(policy, tiny_policy(0), PPOSettings.model_validate(settings))
    draws = generator(0)
    for _ in range(3):
        rollout = policy.sample(40, HELD, draws)
        made.update(rollout, np.arange(40.0), draws)
    changed = {
        name: not torch.equal(weight, before[name])
        for name, weight in policy.network.state_dict().items()
    }
    assert not any(moved for name, moved in changed.items() if name.startswith("geometry."))
    others = [moved for name, moved in changed.items() if not name.startswith("geometry.")]
    assert len(others) > 20 and all(others)
    parts = [p.log_prob_by_part(rollout) for p in (policy, tiny_policy(0))]
    assert torch.equal(parts[0][:, 2:], parts[1][:, 2:])
    assert (parts[0][:, :2] != parts[1][:, :2]).all()


SIZES = np.array([1, 2, 2])


def test_baseline_is_the_papers_running_mean():
    baseline, groups = Baseline(0.95), np.array([1, 1, 2])
    expected = None
    for batch in np.random.default_rng(0).normal(size=(5, 3)):
        mean = batch.mean()
        expected = mean if expected is None else 0.95 * expected + 0.05 * mean
        np.testing.assert_allclose(baseline("batch_ema", batch, groups, SIZES), expected)
    np.testing.assert_allclose(baseline("batch", np.array([1.0, 2.0, 6.0]), groups, SIZES), 3.0)


def test_each_space_group_has_a_baseline_of_its_own():
    baseline = Baseline(0.5)
    groups = np.array([1, 1, 2])
    first = baseline("space_group", np.array([1.0, 1.0, 4.0]), groups, SIZES)
    np.testing.assert_allclose(first, 2.0)  # nothing is known but the batch
    second = baseline("space_group", np.zeros(3), np.array([1, 2, 3]), SIZES)
    np.testing.assert_allclose(second, [1.25, 3.0, 2.0])  # weights 1/4 and 1/2 of 2; the rest new
    for _ in range(40):
        last = baseline("space_group", np.array([-1.0, 5.0]), np.array([1, 2]), SIZES[:2])
    np.testing.assert_allclose(last, [-1.0, 5.0], atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_size_neutrality_takes_away_what_small_crystals_gain_by_their_size(share):
    rng, baseline = np.random.default_rng(0), Baseline(0.9, share)
    for _ in range(200):
        sites = rng.integers(1, 5, 32)
        reward = -sites + rng.normal(0, 0.01, 32)
        advantage = reward - baseline("batch", reward, np.ones(32, dtype=int), sites)
    gain = [advantage[sites == n].mean() for n in (1, 4)]
    assert gain[0] - gain[1] == pytest.approx(3 * (1 - share), abs=0.4)
    restored = Baseline(0.9, share)
    restored.load_state_dict(baseline.state_dict())
    assert restored == baseline


def test_kl_gradient_is_the_score_function_estimate_and_no_clipping_gates_it(rollout):
    policy = tiny_policy(0)
    before = log_prob(tiny_policy(1), rollout).detach()
    settings = {"kl_weight": 0.3, "whiten": False, "baseline": "batch", "minibatch": None}
    settings |= {"inner_steps": 2, "clip_epsilon": 1e-4, "gradient_clip": 1e9}
    # equal rewards: no advantage, so the KL term alone remains
    algorithm = ppo(policy, move=0.004, **settings)
    measured = algorithm.update(rollout, np.zeros(90), generator(0))
    assert measured["clip_fraction"] == pytest.approx(0.5, abs=0.02)  # all in the second step
    now, then = log_prob(policy, rollout), rollout.log_prob
    weight = torch.exp((now - then).detach().clamp(-2, 2))
    divergence = (now - before).detach() - (then - before).mean()
    assert_same(algorithm.gradients[1], gradient(policy, -(0.3 * weight * divergence * now).mean()))
    # with rewards and a narrow clip the same term is there, next to a surrogate without gradient
    clipped = ppo(tiny_policy(0), move=0.004, **settings)
    reward = torch.where(now > then, 1.0, -1.0).detach().double().numpy()
    reward -= reward.mean()
    ratio = torch.exp((now - then).detach())
    gated = (torch.tensor(reward) > 0) == (ratio > 1)
    clipped.update(rollout, reward, generator(0))
    assert gated.all()
    assert_same(clipped.gradients[1], algorithm.gradients[1])


def test_at_the_start_the_kl_gradient_is_that_of_the_divergence():
    """Exact for the policy that drew: E[(ln p/q - mean) grad ln p]."""
    policy = tiny_policy(0)
    rollout = policy.sample(64, HELD, generator(3))
    settings = {"kl_weight": 1.0, "whiten": False, "baseline": "batch", "minibatch": None}
    algorithm = ppo(policy, gradient_clip=1e9, **settings)
    algorithm.update(rollout, np.zeros(64), generator(0))
    now, prior = log_prob(policy, rollout), log_prob(tiny_policy(1), rollout).detach()
    divergence = (now - prior).detach()
    estimate = ((divergence - divergence.mean()) * now).mean()
    assert_same(algorithm.gradients[0], gradient(policy, -estimate))


@pytest.mark.parametrize("form", ["default", "published"])
def test_token_ratios_give_the_sequence_gradient_where_all_ratios_are_one(form, reward):
    policy = tiny_policy(0)
    rollout = policy.sample(90, HELD, generator(3))
    base = {"form": form, "minibatch": None, "gradient_clip": 1e9}
    one, two = (ppo(policy, ratio=r, **base) for r in ("sequence", "token"))
    for algorithm in (one, two):
        algorithm.update(rollout, reward, generator(0))
    assert_same(two.gradients[0], one.gradients[0])


def test_token_ratios_compare_with_the_policy_before_the_update(reward):
    policy, drew = tiny_policy(0), tiny_policy(0)
    rollout = drew.sample(90, HELD, generator(3))
    settings = {"ratio": "token", "kl_weight": 0.0, "whiten": False, "baseline": "batch"}
    settings |= {"inner_steps": 2, "minibatch": None}
    algorithm = ppo(policy, move=0.02, gradient_clip=1e9, **settings)
    measured = algorithm.update(rollout, reward, generator(0))
    assert measured["clip_fraction"] > 0.05
    with torch.no_grad():
        then = drew.log_prob_draws(drew.tokens(rollout), HELD)
    now = policy.log_prob_draws(policy.tokens(rollout), HELD)
    assert torch.equal(now.row, then.row) and torch.equal(now.part, then.part)
    advantage = torch.tensor(reward - reward.mean())[now.row]
    ratio = torch.exp(now.value - then.value)
    terms = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    assert_same(algorithm.gradients[1], gradient(policy, terms.sum() / 90))


def test_a_batch_of_an_older_policy_is_out_of_bounds_in_the_published_form_alone(rollout, reward):
    """The default form bounds how far an update moves, whoever drew the batch."""
    clipped = [
        ppo(moved(), minibatch=None, form=form).update(rollout, reward, generator(0))
        for form in ("default", "published")
    ]
    assert clipped[0]["clip_fraction"] == 0 < clipped[1]["clip_fraction"]


def test_whitening_makes_the_step_independent_of_the_units_of_the_reward(rollout, reward):
    settings = {"whiten": True, "minibatch": None, "baseline": "batch", "kl_weight": 0.1}
    one = ppo(moved(), **settings)
    two = ppo(moved(), **(settings | {"kl_weight": 10.0}))
    scale = one.update(rollout, reward, generator(0))["advantage_scale"]
    two.update(rollout, 100 * reward + 7, generator(0))
    assert scale == pytest.approx(reward.std(ddof=1), rel=1e-3)
    assert_same(two.gradients[0], one.gradients[0])


def test_minibatches_see_every_crystal_once_an_epoch_and_gradients_are_clipped(rollout, reward):
    whole = ppo(moved(), minibatch=None, gradient_clip=1e9)
    parts = ppo(moved(), minibatch=30, gradient_clip=1e9)
    for algorithm in (whole, parts):
        algorithm.update(rollout, reward, generator(0))
    assert len(parts.gradients) == 3
    assert_same(torch.stack(parts.gradients).mean(0), whole.gradients[0])
    clipped = ppo(moved(), minibatch=30, gradient_clip=0.5, inner_steps=2)
    measured = clipped.update(rollout, reward, generator(0))
    assert len(clipped.gradients) == 6
    assert all(g.norm() <= 0.5 * 1.001 for g in clipped.gradients)
    assert measured["gradient_norm"] > 0.5


def test_tau_moves_towards_its_target(rollout, reward):
    def after(target: float | None, rate: float = 0.1) -> float:
        algorithm = ppo(tiny_policy(0), kl_target=target, kl_rate=rate, kl_weight=0.05)
        kl = algorithm.update(rollout, reward, generator(0))["kl"]
        assert kl > 1
        return algorithm.kl_weight

    assert after(None) == 0.05
    assert after(1e-3) == pytest.approx(0.05 * 1.1)  # too far from the prior: hold more
    assert after(1e6) == pytest.approx(0.05 * 0.9)
    assert after(1e-3, rate=0.5) == pytest.approx(0.05 * 1.5)
    widened = ppo(tiny_policy(0), kl_weight=0.0)
    widened.widen()
    assert widened.kl_weight > 0


@pytest.mark.parametrize("settings", [{}, PUBLISHED, {"ratio": "token", "inner_steps": 3}])
def test_failures_never_make_anything_infinite(settings):
    policy = tiny_policy(0)
    made = PPO(policy, tiny_policy(1), PPOSettings.model_validate(settings))
    draws = generator(0)
    for penalty in (np.full(40, -10.0), np.where(np.arange(40) < 39, -1e6, 0.0), np.zeros(40)):
        measured = made.update(policy.sample(40, HELD, draws), penalty, draws)
        assert all(np.isfinite(value) for value in measured.values())
    assert all(weight.isfinite().all() for weight in policy.network.parameters())
    assert np.isfinite([made.baseline.overall, *made.baseline.groups.values()]).all()


def test_a_nucleus_keeps_the_divergence_finite():
    held = condition(2, 62, 225, max_atoms=40, top_p=0.6)
    policy = tiny_policy(0)
    made = PPO(policy, tiny_policy(1), PPOSettings.model_validate({}))
    draws = generator(0)
    for _ in range(3):
        measured = made.update(policy.sample(40, held, draws), np.arange(40.0), draws)
        assert all(np.isfinite(value) for value in measured.values())


@pytest.mark.parametrize("settings", [{}, {"ratio": "token", "kl_target": 3.0}])
def test_state_survives_a_checkpoint(settings, tmp_path):
    from nucleate.store.checkpoint import read_checkpoint, write_checkpoint

    def run(cut: int) -> dict:
        policy, draws = tiny_policy(0), generator(0)
        made = PPO(policy, tiny_policy(1), PPOSettings.model_validate(settings))
        for step in range(4):
            if step == cut:
                path = write_checkpoint(tmp_path, step, made.state_dict())
                policy = tiny_policy(3)
                made = PPO(policy, tiny_policy(1), PPOSettings.model_validate(settings))
                made.load_state_dict(read_checkpoint(path).state)
            rollout = policy.sample(20, HELD, draws)
            made.update(rollout, np.sin(rollout.batch.species[:, 0]), draws)
        return made.state_dict()

    one, two = run(-1), run(2)
    assert one["kl_weight"] == two["kl_weight"] and one["baseline"] == two["baseline"]
    for name, weight in one["network"].items():
        assert torch.equal(two["network"][name], weight)


@pytest.mark.parametrize("settings", [{}, PUBLISHED | {"inner_steps": 3}, {"ratio": "token"}])
def test_it_raises_a_reward(settings):
    """Crystals with oxygen are wanted: one in many at the start."""
    policy = tiny_policy(0, sharpness=1.0)
    options = {"learning_rate": 1e-2, **settings, "kl_weight": 0.003}
    made = PPO(policy, tiny_policy(0, sharpness=1.0), PPOSettings.model_validate(options))
    draws, history = generator(0), []
    for _ in range(12):
        rollout = policy.sample(96, HELD, draws)
        reward = (rollout.batch.species == 8).any(1).astype(float)
        history.append(reward.mean())
        made.update(rollout, reward, draws)
    assert history[0] < 0.15
    assert np.mean(history[-3:]) > 0.6
