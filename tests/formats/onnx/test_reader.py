import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from attacks.onnx_attacks import linear, model, nested_graphs, with_external_data
from onnx import TensorProto, helper, numpy_helper

import step_cli
from step_cli.errors import InputError
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.open import open_checkpoint

W = np.arange(32, dtype=np.float32).reshape(8, 4)
node = helper.make_node


def read(proto: onnx.ModelProto, tmp_path: Path) -> dict[str, NamedTensor]:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return {tensor.name: tensor for tensor in open_checkpoint(path).tensors}


def saved(
    nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray], tmp_path: Path
) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, arrays).SerializeToString())
    return path


def axis_of(nodes: list[onnx.NodeProto], tmp_path: Path, shape=(8, 4)) -> object:  # type: ignore[no-untyped-def]
    tensor = read(model(nodes, {"w": np.ones(shape, np.float32)}), tmp_path)["w"]
    return tensor.axis if tensor.is_weight else tensor.skip


@pytest.mark.parametrize(
    ("nodes", "shape", "axis"),
    [
        ([node("Conv", ["x", "w"], ["y"])], (6, 8, 3, 3), 1),
        ([node("Conv", ["x", "w"], ["y"])], (6, 8, 3), 1),
        ([node("Gemm", ["x", "w"], ["y"])], (8, 4), 0),
        ([node("Gemm", ["x", "w"], ["y"], transB=1)], (8, 4), 1),
        ([node("Gemm", ["w", "x"], ["y"])], (8, 4), 1),
        ([node("Gemm", ["w", "x"], ["y"], transA=1)], (8, 4), 0),
        ([node("Gemm", ["x", "x", "w"], ["y"])], (8, 4), "consumer"),
        ([node("MatMul", ["x", "w"], ["y"])], (8, 4), 0),
        ([node("MatMul", ["x", "w"], ["y"])], (3, 8, 4), 1),
        ([node("MatMul", ["w", "x"], ["y"])], (8, 4), 1),
        ([node("MatMul", ["x", "w"], ["y"])], (8,), None),
        ([node("ConvTranspose", ["x", "w"], ["y"])], (8, 4, 2, 2), "consumer"),
        ([node("Gather", ["w", "x"], ["y"])], (8, 4), "consumer"),
        ([node("MatMul", ["x", "w"], ["y"], domain="other")], (8, 4), "consumer"),
        (
            [node("Mul", ["w", "x"], ["v"]), node("MatMul", ["x", "v"], ["y"])],
            (8, 4),
            "consumer",
        ),
    ],
)
def test_the_node_tells_the_group_axis(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], axis: object, tmp_path: Path
) -> None:
    assert axis_of(nodes, tmp_path, shape) == axis


@pytest.mark.parametrize("op", ["Transpose", "Cast", "Identity"])
def test_nodes_between_are_looked_through(op: str, tmp_path: Path) -> None:
    attributes = {"Transpose": {"perm": [1, 0]}, "Cast": {"to": TensorProto.FLOAT}}
    between = node(op, ["w"], ["v"], **attributes.get(op, {}))
    nodes = [between, node("MatMul", ["x", "v"], ["y"])]
    assert axis_of(nodes, tmp_path) == (1 if op == "Transpose" else 0)


def test_permutations_are_followed_one_after_another(tmp_path: Path) -> None:
    shape = (2, 3, 4)
    for one in ([0, 1, 2], [2, 0, 1], [1, 2, 0], None):
        for other in ([2, 1, 0], [1, 0, 2]):
            perm = {} if one is None else {"perm": one}
            nodes = [
                node("Transpose", ["w"], ["a"], **perm),
                node("Transpose", ["a"], ["b"], perm=other),
                node("MatMul", ["x", "b"], ["y"]),
            ]
            labels = np.transpose(np.arange(3), None)  # axes by their own number
            after = [labels[i] for i in (one or [2, 1, 0])]
            after = [after[i] for i in other]
            assert axis_of(nodes, tmp_path, shape) == after[-2]


def test_a_cycle_of_nodes_ends(tmp_path: Path) -> None:
    nodes = [
        node("Identity", ["b"], ["a"]),
        node("Identity", ["a"], ["b"]),
        node("MatMul", ["x", "a"], ["y"]),
    ]
    assert axis_of(nodes, tmp_path) == "consumer"


def quantised(zero: object, axis: int | None, perm: bool) -> onnx.ModelProto:
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        node("DequantizeLinear", ["w", "scale", "zero"], ["d"], **attributes),
        *([node("Transpose", ["d"], ["t"], perm=[1, 0])] if perm else []),
        node("MatMul", ["x", "t" if perm else "d"], ["y"]),
    ]
    zeros = np.asarray(zero, np.int8)
    arrays = {"w": W.astype(np.int8), "scale": np.ones(zeros.shape, np.float32)}
    return model(nodes, {**arrays, "zero": zeros})


