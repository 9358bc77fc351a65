"""Small models as ONNX Runtime's quantizer stores them, and what they compute."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
node = helper.make_node


def weight(*shape: int, seed: int = 0) -> Array:
    """Numbers whose mean is not 0, and whose rows differ in size."""
    random = np.random.default_rng([seed, *shape])
    rows = random.uniform(0.2, 2, (shape[0], *[1] * (len(shape) - 1)))
    return (random.normal(0.3, 1, shape) * rows).astype(np.float32)


def save(path: Path, nodes: list[onnx.NodeProto], arrays: dict[str, Array]) -> Path:
    """A graph from ``x``, whose shape is that of the array of this name, to ``y``."""
    shape = ["batch", *arrays["x"].shape[1:]]
    info = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(a, n) for n, a in arrays.items() if n != "x"]
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, shape)],
        [info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return path


def mlp(path: Path) -> Array:
    """Gemm with transB, and MatMul with Add; returns an input."""
    x = np.random.default_rng(1).normal(size=(6, 16)).astype(np.float32)
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"], "gemm", transB=1),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w2"], ["m"], "matmul"),
        node("Add", ["m", "b2"], ["y"]),
    ]
    arrays = {"w1": weight(24, 16), "b1": weight(24), "w2": weight(24, 8)}
    save(path, nodes, {"x": x, **arrays, "b2": weight(8)})
    return x


def conv_net(path: Path) -> Array:
    """Two convolutions, one of them in groups, and Gemm; returns an input."""
    x = np.random.default_rng(1).normal(size=(4, 8, 6, 6)).astype(np.float32)
    nodes = [
        node("Conv", ["x", "c1", "b1"], ["h"], "conv", pads=[1, 1, 1, 1]),
        node("Relu", ["h"], ["r"]),
        node("Conv", ["r", "c2"], ["g"], "grouped", group=2),
        node("GlobalAveragePool", ["g"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w", "b"], ["y"], "gemm", transB=1),
    ]
    arrays = {"c1": weight(16, 8, 3, 3), "b1": weight(16), "b": weight(4)}
    arrays |= {"c2": weight(16, 8, 3, 3, seed=1), "w": weight(4, 16)}
    save(path, nodes, {"x": x, **arrays})
    return x


def attention(path: Path) -> Array:
    """The operator of ONNX Runtime for attention, and MatMul; returns an input."""
    x = np.random.default_rng(1).normal(size=(2, 5, 16)).astype(np.float32)
    given = {"domain": "com.microsoft", "num_heads": 4}
    nodes = [
        node("Attention", ["x", "wa", "ba"], ["a"], "attention", **given),
        node("MatMul", ["a", "w"], ["y"], "matmul"),
    ]
    arrays = {"wa": weight(16, 48), "ba": weight(48), "w": weight(16, 8)}
    model = onnx.load(str(save(path, nodes, {"x": x, **arrays})))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(path))
    return x


def quantize(source: Path, target: Path, how: str, feeds: Mapping[str, Array]) -> Path:
    """Quantize ``source`` as ``how`` says: way, kind of weights, and options by `-`.

    The way is ``dynamic``, ``QOperator`` or ``QDQ``, the kind ``int8`` or ``uint8``;
    the options are ``channel``, ``narrow`` (7 bits) and ``offset`` (a zero point).
    """
    from onnxruntime import quantization as q

    way, kind, *options = how.split("-")
    given: dict[str, Any] = {
        "weight_type": q.QuantType.QInt8 if kind == "int8" else q.QuantType.QUInt8,
        "per_channel": "channel" in options,
        "reduce_range": "narrow" in options,
    }
    if way == "dynamic":
        q.quantize_dynamic(str(source), str(target), **given)
        return target

    class Samples(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Mapping[str, Array]] = iter([feeds])

        def get_next(self) -> Mapping[str, Array] | None:
            return next(self.left, None)

    given["activation_type"] = q.QuantType.QUInt8
    given["extra_options"] = {"WeightSymmetric": "offset" not in options}
    given["quant_format"] = q.QuantFormat[way]
    q.quantize_static(str(source), str(target), Samples(), **given)
    return target


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    """The first output, node by node as the graph says."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: Array = session.run(None, dict(feeds))[0]
    return found


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    """The initializers by name."""
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def numbers_of(codes: Array, zero: Array, scale: Array, axis: int) -> Array:
    """What codes stand for in fp32; ``axis`` is that of lists of zeros and scales."""
    shape = [1] * codes.ndim
    if zero.size > 1:
        shape[axis] = -1
    distance = codes.astype(np.int32) - zero.reshape(shape).astype(np.int32)
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[axis] = -1
    found: Array = distance.astype(np.float32) * scale.reshape(shape)
    return found


