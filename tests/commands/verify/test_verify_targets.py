"""`verify-nm --target`: libraries beside the verdict, which they do not change."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

import step_cli
from step_cli.reports import CheckpointVerdict, TargetView


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sparse(*shape: int, axis: int = 1, dtype: Any = np.float16) -> Any:
    weights: Any = np.zeros(shape, dtype)
    where = [slice(None)] * len(shape)
    for start in (0, 1):
        where[axis] = slice(start, None, 4)
        weights[tuple(where)] = 1
    return weights


def checked(
    tensors: dict[str, Any], config: object = None, **options: Any
) -> CheckpointVerdict:
    Path("model").mkdir()
    save_file(tensors, "model/model.safetensors")
    if config is not None:
        Path("model/config.json").write_text(json.dumps(config))
    [verdict] = step_cli.verify("model", **options).checkpoints
    return verdict


def test_each_target_has_a_view_and_none_changes_the_verdict() -> None:
    tensors = {"fc.weight": sparse(512, 512), "small.weight": sparse(8, 16)}
    verdict = checked(tensors, target=["torch", "cusparselt", "torch"])
    assert verdict.ok
    fc, small = verdict.layers
    assert fc.targets is not None and small.targets is not None
    assert list(fc.targets) == ["torch", "cusparselt"]
    assert fc.targets["torch"].likely and not small.targets["torch"].possible
    assert fc.tensorrt is None


def test_tensorrt_is_short_for_the_first_target() -> None:
    verdict = checked({"fc.weight": sparse(512, 512)}, tensorrt=True)
    [layer] = verdict.layers
    assert layer.targets is not None and layer.tensorrt is not None
    assert layer.targets["tensorrt"].model_dump() == layer.tensorrt.model_dump()


def test_without_a_target_there_is_no_view() -> None:
    [layer] = checked({"fc.weight": sparse(512, 512)}).layers
    assert layer.targets is None and layer.tensorrt is None


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match="target"):
        checked({"fc.weight": sparse(8, 8)}, target=["cublas"])


def test_a_layer_that_fails_is_judged_too() -> None:
    verdict = checked({"fc.weight": np.ones((512, 512), np.float16)}, tensorrt=True)
    [layer] = verdict.layers
    assert not verdict.ok and layer.targets is not None
    assert "not 2:4" in (layer.targets["tensorrt"].advice or "")


def test_the_configuration_tells_inputs_and_outputs() -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    weights = sparse(2, 512, 320, axis=1, dtype=ml_dtypes.bfloat16)
    verdict = checked({name: weights}, {"model_type": "gpt_oss"}, target=["tensorrt"])
    [layer] = verdict.layers
    assert layer.axis == 1 and layer.targets is not None
    assert layer.targets["tensorrt"].likely


def test_an_axis_that_the_user_gives_is_not_how_the_layer_is_used() -> None:
    weights = np.ascontiguousarray(sparse(512, 512).T)
    verdict = checked({"fc.weight": weights}, axis=["fc.*=0"], target=["tensorrt"])
    [layer] = verdict.layers
    assert layer.ok and layer.targets is not None
    assert not layer.targets["tensorrt"].possible


def onnx_file(
    weights: Any, nodes: list[onnx.NodeProto], *more: onnx.TensorProto
) -> CheckpointVerdict:
    """The verdict on ``w``, which the nodes use to make ``y`` of ``x``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w"), *more],
    )
    onnx.save(helper.make_model(graph), "m.onnx")
    [verdict] = step_cli.verify("m.onnx", target=["tensorrt"]).checkpoints
    return verdict


def tensorrt(verdict: CheckpointVerdict) -> TargetView:
    [layer] = verdict.layers
    assert layer.targets is not None
    return layer.targets["tensorrt"]


@pytest.mark.parametrize(("group", "possible"), [(1, True), (2, False)])
def test_a_grouped_convolution_of_a_graph(group: int, possible: bool) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group)
    view = tensorrt(onnx_file(sparse(512, 256, 3, 3), [node]))
    assert view.possible == possible
    assert ("grouped" in (view.advice or "")) == (not possible)


@pytest.mark.parametrize(("group", "said"), [(1, False), (2, True)])
def test_float32_does_not_hide_what_else_is_in_the_way(group: int, said: bool) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group)
    view = tensorrt(onnx_file(sparse(512, 256, 3, 3, dtype=np.float32), [node]))
    assert not view.possible and "no sparse kernels for float32" in (view.advice or "")
    assert ("nor as float16: a grouped conv" in (view.advice or "")) == said


