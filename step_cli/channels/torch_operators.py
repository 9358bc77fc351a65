"""The operators of PyTorch in the terms of `rules`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from step_cli.channels import rules
from step_cli.channels.axes import find
from step_cli.channels.graph import Operator, Rule, Shape, TensorAxes

Arguments = Mapping[str, Any]

_RULES: dict[Rule, str] = {
    rules.accumulate: "cumsum cumprod",
    rules.attention: "scaled_dot_product_attention",
    rules.concatenate: "cat",
    rules.convolution: "conv1d conv2d conv3d",
    rules.create: """
        arange empty empty_like eye full full_like linspace new_empty new_full new_ones
        new_zeros ones ones_like scalar_tensor tril_indices zeros zeros_like
    """,
    rules.einsum: "einsum",
    rules.elementwise: """
        abs add addcmul addcdiv alias and bitwise_and bitwise_not bitwise_or celu clamp
        clamp_max clamp_min clone contiguous cos detach div elu eq erf exp expm1 floor
        ge gelu gt hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu
        lift_fresh_copy log log1p log_sigmoid logical_and logical_not logical_or lt
        masked_fill maximum minimum mish mul ne neg or pow reciprocal relu relu6 round
        rsqrt rsub selu sigmoid sign silu sin softplus softsign sqrt square sub tanh
        threshold to type_as where __and__ __or__ _to_copy
    """,
    rules.expand: """
        expand expand_as broadcast_to dropout feature_dropout alpha_dropout
    """,
    rules.look_up: "embedding select",
    rules.matmul: "linear matmul mm bmm mv addmm baddbmm",
    rules.normalize: """
        softmax log_softmax _softmax _log_softmax _safe_softmax layer_norm rms_norm
    """,
    rules.normalize_groups: "group_norm",
    rules.per_channel: "batch_norm prelu",
    rules.pool: """
        max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d
        upsample_bilinear2d upsample_bicubic2d pad constant_pad_nd
    """,
    rules.reduce: "mean sum amax amin var std logsumexp prod any all",
    rules.repeat: "repeat_interleave",
    rules.reshape: """
        view reshape _unsafe_view flatten unflatten view_as squeeze unsqueeze
    """,
    rules.slice_axes: "slice narrow",
    rules.split: "split split_with_sizes chunk",
    rules.stack: "stack",
    rules.transpose: "permute transpose t mT swapaxes",
    rules.transposed_convolution: "conv_transpose1d conv_transpose2d conv_transpose3d",
    rules.unbind: "unbind",
}
RULES = {name: rule for rule, names in _RULES.items() for name in names.split()}

# They make no tensor.
SILENT = frozenset(("_assert_tensor_metadata", "_assert_async", "sym_size"))


def translate(
    name: str,
    inputs: Sequence[TensorAxes | None],
    shapes: Sequence[Shape],
    arguments: Arguments,
) -> Operator:
    """An operator with its arguments in the terms of the rules.

    Args:
        name: One of `RULES`.
        inputs: The axes of its tensors, in the order of its arguments.
        shapes: Of what it makes.
        arguments: All others, by name.

    Raises:
        LookupError: It has an argument that no rule expects.
    """
    dim = arguments.get("dim")
    operator = Operator(
        inputs,
        shapes,
        axes=[dim] if isinstance(dim, int) else dim or None,
        keep_axes=bool(arguments.get("keepdim")),
        groups=arguments.get("groups") or arguments.get("num_groups") or 1,
        equation=arguments.get("equation", ""),
        causal=bool(arguments.get("is_causal")),
    )
    if any(arguments.get(draws) for draws in ("train", "training", "dropout_p")):
        raise LookupError("it draws numbers, or counts")
    special = _SPECIAL.get(name)
    return operator if special is None else special(operator, arguments)


def _linear(operator: Operator, arguments: Arguments) -> Operator:
    weight, bias = operator.tensor(1), operator.optional(2)
    return replace(operator, inputs=(operator.x, weight[::-1], bias))


def _addmm(operator: Operator, arguments: Arguments) -> Operator:
    added, one, other = operator.inputs
    return replace(operator, inputs=(one, other, added))


def _layer_norm(operator: Operator, arguments: Arguments) -> Operator:
    return replace(operator, axes=range(-len(arguments["normalized_shape"]), 0))


def _embedding(operator: Operator, arguments: Arguments) -> Operator:
    return replace(operator, axes=[0])


def _select(operator: Operator, arguments: Arguments) -> Operator:
    return replace(operator, inputs=(operator.x, ()))


def _prelu(operator: Operator, arguments: Arguments) -> Operator:
    x, slope = operator.x, operator.tensor(1)
    many = bool(slope) and find(slope[0]).size > 1
    return replace(operator, inputs=(x, slope if many else None))


def _pad(operator: Operator, arguments: Arguments) -> Operator:
    return replace(operator, kept=len(operator.x) - len(arguments["pad"]) // 2)


def _repeat(operator: Operator, arguments: Arguments) -> Operator:
    times = arguments.get("repeats")
    if not isinstance(times, int) or operator.axes is None:
        raise LookupError("repeats")
    return replace(operator, times=times)


def _slice(operator: Operator, arguments: Arguments) -> Operator:
    start, end = arguments.get("start"), arguments.get("end")
    part = operator.axis, start, end, arguments["step"]
    return replace(operator, slices=[part])


def _narrow(operator: Operator, arguments: Arguments) -> Operator:
    start = arguments["start"]
    if not isinstance(start, int):
        raise LookupError("start")
    start %= find(operator.x[operator.axis]).size
    end = start + int(arguments["length"])
    return replace(operator, slices=[(operator.axis, start, end, 1)])


def _permute(operator: Operator, arguments: Arguments) -> Operator:
    return replace(operator, order=arguments["dims"])


def _transpose(operator: Operator, arguments: Arguments) -> Operator:
    order = list(range(len(operator.x)))
    if len(order) > 1:
        one = arguments.get("dim0", arguments.get("axis0", -2))
        other = arguments.get("dim1", arguments.get("axis1", -1))
        order[one], order[other] = order[other], order[one]
    return replace(operator, order=order)


def _pooled(places: int) -> "Special":
    return lambda operator, _: replace(operator, kept=len(operator.x) - places)


Special = Callable[[Operator, Arguments], Operator]
_SPECIAL: dict[str, Special] = {
    **{
        name: _pooled(int(name[-2]))
        for name in _RULES[rules.pool].split()
        if name.endswith("d") and name[-2].isdigit()
    },
    "addmm": _addmm,
    "baddbmm": _addmm,
    "constant_pad_nd": _pad,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "narrow": _narrow,
    "pad": _pad,
    "permute": _permute,
    "prelu": _prelu,
    "repeat_interleave": _repeat,
    "rms_norm": _layer_norm,
    "select": _select,
    "slice": _slice,
    "unbind": _select,
    **dict.fromkeys(("t", "mT", "swapaxes", "transpose"), _transpose),
}
