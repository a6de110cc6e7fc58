"""What users get wrong: each a message that names the place and the remedy, and nothing written."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands_under_test import NACL, Outcome

Run = Callable[..., Outcome]

BAD_CIFS = {
    "broken": (
        NACL.replace("_cell_length_a 5.64\n", "").replace("Na1 Na 0 0 0 1", "Na1"),
        "broken",
    ),
    "disordered": (NACL.replace("Na1 Na 0 0 0 1", "Na1 Na 0 0 0 0.5"), "disordered"),
    "empty": ("", "empty"),
    "two_on_one_spot": (
        NACL.replace("Cl4 Cl 0.5 0.5 0.5 1", "Cl4 Cl 0.0001 0 0 1"),
        "two atoms on one spot",
    ),
    "exactly_on_one_spot": (
        NACL.replace("Cl4 Cl 0.5 0.5 0.5 1", "Cl4 Cl 0 0 0 1"),
        "two atoms on one spot: occupancies add up to 2",
    ),
    "shared_spot": (
        NACL.replace("Na1 Na 0 0 0 1", "Na1 Na 0 0 0 0.6").replace(
            "Cl4 Cl 0.5 0.5 0.5 1", "Cl4 Cl 0 0 0 0.6"
        ),
        "disordered",
    ),
    "no_atoms": ("data_x\n_cell_length_a 5\n", "lists no atoms"),
}


def names(error: str, *words: str) -> None:
    """A message with what happened and how to mend it, and no traceback."""
    assert error.startswith("error: "), error
    assert "fix: " in error
    assert "Traceback" not in error
    for word in words:
        assert word in error, error


@pytest.mark.parametrize("kind", BAD_CIFS)
def test_a_single_bad_crystal_is_an_error(nucleate: Run, tmp_path: Path, kind: str) -> None:
    text, why = BAD_CIFS[kind]
    (tmp_path / f"{kind}.cif").write_text(text)
    outcome = nucleate("score", f"{kind}.cif", "--property", "density", "--out", "table.csv")
    assert outcome.code == 3
    names(outcome.err, f"{kind}.cif", why)
    assert not (tmp_path / "table.csv").exists()


def test_bad_crystals_among_good_ones_are_reported_and_skipped(
    nucleate: Run, nacl: Path, tmp_path: Path
) -> None:
    for kind, (text, _) in BAD_CIFS.items():
        (tmp_path / f"{kind}.cif").write_text(text)
    files = sorted(path.name for path in tmp_path.glob("*.cif"))
    outcome = nucleate("score", *files, "--property", "density")
    assert outcome.code == 0
    assert "2.16" in outcome.out
    assert f"{len(BAD_CIFS)} invalid" in outcome.err
    for kind, (_, why) in BAD_CIFS.items():
        assert f"{kind}.cif: " in outcome.err
        assert why in outcome.err


def test_one_bad_row_in_a_table_is_reported_and_skipped(nucleate: Run, tmp_path: Path) -> None:
    import csv

    with (tmp_path / "many.csv").open("w") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "cif"])
        for row in range(1, 601):
            writer.writerow([f"crystal-{row}", "no cif at all" if row == 371 else NACL])
    outcome = nucleate("score", "many.csv", "--property", "density", "--out", "table.csv")
    assert outcome.code == 0
    assert "599 ok, 1 invalid" in outcome.err
    assert "many.csv:371" in outcome.err
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert len(lines) == 601
    assert lines[371].startswith("many.csv:371,crystal-371,,,g/cm^3,invalid,")

    prepared = nucleate("data", "prepare", "many.csv", "prepared")
    assert prepared.code == 0
    assert "599 of 600 crystals prepared" in prepared.out
    assert "crystal" in prepared.err or "many.csv:371" in prepared.err
    assert "many.csv:371" in (tmp_path / "prepared" / "skipped.jsonl").read_text()


def test_data_of_which_nothing_is_left(nucleate: Run, tmp_path: Path, nacl: Path) -> None:
    outcome = nucleate("data", "prepare", nacl, "prepared", "--exclude", "Cl")
    assert outcome.code == 3
    names(outcome.err, "nacl.cif", "exclude_elements")
    assert not (tmp_path / "prepared").exists()


def test_where_nothing_can_be_written_is_said_before_the_work(
    nucleate: Run, tmp_path: Path, nacl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("nucleate.scoring.score", works)
    monkeypatch.setattr("nucleate.samples.sample", works)
    monkeypatch.setattr("nucleate.judging.judge", works)
    (tmp_path / "file").write_text("mine")
    for arguments in (("score", nacl), ("sample", "base"), ("evaluate", nacl)):
        outcome = nucleate(*arguments, "--out", "file/table.csv")
        assert outcome.code == 6, outcome.err
        names(outcome.err, "file/table.csv", "no folder")


def test_only_filters_are_said_to_be_loosened(nucleate: Run, tmp_path: Path) -> None:
    (tmp_path / "mixed.cif").write_text(BAD_CIFS["disordered"][0])
    outcome = nucleate("data", "prepare", "mixed.cif", "prepared")
    assert outcome.code == 3
    names(outcome.err, "mixed.cif", "disordered", "Correct the crystals")
    assert not (tmp_path / "prepared").exists()


def test_labels_from_a_table_of_scores(nucleate: Run, tmp_path: Path) -> None:
    (tmp_path / "crystals.csv").write_text(f'id,e_hull,cif\na,,"{NACL}"\nb,0.5,"{NACL}"\n')
    scored = nucleate("score", "crystals.csv", "--property", "density", "--out", "scores.csv")
    assert scored.code == 0, scored.err
    prepare = ("data", "prepare", "crystals.csv", "prepared", "--labels", "scores.csv")
    for options, code, words in (
        ((), 3, ["scores.csv", "label", "density", "--label"]),
        (("--label", "e_hull=densty"), 3, ["scores.csv", "'densty'", "'density'"]),
        (("--label", "e_hul=density"), 2, ["'e_hul'", "'e_hull'"]),
        (("--label", "density"), 2, ["--label density", "e_hull=COLUMN"]),
        (("--label", "e_hull=density", "--split", "val"), 2, ["--split", "crystals.csv"]),
    ):
        outcome = nucleate(*prepare, *options)
        assert outcome.code == code, outcome.err
        names(outcome.err, *words)
        assert not (tmp_path / "prepared").exists()
    lone = nucleate("data", "prepare", "crystals.csv", "prepared", "--label", "e_hull=density")
    assert lone.code == 2
    names(lone.err, "--labels")
    plain = nucleate("data", "prepare", "crystals.csv", "plain")
    assert "e_hull: 1 from the source, 1 unknown" in plain.out
    outcome = nucleate(*prepare, "--label", "e_hull=density")
    assert outcome.code == 0, outcome.err
    assert "e_hull: 1 from the source, 1 from the table, 0 unknown" in outcome.out


def test_an_unknown_key_of_a_recipe(nucleate: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nbudget:\n  stps: 3\n")
    outcome = nucleate("tune", "mine.yaml")
    assert outcome.code == 2
    names(outcome.err, "mine.yaml, line 3", "budget.stps", "'steps'")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tune", "stabilty"], 3, ["Did you mean 'stability'"]),
        (["tune"], 3, ["recipe", "stability"]),
        (["tune", "stability", "--resume", "x"], 3, ["--resume"]),
        (["tune", "--resume", "gone"], 5, ["gone", "manifest.json"]),
        (["tune", "stability", "--set", "budget.steps=many"], 2, ["budget.steps"]),
        (["tune", "stability", "--set", "model.checkpoint=gone"], 5, ["gone"]),
        (["sample", "gone"], 5, ["gone", "model.json"]),
        (["score", "gone.cif"], 3, ["gone.cif"]),
        (["report", "gone"], 5, ["gone"]),
        (["verify", "gone"], 5, ["gone"]),
        (["recipe", "stabilty"], 3, ["stability"]),
        (["hull", "info", "mp2002"], 3, ["mp2020"]),
        (["hull", "import", "gone.csv", "h.safetensors"], 2, ["--correction"]),
        (["hull", "import", "gone.json", "h.safetensors"], 3, ["gone.json"]),
        (["import", "crystalformer", "gone.pkl", "out"], 3, ["gone.pkl"]),
        (["pretrain", "gone", "gone", "out"], 3, ["gone", "nucleate data prepare"]),
        (["pretrain", "a", "b", "out", "--set", "epoch=3"], 2, ["epochs"]),
        (["data", "prepare", "gone.cif", "out"], 3, ["gone.cif"]),
        (["evaluate", "gone"], 3, ["gone"]),
    ],
)
def test_what_is_not_there(
    nucleate: Run, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    outcome = nucleate(*arguments)
    assert outcome.code == code, outcome.err
    names(outcome.err, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["model.safetensors", "model.json"])
def test_a_truncated_model(nucleate: Run, tmp_path: Path, model: Path, part: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    content = (copy / part).read_bytes()
    (copy / part).write_bytes(content[: len(content) // 2])
    outcome = nucleate("sample", copy, "--out", "crystals.csv")
    assert outcome.code == 5
    names(outcome.err, f"copy/{part}")
    assert not (tmp_path / "crystals.csv").exists()


def test_a_truncated_training(nucleate: Run, tmp_path: Path) -> None:
    import csv

    with (tmp_path / "few.csv").open("w") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "cif"])
        writer.writerows([[str(i), NACL] for i in range(4)])
    assert nucleate("data", "prepare", "few.csv", "few").code == 0
    small = [
        *("--set", "network={width: 32, layers: 1, heads: 2, embedding: 16}"),
        *("--set", "batch_size=2", "--set", "epochs=1", "--set", "validate_every=1"),
        *("--set", "warmup_steps=1"),
    ]
    trained = nucleate("pretrain", "few", "few", "out", *small)
    assert trained.code == 0, trained.err
    again = nucleate("pretrain", "few", "few", "out", *small)
    assert again.code == 3
    names(again.err, "out", "--resume")
    checkpoint = tmp_path / "out" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    resumed = nucleate("pretrain", "few", "few", "out", *small, "--resume")
    assert resumed.code == 5
    names(resumed.err, "out/checkpoint.safetensors", "another folder")


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["--elements", "Li,O", "--exclude", "O,Li"], 2, "elements"),
        (["--elements", "Lithium"], 2, "--elements"),
        (["--exclude", "Xx"], 2, "--exclude"),
        (["--space-groups", "231"], 2, "231"),
        (["--space-groups", "0"], 2, "--space-groups"),
    ],
)
def test_constraints_that_no_crystal_meets(
    nucleate: Run, tmp_path: Path, model: Path, options: list[str], code: int, word: str
) -> None:
    outcome = nucleate("sample", model, *options, "--out", "crystals.csv")
    assert outcome.code == code
    names(outcome.err, word)
    assert not (tmp_path / "crystals.csv").exists()


def test_an_output_of_unknown_kind_is_refused_before_sampling(nucleate: Run, model: Path) -> None:
    outcome = nucleate("sample", model, "--out", "crystals.pdf")
    assert outcome.code == 3
    names(outcome.err, "crystals.pdf", ".extxyz")


@pytest.mark.parametrize("name", ["full/crystals.csv", "full/crystals.extxyz", "full/cifs"])
def test_a_full_disk(
    nucleate: Run, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import os

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = nucleate("sample", model, "-n", 3, "--out", name)
    assert outcome.code == 6
    names(outcome.err, "full/", "No space left on device")
    assert [path for path in (tmp_path / "full").rglob("*") if path.is_file()] == []


def test_a_folder_that_may_not_be_written(nucleate: Run, tmp_path: Path, nacl: Path) -> None:
    (tmp_path / "in_the_way").write_text("a file where a folder should be")
    outcome = nucleate("score", nacl, "--property", "density", "--out", "in_the_way/table.csv")
    assert outcome.code == 6
    names(outcome.err, "in_the_way")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    try:
        (locked / "probe").touch()
    except PermissionError:
        outcome = nucleate("score", nacl, "--property", "density", "--out", "locked/table.csv")
        assert outcome.code == 6
        names(outcome.err, "locked/table.csv", "Permission denied")
        assert nucleate("doctor", "--folder", "locked").code == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is never writable")
def test_a_read_only_place(nucleate: Run, nacl: Path) -> None:
    outcome = nucleate("score", nacl, "--property", "density", "--out", "/proc/nucleate/table.csv")
    assert outcome.code == 6
    names(outcome.err, "/proc/nucleate")
