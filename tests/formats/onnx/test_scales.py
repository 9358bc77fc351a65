"""What codes are multiplied by: at each product, on the way to it, and behind it."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from attacks.onnx_attacks import Arrays
from formats.onnx.test_operators import MICROSOFT, node, numbers, read
from numpy.typing import NDArray

Array = NDArray[Any]
UNKNOWN = "unknown"


def codes(*shape: int) -> Array:
    return np.zeros(shape, np.int8)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def scale_of(
    nodes: list[onnx.NodeProto], arrays: Arrays, tmp_path: Path
) -> tuple[Any, list[int]]:
    """The scale of ``w`` for all of its codes, and the axes along which it differs."""
    tensor = read(nodes, arrays, tmp_path)["w"]
    found = tensor.quantized
    assert found is not None
    if found.scales is None:
        return UNKNOWN, sorted(found.scale_axes)
    at = np.arange(np.prod(tensor.shape)).reshape(tensor.shape)
    values = np.ones(tensor.shape, np.float32)
    for scale in found.scales:
        values = values * scale.at(at, tensor.shape)
    return values.tolist(), sorted(found.scale_axes)


Q = ["x", "t", "z"]
PRODUCTS = [
    (node("QLinearMatMul", [*Q, "w", "s", "z", "t", "z"], ["y"]), (4, 2), 1),
    (node("QLinearMatMul", ["w", "s", "z", *Q, "t", "z"], ["y"]), (2, 4), 0),
    (node("QLinearConv", [*Q, "w", "s", "z", "t", "z"], ["y"]), (2, 4, 1, 1), 0),
    (
        node(
            "QLinearConv",
            [*Q, "w", "s", "z", "t", "z"],
            ["y"],
            domain=MICROSOFT,
            channels_last=1,
        ),
        (2, 4, 1, 1),
        0,
    ),
    (node("QGemm", [*Q, "w", "s", "z"], ["y"], domain=MICROSOFT), (4, 2), 1),
    (node("QGemm", [*Q, "w", "s", "z"], ["y"], domain=MICROSOFT, transB=1), (2, 4), 0),
    (
        node("DynamicQuantizeMatMul", ["x", "w", "s", "z"], ["y"], domain=MICROSOFT),
        (4, 2),
        1,
    ),
    (
        node(
            "MatMulIntegerToFloat",
            ["x", "w", "t", "s", "", "z"],
            ["y"],
            domain=MICROSOFT,
        ),
        (4, 2),
        1,
    ),
    (
        node(
            "QAttention",
            ["x", "w", "b", "t", "s", "", "", "z"],
            ["y"],
            domain=MICROSOFT,
        ),
        (4, 2),
        1,
    ),
]


@pytest.mark.parametrize(("product", "shape", "outputs"), PRODUCTS)
def test_each_product_tells_the_scale_of_its_codes(
    product: onnx.NodeProto, shape: tuple[int, ...], outputs: int, tmp_path: Path
) -> None:
    arrays: Arrays = {"w": codes(*shape), "t": floats(9), "z": np.zeros((), np.int8)}
    one = np.full(shape, 0.5, np.float32)
    found = scale_of([product], {**arrays, "s": floats(0.5)}, tmp_path)
    assert found == (one.tolist(), [])
    each = np.moveaxis(one, outputs, -1) * floats(2, 4)
    found = scale_of([product], {**arrays, "s": floats(1, 2)}, tmp_path)
    assert found == (np.moveaxis(each, -1, outputs).tolist(), [outputs])
    # Computed: of a product it is one number, or one for each output.
    assert scale_of([product], arrays, tmp_path) == (UNKNOWN, [outputs])


def test_scales_of_recurrent_layers_are_those_of_directions_or_gates(
    tmp_path: Path,
) -> None:
    inputs = ["x", "w", "x", "", "", "", "", "", "s", "z", "s", "z"]
    product = node("DynamicQuantizeLSTM", inputs, ["y"], domain=MICROSOFT)
    arrays: Arrays = {"w": codes(2, 3, 4), "z": np.zeros(2, np.int8)}
    found, axes = scale_of([product], {**arrays, "s": floats(2, 3)}, tmp_path)
    assert np.array(found)[:, 0, 0].tolist() == [2, 3] and axes == [0]
    gates = floats(1, 2, 3, 4, 5, 6, 7, 8).reshape(2, 4)
    found, axes = scale_of([product], {**arrays, "s": gates}, tmp_path)
    assert np.array(found)[:, 0].tolist() == gates.tolist() and axes == [0, 2]


def behind(*last: onnx.NodeProto, op: str = "MatMulInteger") -> list[onnx.NodeProto]:
    return [
        node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        node(op, ["q", "w", "qz"], ["p"]),
        node("Cast", ["p"], ["c"], to=1),
        *last,
    ]


def test_the_scale_of_an_integer_product_stands_behind_it(tmp_path: Path) -> None:
    arrays: Arrays = {"w": codes(4, 2), "s": floats(3, 5)}
    both = [node("Mul", ["qs", "s"], ["b"]), node("Mul", ["c", "b"], ["y"])]
    rows = [[3, 5]] * 4
    assert scale_of(behind(*both), arrays, tmp_path) == (rows, [1])
    turned = [node("Mul", ["s", "qs"], ["b"]), node("Mul", ["b", "c"], ["y"])]
    assert scale_of(behind(*turned), arrays, tmp_path) == (rows, [1])
    after = [node("Mul", ["c", "qs"], ["b"]), node("Mul", ["b", "s"], ["y"])]
    assert scale_of(behind(*after), arrays, tmp_path) == (rows, [1])
    kernel: Arrays = {"w": codes(2, 4, 1), "s": floats(3, 5).reshape(1, 2, 1)}
    found, axes = scale_of(behind(*both, op="ConvInteger"), kernel, tmp_path)
    assert np.array(found)[:, 0, 0].tolist() == [3, 5] and axes == [0]


def test_no_scale_is_guessed_behind_an_integer_product(tmp_path: Path) -> None:
    both = [node("Mul", ["qs", "s"], ["b"]), node("Mul", ["c", "b"], ["y"])]
    arrays: Arrays = {"w": codes(4, 2), "s": floats(3, 5)}
    unknown = (UNKNOWN, [1])
    add = [node("Add", ["c", "s"], ["y"])]
    assert scale_of(behind(*add), arrays, tmp_path) == unknown
    twice = [*both, node("Neg", ["p"], ["n"])]
    assert scale_of(behind(*twice), arrays, tmp_path) == unknown
    assert scale_of(behind(), arrays, tmp_path) == unknown
    for wrong in (floats(1, 2, 3), np.array([3, 5]), np.ones((2, 2), np.float32)):
        assert scale_of(behind(*both), {**arrays, "s": wrong}, tmp_path) == unknown
    # On the left, numbers in a row are those of the other factor.
    left = behind(*both)
    left[1] = node("MatMulInteger", ["w", "q", "", "qz"], ["p"])
    square: Arrays = {"w": codes(2, 4), "s": floats(3, 5)}
    assert scale_of(left, square, tmp_path) == (UNKNOWN, [0])
    found = scale_of(left, {**square, "s": floats(3)}, tmp_path)
    assert found == ([[3] * 4] * 2, [])


@pytest.mark.parametrize(
    ("between", "shape", "expected", "axes"),
    [
        ([node("DequantizeLinear", ["w", "s"], ["m"], axis=1)], (4, 2), [[3, 5]], [1]),
        (
            [
                node("Transpose", ["w"], ["t"]),
                node("DequantizeLinear", ["t", "s"], ["m"], axis=-1),
            ],
            (2, 4),
            [[3], [5]],
            [0],
        ),
        (
            [
                node("Cast", ["w"], ["c"], to=1),
                node("Mul", ["s", "c"], ["m"]),
            ],
            (4, 2),
            [[3, 5]],
            [1],
        ),
        (
            [
                node("Cast", ["w"], ["c"], to=1),
                node("Div", ["c", "s"], ["m"]),
            ],
            (4, 2),
            [[1 / 3, 1 / 5]],
            [1],
        ),
        (
            [
                node("DequantizeLinear", ["w", "s"], ["d"], axis=1),
                node("Mul", ["d", "column"], ["m"]),
            ],
            (4, 2),
            [[3, 5], [6, 10], [9, 15], [12, 20]],
            [0, 1],
        ),
        # By a reshaped constant, whose numbers are not read.
        (
            [
                node("Cast", ["w"], ["c"], to=1),
                node("Unsqueeze", ["s", "zero"], ["u"]),
                node("Mul", ["c", "u"], ["m"]),
            ],
            (4, 2),
            None,
            [0, 1],
        ),
        # Rounded to other codes on its way, which changes no size.
        (
            [
                node("DequantizeLinear", ["w", "s"], ["d"], axis=1),
                node("QuantizeLinear", ["d", "one"], ["q"]),
                node("DequantizeLinear", ["q", "one"], ["m"]),
            ],
            (4, 2),
            [[3, 5]],
            [1],
        ),
        # A list for an axis of another size.
        ([node("DequantizeLinear", ["w", "s"], ["m"], axis=0)], (4, 2), None, [0]),
        ([node("DequantizeLinear", ["w", "x"], ["m"], axis=0)], (4, 2), None, [0]),
        ([node("DequantizeLinear", ["w", "x"], ["m"], axis=5)], (4, 2), None, [0, 1]),
    ],
)
def test_scales_are_followed_through_the_graph(
    between: list[onnx.NodeProto],
    shape: tuple[int, int],
    expected: list[list[float]] | None,
    axes: list[int],
    tmp_path: Path,
) -> None:
    arrays: Arrays = {"w": codes(*shape), "s": floats(3, 5), "zero": numbers(0)}
    arrays |= {"one": floats(9), "column": floats(1, 2, 3, 4)[:, None]}
    nodes = [*between, node("MatMul", ["x", "m"], ["y"])]
    found, differs = scale_of(nodes, arrays, tmp_path)
    assert differs == axes
    if expected is None:
        assert found == UNKNOWN
    else:
        wide = np.broadcast_to(np.array(expected, np.float32), shape)
        np.testing.assert_allclose(found, wide, rtol=1e-6)


def test_a_block_of_inputs_has_one_scale(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["d"], axis=1, block_size=4),
        node("Gemm", ["x", "d"], ["y"], transB=1),
    ]
    arrays: Arrays = {"w": codes(2, 10), "s": floats(1, 2, 3, 4, 5, 6).reshape(2, 3)}
    found, axes = scale_of(nodes, arrays, tmp_path)
    assert found == [[1] * 4 + [2] * 4 + [3] * 2, [4] * 4 + [5] * 4 + [6] * 2]
    assert axes == [0, 1]
    powers = np.array([[1, 2, 4], [8, 16, 32]], np.float32)
    arrays["s"] = powers.astype(ml_dtypes.float8_e8m0fnu)
    found, _ = scale_of(nodes, arrays, tmp_path)
    assert found[1] == [8] * 4 + [16] * 4 + [32] * 2


def test_parts_of_a_tensor_have_the_scale_of_the_whole(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["d"], axis=1),
        node("Split", ["d"], ["a", "b"], axis=1, num_outputs=2),
        node("MatMul", ["x", "a"], ["p"]),
        node("MatMul", ["x", "b"], ["y"]),
    ]
    arrays: Arrays = {"w": codes(4, 4), "s": floats(1, 2, 3, 4)}
    assert scale_of(nodes, arrays, tmp_path) == ([[1, 2, 3, 4]] * 4, [1])
    # A scale for each part is known for none of them, but it is no scale of inputs.
    nodes = [
        node("Split", ["w"], ["a", "b"], axis=1, num_outputs=2),
        node("DequantizeLinear", ["a", "s"], ["ad"], axis=1),
        node("DequantizeLinear", ["b", "t"], ["bd"], axis=1),
        node("MatMul", ["x", "ad"], ["p"]),
        node("MatMul", ["x", "bd"], ["y"]),
    ]
    arrays |= {"s": floats(1, 2), "t": floats(3, 4)}
    assert scale_of(nodes, arrays, tmp_path) == (UNKNOWN, [1])


def test_floats_have_no_scale(tmp_path: Path) -> None:
    nodes = [node("Mul", ["w", "s"], ["m"]), node("MatMul", ["x", "m"], ["y"])]
    arrays: Arrays = {"w": np.ones((4, 2), np.float32), "s": floats(3, 5)}
    assert read(nodes, arrays, tmp_path)["w"].quantized is None


def test_many_scales_one_after_another_are_not_followed(tmp_path: Path) -> None:
    nodes = [node("Cast", ["w"], ["m0"], to=1)]
    nodes += [node("Mul", [f"m{i}", "s"], [f"m{i + 1}"]) for i in range(9)]
    arrays: Arrays = {"w": codes(4, 2), "s": floats(1, 2)}
    some = [*nodes[:9], node("MatMul", ["x", "m8"], ["y"])]
    assert scale_of(some, arrays, tmp_path) == ([[1, 256]] * 4, [1])
    every = [*nodes, node("MatMul", ["x", "m9"], ["y"])]
    assert scale_of(every, arrays, tmp_path) == (UNKNOWN, [1])
