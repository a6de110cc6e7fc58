"""Reading and writing crystals: every format round-trips, every defect has a reason."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from functools import cache

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError, StorageError
from nucleate.structures.io import iter_raw, read, read_structure
from nucleate.structures.parsing import parse_cell
from nucleate.structures.writing import (
    cif_text,
    replacing,
    write_cif,
    write_cifs,
    write_extxyz,
    write_table,
)


@cache
def rutile() -> Structure:
    return Structure.from_spacegroup(
        136, Lattice.tetragonal(4.6, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )


@cache
def rock_salt() -> Structure:
    return Structure.from_spacegroup(
        225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def same(first: Structure, second: Structure) -> bool:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.01, scale=False).fit(first, second)


def write_csv(path, rows, columns):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


DISORDERED = cif_text(rutile(), None).replace("  1\n", "  0.5\n")


@pytest.mark.parametrize("name", ["x.cif", "POSCAR", "relaxed.vasp", "x.json", "x.extxyz"])
def test_single_crystal_formats(tmp_path, name):
    path = tmp_path / name
    if name == "x.extxyz":
        write_extxyz([rutile()], path)
    elif name == "x.json":
        path.write_text(json.dumps(rutile().as_dict()))
    else:
        rutile().to(str(path), fmt="cif" if name == "x.cif" else "poscar")
    assert same(read_structure(path), rutile())


def test_oxidation_states_are_dropped(tmp_path):
    charged = rock_salt().copy().add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    (tmp_path / "x.json").write_text(json.dumps(charged.as_dict()))
    found = read_structure(tmp_path / "x.json")
    assert {str(e) for e in found.composition} == {"Na", "Cl"}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("broken.cif", cif_text(rutile(), None)[:180], "lists no atoms"),
        ("angle.cif", cif_text(rutile(), None).replace("_cell_angle_beta", "_cell_beta"), "broken"),
        ("disordered.cif", DISORDERED, "disordered"),
        ("empty.cif", "", "empty"),
        ("empty.xyz", "\n", "empty"),
        (
            "POSCAR",
            "TiO2\n1.0\n4 0 0\n0 4 0\n0 0 4\n1 2\nDirect\n0 0 0\n.3 .3 0\n.7 .7 0\n",
            "line 6",
        ),
        (
            "spot.vasp",
            "x\n1.0\n4 0 0\n0 4 0\n0 0 4\nTi O\n1 1\nDirect\n0 0 0\n0 0 0.002\n",
            "one spot",
        ),
        ("flat.vasp", "x\n1.0\n4 0 0\n0 4 0\n4 4 0\nTi\n1\nDirect\n0 0 0\n", "volume|broken"),
        ("molecule.xyz", "1\ncomment\nH 0 0 0\n", "no lattice"),
        ("code.json", "__import__('os').getcwd()", "broken"),
        ("notes.txt", "hello", "unknown extension"),
    ],
)
def test_defects_of_a_single_file_raise(tmp_path, name, text, reason):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        read_structure(path)
    assert name in caught.value.what
    assert caught.value.fix


def test_missing_path_and_binary_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        list(read(tmp_path / "nothing.cif"))
    (tmp_path / "x.cif").write_bytes(b"\xff\xfe\x00data")
    with pytest.raises(InputError, match="not text"):
        list(read(tmp_path / "x.cif"))
    with pytest.raises(InputError, match="no parquet"):
        (tmp_path / "x.parquet").write_bytes(b"PAR1 truncated")
        list(read(tmp_path / "x.parquet"))


def test_csv_reports_bad_rows_and_goes_on(tmp_path):
    good = cif_text(rutile(), None)
    rows = [
        {"material_id": "mp-1", "e_above_hull": "0.01", "pretty_formula": "InF", "cif": good},
        {"material_id": "mp-2", "e_above_hull": "", "pretty_formula": "NaN", "cif": good[:300]},
        {"material_id": "3", "e_above_hull": "1e-3", "pretty_formula": "x", "cif": DISORDERED},
        {"material_id": "mp-4", "e_above_hull": "0.2", "pretty_formula": "x", "cif": ""},
    ]
    path = tmp_path / "train.csv"
    write_csv(path, rows, list(rows[0]))
    found = list(read(path))
    assert [r.source for r in found] == [f"{path}:{i}" for i in (1, 2, 3, 4)]
    assert [r.structure is not None for r in found] == [True, False, False, False]
    assert [bool(r.reason) for r in found] == [False, True, True, True]
    assert [r.id for r in found] == ["mp-1", "mp-2", "3", "mp-4"]
    assert found[0].properties["e_above_hull"] == 0.01
    assert found[0].properties["pretty_formula"] == "InF"  # and not infinity
    assert "e_above_hull" not in found[1].properties
    with pytest.raises(InputError, match=r"train.csv:2"):
        list(read(path, strict=True))


@pytest.mark.parametrize("text", [json.dumps, str])
def test_csv_with_structure_dictionaries(tmp_path, text):
    path = tmp_path / "alex.csv"
    bad = "[x for x in ().__class__.__bases__]"
    write_csv(path, [{"structure": text(rutile().as_dict())}, {"structure": bad}], ["structure"])
    good, refused = read(path)
    assert same(good.structure, rutile())
    assert refused.reason.startswith("broken structure")


def test_csv_without_crystals(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="a, b"):
        list(read(path))
    path.write_text("cif\n")
    with pytest.raises(InputError, match="no rows"):
        list(read(path))


def test_gzip_and_zip_members(tmp_path):
    write_csv(tmp_path / "train.csv", [{"cif": cif_text(rock_salt())}], ["cif"])
    content = (tmp_path / "train.csv").read_bytes()
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(content))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("inner/train.csv", content)
        archive.writestr("inner/notes.md", "hello")
    assert same(next(read(tmp_path / "train.csv.gz")).structure, rock_salt())
    assert same(next(read(tmp_path / "data.zip/inner/train.csv")).structure, rock_salt())
    whole = list(read(tmp_path / "data.zip"))
    assert [bool(r.reason) for r in whole] == [True, False]
    with pytest.raises(InputError, match="no member"):
        list(read(tmp_path / "data.zip/inner/test.csv"))


def test_parquet_of_arrays(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    s = rutile()
    good = (
        s.lattice.matrix.ravel().tolist(),
        list(s.atomic_numbers),
        s.frac_coords.ravel().tolist(),
    )
    bad = (good[0], good[1], good[2][:-1])
    table = pa.table(
        {
            "id": ["a", "b"],
            "lattice": [good[0], bad[0]],
            "numbers": [good[1], bad[1]],
            "frac_coords": [good[2], bad[2]],
            "e_hull": [0.1, None],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    first, second = read(tmp_path / "x.parquet")
    assert same(first.structure, s) and first.properties["e_hull"] == 0.1
    assert second.structure is None and "broken cell" in second.reason
    assert second.source.endswith("x.parquet:2") and second.id == "b"


def test_directory_and_glob(tmp_path):
    write_cifs([rutile(), rock_salt()], tmp_path / "a")
    (tmp_path / "a" / "readme.txt").write_text("x")
    (tmp_path / "a" / "zz.cif").write_text("data_x\n")
    (tmp_path / "a" / ".hidden.cif").write_text("x")
    found = list(read(tmp_path / "a"))
    assert [bool(r.reason) for r in found] == [False, False, True, True]
    assert [r.structure.composition.reduced_formula for r in found[:2]] == ["TiO2", "NaCl"]
    assert len(list(read(str(tmp_path / "a" / "*_*.cif")))) == 2
    with pytest.raises(InputError, match="holds no file"):
        list(read(str(tmp_path / "a" / "*.vasp")))


def test_cif_with_several_blocks(tmp_path):
    path = tmp_path / "two.cif"
    path.write_text("data_global\n_journal x\n" + cif_text(rutile()) + cif_text(rock_salt()))
    assert [r.source for r in read(path)] == [f"{path}:1", f"{path}:2"]
    with pytest.raises(InputError, match="several"):
        read_structure(path)


def test_xyz_bad_frame_is_skipped(tmp_path):
    path = tmp_path / "x.extxyz"
    write_extxyz([rutile(), rock_salt()], path, [{"n": 1}, {"n": 2}])
    text = path.read_text()
    middle = '1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\nQq 0 0 0\n'
    path.write_text(text + middle + text)
    found = list(read(path))
    assert [bool(r.reason) for r in found] == [False, False, True, False, False]
    assert [r.properties.get("n") for r in found] == [1, 2, None, 1, 2]
    path.write_text(text + "7\ncut")
    assert "ends within" in list(read(path))[-1].reason


def test_extxyz_properties_come_back_through_ase(tmp_path):
    from ase.io import read as ase_read

    rows = [
        {"energy_above_hull_eV_per_atom": 0.031, "valid": True, "name": "two words", "x": np.nan},
        {"energy_above_hull_eV_per_atom": np.float32(0.5), "valid": False, "name": "b", "x": None},
    ]
    write_extxyz([rutile(), rock_salt()], tmp_path / "x.extxyz", rows)
    frames = ase_read(tmp_path / "x.extxyz", index=":")
    assert [len(f) for f in frames] == [6, 8]
    assert frames[0].info["energy_above_hull_eV_per_atom"] == pytest.approx(0.031)
    assert frames[0].info["name"] == "two words" and bool(frames[0].info["valid"]) is True
    assert "x" not in frames[0].info
    offset = frames[0].get_scaled_positions() - rutile().frac_coords
    assert np.abs(offset - np.round(offset)).max() < 1e-6


def test_cif_has_symmetry(tmp_path):
    write_cif(rock_salt(), tmp_path / "x.cif")
    text = (tmp_path / "x.cif").read_text()
    assert "Fm-3m" in text and len(text.split("occupancy")[1].strip().splitlines()) == 2
    assert same(read_structure(tmp_path / "x.cif"), rock_salt())


def test_tables(tmp_path):
    rows = [{"a": 1, "b": np.nan}, {"a": np.int64(2), "c": "x,y"}]
    write_table(rows, tmp_path / "t.csv")
    write_table(rows, tmp_path / "t.jsonl")
    with (tmp_path / "t.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == [
            {"a": "1", "b": "", "c": ""},
            {"a": "2", "b": "", "c": "x,y"},
        ]
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert lines == [{"a": 1, "b": None, "c": None}, {"a": 2, "b": None, "c": "x,y"}]
    with pytest.raises(InputError, match="xlsx"):
        write_table(rows, tmp_path / "t.xlsx")


def test_jsonl_round_trip(tmp_path):
    rows = [{"id": "k", "cif": cif_text(rutile()), "e_hull": 0.1}, {"id": "l", "cif": "junk"}]
    write_table(rows, tmp_path / "t.jsonl")
    good, bad = read(tmp_path / "t.jsonl")
    assert same(good.structure, rutile()) and good.properties["e_hull"] == 0.1
    assert bad.reason and bad.id == "l"


def test_writing_is_whole_or_nothing(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as stream:
        stream.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError), replacing(tmp_path / "file" / "x.txt") as stream:
        stream.write("x")


def test_full_disk_is_a_storage_error(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_cif(rutile(), tmp_path / "x.cif")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_no_part_of_a_folder(tmp_path, monkeypatch):
    synced = []

    def full(handle: int) -> None:
        synced.append(handle)
        if len(synced) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="3_TiO2"):
        write_cifs([rutile()] * 4, tmp_path)
    assert not list(tmp_path.iterdir())


def test_given_crystals_all_read(shared):
    parsed = [parse_cell(raw)[1] for raw in iter_raw(shared / "data/crystals/test.parquet")]
    assert len(parsed) == 4325 and not any(parsed)
