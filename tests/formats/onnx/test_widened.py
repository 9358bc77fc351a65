"""A bf16 graph as an fp32 one: every place where a type may stand."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from step_cli.errors import InputError  # noqa: E402
from step_cli.formats.onnx import widened as module  # noqa: E402
from step_cli.formats.onnx.session import OrtSession  # noqa: E402
from step_cli.formats.onnx.widened import widened  # noqa: E402

BF16, FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT


def bf16(*numbers: float, name: str = "") -> Any:
    array = np.array(numbers, ml_dtypes.bfloat16)
    return numpy_helper.from_array(array, name)


def graph(path: Path, kind: int) -> Path:
    """y = (x as ``kind`` + 1/3) + c + 1/3, c in a branch, the last in a function."""
    third = (
        bf16(1 / 3) if kind == BF16 else numpy_helper.from_array(np.float32([1 / 3]))
    )
    value = helper.make_tensor_value_info
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=third)],
        "branch", [], [value("c", kind, [1])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("own", 1)]
    function = helper.make_function(
        "own", "More", ["a"], ["b"],
        [helper.make_node("Constant", [], ["k"], value=third),
         helper.make_node("Add", ["a", "k"], ["b"])],
        opsets[:1],
    )  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["x"], ["n"], to=kind),
        helper.make_node("Add", ["n", "w"], ["s"]),
        helper.make_node("If", ["yes"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["s", "i"], ["t"]),
        helper.make_node("More", ["t"], ["u"], domain="own"),
        helper.make_node("Cast", ["u"], ["y"], to=FLOAT),
    ]
    stored = helper.make_graph(
        nodes, "g", [value("x", FLOAT, ["n"])], [value("y", FLOAT, ["n"])],
        [numpy_helper.from_array(numpy_helper.to_array(third), "w"),
         numpy_helper.from_array(np.array(True), "yes")],
        value_info=[value("s", kind, ["n"])],
    )  # fmt: skip
    model = helper.make_model(
        stored, functions=[function], opset_imports=opsets, ir_version=9
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def test_all_types_are_widened_and_weights_stay_rounded(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", BF16)
    with pytest.raises(InputError, match="ONNX Runtime refuses it"):
        OrtSession(path)
    copy = widened(path)
    assert copy is not None
    (found,) = OrtSession(copy).run({"x": np.float32([1, 2])})
    rounded = np.float32(ml_dtypes.bfloat16(1 / 3))
    assert found.tolist() == pytest.approx([1 + 3 * rounded, 2 + 3 * rounded], abs=1e-6)
    assert abs(rounded - 1 / 3) > 1e-4


def test_a_graph_without_bf16_is_left_alone(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", FLOAT)
    assert widened(path) is None
    assert OrtSession(path).run({"x": np.float32([1])})[0] == pytest.approx(2)


def test_a_copy_that_no_message_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graph(tmp_path / "m.onnx", BF16)
    monkeypatch.setattr(module, "LARGEST", 100)
    with pytest.raises(InputError, match="larger than 2 GiB; export it with") as error:
        widened(path)
    assert error.value.file == str(path)
