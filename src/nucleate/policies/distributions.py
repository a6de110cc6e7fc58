"""The densities that a Wyckoff policy draws from, each with its log-probability.

A draw and its log-probability see the same masks, temperature and top-p, so that sampling and
scoring describe one distribution. Everything random comes from the generator that is passed in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

MAX_CONCENTRATION = 2000.0
"""Largest von Mises concentration: a standard deviation of 0.0036 of a cell edge."""

MIN_SIGMA = 3e-3
"""Smallest standard deviation of a lattice parameter in the units of ``policies.lattice``."""

SHARPEST = 0.3
"""Temperature below which those two limits stay as they are at this one: single precision does
not resolve the log-probability of a sharper density to 1e-4 nats."""


def masked_log_softmax(
    logits: torch.Tensor,
    allowed: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    chosen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probabilities of a categorical draw among the allowed entries.

    Args:
        logits: (..., K).
        allowed: (..., K) bool; at least one True in each row.
        temperature: divides the logits.
        top_p: keep the smallest set of entries whose probability reaches ``top_p``.
        chosen: (...) an entry that stays whatever ``top_p`` says. What was drawn lies in the
            nucleus of the weights that drew it; under other weights its score stays finite.

    Returns:
        (..., K) nats, -inf where not allowed or not kept.
    """
    scaled = (logits / temperature).masked_fill(~allowed, -torch.inf)
    log_prob = F.log_softmax(scaled, dim=-1)
    if top_p >= 1.0:
        return log_prob
    ordered, order = log_prob.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.zeros_like(allowed).scatter(-1, order, before < top_p)
    if chosen is not None:
        kept = kept.scatter(-1, chosen.unsqueeze(-1), True)
    return F.log_softmax(scaled.masked_fill(~(kept & allowed), -torch.inf), dim=-1)


