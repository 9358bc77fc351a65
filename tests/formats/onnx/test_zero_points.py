"""Which integer codes mean zero, for each product and behind each quantizer."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from attacks.onnx_attacks import Arrays
from formats.onnx.test_operators import MICROSOFT, node, numbers, ones, read

from step_cli.errors import InputError
from step_cli.formats.checkpoint import NamedTensor


def codes(*shape: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.zeros(shape, np.uint8)


def zero_of(tensor: NamedTensor) -> object:
    """The code, or the axis and its codes; `kind` where they are not known."""
    if tensor.skip is not None:
        return tensor.skip
    found = tensor.zero_point
    if found is None:
        return 0
    if found.axis is None:
        return int(found.codes)
    return found.axis, [int(code) for code in found.codes]


Q = ["x", "s", "z"]
PRODUCTS = [
    (node("MatMulInteger", ["x", "w", "", "z"], ["y"]), (8, 2), 1),
    (node("MatMulInteger", ["w", "x", "z"], ["y"]), (2, 8), 0),
    (node("ConvInteger", ["x", "w", "", "z"], ["y"]), (2, 8, 3, 3), 0),
    (node("QLinearConv", [*Q, "w", "s", "z", "s", "z"], ["y"]), (2, 8, 3, 3), 0),
    (
        node(
            "QLinearConv",
            [*Q, "w", "s", "z", "s", "z"],
            ["y"],
            domain=MICROSOFT,
            channels_last=1,
        ),
        (2, 8, 3, 3),
        0,
    ),
    (node("QLinearMatMul", [*Q, "w", "s", "z", "s", "z"], ["y"]), (8, 2), 1),
    (node("QLinearMatMul", ["w", "s", "z", *Q, "s", "z"], ["y"]), (2, 8), 0),
    (node("QGemm", [*Q, "w", "s", "z"], ["y"], domain=MICROSOFT), (8, 2), 1),
    (node("QGemm", [*Q, "w", "s", "z"], ["y"], domain=MICROSOFT, transB=1), (2, 8), 0),
    (
        node("DynamicQuantizeMatMul", ["x", "w", "s", "z"], ["y"], domain=MICROSOFT),
        (8, 2),
        1,
    ),
    (
        node(
            "MatMulIntegerToFloat",
            ["x", "w", "s", "s", "", "z"],
            ["y"],
            domain=MICROSOFT,
        ),
        (8, 2),
        1,
    ),
    (
        node(
            "QAttention",
            ["x", "w", "b", "s", "s", "", "", "z"],
            ["y"],
            domain=MICROSOFT,
        ),
        (8, 2),
        1,
    ),
]


@pytest.mark.parametrize(("product", "shape", "outputs"), PRODUCTS)
def test_each_product_tells_the_zero_of_its_codes(
    product: onnx.NodeProto, shape: tuple[int, ...], outputs: int, tmp_path: Path
) -> None:
    def zero(*values: int) -> object:
        zeros = np.array(values if len(values) > 1 else values[0], np.uint8)
        arrays: Arrays = {"w": codes(*shape), "z": zeros, "s": ones()}
        return zero_of(read([product], arrays, tmp_path)["w"])

    assert zero(0) == 0 and zero(7) == 7 and zero(7, 7) == 7
    assert zero(7, 9) == (outputs, [7, 9])
    with pytest.raises(InputError, match="3 zero points for 2 slices"):
        zero(7, 8, 9)
    without = {"w": codes(*shape), "s": ones()}
    assert zero_of(read([product], without, tmp_path)["w"]) == "kind"  # `z` is computed


def test_zero_points_of_a_stack_differ_along_its_last_axis(tmp_path: Path) -> None:
    product = node("MatMulInteger", ["x", "w", "", "z"], ["y"])
    arrays: Arrays = {"w": codes(3, 8, 2), "z": np.array([[[7, 9]]], np.uint8)}
    assert zero_of(read([product], arrays, tmp_path)["w"]) == (2, [7, 9])
    arrays["z"] = np.array([[[7, 9]], [[7, 8]], [[1, 2]]], np.uint8)
    assert zero_of(read([product], arrays, tmp_path)["w"]) == "kind"


def test_zero_points_of_recurrent_layers_are_those_of_directions(
    tmp_path: Path,
) -> None:
    inputs = ["x", "w", "x", "", "", "", "", "", "s", "z", "s", "z"]
    product = node("DynamicQuantizeLSTM", inputs, ["y"], domain=MICROSOFT)
    arrays: Arrays = {"w": codes(2, 8, 4), "s": ones()}
    for zeros, found in (
        ([3, 3], 3),
        ([3, 4], (0, [3, 4])),
        ([[3] * 4, [3] * 4], 3),
        ([[3] * 4, [4] * 4], "kind"),
    ):
        arrays["z"] = np.array(zeros, np.uint8)
        assert zero_of(read([product], arrays, tmp_path)["w"]) == found


@pytest.mark.parametrize(
    ("between", "zero"),
    [
        ([node("DequantizeLinear", ["w", "s", "z"], ["m"], domain=MICROSOFT)], 5),
        ([node("DequantizeLinear", ["w", "s"], ["m"])], 0),
        ([node("Cast", ["w"], ["c"], to=1), node("Mul", ["c", "s"], ["m"])], 0),
        (
            [node("DequantizeLinear", ["w", "s", "list"], ["m"], axis=1)],
            (1, [1, 2, 3, 4]),
        ),
        (
            [
                node("Transpose", ["w"], ["t"]),
                node("DequantizeLinear", ["t", "s", "list"], ["d"], axis=0),
                node("Transpose", ["d"], ["m"]),
            ],
            (1, [1, 2, 3, 4]),
        ),
        # Quantized once more, and back by the same zero point, or by another.
        (
            [
                node("DequantizeLinear", ["w", "s", "z"], ["d"]),
                node("QuantizeLinear", ["d", "s", "other"], ["q"]),
                node("DequantizeLinear", ["q", "s", "other"], ["m"]),
            ],
            5,
        ),
        (
            [
                node("DequantizeLinear", ["w", "s", "z"], ["d"]),
                node("QuantizeLinear", ["d", "s", "z"], ["q"]),
                node("DequantizeLinear", ["q", "s", "other"], ["m"]),
            ],
            "kind",
        ),
        # Codes that were changed before their zero point is told.
        (
            [
                node("Cast", ["w"], ["c"], to=5),
                node("DequantizeLinear", ["c", "s", "z"], ["m"]),
            ],
            "kind",
        ),
        (
            [
                node("Mul", ["w", "z"], ["c"]),
                node("DequantizeLinear", ["c", "s", "z"], ["m"]),
            ],
            "kind",
        ),
        ([node("DequantizeLinear", ["w", "s", "x"], ["m"])], "kind"),
        ([node("DequantizeLinear", ["w", "s", "blocks"], ["m"], block_size=4)], "kind"),
    ],
)
def test_zero_points_are_followed_through_the_graph(
    between: list[onnx.NodeProto], zero: object, tmp_path: Path
) -> None:
    arrays: Arrays = {"w": codes(8, 4), "s": ones(), "z": np.uint8(5)}  # type: ignore[dict-item]
    arrays |= {"list": np.array([1, 2, 3, 4], np.uint8), "other": np.uint8(6)}  # type: ignore[dict-item]
    arrays["blocks"] = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint8)
    nodes = [*between, node("MatMul", ["x", "m"], ["y"])]
    assert zero_of(read(nodes, arrays, tmp_path)["w"]) == zero


def test_zero_points_recur_along_a_stored_axis(tmp_path: Path) -> None:
    """Of which each piece is a row of the matrix that a Reshape makes."""
    nodes = [
        node("Reshape", ["w", "shape"], ["r"]),
        node("DequantizeLinear", ["r", "s", "z"], ["m"], axis=1),
        node("Gemm", ["x", "m"], ["y"], transB=1),
    ]
    arrays: Arrays = {"w": codes(2, 16), "s": ones(), "shape": numbers(8, 4)}
    arrays["z"] = np.array([1, 2, 3, 4], np.uint8)
    tensor = read(nodes, arrays, tmp_path)["w"]
    assert zero_of(tensor) == (1, [1, 2, 3, 4] * 4)
    assert [part.end[1] - part.begin[1] for part in tensor.parts] == [4] * 4
    # One for each row: the rows are cut out of one stored axis with the inputs.
    arrays |= {"w": codes(1, 16), "shape": numbers(2, 8), "z": np.uint8([1, 2])}  # type: ignore[dict-item]
    nodes[1] = node("DequantizeLinear", ["r", "s", "z"], ["m"], axis=0)
    assert zero_of(read(nodes, arrays, tmp_path)["w"]) == (1, [1] * 8 + [2] * 8)
    # One for each row, and the rows lie along two stored axes.
    arrays |= {"w": codes(2, 1, 16), "shape": numbers(4, 8)}
    arrays["z"] = np.array([1, 2, 3, 4], np.uint8)
    assert zero_of(read(nodes, arrays, tmp_path)["w"]) == "kind"


def test_codes_made_in_the_graph_may_be_dequantized_by_hand(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        node("Cast", ["q"], ["c"], to=1),
        node("Mul", ["c", "s"], ["m"]),
        node("MatMul", ["x", "m"], ["y"]),
    ]
    for zero, found in ((0, 0), (3, "kind")):
        arrays: Arrays = {"w": ones(8, 4), "s": ones(), "z": np.array(zero, np.uint8)}
        assert zero_of(read(nodes, arrays, tmp_path)["w"]) == found


def test_parts_may_have_a_zero_each(tmp_path: Path) -> None:
    """As of a matrix of which two products use a half each."""

    def zero(first: int, second: int, axis: int) -> object:
        nodes = [node("Split", ["w"], ["a", "b"], axis=axis, num_outputs=2)]
        for name, point in (("a", "za"), ("b", "zb")):
            product = node("MatMulInteger", ["x", name, "", point], [f"y{name}"])
            nodes.append(product)
        arrays: Arrays = {"w": codes(8, 4)}
        arrays |= {"za": np.array(first, np.uint8), "zb": np.array(second, np.uint8)}
        return zero_of(read(nodes, arrays, tmp_path)["w"])

    assert zero(7, 7, 1) == 7
    assert zero(7, 9, 1) == (1, [7, 7, 9, 9])
    assert zero(0, 9, 0) == (0, [0] * 4 + [9] * 4)


def test_products_that_take_other_codes_for_zero_leave_it_unknown(
    tmp_path: Path,
) -> None:
    nodes = [
        node("MatMulInteger", ["x", "w", "", "a"], ["p"]),
        node("MatMulInteger", ["p", "w", "", "b"], ["y"]),
    ]
    arrays: Arrays = {"w": codes(4, 4)}
    arrays |= {"a": np.array(1, np.uint8), "b": np.array(2, np.uint8)}
    assert zero_of(read(nodes, arrays, tmp_path)["w"]) == "kind"


def test_float_weights_are_judged_as_they_are_stored(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        node("MatMulInteger", ["x", "q", "", "z"], ["y"]),
    ]
    arrays: Arrays = {"w": ones(8, 4), "s": ones(), "z": np.array(5, np.uint8)}
    assert zero_of(read(nodes, arrays, tmp_path)["w"]) == 0
    nodes[1] = node("MatMulInteger", ["x", "q", "", "other"], ["y"])
    arrays["other"] = np.array(6, np.uint8)
    assert zero_of(read(nodes, arrays, tmp_path)["w"]) == "kind"


def test_float8_codes_have_the_zero_0(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", ["w", "s", "z"], ["m"]),
        node("MatMul", ["x", "m"], ["y"]),
    ]
    arrays: Arrays = {"w": np.ones((8, 4), ml_dtypes.float8_e4m3fn), "s": ones()}
    arrays["z"] = np.zeros((), ml_dtypes.float8_e4m3fn)
    assert zero_of(read(nodes, arrays, tmp_path)["w"]) == 0
    arrays["z"] = np.ones((), ml_dtypes.float8_e4m3fn)
    assert zero_of(read(nodes, arrays, tmp_path)["w"]) == "kind"


def test_a_sliced_weight_has_the_zeros_of_its_part(tmp_path: Path) -> None:
    nodes = [
        node("Slice", ["w", "begin", "end", "axis"], ["s1"]),
        node("DequantizeLinear", ["s1", "s", "z"], ["m"], axis=1),
        node("MatMul", ["x", "m"], ["y"]),
    ]
    arrays: Arrays = {"w": codes(8, 6), "s": ones(), "z": np.array([3, 4], np.uint8)}
    arrays |= {"begin": numbers(2), "end": numbers(4), "axis": numbers(1)}
    tensor = read(nodes, arrays, tmp_path)["w"]
    assert zero_of(tensor) == (1, [0, 0, 3, 4, 0, 0])
    assert [(part.begin, part.end) for part in tensor.parts] == [((0, 2), (8, 4))]
