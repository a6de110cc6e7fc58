"""Each stage takes out what it should, for a reason; the verdicts are those of the whole run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from pymatgen.core import Lattice, Structure

from made_up import VOLUME, MadeUpPotential
from nucleate.errors import InputError
from nucleate.objectives.evaluate import PART
from nucleate.objectives.objective import Objective, Term
from nucleate.objectives.shaping import Linear
from nucleate.properties.stability import EnergyAboveHull
from nucleate.protocols import CostClass, Status
from nucleate.screen.screen import Screen, Screened
from nucleate.screen.settings import ScreenSettings
from nucleate.store.cache import EvaluationCache, crystal_digest
from nucleate.store.experience import ExperienceStore
from nucleate.structures.formulas import FormulaIndex, composition_key
from nucleate.structures.identity import ReferenceSet

FULL = ["valid", "relaxed", {"type": "stable", "below": 0.5}, "unique", "novel"]
EDGE = (2 * VOLUME) ** (1 / 3)  # of a cell of two atoms at rest


def salt(cation: str = "Na", anion: str = "Cl", edge: float = EDGE, gap: float = 0.5) -> Structure:
    return Structure(Lattice.cubic(edge), [cation, anion], [[0, 0, 0], [0.5, 0.5, gap]])


def screen(
    stages: list | None = None, store: ExperienceStore | None = None, **parts: object
) -> Screen:
    training = FormulaIndex(np.array([composition_key(np.array([19, 35]))], dtype=np.uint64))
    return Screen(
        ScreenSettings.model_validate({"stages": stages or FULL}),
        store or ExperienceStore(":memory:"),
        potential=parts.get("potential", MadeUpPotential()),
        training=training,
    )


def through(made: Screen, crystals: list, step: int = 0, names: str = "") -> Screened:
    reasons = ["site outside" if c is None else "" for c in crystals]
    digests = [f"{names or step}-{i}" for i in range(len(crystals))]
    return made.submit(crystals, reasons, digests, step).result()


def test_every_stage_takes_out_its_own_and_says_why() -> None:
    batch = [
        None,
        salt(edge=0.9),
        salt("Na", "Cl"),
        salt("Na", "Cl", edge=EDGE * 1.05),
        salt("K", "Br"),
        salt("Na", "Cl", edge=EDGE * 2.5),
        salt("Sc", "O"),
        Structure(Lattice.cubic(EDGE), ["Rn", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    ]
    result = through(screen(), batch)
    assert result.passed == {
        "decodable": 7, "valid": 6, "relaxed": 5, "stable": 3, "unique": 2, "novel": 1,
    }  # fmt: skip
    assert [s is not None for s in result.structures] == [i == 2 for i in range(8)]
    assert result.reasons[2] == ""
    heads = [reason.partition(":")[0] for reason in result.reasons]
    assert heads[0] == "site outside" and heads[5] == "relaxation exploded"
    assert heads[3] == "not unique" and heads[4] == "not novel" and heads[6] == "not stable"
    assert heads[7] == "no energy above hull"
    assert result.reasons[3] == "not unique: crystal 2 of step 0"
    assert "eV/atom above hull" in result.reasons[6]
    assert np.isfinite(result.rmsd[[2, 3, 4, 6]]).all() and np.isnan(result.rmsd[[0, 1, 5]]).all()


def test_properties_see_the_relaxed_crystal_and_the_store_keeps_it() -> None:
    store = ExperienceStore(":memory:")
    made = screen(["valid", "relaxed"], store)
    result = through(made, [salt(edge=EDGE * 1.1, gap=0.45)])
    assert result.structures[0].volume / 2 == pytest.approx(VOLUME, rel=0.1)
    again = screen(["valid", "relaxed"], store, potential=None or MadeUpPotential())
    repeated = through(again, [salt(edge=EDGE * 1.1, gap=0.45)], step=3, names="0")
    assert again._stages[1].potential.asked == 0  # known by its digest
    assert repeated.structures[0] == result.structures[0]
    assert np.array_equal(
        repeated.structures[0].lattice.matrix, result.structures[0].lattice.matrix
    )
    [entry] = store.lookup(["0-0"], made.keys["relaxed"]).values()
    assert entry.value == result.rmsd[0]
    assert entry.extra["energy_after"] < entry.extra["energy_before"]


def test_the_order_is_the_recipes_and_a_test_sees_only_what_is_left() -> None:
    potential = MadeUpPotential()
    stages = ["valid", "unique", "novel", "stable"]
    made = screen(stages, potential=potential)
    result = through(made, [salt(), salt(), salt("K", "Br"), salt("Sc", "O")])
    assert list(result.passed) == ["decodable", *stages]
    assert potential.asked == 2
    assert np.isnan(result.rmsd).all()


def test_unique_holds_over_batches_and_over_a_restart() -> None:
    crystals = [salt("Na", "Cl"), salt("Na", "F"), salt("Na", "Cl"), salt("Li", "F")]
    whole = screen(["valid", "unique"])
    expected = [through(whole, crystals[i : i + 2], step=i // 2).reasons for i in (0, 2)]
    assert expected == [["", ""], ["not unique: crystal 0 of step 0", ""]]
    ahead = screen(["valid", "unique"])
    through(ahead, crystals[:2], step=0)
    through(ahead, [salt("Li", "F"), salt("Cs", "F")], step=1)  # drawn ahead, then given up
    resumed = screen(["valid", "unique"])
    resumed.load_state_dict(ahead.state_dict(2))
    assert through(resumed, crystals[2:], step=1).reasons == expected[1]


def test_novel_against_crystals_of_a_file(tmp_path) -> None:
    ReferenceSet.from_structures([salt()], ["mp-1"]).save(tmp_path / "known.npz")
    made = screen(["valid", {"type": "novel", "reference": str(tmp_path / "known.npz")}])
    other = Structure(
        4.0 * (np.ones((3, 3)) - np.eye(3)) / 2**0.5, ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    )
    assert through(made, [salt(edge=5), other]).reasons == ["not novel: mp-1", ""]
    with pytest.raises(InputError):
        screen(["valid", {"type": "novel", "reference": str(tmp_path / "absent.npz")}])


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (["unique"], "has to be 'valid'"),
        (["valid", "unique", "unique"], "twice"),
        (["valid", {"type": "relaxed", "volume_range": [4, 1]}], "goes from 4 to 1"),
        (["valid", "nowel"], "nowel"),
        ([], "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(stages: list, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ScreenSettings.model_validate({"stages": stages})


# what runs share ----------------------------------------------------------------------------

BLOWN = salt(edge=EDGE * 2.5)  # leaves the allowed volumes


def shared_screen(cache: EvaluationCache, **parts: Any) -> Screen:
    settings = ScreenSettings.model_validate({"stages": parts.pop("stages", FULL[:3])})
    potential = parts.pop("potential", None) or MadeUpPotential(**parts)
    return Screen(settings, ExperienceStore(":memory:"), cache, potential=potential)


def test_a_second_run_takes_relaxations_from_the_first(tmp_path: Path) -> None:
    crystals = [salt(edge=EDGE * 1.1, gap=0.45), salt("K", "Br"), BLOWN]
    with EvaluationCache(tmp_path / "shared.sqlite", "one") as cache:
        one = through(shared_screen(cache), crystals, names="same")
    with EvaluationCache(tmp_path / "shared.sqlite", "two") as cache:
        made = shared_screen(cache)
        two = through(made, crystals, names="same")
        assert made._stages[1].potential.asked == 0
        for mine, other in zip(two.structures, one.structures, strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                np.testing.assert_array_equal(mine.lattice.matrix, other.lattice.matrix)
                np.testing.assert_array_equal(mine.frac_coords, other.frac_coords)
        np.testing.assert_array_equal(two.rmsd, one.rmsd)
        assert two.energies == one.energies
        assert two.reasons == one.reasons and two.statuses == one.statuses
        assert two.statuses[2] is Status.UNSUPPORTED
        assert two.reasons[2].startswith("relaxation exploded: ")
        # charged like relaxations of its own, and said to be another's
        spent = {entry.name: entry for entry in made._stages[1].records.store.spending()}
        assert (spent["relaxed"].evaluations, spent["relaxed"].cached) == (3, 3)
        tighter = ["valid", {"type": "relaxed", "fmax": 0.01}]
        for other in (shared_screen(cache, stages=tighter), shared_screen(cache, weights_hash="1")):
            through(other, crystals, names="same")
            assert other._stages[1].potential.asked > 0  # other settings, other weights


def test_energies_of_crystals_as_drawn_are_shared_with_the_objective() -> None:
    crystals = [salt(edge=EDGE * x) for x in (1, 1.02, 1.05)]
    with EvaluationCache(":memory:") as cache:
        potential = MadeUpPotential()
        made = shared_screen(cache, stages=FULL[:1] + FULL[2:3], potential=potential)
        screened = through(made, crystals)
        unit = Linear(type="linear", low=0.0, high=1.0)
        term = Term(EnergyAboveHull(potential), unit)
        objective = Objective([term], store=made._stages[1].records.store, cache=cache)
        result = objective.score(screened.structures, screened.digests)
        assert potential.asked == 3 and result.spent == {"e_above_hull": 3}
        assert np.isfinite(result.scores["e_above_hull"].extra["energy_per_atom"]).all()
        objective.close()


def test_crystals_that_the_cache_takes_for_one_are_relaxed_once() -> None:
    twins = [salt(edge=EDGE * 1.1), salt(edge=EDGE * 1.1 + 1e-9)]
    with EvaluationCache(":memory:") as cache:
        one, two = (through(shared_screen(cache), twins, names="same") for _ in range(2))
    assert one.energies["same-0"] == one.energies["same-1"]
    assert two.energies == one.energies
    np.testing.assert_array_equal(two.rmsd, one.rmsd)
    cells = [s.lattice.matrix for s in (*one.structures, *two.structures)]
    assert all((cell == cells[0]).all() for cell in cells)


def test_relaxations_that_were_done_survive_a_kill(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(tmp_path / "shared.sqlite")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout.readline() == "in the second part\n"
        run.send_signal(signal.SIGKILL)
    with EvaluationCache(tmp_path / "shared.sqlite", "two") as cache:
        made = shared_screen(cache, stages=FULL[:2])
        key = made.keys["relaxed"]
        crystals = [*(salt(edge=EDGE * x) for x in (1, 1.05, 1.1)), salt("K"), salt("K", "Br")]
        digests = [crystal_digest(crystal) for crystal in crystals]
        assert set(cache.lookup(digests, key)) == set(digests[:3])
        through(made, crystals[:3], names="other")
        assert made._stages[1].potential.asked == 0


class Slow(MadeUpPotential):
    """Takes a quarter of a second for a batch that holds potassium, by a clock of its own."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def evaluate(self, structures: Any, **wanted: Any) -> Any:
        if any(19 in structure.numbers for structure in structures):
            self.now += 0.25
        return super().evaluate(structures, **wanted)


