"""A walk over a quantized ONNX file by the onnx package alone, without step-cli's rule.

It says what is wrong with the codes of a weight, and with the quantizers around it.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray

Array = NDArray[Any]
PAIR = ("QuantizeLinear", "DequantizeLinear")
DTYPES = {"int8": "int8", "fp8": "float8_e4m3fn"}


def faults_of(path: Path, weights: Mapping[str, Array], codes: str) -> list[str]:
    """What is wrong with a file; empty: nothing.

    Args:
        path: The quantized file.
        weights: Of the source checkpoint, by the name of the initializer.
        codes: int8 or fp8.
    """
    walk = Walk(onnx.load(str(path)).graph, DTYPES[codes])
    faults = list(walk.doubled())
    for name, weight in weights.items():
        faults += [f"{name}: {fault}" for fault in walk.faults(name, weight)]
    return faults


def mutated(path: Path, out: Path, change: Callable[["Walk"], None]) -> Path:
    """Write a changed copy of a file."""
    model = onnx.load(str(path))
    change(Walk(model.graph, "int8"))
    onnx.save(model, str(out))
    return out


class Walk:
    """A graph, who makes and who takes each of its values."""

    def __init__(self, graph: onnx.GraphProto, dtype: str) -> None:
        self.graph, self.dtype = graph, dtype
        self.stored = {tensor.name: tensor for tensor in graph.initializer}

    def array(self, name: str) -> Array:
        return onnx.numpy_helper.to_array(self.stored[name])

    def maker(self, name: str) -> Any:
        return next((node for node in self.graph.node if name in node.output), None)

    def takers(self, name: str) -> list[Any]:
        return [node for node in self.graph.node if name in node.input]

    def product(self, name: str) -> Any:
        """What multiplies by a weight: the only reader of its dequantizer."""
        (dequantizer,) = self.takers(name)
        if dequantizer.op_type != "DequantizeLinear":
            return dequantizer
        (product,) = self.takers(dequantizer.output[0])
        return product

    def quantizers_of_input(self, name: str) -> tuple[Any, Any]:
        """Those behind the other operand of the product, None where there is none."""
        (dequantizer,) = self.takers(name)
        product = self.product(name)
        other = next(i for i in product.input[:2] if i not in dequantizer.output)
        second = self.maker(other)
        if second is None or second.op_type != "DequantizeLinear":
            return None, None
        return self.maker(second.input[0]), second

    def output(self, name: str) -> str:
        """The value that a layer's bias and Relu leave."""
        found = self.product(name).output[0]
        for operator in ("Add", "Relu"):
            takers = self.takers(found)
            if len(takers) != 1 or takers[0].op_type != operator:
                continue
            others = [i for i in takers[0].input if i != found]
            if all(i in self.stored for i in others):
                found = takers[0].output[0]
        return found

    def doubled(self) -> Iterator[str]:
        for node in self.graph.node:
            if node.op_type == "QuantizeLinear":
                pairs = [
                    other
                    for other in self.takers(node.input[0])
                    if other.op_type == "QuantizeLinear"
                ]
                before = self.maker(node.input[0])
                again = before is not None and before.op_type == "DequantizeLinear"
                if len(pairs) > 1 or again:
                    yield f"{node.input[0]}: quantized twice"

    def faults(self, name: str, weight: Array) -> Iterator[str]:
        codes = self.array(name)
        if codes.dtype.name != self.dtype:
            yield f"stored as {codes.dtype}"
            return
        bits = codes.view(np.uint8)
        (dequantizer,) = self.takers(name)
        numbers = codes.astype(np.float32) * self._scales(dequantizer, codes.ndim)
        own = min(_turned(weight, codes.shape), key=lambda w: np.abs(numbers - w).sum())
        if np.count_nonzero(bits[own == 0]):
            yield "a zero of the mask is no zero code"
        if not np.allclose(numbers, own, atol=np.abs(own).max() / 15):
            yield "the codes are not those of the weight"
        first, second = self.quantizers_of_input(name)
        takers = self.takers(self.output(name))
        behind = [n for node in takers for n in self.takers(node.output[0])]
        if first is None or first.op_type != "QuantizeLinear":
            yield "its input has no quantizer"
        if not takers or any(n.op_type != "QuantizeLinear" for n in takers):
            yield "its output has no quantizer"
        pairs = [dequantizer, first, second, *takers, *behind]
        for node in pairs:
            if node is None or node.op_type not in PAIR:
                continue
            zero = self.array(node.input[2])
            if zero.dtype.name != self.dtype or zero.astype(np.float32).any():
                yield f"{node.name}: not symmetric {self.dtype}"

    def _scales(self, dequantizer: Any, rank: int) -> Array:
        scale = self.array(dequantizer.input[1])
        if not scale.ndim:
            return scale
        axis = next((a.i for a in dequantizer.attribute if a.name == "axis"), 1)
        shape = [1] * rank
        shape[axis] = -1
        return scale.reshape(shape)


def _turned(weight: Array, shape: tuple[int, ...]) -> list[Array]:
    """A weight as it may be stored: as it is, or transposed."""
    return [w for w in (weight, weight.T) if w.shape == shape]
