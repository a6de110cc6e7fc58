from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands_under_test import Outcome

import nucleate as nucleate_package
from nucleate import design
from nucleate.errors import NucleateError, StorageError, UnscoredError
from nucleate.recipe import load_recipe

Run = Callable[..., Outcome]


def test_sampling_is_repeatable_and_its_files_are_read_back(
    nucleate: Run, tmp_path: Path, model: Path
) -> None:
    for name in ("a.csv", "b.csv", "c.jsonl", "d.extxyz", "e"):
        outcome = nucleate("sample", model, "-n", 4, "--seed", 3, "--out", name)
        assert outcome.code == 0, outcome.err
        assert "4 crystals drawn" in outcome.out
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert len(list((tmp_path / "e").glob("*.cif"))) == 4
    with (tmp_path / "a.csv").open() as stream:
        formulas = [row["formula"] for row in csv.DictReader(stream)]
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [line["formula"] for line in lines] == formulas
    scored = nucleate("score", "a.csv", "d.extxyz", "--property", "density", "--out", "t.jsonl")
    assert scored.code == 0
    densities = [json.loads(line)["density"] for line in (tmp_path / "t.jsonl").open()]
    assert densities[:4] == pytest.approx(densities[4:], rel=1e-4)


def test_constraints_reach_the_sampler(nucleate: Run, tmp_path: Path, model: Path) -> None:
    limits = ("--space-groups", "221", "--elements", "Na,Cl", "--exclude", "Cl")
    assert nucleate("sample", model, "-n", 5, *limits, "--out", "x.csv").code == 0
    with (tmp_path / "x.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["space_group"] for row in rows} == {"221"}
    assert {row["formula"] for row in rows} == {"Na"}


def test_the_size_of_cells_can_be_limited(nucleate: Run, tmp_path: Path, model: Path) -> None:
    limits = ("--space-groups", "1", "--max-atoms", 2)
    assert nucleate("sample", model, "-n", 5, *limits, "--out", "x.csv").code == 0
    with (tmp_path / "x.csv").open() as stream:
        assert all(int(row["n_atoms"]) <= 2 for row in csv.DictReader(stream))


def test_cifs_are_not_mixed_with_those_of_another_sampling(nucleate: Run, model: Path) -> None:
    assert nucleate("sample", model, "-n", 1, "--out", "cifs").code == 0
    outcome = nucleate("sample", model, "-n", 1, "--out", "cifs")
    assert outcome.code == 3
    assert "cifs" in outcome.err


def test_a_function_in_a_file_is_a_property(nucleate: Run, tmp_path: Path, nacl: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def atoms(structures):\n    return [len(s) for s in structures]\n"
    )
    outcome = nucleate("score", nacl, "--property", "mine.py:atoms", "--workers", 1)
    assert outcome.code == 0, outcome.err
    assert "8.0000" in outcome.out
    wrong = nucleate("score", nacl, "--property", "mine.py:atom")
    assert wrong.code == 2
    assert "mine.py" in wrong.err
    assert "atoms" in wrong.err


def test_energy_above_hull_of_rock_salt(nucleate: Run, tmp_path: Path, nacl: Path) -> None:
    pytest.importorskip("chgnet")
    outcome = nucleate("score", nacl, "--workers", 1, "--out", "t.jsonl")
    assert outcome.code == 0, outcome.err
    row = json.loads((tmp_path / "t.jsonl").read_text())
    assert abs(row["e_above_hull"]) < 0.1
    assert row["unit"] == "eV/atom"


def test_built_in_recipes_are_listed_and_printed(nucleate: Run) -> None:
    listed = nucleate("recipe")
    assert "stability" in listed.out
    printed = nucleate("recipe", "stability")
    assert yaml.safe_load(printed.out)["name"] == "stability"


def test_hulls_say_where_they_come_from(nucleate: Run) -> None:
    outcome = nucleate("hull", "info", "mp2020", "--formula", "NaCl")
    assert outcome.code == 0
    assert "CC BY 4.0" in outcome.out
    assert "NaCl -> 1.000 NaCl" in outcome.out


def test_a_hull_from_a_table_serves_at_once(nucleate: Run, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("formula,e_form\nNaCl,-2.1\nNa2Cl,-0.3\n")
    arguments = ("hull", "import", "table.csv", "mine.safetensors", "--correction", "MP2020")
    outcome = nucleate(*arguments, "--references", "mp2020", "--licence", "mine")
    assert outcome.code == 0, outcome.err
    shown = nucleate("hull", "info", "mine.safetensors", "--formula", "Na2Cl")
    assert "licence      mine" in shown.out
    assert "0.667 NaCl + 0.333 Na" in shown.out or "0.333 Na" in shown.out


def test_doctor_looks_at_everything(nucleate: Run) -> None:
    outcome = nucleate("doctor")
    for word in ("torch", "chgnet", "cores", "hull/mp2020", "model/base", "writing to"):
        assert word in outcome.out
    assert outcome.code == (1 if "problem" in outcome.err else 0)


def test_doctor_says_which_package_a_potential_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from nucleate import doctor

    def version(package: str) -> str:
        if package == "mace-torch":
            raise doctor.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    found = {check.name: check for check in doctor._plugins()}
    assert found["potentials/mace"].level is doctor.Level.NOTE
    assert "pip install mace-torch" in found["potentials/mace"].detail
    assert found["potentials/sevennet"].level is doctor.Level.OK
    assert found["potentials/chgnet"].level is doctor.Level.OK


def test_sources_name_licence_and_citation(nucleate: Run) -> None:
    outcome = nucleate("data", "sources")
    for word in ("mp-20", "alex-20", "alex-mp-20", "CC BY 4.0", "cite:"):
        assert word in outcome.out
    away = nucleate("data", "prepare", "mp-20", "x", "--offline", "--mirror", "nowhere")
    assert away.code == 3
    assert "mp-20/train.csv" in away.err


def stopped(process: subprocess.Popen[str], log: Path, lines: int, number: int) -> str:
    """Signal a command's whole process group once its log has so many lines; what it said."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_text().count("\n") >= lines:
            break
        time.sleep(0.1)
    if process.poll() is None:
        os.killpg(process.pid, number)
    _, said = process.communicate(timeout=240)
    return said


def start(*arguments: object, folder: Path) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a terminal or batch system would start it.

    Tests may themselves run where SIGINT is ignored (a shell's background job), and children
    inherit that; a terminal's child does not.
    """
    source = str(Path(nucleate_package.__file__).parents[1])
    code = (
        "if __name__ == '__main__':\n"
        "    import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    from nucleate.cli.main import run; run()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source},
    )


@pytest.mark.parametrize(
    ("error", "offered"), [(StorageError("full disk"), True), (UnscoredError("no score"), False)]
)
def test_going_on_is_offered_where_it_can_work(
    nucleate: Run, monkeypatch: pytest.MonkeyPatch, error: NucleateError, offered: bool
) -> None:
    def fail(path: object, on_run: Callable[[Path], None] | None = None, **_: object) -> None:
        Path("runs/mine").mkdir(parents=True, exist_ok=True)
        if on_run is not None:
            on_run(Path("runs/mine"))
        raise error

    monkeypatch.setattr(design, "tune", fail)
    monkeypatch.setattr(design, "resume", fail)
    monkeypatch.setattr(design, "recipe_of_run", lambda _: load_recipe("stability"))
    begun = nucleate("tune", "stability")
    assert begun.code == error.exit_code
    assert ("go on with: nucleate tune --resume runs/mine" in begun.err) == offered
    again = nucleate("tune", "--resume", "runs/mine")
    assert again.code == error.exit_code and "go on with" not in again.err


def test_a_stopped_run_says_how_to_go_on_and_goes_on(tmp_path: Path, model: Path) -> None:
    shaping = {"type": "clip", "low": 0, "high": 10, "direction": "maximise"}
    recipe = {
        "name": "tiny",
        "workers": 1,
        "model": {"checkpoint": str(model)},
        "objective": {"terms": [{"property": "density", "shaping": shaping}]},
        "algorithm": {"minibatch": 8, "novelty_bonus": 0, "guard": {"action": "off"}},
        "budget": {"batch_size": 8, "steps": 100_000},
        "evaluation": {"samples": 4, "seeds": [1], "hulls": []},
        "output": {"checkpoint_every": 1, "best": 2},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    log = tmp_path / "runs" / "tiny" / "log.jsonl"
    process = start("tune", "tiny.yaml", folder=tmp_path)
    said = stopped(process, log, 2, signal.SIGTERM)
    assert process.returncode == 143, said
    assert "go on with: nucleate tune --resume runs/tiny" in said
    assert "step 1" in said  # the second is logged before it is said, and the signal is between
    assert "Traceback" not in said
    done = log.read_text().count("\n")

    process = start("tune", "--resume", "runs/tiny", folder=tmp_path)
    said = stopped(process, log, done + 1, signal.SIGINT)
    assert process.returncode == 130, said
    assert "tuning from step" in said
    assert "Traceback" not in said
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(len(steps)))
