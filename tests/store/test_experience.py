"""The store: what is committed stays, what is not leaves no trace, equal runs have equal rows."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleate.errors import CheckpointError, StorageError
from nucleate.protocols import Status
from nucleate.store.experience import (
    Evaluation,
    ExperienceStore,
    Reward,
    SampledCrystal,
    Spending,
    tally,
)

NAME, KEY = "energy", "energy/weights-1"


def crystal(digest: str) -> SampledCrystal:
    return SampledCrystal(digest, 225, "NaCl", b"\x01\x00tokens", -12.5)


def play(store: ExperienceStore, step: int) -> None:
    """One step of a run that samples digests step, step+1, step+2."""
    digests = [str(step + i) for i in range(3)]
    known = store.lookup(digests, KEY)
    fresh = {d: Evaluation(float(d), extra={"e": 1.0}) for d in digests if d not in known}
    spent = store.record(step, KEY, fresh, name=NAME, unit="eV", reused=known)
    store.record_step(
        step,
        [crystal(d) for d in digests],
        [Reward(float(d)) for d in digests],
        {"spent": spent},
        timings={"seconds": os.times().elapsed},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


@given(
    st.dictionaries(
        st.text("0123456789abcdef", min_size=1, max_size=8),
        st.builds(
            Evaluation,
            st.floats(allow_nan=False, allow_infinity=False),
            st.just(Status.OK),
            st.just(""),
            st.floats(0, 10),
            st.dictionaries(st.sampled_from("abc"), st.floats(allow_nan=False), max_size=2).map(
                lambda d: {k: v for k, v in d.items() if math.isfinite(v)}
            ),
        ),
        max_size=20,
    )
)
def test_lookup_gives_back_what_was_recorded(evaluations: dict[str, Evaluation]) -> None:
    with ExperienceStore(":memory:") as store:
        assert store.record(1, KEY, evaluations, name=NAME) == len(evaluations)
        assert store.lookup([*evaluations, "absent"], KEY) == evaluations
        assert store.lookup(evaluations, "another key") == {}


def test_failures_come_back_as_nan_with_their_reason() -> None:
    with ExperienceStore(":memory:") as store:
        failed = Evaluation(math.nan, Status.TIMEOUT, "took 60 s", 60.0, {"x": math.nan})
        store.record(1, KEY, {"a": failed}, name=NAME)
        found = store.lookup(["a"], KEY)["a"]
    assert math.isnan(found.value)
    assert math.isnan(found.extra["x"])
    assert (found.status, found.reason) == (Status.TIMEOUT, "took 60 s")


def test_lookup_of_many_digests() -> None:
    with ExperienceStore(":memory:") as store:
        many = {str(i): Evaluation(float(i)) for i in range(2500)}
        store.record(1, KEY, many, name=NAME)
        assert store.lookup(many, KEY) == many


def test_first_value_stays_and_is_charged_once() -> None:
    with ExperienceStore(":memory:") as store:
        assert store.record(1, KEY, {"a": Evaluation(1.0)}, name=NAME) == 1
        assert store.record(2, KEY, {"a": Evaluation(2.0)}, name=NAME, reused=["a"]) == 0
        assert store.lookup(["a"], KEY)["a"].value == 1.0
        assert store.evaluations_spent(NAME) == 1
        assert store.evaluations_spent(NAME, step=2) == 0


@pytest.mark.parametrize("checkpoint", range(5))
def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(path: Path, checkpoint: int) -> None:
    with ExperienceStore(":memory:") as whole:
        for step in range(1, 7):
            play(whole, step)
        expected, spent = whole.content_digest(), whole.evaluations_spent(NAME)
    with ExperienceStore(path) as store:
        for step in range(1, 5):
            play(store, step)
        # killed in step 5, after its evaluations were recorded
        store.record(5, KEY, {"7": Evaluation(7.0, extra={"e": 1.0})}, name=NAME)
    with ExperienceStore(path) as store:
        store.rollback(checkpoint)
        assert store.last_step() == (checkpoint or None)
        assert store.lookup(["7"], KEY)  # nothing computed is lost
        for step in range(checkpoint + 1, 7):
            play(store, step)
        assert store.content_digest() == expected
        assert store.evaluations_spent(NAME) == spent
        assert store.problems() == []


def test_a_value_left_over_is_not_charged_until_it_is_asked_for() -> None:
    with ExperienceStore(":memory:") as store:
        store.record(3, KEY, {"a": Evaluation(1.0), "b": Evaluation(2.0)}, name=NAME)
        store.rollback(2)
        assert store.evaluations_spent(NAME) == 0
        assert store.record(3, KEY, {}, name=NAME, reused=["a"]) == 1
        assert store.evaluations_spent(NAME, step=3) == 1


def test_killed_writer_loses_no_committed_row_and_leaves_no_half_step(path: Path) -> None:
    code = f"""
import itertools, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_experience import play
from nucleate.store.experience import ExperienceStore
store = ExperienceStore({str(path)!r})
for step in itertools.count(1):
    play(store, step)
    sys.stdout.write(f"{{step}}\\n"); sys.stdout.flush()
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) >= 20:
            break
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with ExperienceStore(path) as store:
        last = store.last_step()
        assert last is not None
        assert last >= 20
        assert len(store.crystals()["step"]) == 3 * last
        assert store.problems() == []
        assert store.evaluations_spent(NAME) in (last + 2, last + 3)


