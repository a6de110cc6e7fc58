"""Predictors that learnt from a small table in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from labelled import rock_salts, write_table
from nucleate.predictors.predictor import Predictor
from nucleate.predictors.tables import Target
from nucleate.predictors.training import PredictorSettings, train_predictor

KINDS = {"volume": "scalar", "tensor": "tensor", "chalcogenide": "probability"}


@pytest.fixture(scope="session")
def small() -> PredictorSettings:
    return PredictorSettings(
        heads=2, width=16, embedding=4, epochs=40, batch_size=8, dropout=0, learning_rate=1e-2
    )


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("tables") / "crystals.parquet", rock_salts())


@pytest.fixture(scope="session")
def trained(
    table: Path, small: PredictorSettings, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Predictor, Path]]:
    """Predictor and folder for a column of the table, trained once."""
    made: dict[str, tuple[Predictor, Path]] = {}

    def train(column: str) -> tuple[Predictor, Path]:
        if column not in made:
            out = tmp_path_factory.mktemp("predictors") / column
            target = Target(name=column, unit="A^3", kind=KINDS[column], columns=(column,))
            about = {"licence": "CC0"}
            made[column] = train_predictor(table, out, target, settings=small, about=about), out
        return made[column]

    return train
