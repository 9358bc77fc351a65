from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from step_cli.formats.open import open_checkpoint
from step_cli.formats.safetensors.writer import TensorToSave, save_safetensors

KINDS = ["f8", "f4", "f2", "i8", "u1", "?"]
SHAPES = st.lists(st.integers(0, 4), max_size=3)


@given(
    st.dictionaries(st.text(min_size=1), st.tuples(st.sampled_from(KINDS), SHAPES)),
    st.dictionaries(st.text(), st.text(), max_size=1),
)
def test_the_library_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    described: dict[str, tuple[str, list[int]]],
    metadata: dict[str, str],
) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.integers(0, 2, shape).astype(kind)
        for name, (kind, shape) in described.items()
    }
    tensors.pop("__metadata__", None)
    path = tmp_path_factory.getbasetemp() / "m.safetensors"
    save_safetensors(path, tensors, metadata)
    once = path.read_bytes()
    found = load(once)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    save_safetensors(path, dict(reversed(tensors.items())), metadata)
    assert path.read_bytes() == once


def test_what_comes_in_pieces_is_written_as_one(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(6, 4).astype(ml_dtypes.bfloat16)
    pieces = TensorToSave(array.dtype, array.shape, lambda: (row for row in array))
    strided = np.arange(12, dtype=np.int64).reshape(3, 4).T
    path = tmp_path / "m.safetensors"
    save_safetensors(path, {"w": pieces, "s": strided})
    found = {tensor.name: tensor.read() for tensor in open_checkpoint(path).tensors}
    assert found["w"].tobytes() == array.tobytes()
    np.testing.assert_array_equal(found["s"], strided)


def test_pieces_that_do_not_fill_the_shape_are_a_mistake(tmp_path: Path) -> None:
    short = TensorToSave(np.dtype("f4"), (3, 4), lambda: [np.zeros((2, 4), "f4")])
    with pytest.raises(ValueError, match="do not fill"):
        save_safetensors(tmp_path / "m.safetensors", {"w": short})
