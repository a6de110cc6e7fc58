"""The front on disk holds the crystals that have its scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Structure

from nucleate.evaluation.outcome import write_front
from nucleate.objectives.objective import Objective, Term
from nucleate.objectives.shaping import Linear
from nucleate.physics.cells import as_cell
from nucleate.properties.composition import Density, NumberDensity
from nucleate.store.experience import Evaluation, ExperienceStore, Reward, SampledCrystal
from nucleate.store.packing import pack_batch
from nucleate.structures.wyckoff import decode
from tiny import condition, generator, tiny_policy

RELAXED = "relaxed/1/made up"


@pytest.mark.parametrize("relaxed", [False, True])
def test_crystals_of_the_front_are_those_that_were_scored(tmp_path: Path, relaxed: bool) -> None:
    batch = tiny_policy().sample(12, condition(221), generator()).batch
    digests = [batch.digest(i) for i in range(12)]
    drawn = decode(batch)[0]
    scored = [s.copy().scale_lattice(1.3 * s.volume) if relaxed else s for s in drawn]
    store = ExperienceStore(":memory:")
    store.record_step(
        0,
        [
            SampledCrystal(digest, 221, batch.formula(i), tokens, 0.0)
            for i, (digest, tokens) in enumerate(zip(digests, pack_batch(batch), strict=True))
        ],
        [Reward(0.0)] * 12,
        {},
    )
    if relaxed:
        cells = {d: as_cell(s) for d, s in zip(digests, scored, strict=True)}
        store.record(0, RELAXED, dict.fromkeys(cells, Evaluation(0.1)), name="relaxed", cells=cells)
    objective = Objective(
        [
            Term(Density(), Linear(type="linear", low=0, high=50, direction="maximise")),
            Term(NumberDensity(), Linear(type="linear", low=0, high=1, direction="minimise")),
        ],
        store=store,
        crystals=RELAXED if relaxed else "",
    )
    reward = objective.score(scored, digests).reward
    write_front(objective, tmp_path)
    table = pd.read_csv(tmp_path / "pareto.csv", keep_default_na=False)
    assert len(table) == len(objective.front()) > 0
    assert {"density_g_per_cm3", "number_density_atoms_per_A3"} < set(table)
    assert ("cif_as_drawn" in table) == relaxed
    for _, row in table.iterrows():
        crystal = Structure.from_file(tmp_path / row["cif"])
        assert crystal.density == pytest.approx(row["density_g_per_cm3"], rel=1e-4)
        if relaxed:
            before = Structure.from_file(tmp_path / row["cif_as_drawn"])
            assert before.density == pytest.approx(1.3 * crystal.density, rel=1e-4)
    objective.close()
    assert table["reward"].max() == pytest.approx(reward.max())
    assert np.isfinite(table["number_density_atoms_per_A3"]).all()
