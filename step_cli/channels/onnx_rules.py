"""Which rule of `Flow` each operator of ONNX follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt

from step_cli.channels.axes import find, fix, leaf
from step_cli.channels.flow import Flow, Value

_FLATTENS = 13  # opset below which Softmax works on all axes from its own on


@dataclass(frozen=True)
class Call:
    """A node: its inputs (None: left out), attributes and the shapes of its outputs."""

    flow: Flow
    inputs: Sequence[Value | None]
    constants: Sequence[npt.NDArray[Any] | None]
    attributes: Mapping[str, Any]
    shapes: Sequence[tuple[int, ...]]
    opset: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first output."""
        return self.shapes[0]

    @property
    def x(self) -> Value:
        """The first input."""
        return self.value(0)

    def value(self, place: int) -> Value:
        """An input that must be there."""
        found = self.optional(place)
        if found is None:
            raise KeyError(place)
        return found

    def optional(self, place: int) -> Value | None:
        """An input, or None."""
        return self.inputs[place] if place < len(self.inputs) else None

    def numbers(self, name: str, place: int) -> list[int] | None:
        """Numbers that are an attribute in old models and a constant input in new."""
        if name in self.attributes:
            return list(self.attributes[name])
        if self.optional(place) is None:
            return None
        constant = self.constants[place]
        if constant is None:
            raise KeyError(name)  # computed: nothing here can tell
        return [int(number) for number in constant.reshape(-1)]

    def axis(self, default: int = 0) -> int:
        """The attribute ``axis``, counted from the front."""
        return int(self.attributes.get("axis", default)) % max(1, len(self.x))


Rule = Callable[[Call], Any]


def _elementwise(call: Call) -> Value:
    given = [value for value in call.inputs if value is not None]
    return call.flow.elementwise(given, call.shape)


def _same(call: Call) -> Value:
    return call.flow.note(call.x)


def _matmul(call: Call) -> Value:
    return call.flow.matmul(call.x, call.value(1), call.shape)


def _gemm(call: Call) -> Value:
    one, other = call.x, call.value(1)
    one = one[::-1] if call.attributes.get("transA") else one
    other = other[::-1] if call.attributes.get("transB") else other
    made = call.flow.matmul(one, other, call.shape)
    bias = call.optional(2)
    given = [made] if bias is None else [made, bias]
    return call.flow.elementwise(given, call.shape)


def _convolution(transposed: bool, call: Call) -> Value:
    return call.flow.convolution(
        call.x,
        call.value(1),
        call.optional(2),
        call.shape,
        groups=int(call.attributes.get("group", 1)),
        transposed=transposed,
    )


def _batch_norm(call: Call) -> Value | None:
    if call.attributes.get("training_mode"):
        return None
    return call.flow.per_channel(call.x, call.inputs[1:])


def _instance_norm(call: Call) -> Value:
    places = list(range(2, len(call.x)))
    call.flow.normalized(call.x, places, [])
    return call.flow.per_channel(call.x, call.inputs[1:])


def _group_norm(call: Call) -> Value:
    groups = int(call.attributes["num_groups"])
    if any(v is not None and find(v[0]).size == groups for v in call.inputs[1:]):
        raise KeyError("num_groups")  # as it was before opset 21, or undecided
    return call.flow.group_normalized(call.x, groups, call.inputs[1:])


def _layer_norm(call: Call) -> Value:
    axes = range(call.axis(-1), len(call.x))
    given = [call.optional(1), call.optional(2)]
    if any(value is not None and len(value) != len(axes) for value in given):
        raise KeyError("scale")
    return call.flow.normalized(call.x, axes, given)


def _softmax(call: Call) -> Value:
    if call.opset < _FLATTENS:
        return call.flow.normalized(call.x, range(call.axis(1), len(call.x)), [])
    return call.flow.normalized(call.x, [call.axis(-1)], [])


def _reduced(call: Call) -> Value:
    given = call.numbers("axes", 1)
    if not given and call.attributes.get("noop_with_empty_axes"):
        return _same(call)
    axes = [a % len(call.x) for a in given or range(len(call.x))]
    keep = bool(call.attributes.get("keepdims", 1))
    return call.flow.reduced(call.x, axes, keep=keep)


