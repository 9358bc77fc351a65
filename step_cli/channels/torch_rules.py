"""Which rule of `Flow` each operator of PyTorch follows."""

from collections.abc import Callable
from functools import partial
from typing import Any

from step_cli.channels.axes import find, fix, leaf, product
from step_cli.channels.flow import Value
from step_cli.channels.torch_call import Call

Rule = Callable[[Call], Any]


def _elementwise(call: Call) -> Value:
    return call.flow.elementwise(call.tensors(), call.shape)


def _dropout(call: Call) -> Value | None:
    return None if call.arguments.get("train") else call.flow.note(call.value("input"))


def _softmax(call: Call) -> Value:
    x = next(iter(call.tensors()))
    return call.flow.normalized(x, [call.axis("dim", x)], [])


def _reduced(call: Call) -> Value:
    x = next(iter(call.tensors()))
    keep = bool(call.arguments.get("keepdim"))
    return call.flow.reduced(x, call.axes("dim", x), keep=keep)


def _reshaped(call: Call) -> Value:
    return call.flow.reshaped(next(iter(call.tensors())), call.shape)


def _expanded(call: Call) -> Value:
    return call.flow.expand(call.value("self"), call.shape)


def _unsqueezed(call: Call) -> Value:
    x = call.value("self")
    place = int(call.arguments["dim"]) % (len(x) + 1)
    return call.flow.note((*x[:place], leaf(1), *x[place:]))


def _squeezed(call: Call) -> Value:
    x = call.value("self")
    places = call.axes("dim", x)
    return call.flow.note(
        axis
        for place, axis in enumerate(x)
        if place not in places or find(axis).size != 1
    )


def _transposed(call: Call) -> Value:
    x = call.value("self")
    order = list(range(len(x)))
    if len(x) > 1:
        one, other = (
            (call.axis("dim0", x), call.axis("dim1", x))
            if "dim0" in call.arguments
            else (-2, -1)
        )
        order[one], order[other] = order[other], order[one]
    return call.flow.permuted(x, order)


def _permuted(call: Call) -> Value:
    x = call.value("self")
    return call.flow.permuted(x, [int(d) % len(x) for d in call.arguments["dims"]])


def _sliced(call: Call) -> Value | None:
    x = call.value("self")
    axis = call.axis("dim", x)
    size = find(x[axis]).size
    start, stop, step = slice(
        call.arguments.get("start"), call.arguments.get("end"), call.arguments["step"]
    ).indices(size)
    return call.flow.cut(x, axis, start, stop) if step == 1 else None


def _narrowed(call: Call) -> Value | None:
    x = call.value("self")
    axis, start = call.axis("dim", x), call.arguments["start"]
    if not isinstance(start, int):
        return None
    start %= find(x[axis]).size
    return call.flow.cut(x, axis, start, start + int(call.arguments["length"]))


def _cut_up(call: Call) -> list[Value]:
    """Split and chunk: the shapes of the results tell where."""
    x = call.value("self")
    axis, at, parts = call.axis("dim", x), 0, []
    for shape in call.shapes:
        parts.append(call.flow.cut(x, axis, at, at + shape[axis]))
        at += shape[axis]
    return parts


def _selected(call: Call) -> Value:
    x = call.value("self")
    return call.flow.selected(x, call.axis("dim", x))


def _unbound(call: Call) -> list[Value]:
    x = call.value("self")
    axis = call.axis("dim", x)
    return [call.flow.selected(x, axis) for _ in call.shapes]


def _joined(call: Call) -> Value:
    given = call.listed("tensors")
    return call.flow.joined(given, call.axis("dim", given[0]))


def _stacked(call: Call) -> Value:
    given = call.listed("tensors")
    place = int(call.arguments["dim"]) % (len(given[0]) + 1)
    beside = call.flow.elementwise(given, [find(axis).size for axis in given[0]])
    new = leaf(len(given), "tensors are stacked along it")
    return call.flow.note((*beside[:place], new, *beside[place:]))


def _repeated(call: Call) -> Value | None:
    x, times = call.value("self"), call.arguments.get("repeats")
    if not isinstance(times, int) or call.arguments.get("dim") is None:
        return None
    axis = call.axis("dim", x)
    long = product([x[axis], leaf(times)])
    return call.flow.note((*x[:axis], long, *x[axis + 1 :]))


def _linear(call: Call) -> Value:
    bias = call.optional("bias")
    return call.flow.linear(call.value("input"), call.value("weight"), bias)


def _matmul(call: Call) -> Value:
    given = call.tensors()
    return call.flow.matmul(given[0], given[1], call.shape)


def _addmm(call: Call) -> Value:
    first, second = call.tensors()[-2:]
    made = call.flow.matmul(first, second, call.shape)
    return call.flow.elementwise([call.value("self"), made], call.shape)


def _einsum(call: Call) -> Value:
    given = call.listed("tensors")
    return call.flow.einsum(call.arguments["equation"], given, call.shape)