def test_reader_works_while_a_writer_is_in_a_transaction(path: Path) -> None:
    with ExperienceStore(path) as store:
        play(store, 1)
        with store._transaction("write"):
            store._connection.execute("DELETE FROM steps")
            with ExperienceStore(path, read_only=True) as reader:
                assert reader.last_step() == 1
                assert len(reader.crystals()["step"]) == 3


def test_reader_can_not_write(path: Path) -> None:
    ExperienceStore(path).close()
    with ExperienceStore(path, read_only=True) as reader, pytest.raises(StorageError):
        play(reader, 1)


def test_full_disk_leaves_nothing_half_written(path: Path) -> None:
    with ExperienceStore(path) as store:
        play(store, 1)
        before = store.content_digest()
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StorageError, match="full") as caught:
            store.record_step(
                2,
                [SampledCrystal(str(i), 1, "Fe", bytes(4000), 0.0) for i in range(50)],
                [Reward(0.0)] * 50,
                {},
            )
        assert "--resume" in caught.value.fix
        assert store.content_digest() == before
        store._connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
        play(store, 2)


def test_folder_missing_and_foreign_file(tmp_path: Path, path: Path) -> None:
    with pytest.raises(StorageError, match="open"):
        ExperienceStore(tmp_path / "absent" / "run.sqlite")
    with pytest.raises(CheckpointError, match="no store"):
        ExperienceStore(path, read_only=True)
    path.write_text("not a database, but long enough to be looked at " * 50)
    with pytest.raises(CheckpointError):
        ExperienceStore(path)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE x (y)")
    with pytest.raises(CheckpointError, match="version"):
        ExperienceStore(other)


def test_columns_join_values_and_mark_what_is_absent(path: Path) -> None:
    with ExperienceStore(path) as store:
        play(store, 1)
        play(store, 2)
        table = store.crystals(NAME, "unknown", first_step=2)
        np.testing.assert_array_equal(table[NAME], [2.0, 3.0, 4.0])
        np.testing.assert_array_equal(table["reward"], [2.0, 3.0, 4.0])
        assert np.isnan(table["unknown"]).all()
        assert list(table["unknown/status"]) == ["", "", ""]
        assert store.tokens(["3", "2"]) == [b"\x01\x00tokens"] * 2
        assert store.crystals(NAME, last_step=0)[NAME].shape == (0,)


def test_metrics_with_numpy_numbers_and_nan() -> None:
    with ExperienceStore(":memory:") as store:
        metrics = {"a": np.float32(0.5), "b": math.nan, "c": {"d": np.arange(2)}}
        store.record_step(1, [], [], metrics, timings={"t": 1.0})
        assert store.metrics() == [{"step": 1, "a": 0.5, "b": None, "c": {"d": [0, 1]}, "t": 1.0}]


def test_spending_by_property_counts_what_others_computed_but_not_their_seconds() -> None:
    with ExperienceStore(":memory:") as store:
        mine = {"a": Evaluation(1.0, seconds=2.0), "b": Evaluation(1.0, seconds=3.0)}
        store.record(1, KEY, mine, name=NAME, cost="model")
        other = {"c": Evaluation(1.0, seconds=50.0, source="another run")}
        store.record(2, "dft/1", other, name="gap", cost="dft")
        assert store.spending() == (
            Spending(NAME, "model", 2, 0, 5.0),
            Spending("gap", "dft", 1, 1, 0.0),
        )
        assert tally(store.spending(), "evaluations") == {
            "by_property": {NAME: 2, "gap": 1},
            "by_cost": {"model": 2, "dft": 1},
        }
        store.rollback(1)
        assert [entry.name for entry in store.spending()] == [NAME]
        store.record(2, "dft/1", {}, name="gap", cost="dft", reused=["c"])
        assert store.spending()[1] == Spending("gap", "dft", 1, 1, 0.0)


VERSION_1 = """
CREATE TABLE properties (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, unit TEXT NOT NULL);
CREATE TABLE evaluations (
    property INTEGER NOT NULL, digest TEXT NOT NULL, step INTEGER,
    value REAL, status TEXT NOT NULL, reason TEXT NOT NULL, seconds REAL NOT NULL,
    extra TEXT NOT NULL, PRIMARY KEY (property, digest)) WITHOUT ROWID;
CREATE INDEX evaluations_by_step ON evaluations (property, step);
INSERT INTO properties VALUES (1, 'energy/weights-1', 'energy', 'eV');
INSERT INTO evaluations VALUES (1, 'a', 3, 1.5, 'ok', '', 2.0, '{}');
PRAGMA user_version = 1;
"""


def test_a_store_of_the_first_version_is_read_as_it_is_and_goes_on(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.close()
    before = path.read_bytes()
    with ExperienceStore(path, read_only=True) as store:
        assert store.lookup(["a"], KEY)["a"].value == 1.5
        assert store.spending() == (Spending(NAME, "", 1, 0, 2.0),)
    assert path.read_bytes() == before
    with ExperienceStore(path) as store:
        other = {"b": Evaluation(2.0, seconds=9.0, source="another run")}
        assert store.record(4, KEY, {**other, "a": Evaluation(9.0)}, name=NAME, cost="model") == 1
        assert store.spending() == (Spending(NAME, "model", 2, 1, 2.0),)