def largest_two(numbers: Array, axis: int) -> Array:
    """Group by group, which two of four are the largest; the first of equal ones."""
    moved = np.moveaxis(numbers, axis, -1)
    keep = np.zeros(moved.shape, np.bool_)
    for group in np.ndindex(*moved.shape[:-1], moved.shape[-1] // 4):
        *outer, first = group
        four = np.abs(moved[(*outer, slice(4 * first, 4 * first + 4))])
        for member in sorted(range(4), key=lambda i: (-four[i], i))[:2]:
            keep[(*outer, 4 * first + member)] = True
    return np.moveaxis(keep, -1, axis)


def in_floats(model: onnx.ModelProto, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """The same graph with products of floats in place of those of stored codes.

    Args:
        model: The quantized model.
        weights: The numbers to multiply by, by the name of the codes. For an integer
            product those are whole: codes less their zero point.
    """
    constants = stored(model)
    nodes: list[onnx.NodeProto] = []
    for number, one in enumerate(model.graph.node):
        name = next((name for name in one.input if name in weights), None)
        if name is None or one.op_type not in _AS_FLOATS:
            nodes.append(one)
            continue
        new = f"{name}.float{number}"
        tensor = numpy_helper.from_array(weights[name].astype(np.float32), new)
        model.graph.initializer.append(tensor)
        nodes += _AS_FLOATS[one.op_type](one, new, constants, model)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _dequantized(
    one: onnx.NodeProto, new: str, constants: dict[str, Array], model: onnx.ModelProto
) -> list[onnx.NodeProto]:
    return [node("Identity", [new], list(one.output))]


def _integer(
    one: onnx.NodeProto, new: str, constants: dict[str, Array], model: onnx.ModelProto
) -> list[onnx.NodeProto]:
    """Whole numbers below 2^24, so that floats add them without rounding."""
    y, x, zero = one.output[0], one.input[0], one.input[2]
    product = node(one.op_type.removesuffix("Integer"), [f"{y}.x", new], [f"{y}.p"])
    product.attribute.extend(one.attribute)
    return [
        node("Cast", [x], [f"{y}.cx"], to=TensorProto.FLOAT),
        node("Cast", [zero], [f"{y}.cz"], to=TensorProto.FLOAT),
        node("Sub", [f"{y}.cx", f"{y}.cz"], [f"{y}.x"]),
        product,
        node("Cast", [f"{y}.p"], [y], to=TensorProto.INT32),
    ]


def _operator(
    one: onnx.NodeProto, new: str, constants: dict[str, Array], model: onnx.ModelProto
) -> list[onnx.NodeProto]:
    """QLinearMatMul, QLinearConv or QGemm between dequantized and quantized values."""
    y, given = one.output[0], list(one.input)
    gemm = one.op_type == "QGemm"
    ends = given[7:] if gemm else given[6:8]
    inputs = [f"{y}.x", new]
    bias = given[6:7] if gemm else given[8:9]
    if any(bias):
        scale = constants[given[1]] * constants[given[4]]
        values = (constants[bias[0]] * scale).astype(np.float32)
        tensor = numpy_helper.from_array(values, f"{y}.bias")
        model.graph.initializer.append(tensor)
        inputs.append(tensor.name)
    product = node(one.op_type[1 if gemm else 7 :], inputs, [f"{y}.p"])
    product.attribute.extend(one.attribute)
    return [
        node("DequantizeLinear", given[:3], [f"{y}.x"]),
        product,
        node("QuantizeLinear", [f"{y}.p", *ends], [y]),
    ]


def _attention(
    one: onnx.NodeProto, new: str, constants: dict[str, Array], model: onnx.ModelProto
) -> list[onnx.NodeProto]:
    y, given = one.output[0], list(one.input)
    inputs = [f"{y}.x", new, given[2]]
    product = node("Attention", inputs, [y], domain=one.domain)
    product.attribute.extend(one.attribute)
    x = [given[0], given[3], given[6]]
    return [node("DequantizeLinear", x, [f"{y}.x"]), product]


_AS_FLOATS: dict[str, Callable[..., list[onnx.NodeProto]]] = {
    "DequantizeLinear": _dequantized,
    "MatMulInteger": _integer,
    "ConvInteger": _integer,
    "QLinearMatMul": _operator,
    "QLinearConv": _operator,
    "QGemm": _operator,
    "QAttention": _attention,
}


def is_exact(how: str) -> bool:
    """Whether the arithmetic of a quantized graph has no rounding of its own."""
    return not how.startswith("QOperator")


def steps_apart(found: Array, expected: Array, step: float) -> int:
    """How many steps of a quantizer two outputs are apart at most."""
    return math.ceil(float(np.abs(found - expected).max()) / step - 1e-3)
