"""What uses a weight besides its products: told where it does, and only there."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks.onnx_attacks import Arrays, model
from formats.onnx.test_operators import node, numbers, ones
from formats.onnx.test_scopes import function, graph_of, read

ADD = "Add node of 'y'"
PRODUCT = node("MatMul", ["x", "w"], ["p"])


def shared(nodes: list[onnx.NodeProto], tmp_path: Path, **more: object) -> str | None:
    arrays: Arrays = {"w": ones(16, 12), "i": numbers(0), "v": ones(16, 12)}
    arrays |= {"m": numbers(3), "on": np.array(True)}
    tensor = read(model(nodes, arrays, **more), tmp_path)["w"]  # type: ignore[arg-type]
    assert tensor.is_weight
    return tensor.shared_with


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("Gather", ["w", "x"], ["y"], name="/emb")], "Gather node '/emb'"),
        ([node("Add", ["p", "w"], ["y"])], ADD),
        ([node("Gemm", ["x", "x", "w"], ["y"])], "Gemm node of 'y'"),
        ([node("Neg", ["w"], ["y"])], "Neg node of 'y'"),
        ([node("Transpose", ["w"], ["t"]), node("Add", ["p", "t"], ["y"])], ADD),
        ([node("Mul", ["p", "w"], ["y"])], "Mul node of 'y'"),
        ([node("Mul", ["v", "w"], ["y"], name="m")], "Mul node 'm'"),
        ([node("Other", ["w"], ["y"], domain="f")], "Other node of 'y'"),
    ],
)
def test_other_uses_are_named(
    nodes: list[onnx.NodeProto], words: str, tmp_path: Path
) -> None:
    assert shared([PRODUCT, *nodes], tmp_path) == words
    assert shared([*nodes, PRODUCT], tmp_path) == words


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Relu", ["p"], ["y"])],
        [node("Shape", ["w"], ["y"])],
        [node("MatMul", ["p", "w"], ["y"])],
        [node("Transpose", ["w"], ["t"]), node("MatMul", ["p", "t"], ["y"])],
        [node("Split", ["w"], ["a", "b"]), node("MatMul", ["x", "a"], ["y"])],
        [node("Transpose", ["w"], ["read by nothing"])],
        [node("Gather", ["v", "x"], ["y"])],
    ],
)
def test_products_and_sizes_are_no_other_use(
    nodes: list[onnx.NodeProto], tmp_path: Path
) -> None:
    assert shared([PRODUCT, *nodes], tmp_path) is None


def test_an_output_of_the_model_is_another_use(tmp_path: Path) -> None:
    assert shared([PRODUCT], tmp_path, output="w") == "the output 'w'"
    turned = [
        node("Transpose", ["w"], ["y"]),
        node("Gemm", ["x", "y"], ["p"], transB=1),
    ]
    assert shared(turned, tmp_path) == "the output 'y'"


def test_the_other_part_of_a_split_is_another_use(tmp_path: Path) -> None:
    split = node("Split", ["w"], ["a", "b"], num_outputs=2)
    nodes = [split, node("MatMul", ["x", "a"], ["p"]), node("Add", ["p", "b"], ["y"])]
    assert shared(nodes, tmp_path) == ADD


def test_a_scale_that_is_a_weight_elsewhere_is_used_by_both(tmp_path: Path) -> None:
    nodes = [
        node("Mul", ["v", "w"], ["m"], name="scale"),
        node("MatMul", ["x", "m"], ["q"]),
        node("MatMul", ["q", "w"], ["y"]),
    ]
    arrays: Arrays = {"v": ones(16, 12), "w": ones(16, 1)}
    found = read(model(nodes, arrays), tmp_path)
    assert found["w"].shared_with == "Mul node 'scale'"
    assert (found["v"].axis, found["v"].shared_with) == (0, None)


def test_uses_within_functions_and_graphs_count(tmp_path: Path) -> None:
    call = node("Look", ["w", "x"], ["y"], domain="f")
    for op, words in (("Gather", "Gather node of 'o'"), ("MatMul", None)):
        proto = model([PRODUCT, call], {"w": ones(16, 12)})
        proto.functions.append(function("Look", [node(op, ["a", "b"], ["o"])]))
        assert read(proto, tmp_path)["w"].shared_with == words


def test_what_a_loop_only_hands_on_is_no_other_use(tmp_path: Path) -> None:
    def looped(*nodes: onnx.NodeProto, out: str = "s") -> str | None:
        product = node("MatMul", ["v", "s"], ["o"])
        body = graph_of([product, *nodes], ["i", "c", "v", "s"], ["c", "o", out])
        loop = node("Loop", ["m", "on", "x", "w"], ["y", "last"], body=body)
        return shared([loop, PRODUCT], tmp_path)

    assert looped() is None
    assert looped(node("Identity", ["s"], ["k"]), out="k") is None
    assert looped(node("Neg", ["s"], ["k"])) == "Neg node of 'k'"
    assert looped(node("Neg", ["s"], ["k"]), out="k") == "Loop node of 'y, last'"


def test_a_scan_of_which_the_body_adds_a_slice_is_another_use(tmp_path: Path) -> None:
    for op, words in (("Add", "Add node of 'o'"), ("MatMul", None)):
        body = graph_of([node(op, ["s", "e"], ["o"])], ["s", "e"], ["o"])
        nodes = [
            node("Scan", ["x", "w"], ["q"], body=body, num_scan_inputs=1),
            node("MatMul", ["x", "w"], ["y"]),
        ]
        found = read(model(nodes, {"w": ones(3, 16, 12)}), tmp_path)
        assert found["w"].shared_with == words


def test_a_branch_that_is_no_factor_is_another_use(tmp_path: Path) -> None:
    def branched(last: onnx.NodeProto, other: str = "Identity") -> str | None:
        branches = {
            f"{key}_branch": graph_of([node(op, [name], ["o"])], [], ["o"])
            for key, op, name in (("then", "Identity", "w"), ("else", other, "v"))
        }
        chosen = node("If", ["x"], ["c"], **branches)
        return shared([chosen, last, PRODUCT], tmp_path)

    assert branched(node("MatMul", ["x", "c"], ["y"])) is None
    assert branched(node("Add", ["x", "c"], ["y"])) == ADD
    # What cannot be followed through the other branch is used in some other way.
    product = node("MatMul", ["x", "c"], ["y"])
    assert branched(product, "Neg") == "the output 'o'"
