"""Whether TensorRT could run a layer on sparse tensor cores, and whether it is likely.

Source: the Structured Sparsity section of NVIDIA's developer guide (8.5): 2:4 along the
input channels, whose number is a multiple of 4. Sizes that pay are what NVIDIA's
engineers report (TensorRT issues 3849 and 4065). Only a build decides.
"""

from dataclasses import dataclass

from step_cli.nm.axis_rule import AxisRule
from step_cli.nm.count import TensorToCheck
from step_cli.nm.diagnosis import holds_pattern
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.weight_rule import Described

TWO_FOUR = NMPattern(2, 4)
WORTH_IT = 256  # channels in and out from which sparse kernels tend to win
SIXTEEN_BIT = {"float16", "bfloat16"}
EIGHT_BIT = {"int8", "float8_e4m3fn"}


@dataclass(frozen=True)
class View:
    """Possible: the rule allows it. Likely: size and type are known to gain from it."""

    possible: bool
    likely: bool
    advice: str | None


def tensorrt_view(tensor: Described, given: TensorToCheck, *, holds: bool) -> View:
    """Judge one layer.

    Args:
        tensor: Its description.
        given: Its data and what it promises.
        holds: Whether it holds what it promises.
    """
    axis = _input_axis(tensor)
    if holds and planned_two_four(given.spec, axis):
        return _view(tensor, axis, is_two_four=True)
    found = tensor.shape[axis] % 4 == 0 and holds_pattern(given, TWO_FOUR, axis)
    return _view(tensor, axis, is_two_four=found)


def planned_view(tensor: Described, spec: NMSpec) -> View:
    """Judge one layer by what it promises, without its data."""
    axis = _input_axis(tensor)
    return _view(tensor, axis, is_two_four=planned_two_four(spec, axis))


def planned_two_four(spec: NMSpec, axis: int) -> bool:
    """Whether what holds ``spec`` is 2:4 along ``axis``."""
    return spec.axis == axis and implies_two_four(spec.pattern)


def _input_axis(tensor: Described) -> int:
    return AxisRule([tensor]).of(tensor).axis


def _view(tensor: Described, axis: int, *, is_two_four: bool) -> View:
    size = tensor.shape[axis]
    if size % 4:
        obstacle = f"{size} input channels, not a multiple of 4; pad them"
    elif not is_two_four:
        obstacle = f"not 2:4 along axis {axis}, the only pattern with sparse kernels"
    elif tensor.dtype not in SIXTEEN_BIT | EIGHT_BIT:
        obstacle = f"no sparse kernels for {tensor.dtype}; use fp16, bf16, int8 or fp8"
    else:
        doubt = _doubt(tensor, axis)
        return View(True, doubt is None, doubt)
    return View(False, False, obstacle)


def implies_two_four(pattern: NMPattern) -> bool:
    """Whether whatever holds ``pattern`` holds 2:4 as well."""
    return pattern == NMPattern(1, 2) or (pattern.n <= 2 and pattern.m % 4 == 0)


def _doubt(tensor: Described, axis: int) -> str | None:
    """What makes a sparse kernel unlikely to be the fastest."""
    shape = tensor.shape
    conv = axis == 1 and len(shape) > 2
    inputs, outputs = shape[axis], shape[AxisRule([tensor]).outputs(tensor, axis)]
    if conv and tensor.dtype == "bfloat16":
        return "no sparse bf16 convolution kernels are known; use fp16 or int8"
    if min(inputs, outputs) < WORTH_IT:
        return (
            f"{inputs} channels in, {outputs} out: sparse tends to win from {WORTH_IT}"
        )
    alignment = 16 if tensor.dtype in SIXTEEN_BIT else 32
    if inputs % alignment or outputs % alignment:
        return f"channels should be multiples of {alignment}"
    if tensor.dtype == "int8":
        return None if conv else "needs an output quantizer, so that its output is int8"
    if tensor.dtype == "float8_e4m3fn":
        return "fp8 needs compute capability 8.9, and gained from 9.0 only"
    return None
