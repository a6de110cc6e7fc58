"""Design crystals by reinforcement learning.

The public names are here; each is imported when it is first asked for, so that ``import nucleate``
costs nothing::

    import nucleate

    run = nucleate.tune("stability")
    crystals = nucleate.sample(nucleate.load_policy(run / "model"), 100, seed=1)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nucleate.design import resume, tune
    from nucleate.judging import evaluate
    from nucleate.policies.checkpoint import load_policy
    from nucleate.recipe import load_recipe
    from nucleate.samples import sample
    from nucleate.scoring import score
    from nucleate.training import pretrain

__version__ = "0.1.0"

__all__ = [
    "evaluate",
    "load_policy",
    "load_recipe",
    "pretrain",
    "resume",
    "sample",
    "score",
    "tune",
]

_HOME = {
    "evaluate": "nucleate.judging",
    "load_policy": "nucleate.policies.checkpoint",
    "load_recipe": "nucleate.recipe",
    "pretrain": "nucleate.training",
    "resume": "nucleate.design",
    "sample": "nucleate.samples",
    "score": "nucleate.scoring",
    "tune": "nucleate.design",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'nucleate' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
