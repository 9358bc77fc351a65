"""Which quantizers stand around the products of an ONNX file, as it was written.

Read from the bytes of the file, not from what made it: a fault of the library that puts
quantizers into a graph is found here.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.onnx.data import TensorData, dtype_name
from step_cli.formats.onnx.graph import ModelReader
from step_cli.formats.onnx.model import Node, Tensor
from step_cli.formats.onnx.quantization.layers import end_of_layer
from step_cli.formats.onnx.surroundings import NamedGraph
from step_cli.formats.onnx.weight_uses import uses_of
from step_cli.formats.onnx.weights.use import Use

CODES = {"int8": "int8", "fp8": "float8_e4m3fn"}
Q, DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Quantizers:
    """Around one stored weight, by the product that has the fewest.

    Attributes:
        weight: The dtype of the stored codes that a quantizer turns into numbers; None
            where the weight is stored as numbers.
        input: The dtype of the codes that the other operand comes from, or None.
        output: The dtype of the codes that the output becomes, behind bias and Relu.
        scales: How many the weight has.
        symmetric: Whether the code of zero is 0 in all of them.
    """

    weight: str | None
    input: str | None
    output: str | None
    scales: int = 0
    symmetric: bool = True

    def faults(self, dtype: str) -> list[str]:
        """What is missing around a layer that is to be of these codes, in words."""
        found = {"weight": self.weight, "input": self.input, "output": self.output}
        missing = [
            f"its {name} {'has no quantizer' if codes is None else f'is {codes}'}"
            for name, codes in found.items()
            if codes != dtype
        ]
        return missing + ([] if self.symmetric else ["a code of zero is not 0"])


class QuantizedGraph:
    """The main graph of an ONNX file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        file = map_file(path)
        self._data = TensorData(file)
        self._model = ModelReader(file.data.data).model()
        self._graph = NamedGraph(self._model.graph, {})

    def around(self, weights: Collection[str]) -> dict[str, Quantizers]:
        """What stands around some stored weights, by their names."""
        found: dict[str, Quantizers] = {}
        for use in uses_of(self._model, self._data.read).products:
            name = use.tensor.name
            if name in weights:
                own = self._around(use)
                found[name] = min(found.get(name, own), own, key=_complete)
        return found

    def doubled(self) -> list[str]:
        """Values that are quantized twice: by two nodes, or again behind themselves."""
        found = []
        for name, takers in self._graph.takers.items():
            pairs = [node for node in takers if _is(node, Q) and node.inputs[0] == name]
            maker = self._graph.makers.get(name)
            if len(pairs) > 1 or (pairs and maker is not None and _is(maker, DQ)):
                found.append(name)
        return sorted(found)

    def _around(self, use: Use) -> Quantizers:
        weight = scales = None
        enters, all_zero = None, True
        for name in use.node.inputs[:2]:
            dequantizer = self._graph.makers.get(name)
            if dequantizer is None or not _is(dequantizer, DQ):
                continue
            quantizer = self._graph.makers.get(dequantizer.inputs[0])
            if self._graph.stored.get(dequantizer.inputs[0]) is use.tensor:
                weight, scales = dtype_name(use.tensor), self._scales(dequantizer)
            elif quantizer is not None and _is(quantizer, Q):
                enters = self._dtype(quantizer)
                all_zero = all_zero and self._zero(quantizer)
            all_zero = all_zero and self._zero(dequantizer)
        leaves, zero = self._output(use.node)
        return Quantizers(weight, enters, leaves, scales or 0, all_zero and zero)

    def _output(self, node: Node) -> tuple[str | None, bool]:
        """The codes that an output becomes, if nothing reads it before."""
        name = end_of_layer(self._graph, node)
        takers = self._graph.takers.get(name, [])
        if not takers or name in self._graph.graph.outputs:
            return None, True
        if not all(_is(taker, Q) and taker.inputs[0] == name for taker in takers):
            return None, True
        return self._dtype(takers[0]), all(map(self._zero, takers))

    def _zero_point(self, node: Node) -> Tensor | None:
        name = node.inputs[2] if len(node.inputs) > 2 else ""
        return self._graph.stored.get(name)

    def _dtype(self, node: Node) -> str | None:
        """What a quantizer gives: by its zero point, which says so; else uint8."""
        zero = self._zero_point(node)
        if zero is None:
            return None if len(node.inputs) > 2 else "uint8"
        return dtype_name(zero)

    def _zero(self, node: Node) -> bool:
        zero = self._zero_point(node)
        if zero is None:
            return len(node.inputs) < 3 or not node.inputs[2]
        return not self._data.read(zero).astype("float32").any()

    def _scales(self, node: Node) -> int | None:
        scale = self._graph.stored.get(node.inputs[1])
        return None if scale is None else self._data.read(scale).size


def _is(node: Node, operator: str) -> bool:
    return node.op_type == operator and not node.domain


def _complete(one: Quantizers) -> int:
    return sum(x is not None for x in (one.weight, one.input, one.output))


def zeros_with_codes(source: NamedTensor, codes: NamedTensor) -> int:
    """How many zeros of a weight have other bits than 0 as codes.

    Args:
        source: The weight as numbers.
        codes: The same as codes of one byte.
    """
    bits = codes.read().view(np.uint8)
    return int(np.count_nonzero(bits[source.read() == 0]))