@pytest.mark.parametrize(
    ("behind", "possible"),
    [
        (["Relu", "QuantizeLinear"], True),
        (["QuantizeLinear"], True),
        (["Relu"], False),
        (["Softmax", "QuantizeLinear"], False),
    ],
)
@pytest.mark.parametrize("stored", [np.int8, np.float32])
def test_an_int8_layer_of_a_graph_needs_a_quantizer_behind_it(
    behind: list[str], possible: bool, stored: type
) -> None:
    codes = [
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.int8), "z"),
    ]
    nodes, name = [], "w"
    if stored is np.float32:
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], ["q"]))
        name = "q"
    nodes.append(helper.make_node("DequantizeLinear", [name, "s", "z"], ["d"]))
    nodes.append(helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["x", "t"], ["v0"]))
    for number, op in enumerate(behind):
        inputs = [f"v{number}", *(["s", "z"] if op == "QuantizeLinear" else [])]
        nodes.append(helper.make_node(op, inputs, [f"v{number + 1}"]))
    nodes.append(helper.make_node("Identity", [f"v{len(behind)}"], ["y"]))
    view = tensorrt(onnx_file(sparse(512, 512, dtype=stored), nodes, *codes))
    assert (view.possible, view.likely) == (possible, possible)


def test_a_batched_product_is_as_wide_as_its_node_says() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    wide = tensorrt(onnx_file(sparse(4, 512, 512, axis=1), [node]))
    assert wide.likely


@pytest.mark.parametrize("stands", [None, "Concat", "Reshape", "Transpose"])
def test_what_stands_between_a_weight_and_its_product(stands: str | None) -> None:
    shape = numpy_helper.from_array(np.array([512, 512]), "shape")
    more = {"Concat": ["w"], "Reshape": ["shape"]}
    made = helper.make_node(
        stands or "Identity",
        ["w", *more.get(stands or "", [])],
        ["t"],
        **({"axis": 1} if stands == "Concat" else {}),
    )
    product = helper.make_node("MatMul", ["x", "t"], ["y"])
    axis = 1 if stands == "Transpose" else 0
    verdict = onnx_file(sparse(512, 512, axis=axis), [made, product], shape)
    view = tensorrt(verdict)
    assert verdict.ok and view.possible
    said = f"{stands} stands between it and its product" in (view.advice or "")
    assert said == (not view.likely) == (stands in more)


def test_a_tied_table_does_not_pass_what_gathers_from_it() -> None:
    nodes = [
        helper.make_node("Gather", ["w", "x"], ["rows"]),
        helper.make_node("MatMul", ["rows", "v"], ["h"]),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),
    ]
    other = numpy_helper.from_array(sparse(512, 512, axis=0), "v")
    views = [x.targets for x in onnx_file(sparse(512, 512), nodes, other).layers]
    assert all(view and view["tensorrt"].likely for view in views)


def test_an_axis_of_outputs_in_a_graph_is_no_advice() -> None:
    """With ``--axis`` it would pass, and no kernel could use it."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    [layer] = onnx_file(sparse(512, 512, axis=1), [node]).layers
    assert not layer.ok and layer.message is not None
    assert (
        "holds along axis 1, but its product sums over axis 0: prune" in layer.message
    )
    assert "--axis" not in layer.message


PLUGIN = {"build_config": {"plugin_config": {"gemm_plugin": "float16"}}}


@pytest.mark.parametrize(
    ("config", "target", "said"),
    [
        (PLUGIN, "tensorrt", True),
        (PLUGIN, "torch", False),
        ({"build_config": {"plugin_config": {"gemm_plugin": None}}}, "tensorrt", False),
        ({"plugin_config": {"gemm_plugin": "auto"}}, "tensorrt", True),
        ({"plugin_config": ["gemm_plugin"]}, "tensorrt", False),
        (None, "tensorrt", False),
    ],
)
def test_gemms_of_a_plugin_are_never_sparse(
    config: object, target: str, said: bool
) -> None:
    verdict = checked({"fc.weight": sparse(512, 512)}, config, target=[target])
    assert verdict.ok
    assert any("gemm_plugin" in note for note in verdict.notes) == said
