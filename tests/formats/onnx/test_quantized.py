"""What the quantizer of ONNX Runtime writes is judged whole, both verdicts."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks.onnx_attacks import Arrays, model
from formats.onnx.test_operators import node
from numpy.typing import NDArray

import step_cli


def weight(shape: tuple[int, ...], axis: int, *, sparse: bool) -> NDArray[np.float32]:
    array = np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32) + 3
    if sparse:
        np.moveaxis(array, axis, 0)[::2] = 0
    return array


def graph(*, sparse: bool) -> onnx.ModelProto:
    """A convolution, an LSTM and two products; the LSTM is dense or not."""
    nodes = [
        node("Conv", ["x", "conv"], ["c"]),
        node("Transpose", ["c"], ["t"], perm=[2, 0, 1]),
        node("LSTM", ["t", "W", "R"], ["l"], hidden_size=8),
        node("Squeeze", ["l", "one"], ["s"]),
        node("MatMul", ["s", "first"], ["m"]),
        node("MatMul", ["m", "last"], ["y"]),
    ]
    arrays: Arrays = {"one": np.array([1])}
    arrays["conv"] = weight((16, 8, 3), 1, sparse=True)
    arrays["W"] = weight((1, 32, 16), 2, sparse=sparse)
    arrays["R"] = weight((1, 32, 8), 2, sparse=True)
    arrays["first"] = weight((8, 16), 0, sparse=True)
    arrays["last"] = weight((16, 4), 0, sparse=True)
    proto = model(nodes, arrays)
    info = onnx.helper.make_tensor_value_info
    proto.graph.input[0].CopyFrom(info("x", onnx.TensorProto.FLOAT, [2, 8, 6]))
    proto.graph.output[0].CopyFrom(info("y", onnx.TensorProto.FLOAT, None))
    return proto


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_dynamic_quantization_is_checked(
    kind: str, per_channel: bool, tmp_path: Path
) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    for sparse in (True, False):
        source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
        source.write_bytes(graph(sparse=sparse).SerializeToString())
        quantization.quantize_dynamic(
            str(source),
            str(target),
            weight_type=quantization.QuantType[kind],
            per_channel=per_channel,
        )
        (found,) = step_cli.verify(target).checkpoints
        axes = {layer.name.removesuffix("_quantized"): layer for layer in found.layers}
        assert found.totals.coverage == 1
        assert {name: layer.axis for name, layer in axes.items()} == {
            "conv": 1,
            "W": 1,  # turned by the quantizer
            "R": 1,
            "first": 0,
            "last": 0,
        }
        assert {layer.dtype for layer in found.layers} <= {"int8", "uint8"}
        assert [name for name, layer in axes.items() if not layer.ok] == (
            [] if sparse else ["W"]
        )
