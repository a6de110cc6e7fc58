"""Potentials by name and ASE calculators as potentials."""

from __future__ import annotations

import os
import sys
import venv
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones
from pymatgen.core import Lattice, Structure

from nucleate.errors import InputError, MissingDependencyError, RecipeError
from nucleate.physics.cells import Cell
from nucleate.physics.potentials import AsePotential, WorkerCrashError, get_potential, status_of
from nucleate.physics.pretrained import FAMILIES
from nucleate.protocols import Potential, PotentialResult, Status

ARGON = {"sigma": 3.4, "epsilon": 0.0104, "rc": 10.0}


def argon() -> LennardJones:
    return LennardJones(**ARGON)


def solid() -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.2), ["Ar"], [[0, 0, 0]])


def test_ase_calculator_gives_what_ase_gives() -> None:
    potential = AsePotential(argon, name="lj", level_of_theory="pair potential")
    assert isinstance(potential, Potential)
    structure = solid().perturb(0.1)
    atoms = structure.to_ase_atoms()
    atoms.calc = argon()
    [result] = potential.evaluate([structure], forces=True, stress=True)
    assert isinstance(result, PotentialResult)
    assert result.energy == pytest.approx(atoms.get_potential_energy() / len(atoms))
    assert np.allclose(result.forces, atoms.get_forces())
    assert np.allclose(result.stress, atoms.get_stress(voigt=False))
    assert result.magmoms is None


def test_one_bad_structure_fails_alone() -> None:
    from ase.calculators.emt import EMT

    copper = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
    uranium = Structure(Lattice.cubic(3.0), ["U"], [[0, 0, 0]])
    nan = Cell(np.eye(3), np.array([29]), np.full((1, 3), np.nan))
    results = AsePotential(EMT()).evaluate([copper, uranium, nan, copper])
    assert [isinstance(r, Exception) for r in results] == [False, True, True, False]
    assert results[0] == results[3]


def test_names() -> None:
    made = get_potential(f"ase:{__name__}:argon")
    assert made.name == f"ase:{__name__}:argon"
    assert made.correction == "none"
    assert get_potential(made) is made
    assert isinstance(get_potential(argon()), AsePotential)
    with pytest.raises(RecipeError, match="Did you mean 'chgnet'"):
        get_potential("chgnett")
    with pytest.raises(MissingDependencyError, match="No module named 'no_such_module'"):
        get_potential("ase:no_such_module:factory")
    with pytest.raises(InputError, match="has no 'factory'"):
        get_potential(f"ase:{__name__}:factory")
    with pytest.raises(RecipeError, match="module:factory"):
        get_potential("ase:missing_factory")
    with pytest.raises(RecipeError, match="correction"):
        AsePotential(argon, correction="MP2O20")


def test_settings_of_a_named_potential() -> None:
    spec = {"name": "ase", "calculator": "ase.calculators.lj:LennardJones", "correction": "MP2020"}
    [result] = get_potential({**spec, "arguments": ARGON}).evaluate([solid()])
    assert result.energy == AsePotential(argon).evaluate([solid()])[0].energy
    assert get_potential(spec).correction == "MP2020"
    with pytest.raises(RecipeError, match=r"no setting 'argument'.*\n.*'arguments'"):
        get_potential({**spec, "argument": ARGON})
    with pytest.raises(RecipeError, match="'name'"):
        get_potential({"calculator": "ase.calculators.lj:LennardJones"})
    with pytest.raises(RecipeError, match="another interpreter"):
        get_potential({**spec, "workers": 2})


