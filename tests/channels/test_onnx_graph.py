"""What an ONNX graph lets be permuted, where a node has several results."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from channels.networks import plan_of
from onnx import helper, numpy_helper

from step_cli.channels.channel_sets import find_channel_sets
from step_cli.formats.open import open_checkpoint

pytest.importorskip("onnxruntime")

from step_cli.channels.onnx_graph import onnx_network


def pooled(path: Path, nodes: list[onnx.NodeProto]) -> Path:
    """Two convolutions; between them a pool that returns places beside values."""
    random = np.random.default_rng(0)
    weights = {"first": (16, 4, 1, 1), "second": (8, 16, 1, 1)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "first"], ["a"]),
            helper.make_node("MaxPool", ["a"], ["b", "places"], kernel_shape=[2, 2]),
            *nodes,
            helper.make_node("Conv", ["c", "second"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", 1, [1, 4, 4, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 8, 3, 3])],
        [
            numpy_helper.from_array(random.random(shape, np.float32), name)
            for name, shape in weights.items()
        ],
    )
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def movable(path: Path) -> set[str]:
    checkpoint = open_checkpoint(path)
    network = onnx_network(checkpoint)
    sets, _ = find_channel_sets(network.graph, network.tensors, plan_of(checkpoint))
    return {name for channels in sets for name in channels.layers}


def test_a_result_that_nothing_reads_does_not_count(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["b"], ["c"])]
    assert movable(pooled(tmp_path / "m.onnx", nodes)) == {"second"}


def test_a_result_that_no_rule_knows_keeps_the_channels(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["places"], ["numbers"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["b", "numbers"], ["c"]),
    ]
    assert movable(pooled(tmp_path / "m.onnx", nodes)) == set()