def test_integer_codes_come_with_their_zero_point(tmp_path: Path) -> None:
    tensor = read(quantised(3, None, False), tmp_path)["w"]
    assert (tensor.axis, tensor.dtype, tensor.is_weight) == (0, "int8", True)
    assert tensor.zero_point is not None and tensor.zero_point.axis is None
    assert tensor.zero_point.codes == 3
    tensor = read(quantised([1, 2, 3, 4], 1, True), tmp_path)["w"]
    assert tensor.axis == 1 and tensor.zero_point is not None
    assert tensor.zero_point.axis == 1
    np.testing.assert_array_equal(tensor.zero_point.codes, [1, 2, 3, 4])
    tensor = read(quantised([5] * 4, 1, False), tmp_path)["w"]
    assert tensor.zero_point is not None and tensor.zero_point.axis is None
    with pytest.raises(InputError, match="3 zero points for 4 slices"):
        read(quantised([1, 2, 3], 1, False), tmp_path)


def test_a_zero_point_is_looked_for_behind_identities(tmp_path: Path) -> None:
    dequantize = node("DequantizeLinear", ["w", "s", "z2"], ["d"])
    nodes = [node("Identity", ["z"], ["z1"]), node("Identity", ["z1"], ["z2"])]
    nodes += [dequantize, node("MatMul", ["x", "d"], ["y"])]
    tensors = {
        "w": np.zeros((8, 4), np.int8),
        "s": np.float32(0.5),
        "z": np.int8(3),
    }
    tensor = read(model(nodes, tensors), tmp_path)["w"]
    assert tensor.zero_point is not None and tensor.zero_point.codes == 3
    nodes[0] = node("Identity", ["z2"], ["z1"])  # leads back to itself
    tensor = read(model(nodes, tensors), tmp_path)["w"]
    assert (tensor.zero_point, tensor.skip) == (None, "kind")


def test_a_float_weight_behind_q_and_dq_has_no_zero_point(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Gemm", ["x", "d"], ["y"], transB=1),
    ]
    arrays = {"w": W, "s": np.ones((), np.float32), "z": np.ones((), np.int8)}
    tensor = read(model(nodes, arrays), tmp_path)["w"]
    assert (tensor.axis, tensor.zero_point, tensor.is_weight) == (1, None, True)


def test_constants_and_subgraphs_count(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [node("MatMul", ["x", "inner"], ["i"]), node("MatMul", ["i", "outer"], ["o"])],
        "then",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(W, "inner")],
    )
    constant = numpy_helper.from_array(W.T.copy(), "ignored")
    nodes = [
        node("Constant", [], ["c"], value=constant),
        node("MatMul", ["x", "c"], ["p"]),
        node("If", ["p"], ["y"], then_branch=inner, else_branch=inner),
    ]
    found = read(model(nodes, {"outer": W}), tmp_path)
    assert set(found) == {"outer", "c", "inner", "then/inner"}
    assert all(tensor.is_weight and tensor.axis == 0 for tensor in found.values())
    np.testing.assert_array_equal(found["c"].read(), W.T)


@pytest.mark.parametrize(
    "kind", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "INT8", "INT64"]
)
@pytest.mark.parametrize("raw", [True, False])
def test_each_type_reads_as_onnx_reads_it(kind: str, raw: bool, tmp_path: Path) -> None:
    number = TensorProto.DataType.Value(kind)
    values = np.array([[0, 1, -2, 3.5], [-0.5, 8, 0, 0.25]], np.float64)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    array = values.astype(dtype)
    vals = array.tobytes() if raw else array.astype(dtype).ravel().tolist()
    tensor = helper.make_tensor("w", number, array.shape, vals, raw=raw)
    proto = model([node("MatMul", ["x", "w"], ["y"])], {})
    proto.graph.initializer.append(tensor)
    found = read(proto, tmp_path)["w"].read()
    expected = numpy_helper.to_array(tensor)
    assert found.dtype == dtype and found.tobytes() == expected.tobytes()


def test_four_bit_codes_are_unpacked(tmp_path: Path) -> None:
    codes = np.array([[-8, 7, 0], [3, -1, 5]], ml_dtypes.int4)
    tensor = numpy_helper.from_array(codes, "w")
    proto = model([node("MatMul", ["x", "w"], ["y"])], {})
    proto.graph.initializer.append(tensor)
    found = read(proto, tmp_path)["w"]
    assert found.dtype == "int4"
    np.testing.assert_array_equal(found.read(), codes.astype(np.int8))


