"""Packed tokens: a round trip, and refusal of bytes that are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleate.errors import CheckpointError
from nucleate.store.packing import pack_batch, unpack_batch
from nucleate.structures.wyckoff import WyckoffBatch


@given(st.lists(st.integers(0, 21), min_size=1, max_size=5), st.integers(0, 2**31))
def test_round_trip(sites: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, size = len(sites), max(sites)
    mask = np.arange(size) < np.array(sites)[:, None]
    batch = WyckoffBatch(
        space_group=rng.integers(1, 231, rows).astype(np.int16),
        wyckoff=(rng.integers(1, 28, (rows, size)) * mask).astype(np.int8),
        species=(rng.integers(1, 119, (rows, size)) * mask).astype(np.int8),
        frac_coords=(rng.random((rows, size, 3)) * mask[..., None]).astype(np.float32),
        lattice=rng.uniform(2, 90, (rows, 6)).astype(np.float32),
    )
    packed = pack_batch(batch)
    assert [len(data) for data in packed] == [28 + 14 * n for n in sites]
    again = unpack_batch(packed)
    for name in ("space_group", "wyckoff", "species", "frac_coords", "lattice"):
        expected = getattr(batch, name)
        assert getattr(again, name).dtype == expected.dtype
        np.testing.assert_array_equal(getattr(again, name), expected)


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x02\x00" + bytes(26), b"\x01\x01" + bytes(26)])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="crystal 0"):
        unpack_batch([data])