def _convolution(transposed: bool, call: Call) -> Value:
    x, weight = call.value("input"), call.value("weight")
    return call.flow.convolution(
        x,
        weight,
        call.optional("bias"),
        call.shape,
        groups=call.arguments["groups"],
        transposed=transposed,
        batched=len(x) == len(weight),
    )


def _pooled(places: int, call: Call) -> Value:
    x = next(iter(call.tensors()))
    return call.flow.places_changed(x, call.shape, len(x) - places)


def _padded(call: Call) -> Value | None:
    x, pad = call.value("self"), call.arguments["pad"]
    kept = len(x) - len(pad) // 2
    return call.flow.places_changed(x, call.shape, kept)


def _layer_norm(call: Call) -> Value:
    x = call.value("input")
    axes = range(len(x) - len(call.arguments["normalized_shape"]), len(x))
    parameters = [call.optional("weight"), call.optional("bias")]
    return call.flow.normalized(x, axes, parameters)


def _group_norm(call: Call) -> Value:
    parameters = [call.optional("weight"), call.optional("bias")]
    groups = call.arguments["num_groups"]
    return call.flow.group_normalized(call.value("input"), groups, parameters)


def _batch_norm(call: Call) -> Value | None:
    if call.arguments.get("training"):
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    return call.flow.per_channel(call.value("input"), [call.optional(n) for n in names])


def _prelu(call: Call) -> Value:
    x, slope = call.value("self"), call.value("weight")
    many = find(slope[0]).size > 1 if slope else False
    return call.flow.per_channel(x, [slope] if many else [])


def _looked_up(call: Call) -> Value:
    return call.flow.looked_up(call.value("weight"), call.value("indices"))


def _ordered(call: Call) -> Value:
    """Cumsum and the like: along one axis the order counts."""
    x = call.value("self")
    axis = call.axis("dim", x)
    fix(x[axis], "its channels are in an order")
    new = leaf(call.shape[axis], "its channels are in an order")
    return call.flow.note((*x[:axis], new, *x[axis + 1 :]))


def _attention(call: Call) -> Value | None:
    if call.arguments.get("dropout_p"):
        return None
    return call.flow.attention(
        call.value("query"),
        call.value("key"),
        call.value("value"),
        call.optional("attn_mask"),
        causal=bool(call.arguments.get("is_causal")),
    )


_ELEMENTWISE = """
    abs add addcmul addcdiv alias and bitwise_and bitwise_not bitwise_or celu clamp
    clamp_max clamp_min clone contiguous cos detach div elu eq erf exp expm1 floor ge
    gelu gt hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu
    lift_fresh_copy log log1p log_sigmoid logical_and logical_not logical_or lt
    masked_fill maximum minimum mish mul ne neg or pow reciprocal relu relu6 round rsqrt
    rsub selu sigmoid sign silu sin softplus softsign sqrt square sub tanh threshold to
    type_as where __and__ __or__ _to_copy
"""

_REDUCED = "mean sum amax amin var std logsumexp prod any all"
_RESHAPED = "view reshape _unsafe_view flatten unflatten view_as"
_UPSAMPLING = "upsample_nearest", "upsample_bilinear", "upsample_bicubic"

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    **dict.fromkeys(
        ("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax"),
        _softmax,
    ),
    **dict.fromkeys(_REDUCED.split(), _reduced),
    **dict.fromkeys(_RESHAPED.split(), _reshaped),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expanded),
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    **dict.fromkeys(("transpose", "t", "mT", "swapaxes"), _transposed),
    "permute": _permuted,
    "slice": _sliced,
    "narrow": _narrowed,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _cut_up),
    "select": _selected,
    "unbind": _unbound,
    "cat": _joined,
    "stack": _stacked,
    "repeat_interleave": _repeated,
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "einsum": _einsum,
    **{f"conv{places}d": partial(_convolution, False) for places in (1, 2, 3)},
    **{f"conv_transpose{k}d": partial(_convolution, True) for k in (1, 2, 3)},
    **{
        f"{kind}{places}d": partial(_pooled, places)
        for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", *_UPSAMPLING)
        for places in (1, 2, 3)
    },
    **dict.fromkeys(("pad", "constant_pad_nd"), _padded),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "prelu": _prelu,
    "embedding": _looked_up,
    **dict.fromkeys(("cumsum", "cumprod"), _ordered),
    "scaled_dot_product_attention": _attention,
}  # fmt: skip

# They make tensors out of numbers, or of shapes.
_CREATED = """
    arange empty empty_like eye full full_like linspace new_empty new_full new_ones
    new_zeros ones ones_like scalar_tensor tril_indices zeros zeros_like
"""
CREATED = frozenset(_CREATED.split())
# They make no tensor.
SILENT = frozenset(("_assert_tensor_metadata", "_assert_async", "sym_size"))
