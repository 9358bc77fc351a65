"""Whether a library has a sparse kernel for a layer, and whether it may pay."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from step_cli.nm.count import TensorToCheck
from step_cli.nm.diagnosis import holds_paired, holds_pattern
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.selection import Layer, T
from step_cli.nm.target_table import (
    HALF,
    TARGETS,
    TWO_FOUR,
    WORTH_IT,
    Kernel,
    Target,
    TargetName,
)

WIDER = ("float32", "float64")  # than any type with sparse kernels


@dataclass(frozen=True)
class View:
    """Possible: the rule allows it. Likely: size and type are known to gain from it."""

    possible: bool
    likely: bool
    advice: str | None


@dataclass(frozen=True)
class Operand:
    """A weight as its product uses it.

    Attributes:
        dtype: NumPy spelling.
        shape: As stored.
        inputs: The axis that is summed over.
        outputs: The axis of the outputs.
        groups: Of a grouped convolution; 1 where none is known.
        int8_output: Whether a quantizer follows the product; None: not known.
        between: An operator of the graph that makes another constant of it.
    """

    dtype: str
    shape: tuple[int, ...]
    inputs: int
    outputs: int
    groups: int = 1
    int8_output: bool | None = None
    between: str | None = None

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of a convolution; empty for a matrix and for stacked ones."""
        is_kernel = len(self.shape) > 2 and (self.inputs, self.outputs) == (1, 0)
        return self.shape[2:] if is_kernel else ()


def operand_of(layer: Layer[T]) -> Operand:
    """A weight as its product uses it, whatever axis it is checked along.

    Of the parts that are used, the smallest counts.
    """
    tensor, inputs = layer.tensor, layer.inputs
    outputs = layer.outputs if inputs == layer.spec.axis else layer.spec.axis
    shape = tensor.shape
    if tensor.parts:
        sizes = [
            [end - begin for begin, end in zip(part.begin, part.end, strict=True)]
            for part in tensor.parts
        ]
        shape = tuple(min(some) for some in zip(*sizes, strict=True))
    return Operand(tensor.dtype, shape, inputs, outputs)


def view_of(
    target: TargetName, operand: Operand, given: TensorToCheck, *, holds: bool
) -> View:
    """Judge one layer.

    Args:
        target: The library.
        operand: The layer's weight.
        given: Its data and what it promises.
        holds: Whether it holds what it promises.
    """
    return _view(TARGETS[target], operand, partial(_holds, operand, given, holds))


def planned_view(operand: Operand, spec: NMSpec) -> View:
    """What TensorRT makes of a layer by what it promises, without its data."""
    return _view(TARGETS["tensorrt"], operand, partial(_promises, operand, spec))


