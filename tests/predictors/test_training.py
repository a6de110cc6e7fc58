"""Training: it learns, it is reproducible, the card says what was done, bad tables are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from labelled import label, rock_salts, write_table
from nucleate.errors import InputError
from nucleate.physics.potentials import UnsupportedError
from nucleate.predictors.checkpoint import CARD, WEIGHTS, load_predictor
from nucleate.predictors.predictor import Prediction, Predictor
from nucleate.predictors.tables import Target
from nucleate.predictors.training import Epoch, PredictorSettings, train_predictor

Trained = Callable[[str], tuple[Predictor, Path]]
VOLUME = Target(name="volume", unit="A^3", columns=("volume",))


def test_a_scalar_is_learnt(trained: Trained) -> None:
    predictor, _ = trained("volume")
    fresh = rock_salts(seed=1)
    truth = np.array([label(cell)["volume"] for cell in fresh])
    found = predictor.predict(fresh)
    assert all(one.tensor is None and one.spread > 0 for one in found)
    errors = np.abs([one.value for one in found] - truth)
    assert errors.mean() < 0.4 * np.abs(truth - np.median(truth)).mean()


def test_a_tensor_is_learnt_with_its_direction(trained: Trained) -> None:
    predictor, _ = trained("tensor")
    fresh = rock_salts(seed=1)
    truth = np.array([np.reshape(label(cell)["tensor"], (3, 3)) for cell in fresh])
    found = np.array([one.tensor for one in predictor.predict(fresh, tensor=True)])
    np.testing.assert_array_equal(found, found.transpose(0, 2, 1))

    def along(tensors: np.ndarray) -> np.ndarray:
        return tensors[:, 2, 2] - tensors[:, 0, 0]

    assert np.corrcoef(along(found), along(truth))[0, 1] > 0.5
    assert np.abs(along(found) - along(truth)).mean() < 0.8 * np.abs(along(truth)).mean()


def test_a_flag_is_learnt(trained: Trained) -> None:
    predictor, _ = trained("chalcogenide")
    fresh = rock_salts(seed=1)
    truth = np.array([label(cell)["chalcogenide"] for cell in fresh])
    predicted = np.array([one.value for one in predictor.predict(fresh)])
    assert ((predicted >= 0) & (predicted <= 1)).all()
    assert ((predicted > 0.5) == truth).mean() > 0.9


def test_only_a_tensor_has_a_tensor(trained: Trained) -> None:
    with pytest.raises(ValueError, match="volume is no tensor"):
        trained("volume")[0].predict(rock_salts()[:1], tensor=True)


def test_the_card_says_what_was_done(trained: Trained, table: Path) -> None:
    _, folder = trained("volume")
    written = json.loads((folder / CARD).read_text())
    card = written["card"]
    assert card["licence"] == "CC0"
    assert sum(card["crystals"].values()) == 50
    for part in ("validation", "test"):
        assert card["metrics"][part]["crystals"] == card["crystals"][part] > 0
        assert card["metrics"][part]["mae"] < card["metrics"][part]["dummy_mae"]
    assert card["tables"]["training"]["files"].keys() == {table.name}
    assert card["settings"]["heads"] == written["heads"] == 2
    assert written["elements"]["O"] <= 10
    assert {"torch", "chgnet", "nucleate"} <= card["versions"].keys()


def test_equal_seeds_give_equal_weights_and_test_labels_change_nothing(
    tmp_path: Path, small: PredictorSettings
) -> None:
    few = small.model_copy(update={"epochs": 2, "heads": 1})
    cells = rock_salts()
    tables = {
        name: write_table(tmp_path / f"{name}.parquet", cells[part])
        for name, part in {"a": slice(0, 38), "b": slice(38, 44), "c": slice(44, 50)}.items()
    }
    write_table(tmp_path / "d.parquet", rock_salts(seed=5)[44:50])
    weights = []
    for out, test, seed in (("x", "c", 0), ("y", "d", 0), ("z", "c", 1)):
        train_predictor(
            tables["a"],
            tmp_path / out,
            VOLUME,
            validation=tables["b"],
            test=tmp_path / f"{test}.parquet",
            settings=few.model_copy(update={"seed": seed}),
        )
        weights.append((tmp_path / out / WEIGHTS).read_bytes())
    assert weights[0] == weights[1] != weights[2]
    card = load_predictor(tmp_path / "x").card
    assert list(card["crystals"].values()) == [38, 6, 6]
    assert [*card["tables"]["test"]["files"]] == ["c.parquet"]


def test_a_head_stops_and_keeps_its_best_epoch(
    table: Path, tmp_path: Path, small: PredictorSettings
) -> None:
    epochs: list[Epoch] = []
    settings = small.model_copy(update={"heads": 1, "patience": 1, "epochs": 200})
    predictor = train_predictor(
        table, tmp_path / "p", VOLUME, settings=settings, on_epoch=epochs.append
    )
    assert len(epochs) < 200
    assert [epoch.best for epoch in epochs[-2:]] == [True, False]
    best = min(epoch.validation for epoch in epochs)
    assert predictor.card["metrics"]["validation"]["mae"] == pytest.approx(best, rel=0.02)


def test_a_logarithm_and_a_least_value(
    table: Path, tmp_path: Path, small: PredictorSettings
) -> None:
    target = VOLUME.model_copy(update={"scale": "log", "minimum": 20.0})
    predictor = train_predictor(
        table, tmp_path / "p", target, settings=small.model_copy(update={"epochs": 20})
    )
    fresh = rock_salts(seed=1)
    truth = np.maximum([label(cell)["volume"] for cell in fresh], 20.0)
    predicted = np.array([one.value for one in predictor.predict(fresh)])
    assert predicted.min() == 20.0
    assert np.abs(predicted - truth).mean() < 0.5 * np.abs(truth - np.median(truth)).mean()


def test_elements_that_were_not_seen_are_unsupported(trained: Trained) -> None:
    predictor, _ = trained("volume")
    salt = rock_salts()[0]
    iron = salt._replace(numbers=np.array([26, 8]))
    flat = salt._replace(lattice=np.ones((3, 3)))
    unseen, known, broken = predictor.predict([iron, salt, flat])
    assert isinstance(unseen, UnsupportedError)
    assert "Fe occurs in 0 training crystals of volume" in str(unseen)
    assert isinstance(known, Prediction)
    assert isinstance(broken, InputError)
    assert "volume" in str(broken)
    assert 26 not in predictor.elements
    assert 8 in predictor.elements


def refused(table: Path, tmp_path: Path, target: Target, match: str) -> InputError:
    with pytest.raises(InputError, match=match) as caught:
        train_predictor(table, tmp_path / "p", target, settings=PredictorSettings(epochs=1))
    assert not (tmp_path / "p").exists()
    return caught.value


def test_labels_that_say_nothing_are_refused(tmp_path: Path) -> None:
    lattice = rock_salts()[0].lattice
    cells = [cell._replace(lattice=lattice) for cell in rock_salts()]
    table = write_table(tmp_path / "t.parquet", cells)
    refused(table, tmp_path, VOLUME, "training labels are")


def test_a_logarithm_of_zero_is_refused(table: Path, tmp_path: Path) -> None:
    target = Target(name="y", columns=("chalcogenide",), scale="log")
    refused(table, tmp_path, target, "has no logarithm")


def test_too_few_crystals_are_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", rock_salts()[:2])
    error = refused(table, tmp_path, VOLUME, "No crystal is left for")
    assert "2 labelled crystals" in error.why


def test_a_table_that_chgnet_cannot_read_is_refused(tmp_path: Path) -> None:
    lonely = [cell._replace(lattice=8 * cell.lattice) for cell in rock_salts()]
    table = write_table(tmp_path / "t.parquet", lonely)
    refused(table, tmp_path, VOLUME, "CHGNet can't read any")


def test_a_folder_is_not_overwritten(trained: Trained, table: Path) -> None:
    _, folder = trained("volume")
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(InputError, match="holds a predictor already"):
        train_predictor(table, folder, VOLUME)
    assert (folder / WEIGHTS).read_bytes() == before
