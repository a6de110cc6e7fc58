"""Reading published pickles: the same arrays, and nothing is ever run."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from nucleate.errors import CheckpointError
from nucleate.policies.haiku_pickle import read_parameters

HERE = Path("epoch_000001.pkl")


def checkpoint(array: object) -> dict[str, object]:
    """The layout of a checkpoint around one array."""
    return {"params": {"linear": {"w": array}}, "opt_state": ()}


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i4", "|b1", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_wrote_them(protocol: int, dtype: str, order: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype, order=order)
    content = pickle.dumps(checkpoint(array), protocol)
    found = read_parameters(content, HERE)["linear"]["w"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_numbers_are_read_as_arrays_without_axes() -> None:
    content = pickle.dumps(checkpoint(np.float32(2.5)))
    assert read_parameters(content, HERE)["linear"]["w"] == np.float32(2.5)


class Attack:
    """Pickles as a call of anything."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["params", "array", "optimiser"])
def test_functions_are_refused_by_name_and_not_run(
    tmp_path: Path, protocol: int, place: str
) -> None:
    mark = tmp_path / "mark"
    attack = Attack(Path.touch, mark)
    contents = {
        "params": {"params": attack},
        "array": checkpoint(attack),
        "optimiser": {**checkpoint(np.zeros(3, "f4")), "opt_state": (attack,)},
    }
    content = pickle.dumps(contents[place], protocol)
    with pytest.raises(CheckpointError, match="asks for") as caught:
        read_parameters(content, HERE)
    assert "Nothing of it was run" in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy.core.multiarray", "fromstring"),
        ("optax._src.base", "chain"),
        ("optax", "EmptyState"),
        ("jax._src.array", "ArrayImpl"),
        ("torch.storage", "_load_from_bytes"),
    ],
)
def test_every_name_but_the_few_known_is_refused(module: str, name: str) -> None:
    content = f"c{module}\n{name}\n.".encode()
    with pytest.raises(CheckpointError, match=f"asks for {module}.{name}"):
        read_parameters(content, HERE)


def test_objects_outside_the_file_are_refused() -> None:
    with pytest.raises(CheckpointError, match="outside the file"):
        read_parameters(b"Vsomewhere\nQ.", HERE)


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, 1], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("x", "f4")]),
        np.array([1.0, np.nan], dtype="f4"),
        [1.0, 2.0],
    ],
    ids=["objects", "text", "records", "nan", "list"],
)
def test_anything_but_finite_numbers_is_refused(array: object) -> None:
    with pytest.raises(CheckpointError):
        read_parameters(pickle.dumps(checkpoint(array)), HERE)


def test_shape_and_bytes_must_agree() -> None:
    content = pickle.dumps(checkpoint(np.zeros((200, 3), "f4")), 4)
    assert content.count(b"K\xc8K\x03") == 1
    with pytest.raises(CheckpointError, match="shape"):
        read_parameters(content.replace(b"K\xc8K\x03", b"K\xc9K\x03"), HERE)


def test_files_cut_anywhere_are_refused(shared: Path) -> None:
    content = (shared / "fixtures/crystalformer/small_epoch_000001.pkl").read_bytes()
    for length in [0, 1, 2, 3, 11, *range(100, len(content), 1499), len(content) - 1]:
        with pytest.raises(CheckpointError, match=r"can't be read"):
            read_parameters(content[:length], HERE)


@pytest.mark.parametrize(
    "content", [b"no pickle", b"PK\x03\x04", pickle.dumps([1]), pickle.dumps({})]
)
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="epoch_000001"):
        read_parameters(content, HERE)
