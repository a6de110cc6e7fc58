"""Metrics against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from nucleate.predictors.evaluation import evaluate_predictor, metrics, rank_correlation
from nucleate.predictors.features import COMPONENTS
from nucleate.predictors.predictor import Prediction, Predictor
from nucleate.predictors.tables import LabelledCrystals

RANDOM = np.random.default_rng(0)


def labelled(value: np.ndarray, traceless: np.ndarray | None = None) -> LabelledCrystals:
    empty = np.full((len(value), 6), np.nan)
    return LabelledCrystals(
        [], [str(i) for i in range(len(value))], value,
        empty if traceless is None else traceless, {}, {},
    )  # fmt: skip


def predicted(value: np.ndarray, tensor: np.ndarray | None = None) -> list[Prediction | Exception]:
    tensors = [None] * len(value) if tensor is None else [*tensor]
    return [
        Prediction(v, abs(v), t) if np.isfinite(v) else RuntimeError("x")
        for v, t in zip(value.tolist(), tensors, strict=True)
    ]


def test_scalars() -> None:
    label = np.array([1.0, 2.0, 4.0, 8.0, 100.0])
    value = np.array([1.5, 2.0, 3.0, 12.0, np.nan])
    found = metrics(predicted(value), labelled(label), "scalar")
    assert found["crystals"] == 4
    assert found["failed"] == 1
    assert found["mae"] == pytest.approx(5.5 / 4)
    assert found["median_absolute_error"] == pytest.approx(0.75)
    assert found["rmse"] == pytest.approx(np.sqrt(17.25 / 4))
    assert found["r2"] == pytest.approx(1 - 17.25 / 28.75)
    assert found["spearman"] == pytest.approx(1)
    assert found["dummy_mae"] == pytest.approx(2.25)
    assert metrics(predicted(np.full(2, np.nan)), labelled(np.ones(2)), "scalar") == {
        "crystals": 0,
        "failed": 2,
    }


def test_tensors_by_their_frobenius_norm() -> None:
    matrices = RANDOM.normal(size=(2, 6, 3, 3))
    truth, found = (m + m.transpose(0, 2, 1) for m in matrices)
    mean = np.trace(truth, axis1=1, axis2=2) / 3
    less = truth - mean[:, None, None] * np.eye(3)
    traceless = np.stack([less[:, a, b] for a, b in COMPONENTS], axis=1)
    traceless[5] = np.nan
    value = np.trace(found, axis1=1, axis2=2) / 3
    measured = metrics(predicted(value, found), labelled(mean, traceless), "tensor")
    assert measured["tensors"] == 5
    norms = np.linalg.norm((found - truth)[:5], axis=(1, 2))
    assert measured["frobenius"] == pytest.approx(norms.mean())
    isotropic = value[:5, None, None] * np.eye(3) - truth[:5]
    assert measured["isotropic_frobenius"] == pytest.approx(
        np.linalg.norm(isotropic, axis=(1, 2)).mean()
    )


def test_probabilities_by_counting_pairs() -> None:
    label = (RANDOM.random(40) < 0.4).astype(float)
    value = np.round(np.clip(0.3 * label + RANDOM.random(40) * 0.7, 0.01, 0.99), 1)
    found = metrics(predicted(value), labelled(label), "probability")
    positive, negative = value[label == 1], value[label == 0]
    pairs = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    assert found["roc_auc"] == pytest.approx(pairs.mean())
    assert found["positive"] == len(positive)
    assert found["true_positive_rate"] == pytest.approx((positive >= 0.5).mean())
    assert found["true_negative_rate"] == pytest.approx((negative < 0.5).mean())
    likely = np.where(label == 1, value, 1 - value)
    assert found["log_loss"] == pytest.approx(-np.log(likely).mean())
    assert "roc_auc" not in metrics(
        predicted(positive), labelled(np.ones(len(positive))), "probability"
    )


def test_rank_correlation_with_ties() -> None:
    x, y = RANDOM.integers(0, 5, 30).astype(float), RANDOM.normal(size=30)
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert np.isnan(rank_correlation(np.ones(5), y[:5]))


def test_a_table_is_judged_row_by_row(
    trained: Callable[[str], tuple[Predictor, Path]], table: Path
) -> None:
    predictor, _ = trained("volume")
    measured, rows = evaluate_predictor(predictor, table)
    assert measured["crystals"] == len(rows) == 50
    errors = [abs(row["volume"] - row["label"]) for row in rows]
    assert measured["mae"] == pytest.approx(np.mean(errors))
    assert rows[0]["formula"] == "LiO"
    assert rows[0]["unit"] == "A^3"
    other, _ = evaluate_predictor(predictor, table, ["chalcogenide"])
    assert other["mae"] > measured["mae"]
