"""A tiny model, tiny files, and a runner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands_under_test import NACL, Outcome
from typer.testing import CliRunner

from nucleate.cli.main import app


@pytest.fixture
def nucleate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Outcome:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, " ".join(result.stderr.split()))

    return run


@pytest.fixture
def nacl(tmp_path: Path) -> Path:
    """Rock salt as a CIF."""
    path = tmp_path / "nacl.cif"
    path.write_text(NACL)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights, far too small to be of use."""
    import torch

    from nucleate.policies.checkpoint import FORMULAS, save_policy
    from nucleate.policies.site_transformer import SiteTransformer, SiteTransformerConfig
    from nucleate.policies.wyckoff import WyckoffPolicy
    from nucleate.structures.formulas import FormulaIndex

    torch.manual_seed(0)
    config = SiteTransformerConfig(width=32, layers=1, heads=2, embedding=16, max_sites=6)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    policy = WyckoffPolicy(SiteTransformer(config), {"space_groups": {225: 3, 221: 1}})
    save_policy(policy, folder)
    FormulaIndex(np.zeros(0, np.uint64)).save(folder / FORMULAS)
    return folder
