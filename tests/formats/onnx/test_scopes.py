"""Functions, and the graphs within If, Loop and Scan: what their names mean."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks.onnx_attacks import Arrays, model
from formats.onnx.test_operators import node, numbers, ones
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from step_cli.errors import InputError
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.open import open_checkpoint


def read(proto: onnx.ModelProto, tmp_path: Path) -> dict[str, NamedTensor]:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return {tensor.name: tensor for tensor in open_checkpoint(path).tensors}


def verdict(tensor: NamedTensor) -> object:
    return tensor.axis if tensor.is_weight else tensor.skip


def referring(
    op: str, inputs: list[str], outputs: list[str], kind: int, **names: str
) -> onnx.NodeProto:
    made = node(op, inputs, outputs)
    for own, outer in names.items():
        made.attribute.add(name=own, ref_attr_name=outer, type=kind)
    return made


def function(
    name: str,
    nodes: list[onnx.NodeProto],
    *,
    attributes: tuple[str, ...] = (),
    defaults: tuple[onnx.AttributeProto, ...] = (),
    overload: str = "",
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    return helper.make_function(
        "f",
        name,
        ["a", "b"],
        ["o"],
        nodes,
        opsets,
        attributes=list(attributes),
        attribute_protos=list(defaults),
        overload=overload,
    )


INT, INTS = AttributeProto.INT, AttributeProto.INTS
GEMM = referring("Gemm", ["a", "b"], ["o"], INT, transB="turned")


def called(
    functions: list[onnx.FunctionProto], tmp_path: Path, **attributes: object
) -> object:
    call = node("Dense", ["x", "w"], ["y"], domain="f", **attributes)
    proto = model([call], {"w": ones(8, 4)})
    proto.functions.extend(functions)
    return verdict(read(proto, tmp_path)["w"])


def test_attributes_are_those_of_the_call_or_their_defaults(tmp_path: Path) -> None:
    plain = [function("Dense", [GEMM], attributes=("turned",))]
    assert called(plain, tmp_path, turned=1) == 1
    assert called(plain, tmp_path, turned=0) == 0
    assert called(plain, tmp_path) == 0  # that of Gemm
    default = helper.make_attribute("turned", 1)
    given = [function("Dense", [GEMM], defaults=(default,))]
    assert called(given, tmp_path) == 1
    assert called(given, tmp_path, turned=0) == 0


def test_attributes_are_handed_on_from_call_to_call(tmp_path: Path) -> None:
    call = referring("Inner", ["a", "b"], ["o"], INT, turned="flag")
    call.domain = "f"
    inner = function("Inner", [GEMM], attributes=("turned",))
    both = [inner, function("Dense", [call], attributes=("flag",))]
    assert called(both, tmp_path, flag=1) == 1
    assert called(both, tmp_path, flag=0) == 0
    assert called(both, tmp_path, turned=1) == 0  # Dense has no such attribute


def test_lists_and_tensors_are_referred_to_as_well(tmp_path: Path) -> None:
    turn = referring("Transpose", ["b"], ["t"], INTS, perm="order")
    nodes = [turn, node("MatMul", ["a", "t"], ["o"])]
    turned = [function("Dense", nodes, attributes=("order",))]
    assert called(turned, tmp_path, order=[1, 0]) == 1
    assert called(turned, tmp_path, order=[0, 1]) == 0
    held = referring("Constant", [], ["c"], AttributeProto.TENSOR, value="table")
    nodes = [held, node("MatMul", ["a", "c"], ["o"])]
    calls = [
        node(
            "Held", [x, x], [y], domain="f", table=numpy_helper.from_array(ones(*size))
        )
        for x, y, size in (("x", "h", (8, 4)), ("h", "y", (4, 2)))
    ]
    proto = model(calls, {})
    proto.functions.append(function("Held", nodes, attributes=("table",)))
    found = read(proto, tmp_path)
    shapes = {name: (one.shape, one.axis) for name, one in found.items()}
    assert shapes == {"c": ((8, 4), 0), "Held/c": ((4, 2), 0)}


def test_overloads_are_told_apart(tmp_path: Path) -> None:
    straight = function("Dense", [node("MatMul", ["a", "b"], ["o"])])
    turned = function(
        "Dense", [node("Gemm", ["a", "b"], ["o"], transB=1)], overload="turned"
    )
    for overload, axis in (("", 0), ("turned", 1), ("none", "consumer")):
        call = node("Dense", ["x", "w"], ["y"], domain="f", overload=overload)
        proto = model([call], {"w": ones(8, 4)})
        proto.functions.extend([straight, turned])
        assert verdict(read(proto, tmp_path)["w"]) == axis


def test_what_a_function_returns_is_followed_into_it(tmp_path: Path) -> None:
    nodes = [
        node("Turn", ["w", "w"], ["t"], domain="f"),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    for op, expected in (("Transpose", 1), ("Neg", "untraced")):
        proto = model(nodes, {"w": ones(8, 4)})
        proto.functions.append(function("Turn", [node(op, ["a"], ["o"])]))
        assert verdict(read(proto, tmp_path)["w"]) == expected


def test_a_function_takes_the_place_of_an_operator_of_its_name(tmp_path: Path) -> None:
    call = node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")
    proto = model([call], {"w": ones(8, 4)})
    own = function("FusedMatMul", [node("Gemm", ["a", "b"], ["o"], transB=1)])
    own.domain = "com.microsoft"
    proto.functions.append(own)
    assert verdict(read(proto, tmp_path)["w"]) == 1


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: list[str],
    outputs: list[str],
    arrays: Arrays | None = None,
) -> onnx.GraphProto:
    value = helper.make_tensor_value_info
    return helper.make_graph(
        nodes,
        "body",
        [value(name, TensorProto.FLOAT, None) for name in inputs],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [
            numpy_helper.from_array(array, name)
            for name, array in (arrays or {}).items()
        ],
    )


def loop(nodes: list[onnx.NodeProto], handed_on: str, tmp_path: Path) -> object:
    """What is said of `w`, which enters a Loop as `s` beside a state that changes."""
    body = graph_of(nodes, ["i", "c", "v", "s"], ["c", "o", handed_on])
    proto = model(
        [node("Loop", ["m", "c", "x", "w"], ["y", "last"], body=body)],
        {"w": ones(8, 8), "m": numbers(3)},
    )
    return verdict(read(proto, tmp_path)["w"])


def test_a_state_that_a_loop_hands_on_is_what_entered(tmp_path: Path) -> None:
    product = node("MatMul", ["v", "s"], ["o"])
    assert loop([product], "s", tmp_path) == 0
    kept = node("Identity", ["s"], ["kept"])
    assert loop([product, kept], "kept", tmp_path) == 0
    changed = node("Neg", ["s"], ["n"])
    assert loop([product, changed], "n", tmp_path) == "untraced"  # of `w` alone
    other = node("Add", ["s", "v"], ["n"])
    assert loop([product, other], "n", tmp_path) == "consumer"


def test_a_state_of_a_loop_is_not_an_outer_value_of_its_name(tmp_path: Path) -> None:
    body = graph_of(
        [node("MatMul", ["v", "w"], ["o"])], ["i", "c", "v", "w"], ["c", "o", "v"]
    )
    proto = model(
        [node("Loop", ["m", "c", "x", "x"], ["y", "last"], body=body)],
        {"w": ones(8, 8), "m": numbers(3)},
    )
    assert verdict(read(proto, tmp_path)["w"]) == "consumer"


def test_what_a_loop_keeps_may_be_used_behind_it(tmp_path: Path) -> None:
    for op, expected in (("Identity", 1), ("Neg", "untraced")):
        body = graph_of([node(op, ["s"], ["k"])], ["i", "c", "s"], ["c", "k"])
        nodes = [
            node("Loop", ["m", "on", "w"], ["k"], body=body),
            node("Gemm", ["x", "k"], ["y"], transB=1),
        ]
        arrays: Arrays = {"w": ones(8, 8), "m": numbers(3), "on": np.array(True)}
        assert verdict(read(model(nodes, arrays), tmp_path)["w"]) == expected


@pytest.mark.parametrize(
    ("axis", "shape", "inner", "expected"),
    [
        (None, (3, 8, 4), [], 1),
        (0, (3, 8, 4), [node("Transpose", ["e"], ["m"])], 2),
        (-1, (8, 4, 3), [], 0),
        (1, (8, 3, 4), [], 0),
        (0, (3, 8, 4), [node("Neg", ["e"], ["m"])], "untraced"),
    ],
)
def test_scan_hands_its_inputs_to_the_body_index_by_index(
    axis: int | None,
    shape: tuple[int, ...],
    inner: list[onnx.NodeProto],
    expected: object,
    tmp_path: Path,
) -> None:
    product = node("MatMul", ["s", "m" if inner else "e"], ["o"])
    body = graph_of([*inner, product], ["s", "e"], ["o"])
    axes = {} if axis is None else {"scan_input_axes": [axis]}
    scan = node("Scan", ["x", "w"], ["y"], body=body, num_scan_inputs=1, **axes)
    tensor = read(model([scan], {"w": ones(*shape)}), tmp_path)["w"]
    assert verdict(tensor) == expected and tensor.parts == ()


def test_a_scan_of_another_opset_is_not_followed(tmp_path: Path) -> None:
    body = graph_of([node("MatMul", ["s", "e"], ["o"])], ["s", "e"], ["o"])
    scan = node("Scan", ["", "x", "w"], ["y"], body=body, num_scan_inputs=1)
    assert (
        verdict(read(model([scan], {"w": ones(3, 8, 4)}), tmp_path)["w"]) == "consumer"
    )


def chosen(then: str, other: str, tmp_path: Path) -> dict[str, object]:
    """`v` and `w` as branches of an If hand them on, by these operators."""
    branches = {
        f"{key}_branch": graph_of([node(op, [name], [f"o{name}"])], [], [f"o{name}"])
        for key, op, name in (("then", then, "v"), ("else", other, "w"))
    }
    nodes = [
        node("If", ["x"], ["c"], **branches),
        node("MatMul", ["x", "c"], ["y"]),
    ]
    found = read(model(nodes, {"v": ones(8, 8), "w": ones(8, 8) * 2}), tmp_path)
    return {name: verdict(tensor) for name, tensor in found.items()}


def test_each_branch_of_an_if_may_be_the_factor(tmp_path: Path) -> None:
    assert chosen("Identity", "Transpose", tmp_path) == {"v": 0, "w": 1}
    assert chosen("Identity", "Neg", tmp_path) == {"v": "untraced", "w": "untraced"}


def test_bodies_see_the_names_around_them(tmp_path: Path) -> None:
    body = graph_of(
        [node("MatMul", ["v", "w"], ["p"]), node("MatMul", ["p", "own"], ["o"])],
        ["i", "c", "v"],
        ["c", "o"],
        {"own": ones(4, 8)},
    )
    proto = model(
        [node("Loop", ["m", "c", "x"], ["y"], body=body)],
        {"w": ones(8, 4), "m": numbers(3)},
    )
    found = read(proto, tmp_path)
    assert {name: verdict(tensor) for name, tensor in found.items()} == {
        "w": 0,
        "m": "consumer",
        "own": 0,
    }


def test_too_many_nodes_in_calls_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step_cli.formats.onnx.weights import nesting

    monkeypatch.setattr(nesting, "MOST_PARTS", 20)
    nodes = [node("Identity", ["a"], [f"v{i}"]) for i in range(10)]
    calls = [node("F", ["x"], [f"y{i}"], domain="f") for i in range(2)]
    proto = model(calls, {})
    proto.functions.append(function("F", [*nodes, node("Identity", ["a"], ["o"])]))
    with pytest.raises(InputError, match="more than 20 nodes in calls"):
        read(proto, tmp_path)


def test_long_chains_and_many_joins_end(tmp_path: Path) -> None:
    chain = [node("Identity", [f"v{i}"], [f"v{i + 1}"]) for i in range(5000)]
    chain[0] = node("Identity", ["w"], ["v1"])
    nodes = [*chain, node("MatMul", ["x", "v5000"], ["y"])]
    assert verdict(read(model(nodes, {"w": ones(8, 4)}), tmp_path)["w"]) == 0
    joins = [
        node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=1) for i in range(40)
    ]
    joins[0] = node("Concat", ["w", "w"], ["v1"], axis=1)
    nodes = [*joins, node("MatMul", ["x", "v40"], ["y"])]
    tensor = read(model(nodes, {"w": ones(8, 4)}), tmp_path)["w"]
    assert verdict(tensor) == "untraced"


def test_calls_one_behind_another_are_followed(tmp_path: Path) -> None:
    calls = [
        node("Same", [f"v{i}", "x"], [f"v{i + 1}"], domain="f") for i in range(500)
    ]
    calls[0] = node("Same", ["w", "x"], ["v1"], domain="f")
    proto = model([*calls, node("MatMul", ["x", "v500"], ["y"])], {"w": ones(8, 4)})
    proto.functions.append(function("Same", [node("Identity", ["a"], ["o"])]))
    assert verdict(read(proto, tmp_path)["w"]) == 0
