"""The operators of ONNX in the terms of `rules`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from step_cli.channels import rules
from step_cli.channels.axes import find
from step_cli.channels.graph import Operator, Rule, Shape, TensorAxes

Arguments = Mapping[str, Any]

_FLATTENS = 13  # opset below which Softmax works on all axes from its own on

_RULES: dict[Rule, str] = {
    rules.concatenate: "Concat",
    rules.convolution: "Conv",
    rules.create: "Shape Size ConstantOfShape Range",
    rules.einsum: "Einsum",
    rules.elementwise: """
        Abs Add And Cast CastLike Ceil Celu Clip Cos Div Elu Equal Erf Exp Floor Gelu
        Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less
        LessOrEqual Log Max Min Mish Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu
        Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu
        Where Xor
    """,
    rules.expand: "Expand Identity Dropout",
    rules.look_up: "Gather",
    rules.matmul: "MatMul Gemm",
    rules.normalize: "Softmax LogSoftmax LayerNormalization RMSNormalization",
    rules.normalize_groups: "GroupNormalization",
    rules.normalize_instances: "InstanceNormalization",
    rules.per_channel: "BatchNormalization",
    rules.pool: "AveragePool MaxPool LpPool Resize Pad",
    rules.reduce: """
        ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
        ReduceProd ReduceSum ReduceSumSquare GlobalAveragePool GlobalMaxPool
    """,
    rules.reshape: "Reshape Flatten Squeeze Unsqueeze",
    rules.slice_axes: "Slice",
    rules.split: "Split",
    rules.transpose: "Transpose",
    rules.transposed_convolution: "ConvTranspose",
}
RULES = {name: rule for rule, names in _RULES.items() for name in names.split()}

# Inputs that are arguments: a constant in new models, an attribute in old ones.
ARGUMENTS = {
    "Pad": {1: "pads"},
    "Slice": {1: "starts", 2: "ends", 3: "axes", 4: "steps"},
    **{name: {1: "axes"} for name in RULES if name.startswith("Reduce")},
}


def translate(
    name: str,
    inputs: Sequence[TensorAxes | None],
    shapes: Sequence[Shape],
    arguments: Arguments,
    opset: int,
) -> Operator:
    """A node with its attributes in the terms of the rules.

    Args:
        name: One of `RULES`.
        inputs: The axes of its tensors; None: left out.
        shapes: Of what it makes.
        arguments: Its attributes, and the inputs that `ARGUMENTS` names.
        opset: The version of ONNX.

    Raises:
        LookupError: It has an argument that no rule expects.
    """
    if arguments.get("training_mode"):
        raise LookupError("it draws numbers, or counts")
    axis = arguments.get("axis", 0)
    operator = Operator(
        inputs,
        shapes,
        axes=[axis] if isinstance(axis, int) else axis,
        groups=arguments.get("group", 1),
        order=arguments.get("perm") or range(len(inputs[0] or ()))[::-1],
        equation=arguments.get("equation", b"").decode(),
    )
    if name in ("Softmax", "LogSoftmax"):
        if opset < _FLATTENS:
            return _from(operator, arguments.get("axis", 1))
        return replace(operator, axes=[arguments.get("axis", -1)])
    special = _reduce if name.startswith("Reduce") else _SPECIAL.get(name)
    return operator if special is None else special(operator, arguments)


def _gemm(operator: Operator, arguments: Arguments) -> Operator:
    one, other = operator.x, operator.tensor(1)
    one = one[::-1] if arguments.get("transA") else one
    other = other[::-1] if arguments.get("transB") else other
    return replace(operator, inputs=(one, other, operator.optional(2)))


def _layer_norm(operator: Operator, arguments: Arguments) -> Operator:
    return _from(operator, arguments.get("axis", -1))


def _from(operator: Operator, axis: int) -> Operator:
    """On an axis and all behind it."""
    rank = len(operator.x)
    return replace(operator, axes=range(axis % max(1, rank), rank))


def _group_norm(operator: Operator, arguments: Arguments) -> Operator:
    groups = int(arguments["num_groups"])
    parameters = operator.inputs[1:]
    if any(axes is not None and find(axes[0]).size == groups for axes in parameters):
        raise LookupError("num_groups")  # as it was before opset 21, or undecided
    return replace(operator, groups=groups)


def _reduce(operator: Operator, arguments: Arguments) -> Operator:
    axes = list(arguments.get("axes", ())) or None
    if axes is None and arguments.get("noop_with_empty_axes"):
        return replace(operator, axes=(), keep_axes=True)
    return replace(operator, axes=axes, keep_axes=bool(arguments.get("keepdims", 1)))


def _global_pool(operator: Operator, arguments: Arguments) -> Operator:
    return replace(operator, axes=range(2, len(operator.x)), keep_axes=True)


def _pad(operator: Operator, arguments: Arguments) -> Operator:
    """The axes before the first that gains something go through."""
    pads, rank = list(arguments["pads"]), len(operator.x)
    if len(pads) != 2 * rank or operator.optional(3) is not None:
        raise LookupError("pads")  # of some axes
    gains = [any(both) for both in zip(pads[:rank], pads[rank:], strict=True)]
    return replace(operator, kept=gains.index(True) if True in gains else rank)


def _slice(operator: Operator, arguments: Arguments) -> Operator:
    starts, ends = arguments["starts"], arguments["ends"]
    axes = arguments.get("axes", range(len(starts)))
    steps = arguments.get("steps", [1] * len(starts))
    slices = list(zip(axes, starts, ends, steps, strict=True))
    return replace(operator, slices=slices)


_SPECIAL: dict[str, Callable[[Operator, Arguments], Operator]] = {
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "Pad": _pad,
    "RMSNormalization": _layer_norm,
    "Slice": _slice,
}