def categorical(log_prob: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one entry from each row of log-probabilities (N, K).

    As everywhere here, the draw is made on the generator's device and then moved; in single
    precision, so that equal seeds draw alike whatever the precision of the weights.
    """
    weights = log_prob.exp().float().to(generator.device)
    return torch.multinomial(weights, 1, generator=generator).squeeze(-1).to(log_prob.device)


def wrapped(fraction: torch.Tensor) -> torch.Tensor:
    """Fractional coordinates into [0, 1), also where rounding gives 1."""
    inside = torch.remainder(fraction, 1.0)
    return torch.where(inside < 1.0, inside, 0.0)


def _at_least_single(raw: torch.Tensor) -> torch.Tensor:
    """Half precision is too coarse for a density."""
    return raw.to(torch.promote_types(raw.dtype, torch.float32))


def split_mixture(
    raw: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split (..., 3K) network outputs into log-weights, locations (rad) and concentrations."""
    logits, location, concentration = _at_least_single(raw).chunk(3, dim=-1)
    concentration = F.softplus(concentration).clamp(1e-3, MAX_CONCENTRATION) / temperature
    sharpest = MAX_CONCENTRATION / min(1.0, max(temperature, SHARPEST))
    return logits / temperature, location, concentration.clamp(max=sharpest)


def von_mises_log_prob(
    raw: torch.Tensor, fraction: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Log-density of a fractional coordinate under a mixture of von Mises distributions.

    The density is over the angle 2 pi (x - 1/2) in radians, as in CrystalFormer (eq. 4 of
    arXiv:2403.15734); add ln 2 pi for a density over x.

    Args:
        raw: (..., 3K) outputs of a coordinate head.
        fraction: (...) fractional coordinate.
        temperature: divides log-weights and concentrations.

    Returns:
        (...) nats.
    """
    logits, location, concentration = split_mixture(raw, temperature)
    angle = 2 * math.pi * (fraction.unsqueeze(-1) - 0.5)
    # 2 sin^2(d/2) = 1 - cos d without the loss of digits at small d
    log_density = (
        -2 * concentration * torch.sin((angle - location) / 2).square()
        - torch.log(torch.special.i0e(concentration))
        - math.log(2 * math.pi)
    )
    return torch.logsumexp(F.log_softmax(logits, dim=-1) + log_density, dim=-1).float()


def sample_von_mises(
    raw: torch.Tensor, generator: torch.Generator, *, temperature: float = 1.0
) -> torch.Tensor:
    """Draw fractional coordinates in [0, 1) from mixtures (N, 3K).

    Best and Fisher (1979), J. R. Stat. Soc. C 28, 152: rejection from a wrapped Cauchy
    distribution; rows that are rejected are drawn again, alone, in float64.
    """
    logits, location, concentration = split_mixture(raw, temperature)
    component = categorical(F.log_softmax(logits, dim=-1), generator)[:, None]
    mu, kappa = (
        parameter.gather(-1, component).squeeze(-1).to(generator.device).double()
        for parameter in (location, concentration)
    )
    tau = 1 + torch.sqrt(1 + 4 * kappa.square())
    rho = (tau - torch.sqrt(2 * tau)) / (2 * kappa)
    r = (1 + rho.square()) / (2 * rho)
    offset = torch.empty_like(mu)
    pending = torch.arange(len(mu), device=mu.device)
    while len(pending):
        uniform = torch.rand(
            3, len(pending), generator=generator, dtype=torch.float64, device=mu.device
        )
        z = torch.cos(math.pi * uniform[0])
        f = (1 + r[pending] * z) / (r[pending] + z)
        c = kappa[pending] * (r[pending] - f)
        accepted = (c * (2 - c) - uniform[1] > 0) | (torch.log(c / uniform[1]) + 1 - c >= 0)
        sign = torch.where(uniform[2] < 0.5, -1.0, 1.0)
        offset[pending] = sign * torch.acos(f.clamp(-1, 1))
        pending = pending[~accepted]
    drawn = torch.remainder((mu + offset) / (2 * math.pi) + 0.5, 1.0)
    return wrapped(drawn.float()).to(raw.device)


def gaussian_mixture_log_prob(
    raw: torch.Tensor, value: torch.Tensor, free: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Log-density of a joint mixture of diagonal Gaussians over the free parameters.

    One component is drawn for all parameters together, in scoring as in sampling.

    Args:
        raw: (B, K (1 + 2 D)) log-weights, means (K, D), raw standard deviations (K, D).
        value: (B, D).
        free: (B, D) bool; the others carry no density.
        temperature: divides log-weights and variances.

    Returns:
        (B,) nats, 0 where nothing is free.
    """
    logits, mean, sigma = split_gaussians(raw, value.shape[-1], temperature)
    z = (value.unsqueeze(1) - mean) / sigma
    log_density = -0.5 * z.square() - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
    log_density = (log_density * free.unsqueeze(1)).sum(-1)
    joint = torch.logsumexp(F.log_softmax(logits, dim=-1) + log_density, dim=-1)
    return torch.where(free.any(-1), joint, torch.zeros_like(joint)).float()


def split_gaussians(
    raw: torch.Tensor, n_dimensions: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split (B, K (1 + 2 D)) outputs into log-weights (B, K), means and sigmas (B, K, D)."""
    raw = _at_least_single(raw)
    n_components = raw.shape[-1] // (1 + 2 * n_dimensions)
    logits, mean, sigma = raw.split(
        [n_components, n_components * n_dimensions, n_components * n_dimensions], dim=-1
    )
    shape = (*raw.shape[:-1], n_components, n_dimensions)
    return (
        logits / temperature,
        mean.reshape(shape),
        ((F.softplus(sigma.reshape(shape)) + MIN_SIGMA) * math.sqrt(temperature)).clamp(
            min=MIN_SIGMA * math.sqrt(min(1.0, max(temperature, SHARPEST)))
        ),
    )


def sample_gaussian_mixture(
    raw: torch.Tensor, n_dimensions: int, generator: torch.Generator, *, temperature: float = 1.0
) -> torch.Tensor:
    """Draw (B, D) from joint mixtures (B, K (1 + 2 D))."""
    logits, mean, sigma = split_gaussians(raw, n_dimensions, temperature)
    component = categorical(F.log_softmax(logits, dim=-1), generator)
    row = torch.arange(len(raw), device=raw.device)
    noise = torch.randn(
        len(raw), n_dimensions, generator=generator, device=generator.device, dtype=torch.float32
    ).to(raw.device)
    return (mean[row, component] + sigma[row, component] * noise).float()
