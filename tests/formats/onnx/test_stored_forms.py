"""Sparse initializers, every form of Constant, and the defaults of inputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks.onnx_attacks import model
from formats.onnx.test_operators import node, numbers, ones
from formats.onnx.test_scopes import read
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from step_cli.errors import InputError
from step_cli.formats.onnx.sparse import dense_array

W = np.arange(32, dtype=np.float32).reshape(8, 4) % 3
PRODUCT = node("MatMul", ["x", "w"], ["y"])


def sparse_tensor(
    array: NDArray[np.float32], *, linear: bool = True
) -> onnx.SparseTensorProto:
    at = np.argwhere(array)
    flat = np.ravel_multi_index(tuple(at.T), array.shape)
    indices = flat if linear else at
    return helper.make_sparse_tensor(
        numpy_helper.from_array(array[tuple(at.T)], "w"),
        numpy_helper.from_array(indices.astype(np.int64), "w_indices"),
        list(array.shape),
    )


def with_sparse(tensor: onnx.SparseTensorProto) -> onnx.ModelProto:
    proto = model([PRODUCT], {})
    proto.graph.sparse_initializer.append(tensor)
    return proto


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers_are_read_as_dense_ones(
    linear: bool, tmp_path: Path
) -> None:
    tensor = read(with_sparse(sparse_tensor(W, linear=linear)), tmp_path)["w"]
    assert (tensor.shape, tensor.dtype, tensor.axis) == ((8, 4), "float32", 0)
    assert tensor.place is None
    np.testing.assert_array_equal(tensor.read(), W)


def test_sparse_tensors_that_no_product_uses_are_listed(tmp_path: Path) -> None:
    proto = with_sparse(sparse_tensor(W))
    proto.graph.node[0].input[1] = "x"
    assert read(proto, tmp_path)["w"].skip == "consumer"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dims": [8, 5]}, None),
        ({"dims": [2, 4]}, "outside the shape"),
        ({"dims": [2**20, 2**20]}, "stand for 1099511627776 elements"),
        ({"indices": numbers(-1)}, "have indices of shape"),
        ({"indices": np.full(21, -1, np.int64)}, "outside the shape"),
        ({"indices": np.zeros(21, np.int32)}, "not int64"),
        ({"indices": np.zeros((21, 3), np.int64)}, "have indices of shape"),
    ],
)
def test_sparse_tensors_that_do_not_fit_are_refused(
    change: dict[str, object], words: str | None, tmp_path: Path
) -> None:
    tensor = sparse_tensor(W)
    assert len(tensor.values.raw_data) == 21 * 4
    for name, value in change.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)  # type: ignore[arg-type]
        else:
            tensor.indices.CopyFrom(numpy_helper.from_array(value, "i"))  # type: ignore[type-var]
    found = read(with_sparse(tensor), tmp_path)["w"]
    if words is None:
        assert found.read().shape == (8, 5)
        return
    with pytest.raises(InputError, match=words):
        found.read()


def test_a_sparse_tensor_without_its_lists_is_no_model(tmp_path: Path) -> None:
    tensor = sparse_tensor(W)
    tensor.ClearField("indices")
    with pytest.raises(InputError, match="no values, or no indices"):
        read(with_sparse(tensor), tmp_path)


def test_a_sparse_array_is_in_proportion_to_what_is_stored() -> None:
    some = np.ones(5000, np.float32), np.arange(5000)
    assert dense_array(*some, [5_000_000]).sum() == 5000
    with pytest.raises(ValueError, match="5000 stored numbers"):
        dense_array(*some, [6_000_000])


@pytest.mark.parametrize(
    ("value", "axis", "shape"),
    [
        ({"value": numpy_helper.from_array(W)}, 0, (8, 4)),
        ({"sparse_value": sparse_tensor(W)}, 0, (8, 4)),
    ],
)
def test_constants_are_stored_tensors(
    value: dict[str, object], axis: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    nodes = [node("Constant", [], ["w"], **value), PRODUCT]
    tensor = read(model(nodes, {}), tmp_path)["w"]
    assert (tensor.axis, tensor.shape) == (axis, shape)
    np.testing.assert_array_equal(tensor.read(), W)


def test_constants_of_plain_numbers_are_shapes_axes_and_scales(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], ["axis"], value_ints=[0]),
        node("Constant", [], ["scale"], value_float=0.5),
        node("Constant", [], ["row"], value_floats=[0.5, 1, 2, 4]),
        node("Unsqueeze", ["w", "axis"], ["a"]),
        node("Mul", ["a", "scale"], ["b"]),
        node("Mul", ["b", "row"], ["c"]),
        node("MatMul", ["x", "c"], ["y"]),
    ]
    found = read(model(nodes, {"w": W}), tmp_path)
    assert found["w"].axis == 0 and set(found) == {"w"}


def test_constants_of_plain_numbers_that_become_matrices_are_untraced(
    tmp_path: Path,
) -> None:
    nodes = [
        node("Constant", [], ["k"], value_floats=[float(n) for n in range(32)]),
        node("Reshape", ["k", "shape"], ["m"]),
        node("MatMul", ["x", "m"], ["y"]),
    ]
    tensor = read(model(nodes, {"shape": numbers(8, 4)}), tmp_path)["k"]
    assert (tensor.skip, tensor.shape, tensor.dtype) == ("untraced", (32,), "float32")
    np.testing.assert_array_equal(tensor.read(), np.arange(32))
    nodes[1:] = [node("Add", ["x", "k"], ["y"])]
    assert "k" not in read(model(nodes, {}), tmp_path)  # a bias


def test_packed_numbers_of_a_constant_are_read(tmp_path: Path) -> None:
    """As writers other than protobuf's own may store them."""
    nodes = [
        node("Constant", [], ["shape"], value_ints=[8, 4]),
        node("Constant", [], ["k"], value_floats=[1.0, 2.0]),
        node("Reshape", ["w", "shape"], ["m"]),
        node("MatMul", ["x", "m"], ["p"]),
        node("MatMul", ["p", "k"], ["y"]),
    ]
    data = model(nodes, {"w": W.reshape(8, 4, 1)}).SerializeToString()
    ints, packed_ints = b"\x40\x08\x40\x04", b"\x42\x02\x08\x04"
    floats = np.array([1, 2], "<f4").tobytes()
    plain = b"\x3d" + floats[:4] + b"\x3d" + floats[4:]
    packed = b"\x3a\x08" + floats
    assert len(ints) == len(packed_ints) and len(plain) == len(packed)
    assert ints in data and plain in data
    path = tmp_path / "m.onnx"
    path.write_bytes(data.replace(ints, packed_ints).replace(plain, packed))
    from step_cli.formats.open import open_checkpoint

    found = {tensor.name: tensor for tensor in open_checkpoint(path).tensors}
    assert found["w"].axis == 0
    np.testing.assert_array_equal(found["k"].read(), [1, 2])


def test_an_initializer_may_be_the_default_of_an_input(tmp_path: Path) -> None:
    proto = model([PRODUCT], {"w": W})
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, [8, 4]))
    assert read(proto, tmp_path)["w"].axis == 0


def test_a_constant_of_another_domain_is_none(tmp_path: Path) -> None:
    held = numpy_helper.from_array(ones(8, 4))
    nodes = [node("Constant", [], ["w"], value=held, domain="other"), PRODUCT]
    assert read(model(nodes, {}), tmp_path) == {}
