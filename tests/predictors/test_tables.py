"""Tables of labels: every layout, what is left out and why, splits, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError
from nucleate.predictors.tables import Target, read_labelled, split

SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
MATRIX = [[3.0, 0.2, 0.0], [0.4, 4.0, 0.0], [0.0, 0.0, 5.0]]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(*entries: dict[str, object], name: str = "table.jsonl") -> Path:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps({"structure": SALT.as_dict(), **entry}) + "\n" for entry in entries)
        )
        return path

    return lines


def target(kind: str = "scalar", *columns: str, **more: object) -> Target:
    return Target.model_validate({"name": "y", "kind": kind, "columns": columns or ("y",), **more})


def test_a_tensor_is_nine_numbers_six_or_the_mean(write: Write) -> None:
    path = write(
        {"id": "a", "y": np.ravel(MATRIX).tolist()},
        {"id": "b", "y": [3.0, 4.0, 5.0, 0.0, 0.0, 0.3]},
        {"id": "c", "y": MATRIX},
        {"id": "d", "y": 4.0},
    )
    found = read_labelled(path, target("tensor"))
    assert found.ids == ["a", "b", "c", "d"]
    np.testing.assert_allclose(found.value, 4.0)
    np.testing.assert_allclose(found.traceless[:3], [[-1, 0, 1, 0, 0, 0.3]] * 3, atol=1e-12)
    assert np.isnan(found.traceless[3]).all()


def test_csv_and_parquet_read_alike(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"material_id": ["a", "b"], "cif": [SALT.to(fmt="cif")] * 2, "y": [[1.0] * 6, None]}
    )
    frame.assign(y=[json.dumps([1.0] * 6), ""]).to_csv(tmp_path / "t.csv")
    frame.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        found = read_labelled(tmp_path / name, target("tensor"))
        assert found.ids == ["a"]
        assert found.left_out == {"no label": 1}
        assert list(found.files) == [name]
        assert len(found.files[name]) == 64


def test_what_is_left_out_is_counted(write: Write) -> None:
    disordered = SALT.copy()
    disordered[0] = {"Na": 0.5}
    path = write(
        {"id": "a", "y": 1.0},
        {"id": "b", "y": None},
        {"id": "c", "y": 200.0},
        {"id": "d", "y": 2.0, "structure": disordered.as_dict()},
        {"id": "a", "y": 3.0},
    )
    found = read_labelled(path, target(high=100.0))
    assert found.ids == ["a"]
    assert found.value.tolist() == [1.0]
    assert found.left_out == {
        "no label": 1,
        "label out of range": 1,
        "disordered": 1,
        "id seen before": 1,
    }


def test_of_equal_ids_the_label_of_the_earlier_column_counts(write: Write) -> None:
    path = write(
        {"id": "a", "mean": 7.0},
        {"id": "a", "whole": np.ravel(MATRIX).tolist()},
        {"id": "b", "mean": 6.0, "whole": None},
        {"id": "a", "mean": 7.0},
    )
    found = read_labelled(path, target("tensor", "whole", "mean"))
    assert dict(zip(found.ids, found.value, strict=True)) == {"a": pytest.approx(4.0), "b": 6.0}
    assert found.left_out == {"id seen before": 2}


def test_a_component_out_of_range_leaves_the_tensor_out(write: Write) -> None:
    path = write({"id": "a", "y": [3.0, 4.0, 5.0, 0, 0, -11.0]}, {"id": "b", "y": [1.0] * 6})
    assert read_labelled(path, target("tensor", low=-10.0)).ids == ["b"]


def test_flags(write: Write) -> None:
    path = write({"id": "a", "y": True}, {"id": "b", "y": False}, {"id": "c", "y": 1})
    assert read_labelled(path, target("probability")).value.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("kind", "label", "expected"),
    [
        ("scalar", "soft", "a number"),
        ("scalar", [1.0, 2.0], "a number"),
        ("tensor", [1.0, 2.0], "six"),
        ("tensor", {"xx": 1.0}, "six"),
        ("probability", 0.5, "true or false"),
    ],
)
def test_labels_of_another_kind_are_refused(
    write: Write, kind: str, label: object, expected: str
) -> None:
    with pytest.raises(InputError, match="the label 'y' is") as caught:
        read_labelled(write({"id": "a", "y": 1.0}, {"id": "b", "y": label}), target(kind))
    assert "table.jsonl:2" in caught.value.what
    assert expected in caught.value.why


def test_an_unknown_column_is_named_with_its_nearest(write: Write) -> None:
    with pytest.raises(InputError, match="no column 'band_gpa'") as caught:
        read_labelled(write({"id": "a", "band_gap": 1.0}), target("scalar", "band_gpa"))
    assert "band_gap" in caught.value.fix
    with pytest.raises(InputError, match="no labelled crystal"):
        read_labelled(write({"id": "a", "y": None}, {"id": "b", "y": 9.0}), target(high=1.0))


def test_no_formula_is_in_two_parts_and_rows_stay_where_they_are(table: Path) -> None:
    whole = read_labelled(table, Target(name="v", columns=("volume",)))
    doubled = whole.take(np.repeat(np.arange(len(whole)), 2))
    parts = split(doubled, "formula", (0.6, 0.2, 0.2), seed=3)
    formulas = [set(part.formulas()) for part in parts]
    assert sum(len(part) for part in parts) == len(doubled)
    assert not (formulas[0] & formulas[1] or formulas[0] & formulas[2] or formulas[1] & formulas[2])
    fewer = split(whole.take(np.arange(0, 48, 3)), "formula", (0.6, 0.2, 0.2), seed=3)
    for part, known in zip(fewer, formulas, strict=True):
        assert set(part.formulas()) <= known
    assert formulas != [
        set(part.formulas()) for part in split(doubled, "formula", (0.6, 0.2, 0.2), seed=4)
    ]


def test_random_splits_have_their_sizes(table: Path) -> None:
    whole = read_labelled(table, Target(name="v", columns=("volume",)))
    many = whole.take(np.tile(np.arange(50), 60))
    parts = split(
        type(whole)(
            many.cells, [str(i) for i in range(len(many))], many.value, many.traceless, {}, {}
        ),
        "random",
        (0.8, 0.1, 0.1),
        seed=0,
    )
    np.testing.assert_allclose(
        [len(part) / len(many) for part in parts], (0.8, 0.1, 0.1), atol=0.03
    )
