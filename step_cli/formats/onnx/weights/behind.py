"""The scale of an integer product's weight, where it stands behind the product.

MatMulInteger and ConvInteger sum codes, and take no scale. What quantizers write behind
them is Cast, and Mul by the scale of the input times that of the weight.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.formats.onnx.model import STANDARD, Node
from step_cli.formats.onnx.weights.scopes import Made, Scope

Array = npt.NDArray[Any]

MOST_FACTORS = 4
MOST_CODES = 1 << 24
Small = Callable[[Scope, str, int], Array | None]


def scale_behind(scope: Scope, node: Node, small: Small) -> Array | None:
    """The stored numbers that the output of a product is multiplied by.

    Args:
        scope: Where the product stands.
        node: The product.
        small: A constant by its name, if it has at most so many elements.

    Returns:
        One number, or a list: one for each output. None if none is found.
    """
    name = node.outputs[0] if node.outputs else ""
    for _ in range(MOST_FACTORS):
        taker = _only_taker(scope, name)
        if taker is not None and taker.op_type == "Cast":
            name = taker.outputs[0]
            taker = _only_taker(scope, name)
        if taker is None or taker.op_type != "Mul" or len(taker.inputs) != 2:
            return None
        other = next((given for given in taker.inputs if given != name), "")
        found = _stored_factor(scope, other, small)
        if found is not None:
            return found
        name = taker.outputs[0]
    return None


def _only_taker(scope: Scope, name: str) -> Node | None:
    takers = scope.takers.get(name, [])
    alone = len(takers) == 1 and takers[0].domain in STANDARD and takers[0].outputs
    return takers[0] if alone else None


def _stored_factor(scope: Scope, name: str, small: Small) -> Array | None:
    """A constant that is one number or a list of them, or such a factor of a Mul."""
    names, source = [name], scope.find(name)
    if isinstance(source, Made) and source.node.op_type == "Mul":
        scope, names = source.scope, source.node.inputs
    found = [small(scope, one, MOST_CODES) for one in names]
    known = [one for one in found if one is not None and _is_list(one)]
    return known[0].reshape(-1) if len(known) == 1 else None


def _is_list(array: Array) -> bool:
    """Whether it has floats along at most one axis."""
    wide = max(array.shape, default=1) == math.prod(array.shape)
    return wide and array.size > 0 and not np.issubdtype(array.dtype, np.integer)