def test_weights_hash_follows_weights_and_parameters() -> None:
    class Network(LennardJones):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.models = [torch.nn.Linear(2, 1)]
            torch.nn.init.constant_(self.models[0].weight, value)
            torch.nn.init.zeros_(self.models[0].bias)

    hashes = [AsePotential(Network(value)).weights_hash for value in (1.0, 1.0, 2.0)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert AsePotential(argon).weights_hash != AsePotential(LennardJones()).weights_hash


def test_statuses_of_failures() -> None:
    failures = (None, TimeoutError(), WorkerCrashError("died"), InputError("bad"), ValueError())
    expected = [Status.OK, Status.TIMEOUT, Status.CRASHED, Status.INVALID, Status.FAILED]
    assert [status_of(failure) for failure in failures] == expected


# published potentials -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with the standard library alone."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return str(folder / "bin" / "python")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_package_is_named(family: str, bare: str) -> None:
    package = FAMILIES[family].package
    with pytest.raises(MissingDependencyError) as caught:
        get_potential({"name": family, "python": bare})
    assert f"{bare} -m pip install {package}" in caught.value.fix
    assert "No module named" in caught.value.why


@pytest.mark.parametrize("family", FAMILIES)
def test_default_models_are_known(family: str) -> None:
    known = FAMILIES[family]
    assert known.default in known.levels
    assert {*known.included, *known.arguments} <= set(known.levels)


def test_models_weights_and_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'medium'"):
        get_potential({"name": "mace", "model": "mediun"})
    with pytest.raises(InputError, match="network is not to be used"):
        get_potential({"name": "mace", "offline": True})
    monkeypatch.setenv("NUCLEATE_OFFLINE", "1")
    with pytest.raises(InputError, match="downloaded by orb-models"):
        get_potential("orb")
    weights = tmp_path / "mine.model"
    with pytest.raises(InputError, match="no weights"):
        get_potential({"name": "mace", "weights": str(weights)})
    weights.touch()
    with pytest.raises(RecipeError, match="'level_of_theory' and 'correction'"):
        get_potential({"name": "mace", "weights": str(weights), "correction": "none"})
    with pytest.raises(RecipeError, match="which network"):
        get_potential({"name": "orb", "weights": str(weights)})


class Recorder(LennardJones):
    """Stands for a package's calculator; knows what it was made with."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(**ARGON)
        self.given = args, kwargs


@pytest.mark.parametrize(
    ("family", "module", "name"),
    [
        ("mace", "mace.calculators", "mace_mp"),
        ("sevennet", "sevenn.calculator", "SevenNetCalculator"),
        ("mattersim", "mattersim.forcefield", "MatterSimCalculator"),
    ],
)
def test_local_weights_reach_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, module: str, name: str
) -> None:
    for part in (module.split(".")[0], module):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    monkeypatch.setattr(sys.modules[module], name, Recorder, raising=False)
    weights = tmp_path / "Mine.model"
    weights.touch()
    level = {"level_of_theory": "PBE", "correction": "none"}
    made = get_potential({"name": family, "weights": str(weights), **level})
    args, kwargs = made._calculator.given
    assert str(weights) in (*args, *kwargs.values())
    assert kwargs["device"] == "cpu"
    assert (made.name, made.level_of_theory) == (f"{family}-mine", "PBE")
    assert made.evaluate([solid()]) == AsePotential(argon).evaluate([solid()])


REAL = {
    "matgl": {"model": "TensorNet-MatPES-PBE-v2025.1-PES", "weights": "matgl_pyg_converted"},
    "sevennet": {"model": "7net-0"},
}


@pytest.mark.parametrize("family", REAL)
def test_real_weights(request: pytest.FixtureRequest, family: str) -> None:
    """Against the energy that PBE gives rock salt; stress against the slope of the energy."""
    python = os.environ.get(f"NUCLEATE_{family.upper()}_PYTHON")
    if not python:
        pytest.skip(f"set NUCLEATE_{family.upper()}_PYTHON to an interpreter that has {family}")
    spec = {"name": family, **REAL[family], "python": python, "offline": True}
    if "weights" in spec:
        models = request.getfixturevalue("shared") / "data/models"
        spec["weights"] = str(models / spec["weights"] / spec["model"])
    potential = get_potential(spec)
    assert potential.correction == "none"
    rock_salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0, 0]]
    ).get_primitive_structure()
    volumes = rock_salt.volume * np.array([0.99, 1.0, 1.01])
    crystals = [rock_salt.copy() for _ in volumes]
    for crystal, volume in zip(crystals, volumes, strict=True):
        crystal.scale_lattice(volume)
    less, here, more = potential.evaluate(crystals, forces=True, stress=True, magmoms=True)
    assert here.energy == pytest.approx(-3.37, abs=0.05)
    assert np.abs(here.forces).max() < 1e-3
    slope = 2 * (more.energy - less.energy) / (volumes[2] - volumes[0])
    assert np.trace(here.stress) / 3 == pytest.approx(slope, abs=2e-4)
    assert here.magmoms is None
