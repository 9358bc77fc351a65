"""Quantizers put around the sparse layers of a graph, by ONNX Runtime's quantizer.

The library computes scales, codes and nodes. Which tensors get a quantizer is ours: the
input and the output of each product, one pair for each tensor. Biases stay fp32:
TensorRT takes them so beside int8 and fp8 products, and adds them before it rounds.
What a layer only reads stays fp32 for everything else that reads it, residuals and
norms among them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from step_cli.formats.onnx.quantization.layers import Product
from step_cli.formats.onnx.quantization.names import free, make_room
from step_cli.formats.quiet import quiet

if TYPE_CHECKING:
    import onnx
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

Array = npt.NDArray[Any]
Codes = Literal["int8", "fp8"]
Ranges = Mapping[str, tuple[Array, Array]]
LARGEST_E4M3 = 448.0  # OCP 8-bit floating point, revision 1.0, table 1
INFERRED = "onnx.infer"  # a note that the library leaves in the metadata


def add_quantizers(
    path: Path, products: Sequence[Product], ranges: Ranges, codes: Codes
) -> "onnx.ModelProto":
    """Give products quantized inputs, weights and outputs.

    Args:
        path: The fp32 graph.
        products: At least one.
        ranges: Of every tensor that enters or leaves one of them.
        codes: int8: symmetric, weights one scale for each output; fp8: E4M3, one scale
            for each tensor, its largest magnitude over 448.

    Returns:
        The model, to be saved.

    Raises:
        InputError: An input or output of the graph has a name that a quantizer needs.
    """
    with quiet():
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        model = load_model_with_shape_infer(path)
        graph = model.graph
        tensors = {
            name for one in products for name in (one.weight, one.enters, one.leaves)
        }
        make_room(graph, tensors)
        _keep_for_others(graph, products)
        quantizer = _quantizer(model, products, ranges, codes)
        for product in products:
            _mark(quantizer, product, codes)
        readers = _readers(products)
        outputs = list(graph.output)
        # The library puts a pair before an output of the graph.
        _set(graph.output, [value for value in outputs if value.name not in readers])
        quantizer.quantize_model()
        _set(graph.output, outputs)
        _leave_float(graph, readers)
        _name_codes(graph, products)
        quantizer.model.topological_sort()
    noted = [pair for pair in model.metadata_props if pair.key != INFERRED]
    _set(model.metadata_props, noted)
    made: onnx.ModelProto = model
    return made


def _mark(quantizer: "QDQQuantizer", product: Product, codes: Codes) -> None:
    """Tell the library which tensors of a layer it is to quantize."""
    quantizer.quantize_activation_tensor(product.enters)
    quantizer.quantize_activation_tensor(product.leaves)
    if codes == "int8":
        name, axis = product.weight, product.outputs
        quantizer.quantize_weight_tensor_per_channel(name, axis)
    else:
        quantizer.quantize_weight_tensor(product.weight)


def _set(field: Any, values: list[Any]) -> None:
    """Replace a repeated field of a message."""
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)


def _quantizer(
    model: "onnx.ModelProto", products: Sequence[Product], ranges: Ranges, codes: Codes
) -> "QDQQuantizer":
    """The library's, which marks no node by itself: no operator is named to it."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    options: dict[str, Any] = {"ActivationSymmetric": True}
    kind = QuantType.QInt8
    if codes == "fp8":
        kind = QuantType.QFLOAT8E4M3FN
        options["TensorQuantOverrides"] = _fp8_scales(model, products, ranges)
    return QDQQuantizer(
        model,
        codes == "int8",  # one scale for each channel
        False,  # the whole range of the codes
        kind,
        kind,
        TensorsData(CalibrationMethod.MinMax, dict(ranges)),
        [],
        [],
        [],
        options,
    )


def _fp8_scales(
    model: "onnx.ModelProto", products: Sequence[Product], ranges: Ranges
) -> dict[str, list[dict[str, Array]]]:
    """The largest magnitude becomes the largest code.

    The library's own rule makes standard deviations equal, and cuts off what is larger.
    """
    import ml_dtypes
    from onnx import numpy_helper

    weights = {product.weight for product in products}
    largest = {
        tensor.name: float(np.abs(numpy_helper.to_array(tensor)).max())
        for tensor in model.graph.initializer
        if tensor.name in weights
    }
    for name, (low, high) in ranges.items():
        largest[name] = max(abs(float(low)), abs(float(high)))
    zero = np.array(0, ml_dtypes.float8_e4m3fn)
    return {
        name: [{"scale": _fp8_scale(value), "zero_point": zero}]
        for name, value in largest.items()
    }


def _fp8_scale(largest: float) -> Array:
    scale = np.array(largest / LARGEST_E4M3, np.float32)
    return scale if scale >= np.finfo(np.float32).tiny else np.array(1, np.float32)


def _keep_for_others(graph: "onnx.GraphProto", products: Sequence[Product]) -> None:
    """Give whatever else reads a weight, such as an embedding, a copy of its own.

    Zeros lose their sign, as the code of -0.0 in fp8 is not 0.
    """
    from onnx import numpy_helper

    own = {(product.node, product.weight) for product in products}
    taken = {tensor.name for tensor in graph.initializer}
    for tensor in list(graph.initializer):
        if tensor.name not in {weight for _, weight in own}:
            continue
        others = [
            node
            for node in graph.node
            if tensor.name in node.input and (node.name, tensor.name) not in own
        ]
        values = numpy_helper.to_array(tensor)
        if others:
            copy = graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = free(f"{tensor.name}.float", taken)
            for node in others:
                _reroute(node, tensor.name, copy.name)
        tensor.CopyFrom(
            numpy_helper.from_array(values + values.dtype.type(0), tensor.name)
        )


def _reroute(node: "onnx.NodeProto", old: str, new: str) -> None:
    for place, name in enumerate(node.input):
        if name == old:
            node.input[place] = new


def _readers(products: Sequence[Product]) -> dict[str, set[str]]:
    """The layers that read each tensor which no layer leaves."""
    found: dict[str, set[str]] = {}
    codes = {product.leaves for product in products}
    for product in products:
        if product.enters not in codes:
            found.setdefault(product.enters, set()).add(product.node)
    return found


def _leave_float(graph: "onnx.GraphProto", readers: Mapping[str, set[str]]) -> None:
    """Have all but some layers read a tensor as it was before it was quantized."""
    quantized = {f"{name}_DequantizeLinear_Output": name for name in readers}
    for node in graph.node:
        for place, name in enumerate(node.input):
            before = quantized.get(name)
            if before is not None and node.name not in readers[before]:
                node.input[place] = before


def _name_codes(graph: "onnx.GraphProto", products: Sequence[Product]) -> None:
    """Codes get the names of their weights, which the plan knows them by."""
    names = {f"{product.weight}_quantized": product.weight for product in products}
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