def function(
    name: str, inputs: list[str], *nodes: onnx.NodeProto
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, inputs, ["o"], list(nodes), opsets)


def calling(
    nodes: list[onnx.NodeProto], *functions: onnx.FunctionProto
) -> onnx.ModelProto:
    proto = model(nodes, {"w": W})
    proto.functions.extend(functions)
    return proto


MATMUL = function("Lin", ["a", "b"], node("MatMul", ["a", "b"], ["o"]))
TURNED = function(
    "Turned",
    ["b", "a"],
    node("Transpose", ["b"], ["t"]),
    node("Lin", ["a", "t"], ["o"], domain="f"),
)


@pytest.mark.parametrize(
    ("nodes", "axis"),
    [
        ([node("Lin", ["x", "w"], ["y"], domain="f")], 0),
        ([node("Lin", ["w", "x"], ["y"], domain="f")], 1),
        ([node("Turned", ["w", "x"], ["y"], domain="f")], 1),
        ([node("Lin", ["x", "w"], ["y"], domain="g")], None),
        (
            [
                node("Transpose", ["w"], ["b"]),  # also a name within the function
                node("Lin", ["x", "b"], ["y"], domain="f"),
            ],
            1,
        ),
    ],
)
def test_functions_count_where_they_are_called(
    nodes: list[onnx.NodeProto], axis: int | None, tmp_path: Path
) -> None:
    tensor = read(calling(nodes, MATMUL, TURNED), tmp_path)["w"]
    assert (tensor.axis, tensor.is_weight) == (axis, axis is not None)


def test_a_function_sees_its_inputs_only(tmp_path: Path) -> None:
    inside = function("Lin", ["a"], node("MatMul", ["a", "w"], ["o"]))
    proto = calling([node("Lin", ["x"], ["y"], domain="f")], inside)
    assert read(proto, tmp_path)["w"].skip == "consumer"


def test_a_constant_of_a_function_is_one_weight(tmp_path: Path) -> None:
    constant = node("Constant", [], ["c"], value=numpy_helper.from_array(W))
    inside = function("Lin", ["a"], constant, node("MatMul", ["a", "c"], ["o"]))
    calls = [node("Lin", [x], [y], domain="f") for x, y in (("x", "h"), ("h", "y"))]
    found = read(calling(calls, inside), tmp_path)
    assert [name for name, tensor in found.items() if tensor.is_weight] == ["c"]
    np.testing.assert_array_equal(found["c"].read(), W)


def test_functions_that_never_end_are_refused(tmp_path: Path) -> None:
    call = [node("F0", ["x"], ["y"], domain="f")]
    itself = function("F0", ["a"], node("F0", ["a"], ["o"], domain="f"))
    with pytest.raises(InputError, match="nested more than 64 deep"):
        read(calling(call, itself), tmp_path)
    twice = [
        function(
            f"F{i}",
            ["a"],
            *(node(f"F{i + 1}", ["a"], [o], domain="f") for o in ("o", "p")),
        )
        for i in range(40)
    ]
    with pytest.raises(InputError, match="more than 10000 graphs and calls"):
        read(calling(call, *twice), tmp_path)


