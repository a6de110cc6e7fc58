"""Predictors on disk: what was saved comes back, what is damaged or foreign is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from labelled import rock_salts
from nucleate.errors import CheckpointError
from nucleate.predictors.checkpoint import CARD, SHIPPED, WEIGHTS, load_predictor, locate
from nucleate.predictors.predictor import Predictor

Trained = Callable[[str], tuple[Predictor, Path]]
MOST_BYTES = 5_000_000


@pytest.mark.parametrize("column", ["volume", "tensor", "chalcogenide"])
def test_what_was_saved_comes_back(trained: Trained, column: str) -> None:
    predictor, folder = trained(column)
    for path in (folder, folder / WEIGHTS, str(folder / CARD)):
        loaded = load_predictor(path)
        assert loaded.weights_sha256 == predictor.weights_sha256
        assert loaded.target == predictor.target
        assert loaded.card == predictor.card
        assert loaded.elements == predictor.elements
        tensor = column == "tensor"
        pairs = (p.predict(rock_salts(1), tensor=tensor) for p in (predictor, loaded))
        for before, after in zip(*pairs, strict=True):
            assert after[:2] == before[:2]
            np.testing.assert_array_equal(after[2], before[2])


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained("volume")[1], tmp_path / "copy"))


def edit(folder: Path, **changes: object) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | changes))


def test_damaged_weights_are_refused(copy: Path) -> None:
    data = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="can't be used") as caught:
        load_predictor(copy)
    assert "sha256 differs" in caught.value.why
    (copy / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="can't be used"):
        load_predictor(copy)


def test_weights_that_do_not_fit_the_card_are_refused(copy: Path) -> None:
    edit(copy, head={"tensor": False, "width": 8, "embedding": 4, "dropout": 0.0})
    with pytest.raises(CheckpointError, match="describes no predictor"):
        load_predictor(copy)


def test_features_of_another_chgnet_are_refused(copy: Path) -> None:
    edit(copy, features={"potential": "chgnet", "weights_sha256": "0" * 64})
    with pytest.raises(CheckpointError, match="another CHGNet"):
        load_predictor(copy)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "nucleate-policy-1"}'])
def test_foreign_cards_are_refused(copy: Path, text: str) -> None:
    (copy / CARD).write_text(text)
    with pytest.raises(CheckpointError, match="is no card of a predictor"):
        load_predictor(copy)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(CheckpointError, match="no predictor at band_gpa") as caught:
        load_predictor("band_gpa")
    assert "band_gap" in caught.value.fix


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_small_sound_and_documented(name: str) -> None:
    folder = locate(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    predictor = load_predictor(name)
    assert predictor.target.name == name
    assert len(predictor.elements) > 50
    assert {"source", "licence", "attribution"} <= predictor.card.keys()
    assert predictor.card["metrics"]["test"]["crystals"] > 100
