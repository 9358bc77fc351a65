"""Each product, and each operator that is looked through: both verdicts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.defs
import pytest
from attacks.onnx_attacks import Arrays, model
from numpy.typing import NDArray
from onnx import TensorProto, helper

import step_cli
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.onnx.operators import (
    LOOKED_THROUGH,
    OTHER_PRODUCTS,
    PRODUCTS,
    looked_through_rows,
    other_product_rows,
    product_rows,
)
from step_cli.formats.open import open_checkpoint
from step_cli.nm.tensor_data import Part

MICROSOFT = "com.microsoft"
node = helper.make_node


def read(
    nodes: Sequence[onnx.NodeProto], arrays: Arrays, tmp_path: Path
) -> dict[str, NamedTensor]:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, arrays).SerializeToString())
    return {tensor.name: tensor for tensor in open_checkpoint(path).tensors}


def ones(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, np.float32)


def numbers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def ms(op: str, inputs: list[str], **attributes: object) -> onnx.NodeProto:
    return node(op, inputs, ["y"], domain=MICROSOFT, **attributes)


@pytest.mark.parametrize(
    ("product", "shape", "axes"),
    [
        (node("ConvInteger", ["x", "w"], ["y"]), (6, 8, 3, 3), (1, 0)),
        (node("MatMulInteger", ["x", "w"], ["y"]), (8, 4), (0, 1)),
        (node("MatMulInteger", ["w", "x"], ["y"]), (8, 4), (1, 0)),
        (node("QLinearConv", ["x", "s", "z", "w"], ["y"]), (6, 8, 3), (1, 0)),
        (node("QLinearMatMul", ["x", "s", "z", "w"], ["y"]), (8, 4), (0, 1)),
        (node("QLinearMatMul", ["w", "s", "", "x"], ["y"]), (8, 4), (1, 0)),
        (node("MatMul", ["x", "w"], ["y"]), (3, 8, 4), (1, 2)),
        (node("LSTM", ["x", "w"], ["y"]), (1, 32, 16), (2, 1)),
        (node("LSTM", ["x", "x", "w"], ["y"]), (2, 32, 8), (2, 1)),
        (node("GRU", ["x", "w"], ["y"]), (1, 24, 16), (2, 1)),
        (node("RNN", ["x", "x", "w"], ["y"]), (1, 8, 8), (2, 1)),
        (ms("DynamicQuantizeLSTM", ["x", "w", "x"]), (2, 16, 32), (1, 2)),
        (ms("DynamicQuantizeLSTM", ["x", "x", "w"]), (2, 8, 32), (1, 2)),
        (ms("FusedConv", ["x", "w", "b"]), (6, 8, 3, 3), (1, 0)),
        (ms("FusedGemm", ["x", "w"]), (8, 4), (0, 1)),
        (ms("FusedGemm", ["x", "w"], transB=1), (8, 4), (1, 0)),
        (ms("FusedMatMul", ["x", "w"]), (3, 8, 4), (1, 2)),
        (ms("FusedMatMul", ["x", "w"], transB=1), (3, 8, 4), (2, 1)),
        (ms("FusedMatMul", ["w", "x"], transA=1), (3, 8, 4), (1, 2)),
        (ms("FusedMatMul", ["x", "w"], transBatchB=1), (8, 3, 4), (0, 2)),
        (ms("FusedMatMul", ["x", "w"], transBatchB=1, transB=1), (8, 3, 5, 4), (3, 0)),
        (ms("FusedMatMul", ["w", "x"], transBatchA=1), (8, 3, 4), (2, 0)),
        (ms("QGemm", ["x", "s", "z", "w", "s", ""]), (8, 4), (0, 1)),
        (ms("QGemm", ["x", "s", "z", "w", "s", ""], transB=1), (8, 4), (1, 0)),
        (ms("DynamicQuantizeMatMul", ["x", "w", "s"]), (8, 4), (0, 1)),
        (ms("MatMulIntegerToFloat", ["x", "w", "s", "s"]), (8, 4), (0, 1)),
        (ms("Attention", ["x", "w", "b"], num_heads=2), (8, 24), (0, 1)),
        (ms("QAttention", ["x", "w", "b"], num_heads=2), (8, 24), (0, 1)),
    ],
)
def test_products_sum_over_one_axis(
    product: onnx.NodeProto,
    shape: tuple[int, ...],
    axes: tuple[int, int],
    tmp_path: Path,
) -> None:
    tensor = read([product], {"w": ones(*shape)}, tmp_path)["w"]
    assert (tensor.is_weight, tensor.skip) == (True, None)
    assert (tensor.axis, tensor.output_axis, tensor.parts) == (*axes, ())


@pytest.mark.parametrize(
    "other",
    [
        node("LSTM", ["x", "x", "x", "w"], ["y"]),  # a bias
        ms("FusedGemm", ["x", "x", "w"]),
        ms("QGemm", ["x", "s", "z", "x", "s", "z", "w"]),
        node("FusedMatMul", ["x", "w"], ["y"]),  # in another domain
        node("MatMul", ["x", "w"], ["y"], domain=MICROSOFT),
        node("Attention", ["x", "w", "x"], ["y"]),  # not that of com.microsoft
        node("QLinearConv", ["x", "s", "z", "x", "s", "z", "s", "z", "w"], ["y"]),
    ],
)
def test_other_inputs_and_domains_are_no_products(
    other: onnx.NodeProto, tmp_path: Path
) -> None:
    tensor = read([other], {"w": ones(8, 4)}, tmp_path)["w"]
    assert (tensor.skip, tensor.is_weight) == ("consumer", False)


@pytest.mark.parametrize(("domain", "name"), OTHER_PRODUCTS)
def test_factors_of_products_that_are_not_worked_out_are_untraced(
    domain: str, name: str, tmp_path: Path
) -> None:
    inputs = ["x"] * 9
    inputs[OTHER_PRODUCTS[domain, name][0]] = "w"
    product = node(name, inputs, ["y"], domain=domain)
    assert read([product], {"w": ones(8, 4)}, tmp_path)["w"].skip == "untraced"


def behind(
    between: list[onnx.NodeProto], arrays: Arrays, tmp_path: Path
) -> NamedTensor:
    """What is said of `w` behind nodes that make `m`, the factor of a MatMul."""
    product = node("MatMul", ["x", "m"], ["y"])
    return read([*between, product], arrays, tmp_path)["w"]


T, S = "Transpose", "Slice"
LOOKS = [
    ([node(T, ["w"], ["m"])], {}, (12, 16), 1, ()),
    ([node("Cast", ["w"], ["m"], to=TensorProto.FLOAT16)], {}, (16, 12), 0, ()),
    ([node("CastLike", ["w", "x"], ["m"])], {}, (16, 12), 0, ()),
    ([node("Identity", ["w"], ["m"], domain="ai.onnx")], {}, (16, 12), 0, ()),
    ([node("Reshape", ["w", "a"], ["m"])], {"a": (16, 12)}, (1, 16, 12), 1, ()),
    ([node("Reshape", ["w", "a"], ["m"])], {"a": (0, -1)}, (16, 3, 4), 0, ()),
    # Each row of 16 becomes two of 8: groups of 8 along it.
    (
        [node("Reshape", ["w", "a"], ["r"]), node(T, ["r"], ["m"])],
        {"a": (24, 8)},
        (12, 16),
        1,
        (Part((0, 0), (12, 8)), Part((0, 8), (12, 16))),
    ),
    ([node("Squeeze", ["w", "a"], ["m"])], {"a": (1,)}, (16, 1, 12), 0, ()),
    ([node("Squeeze", ["w"], ["m"])], {}, (16, 1, 12), 0, ()),
    ([node("Unsqueeze", ["w", "a"], ["m"])], {"a": (0,)}, (16, 12), 0, ()),
    ([node("Flatten", ["w"], ["m"])], {}, (16, 3, 4), 0, ()),
    ([node("Flatten", ["w"], ["m"], axis=-1)], {}, (1, 16, 12), 1, ()),
    (
        [node(S, ["w", "a", "b", "c"], ["m"])],
        {"a": (4,), "b": (-1,), "c": (-1,)},
        (16, 12),
        0,
        (Part((0, 4), (16, 11)),),
    ),
    (
        [node(S, ["w", "a", "b"], ["m"])],
        {"a": (4, 0), "b": (12, 1000)},
        (16, 12),
        0,
        (Part((4, 0), (12, 12)),),
    ),
    (
        [node("Split", ["w", "a"], ["m", "n"])],
        {"a": (12, 4)},
        (16, 12),
        0,
        (Part((0, 0), (12, 12)),),
    ),
    (
        [node("Split", ["w"], ["n", "m"], axis=1, num_outputs=2)],
        {},
        (16, 13),
        0,
        (Part((0, 7), (16, 13)),),
    ),
    # Along the summed axis, behind 4 others.
    (
        [node("Concat", ["v", "w"], ["m"], axis=0)],
        {},
        (16, 12),
        0,
        (Part((0, 0), (16, 12), 4),),
    ),
    ([node("Mul", ["w", "one"], ["m"])], {}, (16, 12), 0, ()),
    ([node("Mul", ["row", "w"], ["m"])], {}, (16, 12), 0, ()),
    ([node("Div", ["w", "column"], ["m"])], {}, (16, 12), 0, ()),
    (
        [node("Cast", ["row"], ["r"]), node("Mul", ["w", "r"], ["m"])],
        {},
        (16, 12),
        0,
        (),
    ),
    ([node("Mul", ["w", "stack"], ["m"])], {}, (2, 16, 12), 1, ()),
]


@pytest.mark.parametrize(("between", "constants", "shape", "axis", "parts"), LOOKS)
def test_operators_are_looked_through(
    between: list[onnx.NodeProto],
    constants: dict[str, tuple[int, ...]],
    shape: tuple[int, ...],
    axis: int,
    parts: tuple[Part, ...],
    tmp_path: Path,
) -> None:
    arrays = {name: numbers(*values) for name, values in constants.items()}
    scales = {"one": ones(), "row": ones(12), "column": ones(16, 1)}
    scales |= {"stack": ones(2, 1, 12), "v": ones(4, 12)}
    tensor = behind(between, {"w": ones(*shape), **arrays, **scales}, tmp_path)
    assert (tensor.skip, tensor.axis, tensor.parts) == (None, axis, parts)


@pytest.mark.parametrize(
    ("between", "shape"),
    [
        ([node("Neg", ["w"], ["m"])], (16, 12)),
        ([node("Transpose", ["w"], ["m"], domain="other")], (16, 12)),
        ([node("DequantizeLinear", ["w", "one"], ["m"], domain="other")], (16, 12)),
        ([node("Transpose", ["w"], ["m"], perm=[0, 0])], (16, 12)),
        ([node("Reshape", ["w", "a"], ["m"])], (12, 16)),
        ([node("Reshape", ["w", "a"], ["m"])], (192,)),
        ([node("Reshape", ["w", "a"], ["m"])], (16, 4)),  # not as many elements
        ([node(S, ["w", "a", "a", "one_", "two"], ["m"])], (16, 12)),
        ([node("Split", ["w", "a"], ["m", "n"])], (16, 12)),  # not the whole of it
        ([node("Mul", ["w", "mask"], ["m"])], (16, 12)),
        ([node("Mul", ["w", "w"], ["m"])], (16, 12)),
        ([node("Div", ["row", "w"], ["m"])], (16, 12)),
        ([node("Neg", ["row"], ["n"]), node("Mul", ["w", "n"], ["m"])], (16, 12)),
        # A scale for each pair of inputs and outputs.
        (
            [
                node("Reshape", ["w", "b"], ["r"]),
                node("Mul", ["r", "blocks"], ["q"]),
                node("Reshape", ["q", "a"], ["m"]),
            ],
            (16, 12),
        ),
        ([node("Concat", ["w", "mask"], ["m"], axis=5)], (16, 12)),
    ],
)
def test_what_is_not_followed_is_untraced(
    between: list[onnx.NodeProto], shape: tuple[int, ...], tmp_path: Path
) -> None:
    arrays: Arrays = {"w": ones(*shape) * 2, "a": numbers(16, 12)}
    arrays |= {"one": ones(), "row": ones(12), "mask": ones(16, 12)}
    arrays |= {"one_": numbers(0, 1), "two": numbers(2, 2)}
    arrays |= {"b": numbers(16, 2, 6), "blocks": ones(16, 2, 1)}
    tensor = behind(between, arrays, tmp_path)
    assert (tensor.skip, tensor.is_weight) == ("untraced", False)


@pytest.mark.parametrize(
    "between",
    [
        [node("Mul", ["w", "x"], ["m"])],
        [node("Reshape", ["w", "x"], ["m"])],
        [node("Concat", ["w", "x"], ["m"], axis=0)],
        [node("Gather", ["w", "x"], ["m"])],
        [node("RandomNormalLike", ["w"], ["m"])],
    ],
)
def test_what_depends_on_inputs_is_no_weight(
    between: list[onnx.NodeProto], tmp_path: Path
) -> None:
    tensor = behind(between, {"w": ones(16, 12)}, tmp_path)
    assert (tensor.skip, tensor.is_weight) == ("consumer", False)


def test_companions_of_what_is_not_followed_are_not_untraced(tmp_path: Path) -> None:
    nodes = [
        node("Mul", ["w", "mask"], ["a"]),
        node("Add", ["a", "bias"], ["b"]),
        node("Mul", ["b", "scale"], ["c"]),
        node("Reshape", ["c", "shape"], ["m"]),
        node("MatMul", ["x", "m"], ["y"]),
    ]
    arrays: Arrays = {"w": ones(16, 12) * 2, "mask": ones(16, 12), "bias": ones(12)}
    arrays |= {"scale": ones(16, 1), "shape": numbers(16, 12)}
    found = read(nodes, arrays, tmp_path)
    reasons = {name: tensor.skip for name, tensor in found.items()}
    assert reasons == dict.fromkeys(arrays, "consumer") | {"w": "untraced"}


@pytest.mark.parametrize(
    "between",
    [
        [node("Gather", ["r", "rows"], ["m"], axis=0)],
        [node("Neg", ["r"], ["n"]), node("Add", ["n", "bias"], ["m"])],
        [node("Relu", ["r"], ["n"]), node("Mul", ["n", "scale"], ["m"])],
    ],
)
def test_a_list_of_numbers_that_becomes_a_matrix_is_untraced(
    between: list[onnx.NodeProto], tmp_path: Path
) -> None:
    arrays: Arrays = {"shape": numbers(8, 8), "rows": numbers(*range(8)[::-1])}
    arrays |= {"bias": ones(8), "scale": ones(8, 1)}
    nodes = [node("Reshape", ["w", "shape"], ["r"]), *between]
    nodes.append(node("MatMul", ["x", "m"], ["y"]))
    for shape in ((64,), (1, 64)):
        found = read(nodes, {"w": ones(*shape), **arrays}, tmp_path)
        reasons = {name: tensor.skip for name, tensor in found.items()}
        assert reasons == dict.fromkeys(found, "consumer") | {"w": "untraced"}


def test_what_one_more_product_uses_in_an_unknown_way_is_told(tmp_path: Path) -> None:
    halves = node("Split", ["w"], ["a", "b"], axis=1, num_outputs=2)
    products = [node("MatMul", ["x", "a"], ["p"]), node("MatMul", ["p", "n"], ["y"])]
    for op, fails in (("Identity", False), ("Neg", True)):
        path = tmp_path / "m.onnx"
        nodes = [halves, node(op, ["b"], ["n"]), *products]
        arrays: Arrays = {"w": np.zeros((16, 32), np.float32)}
        path.write_bytes(model(nodes, arrays).SerializeToString())
        for strict in (False, True):
            (found,) = step_cli.verify(path, strict=strict).checkpoints
            assert [layer.name for layer in found.layers] == ["w"]
            assert found.ok is not (fails and strict)
            assert (found.totals.coverage < 1) is fails
        named = step_cli.verify(path, include=["w"], strict=True).checkpoints[0]
        assert named.ok is not fails and len(named.layers) == 1


def test_two_scales_are_no_mask(tmp_path: Path) -> None:
    nodes = [
        node("Mul", ["w", "column"], ["a"]),
        node("Div", ["a", "row"], ["b"]),
        node("Mul", ["b", "row"], ["m"]),
    ]
    arrays: Arrays = {"w": ones(16, 12), "column": ones(16, 1), "row": ones(12)}
    tensor = behind(nodes, arrays, tmp_path)
    assert (tensor.skip, tensor.axis) == (None, 0)


def test_rows_that_do_not_divide_into_stored_ones(tmp_path: Path) -> None:
    """Groups of 4 lie along stored rows of 8, though the product sums over 12."""
    reshape = node("Reshape", ["w", "a"], ["r"])
    product = node("Gemm", ["x", "m"], ["y"], transB=1)

    def found(*between: onnx.NodeProto) -> NamedTensor:
        arrays: Arrays = {"w": ones(12, 8), "a": numbers(8, 12)}
        arrays |= {"rows": ones(8, 1), "columns": ones(12), "blocks": ones(8, 12)}
        return read([reshape, *between, product], arrays, tmp_path)["w"]

    halves = (Part((0, 0), (12, 4)), Part((0, 4), (12, 8)))
    for scale in ("rows", "columns"):
        tensor = found(node("Mul", ["r", scale], ["m"]))
        assert (tensor.axis, tensor.parts, tensor.skip) == (1, halves, None)
    assert found(node("Mul", ["r", "blocks"], ["m"])).skip == "untraced"
    assert found(node("Transpose", ["r"], ["m"])).skip == "untraced"


def test_parts_that_a_reshape_interleaves_or_cuts_are_followed(tmp_path: Path) -> None:
    def found(shapes: list[tuple[int, ...]], *nodes: onnx.NodeProto) -> list[object]:
        arrays: Arrays = {"a": ones(*shapes[0]), "b": ones(*shapes[1])}
        arrays["s"] = numbers(*shapes[2])
        said = read([*nodes], arrays, tmp_path)
        return [(said[n].axis, said[n].parts, said[n].skip) for n in ("a", "b")]

    between = found(
        [(16, 6, 1), (16, 6, 3), (16, 24)],
        node("Concat", ["a", "b"], ["c"], axis=2),
        node("Reshape", ["c", "s"], ["r"]),
        node("MatMul", ["x", "r"], ["y"]),
    )
    assert between == [(0, (), None), (0, (), None)]
    rows = found(
        [(1, 4, 8), (1, 4, 8), (8, 8)],
        node("Concat", ["a", "b"], ["c"], axis=0),
        node("Transpose", ["c"], ["t"], perm=[1, 0, 2]),
        node("Reshape", ["t", "s"], ["r"]),
        node("Gemm", ["x", "r"], ["y"], transB=1),
    )
    assert rows == [(2, (), None), (2, (), None)]
    meeting = found(
        [(28, 4), (20, 4), (3, 16, 4)],
        node("Concat", ["a", "b"], ["c"], axis=0),
        node("Reshape", ["c", "s"], ["r"]),
        node("MatMul", ["x", "r"], ["y"]),
    )
    first = Part((0, 0), (16, 4)), Part((16, 0), (28, 4))
    second = Part((0, 0), (4, 4), 12), Part((4, 0), (20, 4))
    assert meeting == [(0, first, None), (0, second, None)]


def test_old_forms_have_their_arguments_as_attributes(tmp_path: Path) -> None:
    nodes = [
        node("Unsqueeze", ["w"], ["a"], axes=[0]),
        node("Slice", ["a"], ["b"], starts=[0], ends=[8], axes=[2]),
        node("Squeeze", ["b"], ["c"], axes=[0]),
        node("Split", ["c"], ["m", "n"], axis=0, split=[12, 4]),
    ]
    tensor = behind(nodes, {"w": ones(16, 12)}, tmp_path)
    assert (tensor.axis, tensor.parts) == (0, (Part((0, 0), (12, 8)),))


def test_parts_of_several_products_are_put_together(tmp_path: Path) -> None:
    def parts(*ranges: tuple[int, int], axis: int) -> tuple[Part, ...]:
        nodes, arrays = [], Arrays()
        for begin, end in ranges:
            names = [f"{key}{begin}" for key in "abm"]
            arrays |= {names[0]: numbers(begin), names[1]: numbers(end)}
            nodes.append(node(S, ["w", *names[:2], "axis"], [names[2]]))
            nodes.append(node("MatMul", ["x", names[2]], [f"y{begin}"]))
        arrays |= {"w": ones(16, 12), "axis": numbers(axis)}
        return read(nodes, arrays, tmp_path)["w"].parts

    assert parts((0, 4), (4, 8), (8, 12), axis=1) == ()
    assert parts((0, 6), (4, 8), axis=1) == (Part((0, 0), (16, 8)),)
    apart = (Part((0, 0), (16, 2)), Part((0, 4), (16, 6)))
    assert parts((0, 2), (4, 6), axis=1) == apart
    # Along the summed axis each part has groups of its own.
    halves = (Part((0, 0), (8, 12)), Part((8, 0), (16, 12)))
    assert parts((0, 8), (8, 16), axis=0) == halves
    thirds = (
        Part((0, 0), (4, 12)),
        Part((4, 0), (8, 12), 4),
        Part((8, 0), (16, 12), 4),
    )
    assert parts((0, 8), (4, 16), axis=0) == thirds


def test_the_table_knows_operators_that_exist() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state

    known = {
        (schema.domain, schema.name): [one.name for one in schema.inputs]
        for schema in onnxruntime_pybind11_state.get_all_operator_schema()
    }
    standard = {
        ("", schema.name): [one.name for one in schema.inputs]
        for schema in onnx.defs.get_all_schemas()
        if not schema.domain
    }
    known |= standard
    for key, factors in PRODUCTS.items():
        for factor in factors:
            own = known[key][factor.index].lower().removesuffix("s")
            assert own in ("a", "b", "w", "r", "weight")
            zero = None if factor.zero is None else known[key][factor.zero].lower()
            assert zero in (None, f"{own}_zero_point")
    for key, inputs in OTHER_PRODUCTS.items():
        assert key in known and (inputs[-1] < len(known[key]) or key[1] == "Einsum")
    for domain, name in LOOKED_THROUGH:
        assert domain not in ("", MICROSOFT) or (domain, name) in known


def test_every_operator_has_a_row_for_the_documentation() -> None:
    rows = [
        list(product_rows()),
        list(looked_through_rows()),
        list(other_product_rows()),
    ]
    tables = PRODUCTS, LOOKED_THROUGH, OTHER_PRODUCTS
    assert [len(one) for one in rows] == [len(table) for table in tables]
    assert (
        "ai.onnx",
        "Gemm",
        "0, 1",
        "[.., out, in], [.., in, out] transA transB",
    ) in (rows[0])
