"""Prepared tokens: what goes in comes out, bad rows are counted, nothing is half-written."""

from __future__ import annotations

import csv
import json
from functools import cache

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError, StorageError
from nucleate.structures.datasets import TokenDataset
from nucleate.structures.io import iter_raw
from nucleate.structures.labels import LabelTable
from nucleate.structures.parsing import RawRecord, to_cell
from nucleate.structures.preparation import Filters, prepare, sha256_of
from nucleate.structures.writing import cif_text
from nucleate.structures.wyckoff import encode


@cache
def crystals() -> tuple[Structure, ...]:
    rng = np.random.default_rng(0)
    made = []
    face_centred = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    x = 0.305
    rutile = [[0, 0, 0], [0.5] * 3, [x, x, 0], [-x, -x, 0], [0.5 + x, 0.5 - x, 0.5]]
    rutile.append([0.5 - x, 0.5 + x, 0.5])
    for a in rng.uniform(3.5, 6.0, 10):
        made.append(Structure(Lattice.cubic(a), ["Na"] * 4, face_centred))
        made.append(Structure(Lattice.tetragonal(a, 3), ["Ti"] * 2 + ["O"] * 4, rutile))
        made.append(
            Structure(
                Lattice.from_parameters(a, a + 1, a + 2, 80, 85, 95),
                ["Li", "K", "Cl", "F"],
                [[0, 0, 0], [0.5, 0.1, 0], [0, 0.5, 0.5], [0.6, 0.5, 0.5]],
            )
        )
    return tuple(made)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV of 30 good crystals with three bad rows among them."""
    path = tmp_path_factory.mktemp("csv") / "train.csv"
    rows = [
        {"material_id": f"m{i}", "e_above_hull": 0.01 * i, "cif": cif_text(s, None)}
        for i, s in enumerate(crystals())
    ]
    rows.insert(3, {"material_id": "cut", "e_above_hull": 0, "cif": rows[0]["cif"][:99]})
    rows.insert(9, {"material_id": "none", "e_above_hull": 0, "cif": ""})
    rows.append({"material_id": "nolabel", "e_above_hull": "", "cif": rows[0]["cif"]})
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def prepared(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "tokens"
    return prepare(table, out), TokenDataset.open(out)


def test_tokens_are_those_of_encode(prepared):
    report, dataset = prepared
    wanted, reasons = encode(crystals())
    assert not any(reasons)
    batch = dataset.rows(slice(0, 30))
    assert (batch.space_group == wanted.space_group).all()
    assert (batch.wyckoff == wanted.wyckoff).all() and (batch.species == wanted.species).all()
    assert np.abs(batch.frac_coords - wanted.frac_coords).max() < 1e-5
    assert np.abs(batch.lattice - wanted.lattice).max() < 1e-4
    assert dataset.ids[:2] == ["m0", "m1"] and dataset.ids[-1] == "nolabel"
    assert dataset.formulas[:3] == ["Na", "TiO2", "LiKClF"] or len(dataset.formulas[2]) == 6
    assert dataset.columns["e_hull"][:3] == pytest.approx([0, 0.01, 0.02])
    assert np.isnan(dataset.columns["e_hull"][-1]) and np.isnan(dataset.columns["band_gap"]).all()
    assert dataset.columns["vol_per_atom"][0] == pytest.approx(crystals()[0].volume / 4, rel=1e-5)
    assert report.n_read == 33 and report.n_kept == len(dataset) == 31


def test_bad_rows_are_counted_and_listed(prepared, table):
    report, dataset = prepared
    assert sum(report.skipped.values()) == 2
    lines = (dataset.path / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(x)["source"] for x in lines] == [f"{table}:4", f"{table}:10"]
    assert dataset.meta["sources"][0]["sha256"] == sha256_of(table)
    assert dataset.meta["symprec"] == 0.01 and dataset.meta["versions"]["moyopy"]


def test_where_labels_come_from(table, prepared, tmp_path):
    """The source wins; the table fills in; both may be silent."""
    scores = tmp_path / "scores.csv"
    scores.write_text("id,better,e_form\nnolabel,0.75,-1\nm0,9,-2\nm1,9,\ncut,1,1\nelsewhere,5,5\n")
    labels = LabelTable.read(scores, {"e_hull": "better", "e_form": "e_form"})
    report = prepare(table, tmp_path / "x", labels=labels)
    dataset = TokenDataset.open(tmp_path / "x")
    assert dataset.columns["e_hull"][:] == pytest.approx(0.01 * np.r_[:30, 75], abs=1e-6)
    known = ~np.isnan(dataset.columns["e_form"])
    assert np.array_equal(np.asarray(dataset.ids[:])[known], ["m0", "nolabel"])
    assert np.array_equal(dataset.columns["e_form"][known], [-2, -1])
    assert report.label_counts == {
        "e_hull": {"source": 30, "table": 1, "unknown": 0},
        "e_form": {"source": 0, "table": 2, "unknown": 29},
        "band_gap": {"source": 0, "table": 0, "unknown": 31},
    }
    assert dataset.meta["label_counts"] == report.label_counts
    assert dataset.meta["label_table"] == {
        "path": str(scores),
        "bytes": scores.stat().st_size,
        "sha256": sha256_of(scores),
        "columns": {"e_hull": "better", "e_form": "e_form"},
    }
    _, before = prepared
    assert before.meta["label_table"] is None
    assert before.meta["label_counts"]["e_hull"] == {"source": 30, "table": 0, "unknown": 1}
    two = prepare(table, tmp_path / "two", labels=labels, processes=2)
    assert two.label_counts == report.label_counts
    assert TokenDataset.open(tmp_path / "two").digest == dataset.digest != before.digest


def test_filters_see_filled_labels(table, tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_text("id,e_hull\nnolabel,0.001\n")
    filters = Filters(max_e_hull=0.005)
    prepare(table, tmp_path / "x", filters=filters, labels=LabelTable.read(scores))
    assert TokenDataset.open(tmp_path / "x").ids[:] == ["m0", "nolabel"]


def test_a_table_of_other_crystals(table, tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_text("id,e_hull\nmp-1,0.001\nm0,\n")
    with pytest.raises(InputError, match=r"scores\.csv has no label for any crystal") as error:
        prepare(table, tmp_path / "x", labels=LabelTable.read(scores))
    assert "'mp-1'" in error.value.why and "'m0'" in error.value.why
    assert list(tmp_path.iterdir()) == [scores]


def test_rows_in_any_order(prepared):
    _, dataset = prepared
    order = np.array([4, 0, 2, 2])
    batch = dataset.rows(order)
    assert (batch.n_sites == dataset.n_sites[order]).all()
    assert (batch.space_group == dataset.space_group[order]).all()
    assert batch.wyckoff.shape[1] == dataset.n_sites[order].max()
    mask = dataset.space_group[:] == 225
    assert (dataset.rows(mask).space_group == 225).all() and len(dataset.rows(mask)) == mask.sum()
    assert len(dataset.rows(np.array([], dtype=int))) == 0


def test_an_epoch_visits_every_row_once_without_padding(prepared):
    _, dataset = prepared
    batches = list(dataset.batches(5, np.random.default_rng(1)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(31))
    assert sorted(len(b) for b in batches) == [1, 5, 5, 5, 5, 5, 5]
    spread = [np.ptp(dataset.n_sites[b]) for b in batches]
    assert sum(s > 0 for s in spread) <= len(set(dataset.n_sites.tolist())) - 1
    again = list(dataset.batches(5, np.random.default_rng(1)))
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    other = list(dataset.batches(5, np.random.default_rng(2)))
    assert not all(a.tolist() == b.tolist() for a, b in zip(batches, other, strict=True))
    some = np.array([1, 3, 5, 7])
    kept = list(dataset.batches(3, np.random.default_rng(1), indices=some, drop_last=True))
    assert len(kept) == 1 and set(kept[0].tolist()) <= set(some.tolist())


def test_space_group_histogram(prepared):
    _, dataset = prepared
    histogram = dataset.space_group_histogram()
    assert histogram.shape == (230,) and histogram.sum() == 31
    assert histogram[225 - 1] == 11 and histogram[136 - 1] == 10
    assert dataset.meta["space_group_histogram"]["225"] == 11
    assert dataset.space_group_histogram(np.array([0]))[224] == 1


def test_processes_give_the_same_files(table, prepared, tmp_path):
    prepare(table, tmp_path / "two", processes=2)
    assert TokenDataset.open(tmp_path / "two").digest == prepared[1].digest


@pytest.mark.parametrize(
    ("filters", "kind"),
    [
        (Filters(max_sites=2), "filter max_sites"),
        (Filters(max_atoms=4), "filter max_atoms"),
        (Filters(max_vol_per_atom=30.0), "filter max_vol_per_atom"),
        (Filters(max_e_hull=0.1), "filter max_e_hull"),
        (Filters(exclude_elements=(22,)), "filter exclude_elements"),
        (Filters(min_distance=2.0), "filter min_distance"),
    ],
)
def test_filters(table, tmp_path, filters, kind):
    report = prepare(table, tmp_path / "x", filters=filters)
    assert report.skipped[kind] > 0
    assert report.n_kept + sum(report.skipped.values()) == report.n_read


def test_nothing_left(table, tmp_path):
    with pytest.raises(InputError, match="none kept"):
        prepare(table, tmp_path / "x", filters=Filters(max_e_hull=-1.0))
    assert not list(tmp_path.iterdir())


def test_existing_directory_is_kept_unless_asked(table, tmp_path):
    out = tmp_path / "x"
    prepare(table, out, filters=Filters(max_sites=2))
    before = TokenDataset.open(out).digest
    with pytest.raises(InputError, match="exists"):
        prepare(table, out)
    assert TokenDataset.open(out).digest == before
    prepare(table, out, overwrite=True)
    assert TokenDataset.open(out).digest != before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_full_disk_leaves_nothing(table, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        prepare(table, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_records_and_interrupted_source(tmp_path):
    def records():
        for i, s in enumerate(crystals()[:3]):
            yield RawRecord("cell", to_cell(s), f"memory:{i}", {"id": f"x{i}"})
        raise InputError("the source broke")

    with pytest.raises(InputError, match="broke"):
        prepare(records(), tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wyckoff", "lattice", "offsets", "id", "formula_offsets"])
def test_truncated_file_is_named(table, tmp_path, name):
    prepare(table, tmp_path / "x")
    file = tmp_path / "x" / f"{name}.npy"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match=rf"{name}\.npy"):
        TokenDataset.open(tmp_path / "x")


def test_foreign_directories(tmp_path):
    with pytest.raises(InputError, match="no directory of prepared"):
        TokenDataset.open(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match="damaged"):
        TokenDataset.open(tmp_path)


def test_given_crystals(shared, tmp_path):
    source = shared / "data/crystals/test.parquet"
    some = (raw for i, raw in enumerate(iter_raw(source)) if i < 600)
    report = prepare(some, tmp_path / "x", filters=Filters(max_vol_per_atom=60.0))
    assert report.n_read == 600 and set(report.skipped) <= {"filter max_vol_per_atom"}
    assert report.n_kept > 560
