"""nucleate predictor: train, evaluate, info, use, and what users get wrong."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from commands_under_test import Outcome

from labelled import rock_salts, write_table

Run = Callable[..., Outcome]
QUICK = ("--set", "heads=1", "--set", "width=8", "--set", "epochs=2")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table(tmp_path / "table.parquet", rock_salts())


def test_train_evaluate_info(nucleate: Run, table: Path, tmp_path: Path) -> None:
    done = nucleate(
        "predictor", "train", table, "p", "--target", "volume", "--unit", "A^3", *QUICK,
        "--licence", "CC0", "--low", 1, "--minimum", 0,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "features: 50 of 50" in done.err
    assert "head 1 epoch 1" in done.err
    assert "mae / A^3" in done.out
    assert "--set predictor=p" in done.out
    judged = nucleate("predictor", "evaluate", "p", table, "--out", "rows.csv")
    assert judged.code == 0, judged.err
    assert "50 rows in rows.csv" in judged.out
    with (tmp_path / "rows.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 50
    assert {"id", "label", "volume", "volume_spread", "status"} <= rows[0].keys()
    shown = nucleate("predictor", "info", "p")
    assert shown.code == 0
    assert "CC0" in shown.out
    assert "spearman" in shown.out


def test_a_tensor_and_a_flag(nucleate: Run, table: Path) -> None:
    tensor = nucleate(
        "predictor", "train", table, "t", "--target", "tensor", "--target", "volume",
        "--kind", "tensor", "--log", *QUICK,
    )  # fmt: skip
    assert tensor.code == 0, tensor.err
    assert "frobenius" in tensor.out
    flag = nucleate(
        "predictor",
        "train",
        table,
        "f",
        "--target",
        "chalcogenide",
        "--kind",
        "probability",
        *QUICK,
    )
    assert flag.code == 0, flag.err
    assert "roc auc" in flag.out


def test_all_that_ship_are_shown(nucleate: Run) -> None:
    shown = nucleate("predictor", "info")
    assert shown.code == 0
    for word in ("band_gap", "dielectric_total", "synthesizability", "CC BY 4.0"):
        assert word in shown.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("train", "table.parquet", "p"), 3, ("--target",)),
        (("train", "absent.parquet", "p", "--target", "volume"), 3, ("absent.parquet",)),
        (("train", "table.parquet", "p", "--target", "volum"), 3, ("'volum'", "'volume'")),
        (("train", "table.parquet", "p", "--target", "tensor"), 3, ("tensor", "--kind")),
        (
            ("train", "table.parquet", "p", "--target", "volume", "--set", "head=2"),
            2,
            ("'head'", "'heads'"),
        ),
        (
            ("train", "table.parquet", "p", "--target", "volume", "--set", "dropout=1"),
            2,
            ("dropout",),
        ),
        (("evaluate", "band_gpa", "table.parquet"), 5, ("'band_gap'",)),
        (("evaluate", "band_gap", "table.parquet", "--out", "x.txt"), 3, (".csv",)),
        (("info", "absent"), 5, ("absent",)),
    ],
)
def test_mistakes_are_explained(
    nucleate: Run, table: Path, tmp_path: Path, arguments: tuple[str, ...], code: int,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    outcome = nucleate("predictor", *arguments)
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("error: ")
    assert "fix: " in outcome.err
    for word in words:
        assert word in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.parquet"]