def test_external_data_is_mapped(tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "m.onnx", {})
    found = open_checkpoint(path)
    tensor = found.tensors[0]
    expected = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    np.testing.assert_array_equal(tensor.read(), expected)
    assert {file.name for file in found.files} == {"m.onnx", "m.data"}
    with_external_data(path, {"offset": None, "length": None})
    np.testing.assert_array_equal(open_checkpoint(path).tensors[0].read(), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"location": "../x"}, "outside the model directory"),
        ({"location": "/dev/zero"}, "outside the model directory"),
        ({"location": ""}, "outside the model directory"),
        ({"location": "link"}, "outside the model directory"),
        ({"location": "folder/secret"}, "outside the model directory"),
        ({"location": "none"}, "no such file"),
        ({"location": "m\0.data"}, "null byte|null character"),
        ({"location": "x" * 5000}, "name too long"),
        ({"offset": "1"}, "needs 129 bytes, m.data has 128"),
        ({"offset": str(2**62)}, "truncated"),
        ({"offset": "-1"}, "is no size"),
        ({"offset": "x"}, "is no size"),
        ({"length": str(2**62)}, "length"),
        ({"length": "64"}, "needs 128 bytes"),
    ],
)
def test_external_data_is_checked_before_it_is_read(
    changes: dict[str, str | None], words: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(bytes(128))
    folder = tmp_path / "model"
    folder.mkdir()
    os.symlink(outside / "secret", folder / "link")
    os.symlink(outside, folder / "folder")
    path = with_external_data(folder / "m.onnx", changes)
    with pytest.raises(InputError, match=words) as caught:
        open_checkpoint(path)
    assert caught.value.tensor == "w"


def test_external_data_through_the_blobs_of_the_cache_works(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0f1e"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    with_external_data(blobs / "m.onnx", {})
    for name in ("m.onnx", "m.data"):
        os.symlink(blobs / name, snapshot / name)
    assert open_checkpoint(snapshot / "m.onnx").tensors[0].read().shape == (8, 4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "file is empty"),
        (b"\x08\x0a\x12\x05hello", "no graph"),
        (b"\xff" * 50, "not an ONNX model"),
        (linear().SerializeToString()[:-3], "not an ONNX model"),
        (nested_graphs(5000), "nested more than"),
        (b"PK\x03\x04" + bytes(50), "content is torch"),
    ],
)
def test_what_is_no_onnx_model_is_refused(
    data: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        open_checkpoint(path)


def test_inline_data_must_fill_its_shape(tmp_path: Path) -> None:
    proto = linear()
    proto.graph.initializer[0].dims[0] = 9
    with pytest.raises(InputError, match="needs 144 bytes"):
        read(proto, tmp_path)
    proto.graph.initializer[0].dims[0] = -8
    with pytest.raises(InputError, match="negative size"):
        read(proto, tmp_path)


@pytest.mark.parametrize("kind", ["FLOAT", "INT4", "BFLOAT16", "INT64", "COMPLEX64"])
def test_numbers_must_fill_their_shape(kind: str, tmp_path: Path) -> None:
    """INT4 was found by fuzzing (onnx-1-130)."""
    tensor = TensorProto(name="w", dims=[3, 1])
    tensor.data_type = TensorProto.DataType.Value(kind)
    tensor.int32_data.append(1)
    tensor.int64_data.append(1)
    tensor.float_data.append(1)
    proto = model([node("MatMul", ["x", "w"], ["y"])], {})
    proto.graph.initializer.append(tensor)
    with pytest.raises(InputError, match=r"needs \d+ (numbers|bytes), it has"):
        read(proto, tmp_path)["w"].read()


def test_every_other_initializer_is_listed(tmp_path: Path) -> None:
    proto = linear()
    proto.graph.initializer.append(helper.make_tensor("s", 8, [1], [b"text"]))
    found = read(proto, tmp_path)
    assert {name: tensor.skip for name, tensor in found.items()} == {
        "w": None,
        "b": "consumer",
        "s": "consumer",
    }
    assert found["s"].dtype == "string"


def test_a_weight_used_along_two_axes_is_judged_along_both(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["p"]),
        node("Gemm", ["p", "w"], ["y"], transB=1),
    ]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, {"w": W}).SerializeToString())
    found = open_checkpoint(path)
    layers = [
        (tensor.name, tensor.axis, tensor.output_axis) for tensor in found.tensors
    ]
    assert layers == [("w", 0, 1), ("w", 1, 0)] and "axes 0 and 1" in found.notes[0]


def test_a_vector_has_no_groups(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "m"], ["h"]), node("MatMul", ["h", "v"], ["y"])]
    arrays = {"m": W * 0, "v": np.ones(4, np.float32)}
    (found,) = step_cli.verify(saved(nodes, arrays, tmp_path), strict=True).checkpoints
    assert [layer.name for layer in found.layers] == ["m"]
    assert [(one.name, one.reason) for one in found.skipped] == [("v", "rank")]
    assert found.ok and found.totals.coverage == 1


def test_shapes_that_are_none_are_refused(tmp_path: Path) -> None:
    proto = model([node("MatMulInteger", ["x", "w", "", "z"], ["y"])], {})
    proto.graph.initializer.append(numpy_helper.from_array(W.astype(np.int8), "w"))
    proto.graph.initializer.append(numpy_helper.from_array(np.int8([1, 2]), "z"))
    proto.graph.initializer[0].dims[0] = -8
    with pytest.raises(InputError, match="negative size"):
        read(proto, tmp_path)


def test_reading_imports_neither_torch_nor_onnx(tmp_path: Path) -> None:
    read(linear(), tmp_path)
    code = (
        "import sys; from pathlib import Path;"
        "from step_cli.formats.open import open_checkpoint;"
        "open_checkpoint(Path(sys.argv[1])).tensors[0].read();"
        "assert not {'torch', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.onnx")], check=True)