def test_a_crystal_over_its_time_costs_no_other_and_is_tried_again_by_other_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow()
    monkeypatch.setattr("nucleate.physics.relax.time", slow)
    crystals = [salt(edge=EDGE * 1.1), salt("K", "Br", edge=EDGE * 1.2), salt("Li", "F")]
    stages = ["valid", {"type": "relaxed", "timeout": 0.3, "fmax": 1e-5}]
    with EvaluationCache(":memory:") as cache:
        made = shared_screen(cache, stages=stages, potential=slow)
        result = through(made, crystals, names="same")
        assert [s is not None for s in result.structures] == [True, False, True]
        assert result.statuses[1] is Status.TIMEOUT
        assert result.reasons[1].startswith("relaxation timeout: 0.3 s passed")
        patient = shared_screen(cache, stages=["valid", {"type": "relaxed", "fmax": 1e-5}])
        assert patient.keys == made.keys  # a value has no time-out
        with monkeypatch.context() as changed:
            changed.setattr("nucleate.physics.relax.ALGORITHM", 0)
            other = shared_screen(cache, stages=stages)
        assert not set(other.keys.values()) & set(made.keys.values())
        result = through(patient, crystals, names="same")
        assert all(result.structures) and patient._stages[1].potential.asked > 0


def test_twins_in_different_parts_share_their_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr("nucleate.physics.relax.time", slow)
    monkeypatch.setitem(PART, CostClass.RELAXATION, 1)
    stages = ["valid", {"type": "relaxed", "timeout": 0.3, "fmax": 1e-5}]
    twins = [salt("K", "Br", edge=EDGE * 1.2 + shift) for shift in (0, 1e-9)]
    asked = []
    for crystals in (twins[:1], twins):
        slow.asked = 0
        with EvaluationCache(":memory:") as cache:
            result = through(shared_screen(cache, stages=stages, potential=slow), crystals)
        assert set(result.statuses) == {Status.TIMEOUT}
        asked.append(slow.asked)
    assert asked[0] == asked[1] > 0


KILLED = """
import sys, time
from nucleate.objectives.evaluate import PART
from nucleate.protocols import CostClass
from nucleate.store.cache import EvaluationCache
from made_up import MadeUpPotential
from screen.test_screen import EDGE, salt, shared_screen, through

class Hangs(MadeUpPotential):
    def evaluate(self, structures, **wanted):
        if any(19 in structure.numbers for structure in structures):
            print("in the second part", flush=True)
            time.sleep(60)
        return super().evaluate(structures, **wanted)

PART[CostClass.RELAXATION] = 2  # raised to three, for the one worker
crystals = [*(salt(edge=EDGE * x) for x in (1, 1.05, 1.1)), salt("K"), salt("K", "Br")]
with EvaluationCache(sys.argv[1], "one") as cache:
    through(shared_screen(cache, stages=["valid", "relaxed"], potential=Hangs()), crystals, names="same")
"""
