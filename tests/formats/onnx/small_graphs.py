"""ONNX files of a few nodes, for builders of engines."""

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

ONNX_TYPE = onnx.TensorProto.FLOAT16


def save_mlp(path: Path, batch: int | str = 8, data: str | None = None) -> Path:
    """Two fp16 MatMuls whose weights are 2:4 along axis 0."""
    weights = {}
    for seed, name in enumerate(("up.weight", "down.weight")):
        values = np.random.default_rng(seed).normal(size=(64, 64)) + 3
        values.reshape(16, 4, 64)[:, :2] = 0
        weights[name] = values.astype(np.float16)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "up.weight"], ["h"], name="up"),
        onnx.helper.make_node("Relu", ["h"], ["r"], name="relu"),
        onnx.helper.make_node("MatMul", ["r", "down.weight"], ["y"], name="down"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "mlp",
        [onnx.helper.make_tensor_value_info("x", ONNX_TYPE, [batch, 64])],
        [onnx.helper.make_tensor_value_info("y", ONNX_TYPE, [batch, 64])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return save_graph(path, graph, data)


def save_convs(path: Path) -> Path:
    """A Conv and a Gemm in fp16, both 2:4 along axis 1, as of a small network."""
    rng = np.random.default_rng(0)
    conv = rng.normal(size=(32, 16, 3, 3)).astype(np.float16)
    conv[:, ::2] = 0
    fc = rng.normal(size=(8, 32)).astype(np.float16)
    fc[:, ::2] = 0
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "conv.weight"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        make("GlobalAveragePool", ["h"], ["p"], name="pool"),
        make("Flatten", ["p"], ["f"], name="flatten"),
        make("Gemm", ["f", "fc.weight"], ["y"], name="fc", transB=1),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "convs",
        [info("x", ONNX_TYPE, [2, 16, 8, 8])],
        [info("y", ONNX_TYPE, [2, 8])],
        [
            onnx.numpy_helper.from_array(conv, "conv.weight"),
            onnx.numpy_helper.from_array(fc, "fc.weight"),
        ],
    )
    return save_graph(path, graph)


MODELS = {"mlp": (save_mlp, {"up", "down"}), "convs": (save_convs, {"conv", "fc"})}


def save_graph(path: Path, graph: onnx.GraphProto, data: str | None = None) -> Path:
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    if data is None:
        onnx.save(model, path)
    else:
        onnx.save(
            model, path, save_as_external_data=True, location=data, size_threshold=0
        )
    return path


def save_one_node(path: Path, op: str, domain: str = "") -> Path:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x"], ["y"], domain=domain)],
        "one",
        [info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [info("y", onnx.TensorProto.FLOAT, None)],
    )
    return save_graph(path, graph)
