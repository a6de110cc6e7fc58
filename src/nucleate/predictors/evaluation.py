"""How good predictions are: numbers with the counts that they rest on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nucleate.physics.potentials import status_of
from nucleate.predictors.features import COMPONENTS
from nucleate.predictors.predictor import Prediction, Predictor
from nucleate.predictors.tables import Kind, LabelledCrystals, read_labelled


def evaluate_predictor(
    predictor: Predictor, source: str | Path, columns: Sequence[str] = ()
) -> tuple[dict[str, float | int], list[dict[str, Any]]]:
    """A predictor against a table of labelled crystals.

    Args:
        predictor: what is judged.
        source: file or quoted glob, see :func:`~nucleate.predictors.tables.read_labelled`.
        columns: that hold the label; by default those that it was trained on.

    Returns:
        Its :func:`metrics`, and a row for each labelled crystal: id, formula, label, prediction,
        spread, status and reason.

    Raises:
        InputError: the table can't be used.
    """
    target = predictor.target
    if columns:
        target = target.model_copy(update={"columns": tuple(columns)})
    crystals = read_labelled(source, target)
    predictions = predictor.predict(crystals.cells, tensor=target.kind == "tensor")
    rows = []
    for name, formula, label, prediction in zip(
        crystals.ids, crystals.formulas(), crystals.value, predictions, strict=True
    ):
        failed = prediction if isinstance(prediction, Exception) else None
        known = Prediction(math.nan, math.nan) if isinstance(prediction, Exception) else prediction
        rows.append(
            {
                "id": name,
                "formula": formula,
                "label": float(label),
                target.name: known.value,
                f"{target.name}_spread": known.spread,
                "unit": target.unit,
                "status": str(status_of(failed)),
                "reason": "" if failed is None else str(failed).splitlines()[0],
            }
        )
    return metrics(predictions, crystals, target.kind), rows


def metrics(
    predictions: Sequence[Prediction | Exception], crystals: LabelledCrystals, kind: Kind
) -> dict[str, float | int]:
    """Errors of predictions against labels.

    Args:
        predictions: for N crystals.
        crystals: the labels.
        kind: of the target; of a tensor, the predictions hold the whole one.

    Returns:
        Names to numbers. ``crystals`` is the count that the others rest on, ``failed`` that of
        crystals without a prediction. Scalars and tensors: mean and median absolute error, root
        mean square error, R², Spearman's rank correlation, the mean absolute error of the labels'
        median ("dummy_mae"), and the rank correlation of spread and error; tensors: the mean
        Frobenius norm of the difference, its count, and the same without the traceless part
        ("isotropic_frobenius"). Probabilities: area under the ROC curve, log loss, and the parts of
        both classes that fall on the right side of one half. What is not defined, such as a rank
        correlation with a constant, is left out.
    """
    rows = [i for i, one in enumerate(predictions) if not isinstance(one, Exception)]
    good = [one for one in predictions if not isinstance(one, Exception)]
    out: dict[str, float | int] = {"crystals": len(good), "failed": len(predictions) - len(good)}
    if not good:
        return out
    value, label = np.array([one.value for one in good]), crystals.value[rows]
    if kind == "probability":
        return out | _of_probabilities(value, label)
    error = np.abs(value - label)
    variance = ((label - label.mean()) ** 2).sum()
    out |= {
        "mae": float(error.mean()),
        "median_absolute_error": float(np.median(error)),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": float(1 - (error**2).sum() / variance) if variance else math.nan,
        "spearman": rank_correlation(value, label),
        "dummy_mae": float(np.abs(label - np.median(label)).mean()),
        "spread_error_spearman": rank_correlation(np.array([one.spread for one in good]), error),
    }
    if kind == "tensor":
        tensors = np.array([one.tensor for one in good])
        out |= _of_tensors(tensors, label, crystals.traceless[rows])
    return {name: number for name, number in out.items() if math.isfinite(number)}


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation of two (N,) arrays; NaN where one is constant or not finite."""
    from scipy.stats import rankdata

    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    ranks = np.stack([rankdata(x), rankdata(y)])
    if (ranks.std(axis=1) == 0).any():
        return math.nan
    return float(np.corrcoef(ranks)[0, 1])


def _of_probabilities(value: np.ndarray, label: np.ndarray) -> dict[str, float | int]:
    from scipy.stats import rankdata

    positive = label > 0.5
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    likely = np.clip(np.where(positive, value, 1 - value), 1e-7, 1)
    out: dict[str, float | int] = {
        "positive": n_positive,
        "log_loss": float(-np.log(likely).mean()),
    }
    if n_positive and n_negative:
        above = rankdata(value)[positive].sum() - n_positive * (n_positive + 1) / 2
        out["roc_auc"] = float(above / (n_positive * n_negative))
        out["true_positive_rate"] = float((value[positive] >= 0.5).mean())
        out["true_negative_rate"] = float((value[~positive] < 0.5).mean())
    return out


def _of_tensors(
    tensor: np.ndarray, label: np.ndarray, traceless: np.ndarray
) -> dict[str, float | int]:
    known = np.isfinite(traceless).all(axis=1)
    if not known.any():
        return {"tensors": 0}
    difference, isotropic = [], []
    for k, (a, b) in enumerate(COMPONENTS):
        times, trace = (1, label[known]) if a == b else (2, 0.0)
        whole = traceless[known, k] + trace
        mean = np.trace(tensor[known], axis1=1, axis2=2) / 3 if a == b else 0.0
        difference.append(times * (tensor[known, a, b] - whole) ** 2)
        isotropic.append(times * (mean - whole) ** 2)
    return {
        "tensors": int(known.sum()),
        "frobenius": float(np.sqrt(np.sum(difference, axis=0)).mean()),
        "isotropic_frobenius": float(np.sqrt(np.sum(isotropic, axis=0)).mean()),
    }
