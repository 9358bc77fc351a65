"""What all scopes of one model share, and how tensors and functions are written."""

import zlib
from typing import Any

import numpy as np
import onnx
from formats.onnx.random_graphs.values import Array, Stored
from onnx import TensorProto, helper, numpy_helper

OPSETS = {"": 21, "com.microsoft": 1, "local": 1}
FUNCTION_NAMES = ("Dense", "Identity", "Transpose", "Block", "Reshape", "Neg", "MatMul")


class Model:
    """What all scopes of one model share.

    With ``old`` it has an opset in which axes are attributes. With ``fed`` every stored
    tensor is an input of the graph, so that its numbers can be changed from run to
    run; all else is the same, except that functions have no overloads, which ONNX
    Runtime 1.31 confuses where one function calls another.
    """

    def __init__(self, seed: int, fed: bool, old: bool = False) -> None:
        self.seed, self.fed, self.old = seed, fed, old
        self.opsets = {**OPSETS, "": 12} if old else OPSETS
        self.functions: dict[bytes, onnx.FunctionProto] = {}
        self.inputs: dict[str, tuple[str, tuple[int, ...]]] = {}

    def chance(self, about: str, one_in: int) -> bool:
        """True one time in so many, the same for the same question."""
        return zlib.crc32(f"{self.seed} {about}".encode()) % one_in == 0


def element_type(dtype: str) -> int:
    names = {"float8_e4m3fn": "FLOAT8E4M3FN", "float32": "FLOAT", "float64": "DOUBLE"}
    return int(getattr(TensorProto, names.get(dtype, dtype.upper())))


def tensor_proto(array: Array, name: str, model: Model) -> TensorProto:
    """Raw bytes, or a list of numbers."""
    if array.dtype in (np.float32, np.float64, np.int8) and model.chance(name, 2):
        kind = element_type(str(array.dtype))
        return helper.make_tensor(name, kind, array.shape, array.reshape(-1).tolist())
    return numpy_helper.from_array(array, name)


def sparse_proto(stored: Stored) -> onnx.SparseTensorProto:
    """Where the numbers that are not 0 lie, numbered row by row."""
    flat = stored.typed().reshape(-1)
    at = np.flatnonzero(flat)
    return onnx.SparseTensorProto(
        values=numpy_helper.from_array(flat[at], stored.name),
        indices=numpy_helper.from_array(at.astype(np.int64), stored.name + "_indices"),
        dims=stored.shape,
    )


def declared(
    model: Model, function: Any, inner: list[str], output: str
) -> onnx.FunctionProto:
    """The function that a scope has become; some have the name of another one."""
    number, others = len(model.functions), model.functions.values()
    name, overload = FUNCTION_NAMES[(model.seed + number) % len(FUNCTION_NAMES)], ""
    alike = [made.name for made in others if len(made.input) == len(inner)]
    if alike and not model.fed and model.chance(f"overload {number}", 3):
        name, overload = alike[0], f"o{number}"
    elif any(made.name == name for made in others):
        name += str(number)
    return helper.make_function(
        "local",
        name,
        inner,
        [output],
        function.nodes,
        [helper.make_opsetid(*opset) for opset in model.opsets.items()],
        attributes=[a for a in function.attributes if a not in function.defaults],
        attribute_protos=list(function.defaults.values()),
        overload=overload,
    )