def implies(pattern: NMPattern, other: NMPattern) -> bool:
    """Whether whatever holds ``pattern`` holds ``other`` as well."""
    if other.m % pattern.m == 0:  # its groups are made of several
        return pattern.n * (other.m // pattern.m) <= other.n
    return pattern.m % other.m == 0 and pattern.n <= other.n


def implies_two_four(pattern: NMPattern) -> bool:
    """Whether whatever holds ``pattern`` holds 2:4 as well."""
    return implies(pattern, TWO_FOUR)


def _promises(operand: Operand, spec: NMSpec, kernel: Kernel) -> bool:
    if kernel.paired or spec.axis != operand.inputs:
        return False
    return implies(spec.pattern, kernel.pattern)


def _holds(operand: Operand, given: TensorToCheck, holds: bool, kernel: Kernel) -> bool:
    if holds and _promises(operand, given.spec, kernel):
        return True
    if given.data.array.shape[operand.inputs] % kernel.pattern.m:
        return False
    check = holds_paired if kernel.paired else holds_pattern
    return check(given, kernel.pattern, operand.inputs)


def _view(target: Target, operand: Operand, holds: Callable[[Kernel], bool]) -> View:
    fitting = [k for k in target.kernels if operand.dtype in k.dtypes]
    obstacles = [_obstacle(target, kernel, operand, holds) for kernel in fitting]
    if None in obstacles:
        kernel = fitting[obstacles.index(None)]
        doubt = _doubt(target, kernel, operand)
        return View(True, doubt is None, doubt or kernel.note)
    if fitting:
        return View(False, False, obstacles[0])
    known = sorted(dtype for kernel in target.kernels for dtype in kernel.dtypes)
    use = ", ".join(dict.fromkeys(known))
    advice = f"no sparse kernels for {operand.dtype}; use {use}"
    if operand.dtype in WIDER and "float16" in known:
        then = _view(target, replace(operand, dtype="float16"), holds)
        advice += "" if then.possible else f"; nor as float16: {then.advice}"
    return View(False, False, advice)


def _obstacle(
    target: Target, kernel: Kernel, operand: Operand, holds: Callable[[Kernel], bool]
) -> str | None:
    """Why the library has no sparse kernel for the layer; None if it has one."""
    inputs, outputs = operand.shape[operand.inputs], operand.shape[operand.outputs]
    wrong = _wrong_form(target, operand)
    if wrong is not None:
        return wrong
    if inputs % kernel.inputs:
        return f"{inputs} input channels, not a multiple of {kernel.inputs}; pad them"
    if outputs % kernel.outputs:
        return f"{outputs} outputs, not a multiple of {kernel.outputs}; pad them"
    if not holds(kernel):
        return (
            f"not {kernel.words} along axis {operand.inputs}, the only pattern with "
            f"sparse kernels for {operand.dtype}"
        )
    # TensorRT chooses a sparse INT8 product only if its output stays INT8: NVIDIA
    # Model-Optimizer pull request 1664, TensorRT issue 4694.
    int8 = operand.dtype == "int8" and target is TARGETS["tensorrt"]
    if int8 and operand.int8_output is False:
        return "its output has no quantizer, so an int8 layer stays dense; add one"
    return None


def _wrong_form(target: Target, operand: Operand) -> str | None:
    """Why the library has no sparse kernels for that kind of product at all."""
    rank, windows = len(operand.shape), operand.windows
    if operand.groups > 1:  # TensorRT issue 4054; of the others, none convolves groups
        return "a grouped convolution, which has no sparse kernels"
    if windows and not target.convolutions:
        return f"a convolution; {target.title} takes matrices alone"
    if math.prod(windows) > 1 and not target.windows:
        return f"a convolution; {target.title} takes matrix products alone"
    if rank > 2 and not windows and not target.stacks:
        return f"{target.title} takes one matrix: split the stack"
    if target.last_axis and operand.inputs != rank - 1:
        return f"{target.title} compresses the last axis as stored: transpose it"
    return None


def _doubt(target: Target, kernel: Kernel, operand: Operand) -> str | None:
    """What makes a sparse kernel unlikely to be the fastest."""
    inputs, outputs = operand.shape[operand.inputs], operand.shape[operand.outputs]
    tensorrt = target is TARGETS["tensorrt"]
    if tensorrt and operand.between:
        return (
            f"{operand.between} stands between it and its product, and TensorRT may "
            "not see its zeros: store the result as one constant"
        )
    if tensorrt and operand.windows and operand.dtype == "bfloat16":
        return "no sparse bf16 convolution kernels are known; use fp16 or int8"
    if min(inputs, outputs) < WORTH_IT:
        return (
            f"{inputs} channels in, {outputs} out: sparse tends to win from {WORTH_IT}"
        )
    # The names of TensorRT's own kernels.
    alignment = 16 if operand.dtype in HALF else 32
    if tensorrt and (inputs % alignment or outputs % alignment):
        return f"channels should be multiples of {alignment}"
    if tensorrt and operand.dtype == "int8" and operand.int8_output is None:
        return "needs an output quantizer, so that its output is int8"
    return kernel.doubt