def _all_places_reduced(call: Call) -> Value:
    return call.flow.reduced(call.x, range(2, len(call.x)), keep=True)


def _places(call: Call) -> Value:
    return call.flow.places_changed(call.x, call.shape, 2)


def _padded(call: Call) -> Value:
    """The axes before the first that gains something go through."""
    pads = call.numbers("pads", 1)
    if pads is None or len(pads) != 2 * len(call.x):
        raise KeyError("pads")
    before, after = pads[: len(call.x)], pads[len(call.x) :]
    gains = [any(both) for both in zip(before, after, strict=True)]
    kept = gains.index(True) if True in gains else len(gains)
    return call.flow.places_changed(call.x, call.shape, kept)


def _transposed(call: Call) -> Value:
    order = call.attributes.get("perm") or range(len(call.x))[::-1]
    return call.flow.permuted(call.x, list(order))


def _reshaped(call: Call) -> Value:
    return call.flow.reshaped(call.x, call.shape)


def _squeezed(call: Call) -> Value:
    given = call.numbers("axes", 1)
    axes = [a % len(call.x) for a in given or ()]
    return call.flow.note(
        axis
        for place, axis in enumerate(call.x)
        if (place not in axes if given else find(axis).size != 1)
    )


def _unsqueezed(call: Call) -> Value:
    axes = [a % len(call.shape) for a in call.numbers("axes", 1) or ()]
    rest = iter(call.x)
    return call.flow.note(
        leaf(1) if place in axes else next(rest) for place in range(len(call.shape))
    )


def _expanded(call: Call) -> Value:
    return call.flow.expand(call.x, call.shape)


def _split(call: Call) -> list[Value]:
    axis, at, parts = call.axis(), 0, []
    for shape in call.shapes:
        parts.append(call.flow.cut(call.x, axis, at, at + shape[axis]))
        at += shape[axis]
    return parts


def _sliced(call: Call) -> Value:
    starts, ends = call.numbers("starts", 1), call.numbers("ends", 2)
    assert starts is not None and ends is not None
    axes = call.numbers("axes", 3) or list(range(len(starts)))
    steps = call.numbers("steps", 4) or [1] * len(starts)
    made = call.x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step != 1:
            raise KeyError("steps")
        axis %= len(made)
        start, end, _ = slice(start, end).indices(find(made[axis]).size)
        made = call.flow.cut(made, axis, start, end)
    return made


def _joined(call: Call) -> Value:
    given = [value for value in call.inputs if value is not None]
    return call.flow.joined(given, call.axis())


def _gathered(call: Call) -> Value:
    axis, index = call.axis(), call.value(1)
    fix(call.x[axis], "it is looked up by number")
    return call.flow.note((*call.x[:axis], *index, *call.x[axis + 1 :]))


def _einsum(call: Call) -> Value:
    equation = call.attributes["equation"].decode()
    given = [value for value in call.inputs if value is not None]
    return call.flow.einsum(equation, given, call.shape)


def _created(call: Call) -> Value:
    return call.flow.fresh(call.shape, "it is made in the graph")


_ELEMENTWISE = """
    Abs Add And Cast CastLike Ceil Celu Clip Cos Div Elu Equal Erf Exp Floor Gelu
    Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual
    Log Max Min Mish Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign
    Sin Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
"""
_REDUCED = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("Identity", "Dropout"), _same),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": partial(_convolution, False),
    "ConvTranspose": partial(_convolution, True),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **{f"Reduce{kind}": _reduced for kind in _REDUCED.split()},
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _all_places_reduced),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool", "Resize"), _places),
    "Pad": _padded,
    "Transpose": _transposed,
    **dict.fromkeys(("Reshape", "Flatten"), _reshaped),
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Expand": _expanded,
    "Split": _split,
    "Slice": _sliced,
    "Concat": _joined,
    "Gather": _gathered,
    "Einsum": _einsum,
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape", "Range"), _created),
}
