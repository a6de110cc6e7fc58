"""Predictors as properties: value, spread, product, keys, and failures in their places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelled import rock_salts, write_table
from nucleate.errors import CheckpointError
from nucleate.execution.local import ProcessPool
from nucleate.physics.cells import as_structure
from nucleate.physics.potentials import UnsupportedError
from nucleate.predictors.features import FrozenChgnet
from nucleate.predictors.tables import Target
from nucleate.predictors.training import PredictorSettings, train_predictor
from nucleate.properties.predicted import JointPredictors, Predicted
from nucleate.properties.shared import Shared
from nucleate.protocols import CostClass, MeasuredProperty, Property, Status


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("predictors")
    table = write_table(folder / "table.parquet", rock_salts())
    made = []
    for seed in (0, 1):
        made.append(folder / str(seed))
        settings = PredictorSettings(heads=2, width=8, embedding=2, epochs=2, seed=seed)
        target = Target(name=f"volume{seed}", unit="A^3", columns=("volume",))
        about = {"source": "made up", "licence": "CC0"}
        train_predictor(table, made[-1], target, settings=settings, about=about)
    return made


def test_a_predictor_is_a_property(folders: list[Path]) -> None:
    prop = Predicted(folders[0])
    assert isinstance(prop, Property)
    assert (prop.name, prop.unit, prop.cost) == ("volume0", "A^3", CostClass.MODEL)
    cells = rock_salts()[:3]
    unseen = cells[1]._replace(numbers=np.array([26, 8]))
    scores = prop.evaluate([as_structure(cells[0]), unseen, cells[2]])
    assert scores.status == [Status.OK, Status.UNSUPPORTED, Status.OK]
    assert "Fe" in scores.reason[1]
    expected = prop.predictor.predict(cells)
    for i in (0, 2):
        assert scores.value[i] == pytest.approx(expected[i].value, rel=1e-5)
        assert scores.extra["volume0_spread"][i] == pytest.approx(expected[i].spread, rel=1e-3)
    assert np.isnan(scores.extra["volume0_spread"][1])
    assert prop.description["licence"] == "CC0"
    assert "Fe" not in prop.description["elements"]


def test_keys_follow_the_weights(folders: list[Path]) -> None:
    keys = {Predicted(folder).key for folder in folders}
    assert len(keys) == 2


def test_a_pool_changes_nothing(folders: list[Path]) -> None:
    cells = rock_salts()[:6]
    cells[2] = cells[2]._replace(numbers=np.array([26, 8]))
    here = Predicted(folders[0]).evaluate(cells)
    with ProcessPool(1) as pool:
        there = Predicted(folders[0], pool).evaluate(cells)
    np.testing.assert_allclose(there.value, here.value, rtol=1e-5)
    np.testing.assert_allclose(
        there.extra["volume0_spread"], here.extra["volume0_spread"], rtol=1e-3
    )
    assert (there.status, there.reason) == (here.status, here.reason)


def test_features_are_computed_once_for_all_predictors_of_a_batch(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    compute = FrozenChgnet.features

    def counted(self: FrozenChgnet, structures: Sequence[Any], **wanted: Any) -> list[Any]:
        asked.append(len(structures))
        return compute(self, structures, **wanted)

    monkeypatch.setattr(FrozenChgnet, "features", counted)
    cells, shared = rock_salts()[:4], Shared()
    props = [Predicted(folder) for folder in folders]
    assert all(isinstance(prop, MeasuredProperty) for prop in props)
    together = [prop.evaluate(cells, shared).value for prop in props]
    assert asked == [4]
    np.testing.assert_array_equal(together, [prop.evaluate(cells).value for prop in props])
    assert asked == [4, 4, 4]


def test_predictors_together_fail_where_one_does(folders: list[Path]) -> None:
    cells = rock_salts()[:4]
    cells[2] = cells[2]._replace(numbers=np.array([26, 8]))
    joint = JointPredictors(folders).predict(cells)
    assert isinstance(joint[2], UnsupportedError)
    alone = [Predicted(folder).evaluate(cells) for folder in folders]
    for i in (0, 1, 3):
        assert [one.value for one in joint[i]] == [scores.value[i] for scores in alone]


def test_no_predictor_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no predictor"):
        Predicted(tmp_path)
