"""The operators that the rule for weights knows: the one table of them.

Products, each with the inputs that may be weights, and operators that an operand is
followed through. Any other operator, and one of the same name in another domain, ends
the search. Signatures are those of onnx/docs/Operators.md and of ContribOperators.md of
ONNX Runtime; TRT_* those of the ONNX parser of TensorRT; Quant that of QONNX.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from step_cli.formats.onnx import views
from step_cli.formats.onnx.views import Piece, View
from step_cli.formats.onnx.zero_points import ZeroInput, Zeros, along, zeros_of

MICROSOFT = "com.microsoft"


class Step(Protocol):
    """A node, as the rules below see it."""

    @property
    def views(self) -> Sequence[View | None]:
        """What each input looks like; None: it cannot be followed."""

    @property
    def index(self) -> int:
        """Which output is asked for."""

    @property
    def outputs(self) -> int:
        """How many there are."""

    def number(self, name: str) -> int | None:
        """An integer attribute."""

    def numbers(self, name: str, index: int | None = None) -> list[int] | None:
        """Integers of an attribute, or of a constant input."""

    def given(self, name: str, index: int) -> bool:
        """Whether that attribute, or that input, is there at all."""

    def zero(self, index: int) -> ZeroInput:
        """The zero point at an input; 0 where there is none."""


# ------------------------------------------------------------------- the products


@dataclass(frozen=True)
class Factor:
    """An input of a product that may be a weight.

    Attributes:
        index: Which input.
        side: Its place: ``left`` [.., out, in] or ``right`` [.., in, out] of a matrix
            product, a ``kernel`` [out, in, window...], the ``gates`` [direction, out,
            in] of a recurrent layer.
        zero: The input with its zero point, one or one for each output.
        turned: The attribute that swaps its last two axes.
        batched: The attribute that makes its first axis the last but one.
    """

    index: int
    side: str
    zero: int | None = None
    turned: str | None = None
    batched: str | None = None


def _pair(
    left: int = 0,
    right: int = 1,
    zeros: tuple[int | None, int | None] = (None, None),
    turned: bool = False,
    batched: bool = False,
) -> tuple[Factor, ...]:
    """Both sides of a matrix product."""
    return tuple(
        Factor(
            index,
            side,
            zero,
            f"trans{name}" if turned else None,
            f"transBatch{name}" if batched else None,
        )
        for index, side, zero, name in (
            (left, "left", zeros[0], "A"),
            (right, "right", zeros[1], "B"),
        )
    )


_KERNEL = (Factor(1, "kernel"),)
_GATES = (Factor(1, "gates"), Factor(2, "gates"))
PRODUCTS: dict[tuple[str, str], tuple[Factor, ...]] = {
    ("", "Conv"): _KERNEL,
    ("", "Gemm"): _pair(turned=True),
    ("", "MatMul"): _pair(),
    ("", "ConvInteger"): (Factor(1, "kernel", zero=3),),
    ("", "MatMulInteger"): _pair(zeros=(2, 3)),
    ("", "QLinearConv"): (Factor(3, "kernel", zero=5),),
    ("", "QLinearMatMul"): _pair(0, 3, zeros=(2, 5)),
    ("", "LSTM"): _GATES,
    ("", "GRU"): _GATES,
    ("", "RNN"): _GATES,
    (MICROSOFT, "FusedConv"): _KERNEL,
    (MICROSOFT, "FusedGemm"): _pair(turned=True),
    (MICROSOFT, "FusedMatMul"): _pair(turned=True, batched=True),
    (MICROSOFT, "QGemm"): _pair(0, 3, zeros=(2, 5), turned=True),
    (MICROSOFT, "DynamicQuantizeMatMul"): _pair(zeros=(None, 3)),
    (MICROSOFT, "MatMulIntegerToFloat"): _pair(zeros=(4, 5)),
    (MICROSOFT, "Attention"): (Factor(1, "right"),),
    (MICROSOFT, "QAttention"): (Factor(1, "right", zero=7),),
}
# Further products, of which the stored form or the summed axis is not worked out: their
# stored factors are untraced. The inputs that are factors.
OTHER_PRODUCTS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "DeformConv"): (1,),
    ("", "Einsum"): (0, 1, 2, 3),
    (MICROSOFT, "DecoderAttention"): (2, 3),
    (MICROSOFT, "DynamicQuantizeLSTM"): (1, 2),
    (MICROSOFT, "FusedMatMulActivation"): (0, 1),
    (MICROSOFT, "GemmFastGelu"): (0, 1),
    (MICROSOFT, "GemmFloat8"): (0, 1),
    (MICROSOFT, "LongformerAttention"): (1, 4),
    (MICROSOFT, "MatMulBnb4"): (1,),
    (MICROSOFT, "MatMulFpQ4"): (1,),
    (MICROSOFT, "MatMulNBits"): (1,),
    (MICROSOFT, "MoE"): (2, 4, 6),
    (MICROSOFT, "NhwcConv"): (1,),
    (MICROSOFT, "NhwcFusedConv"): (1,),
    (MICROSOFT, "PackedAttention"): (1,),
    (MICROSOFT, "QLinearConv"): (3,),
    (MICROSOFT, "QMoE"): (2, 5, 8),
    (MICROSOFT, "QOrderedMatMul"): (0, 2),
    (MICROSOFT, "SparseToDenseMatMul"): (0, 1),
    (MICROSOFT, "TransposeMatMul"): (0, 1),
}


@dataclass(frozen=True)
class Operand:
    """A factor as a product multiplies by it.

    Attributes:
        view: What it looks like.
        summed: The axis that the product sums over first.
        outputs: The axis of the outputs; None: it is a vector.
        window: Further axes that it sums over.
    """

    view: View
    summed: int
    outputs: int | None
    window: tuple[int, ...] = ()


def operand_of(factor: Factor, view: View, step: Step) -> Operand | None:
    """What a product makes of an input; None if its rank does not fit."""
    rank = len(view.shape)
    turned = factor.turned and step.number(factor.turned)
    batched = factor.batched and step.number(factor.batched)
    if rank >= 2 and (turned or batched):
        order = list(range(rank))
        if batched:
            order = [*order[1:-1], order[0], order[-1]]
        if turned:
            order[-2:] = order[:-3:-1]
        found = views.transposed(view, order)
        assert found is not None
        view = found
    operand = _placed(factor.side, view)
    if operand is None or factor.zero is None:
        return operand
    axis = operand.outputs if operand.outputs is not None else 0
    view = _dequantized(view, step.zero(factor.zero), axis)
    return replace(operand, view=view)


def _placed(side: str, view: View) -> Operand | None:
    rank = len(view.shape)
    if side == "gates":
        return Operand(view, 2, 1) if rank == 3 else None
    if rank == 1 and side != "kernel":
        return Operand(view, 0, None)
    if rank < 2:
        return None
    if side == "kernel":
        return Operand(view, 1, 0, tuple(range(2, rank)))
    if side == "left":
        return Operand(view, rank - 1, rank - 2)
    return Operand(view, rank - 2, rank - 1)


# --------------------------------------------- the operators that are looked through


def _transpose(step: Step) -> View | None:
    view = step.views[0]
    return view and views.transposed(view, step.numbers("perm"))


def _same(step: Step) -> View | None:
    return step.views[0]


def _cast(step: Step) -> View | None:
    view = step.views[0]
    return view and views.scaled(view, ())


def _reshape(step: Step) -> View | None:
    view, shape = step.views[0], step.numbers("shape", 1)
    if view is None or shape is None:
        return None
    if not step.number("allowzero"):
        if any(not n and i >= len(view.shape) for i, n in enumerate(shape)):
            return None
        shape = [n or view.shape[i] for i, n in enumerate(shape)]
    if shape.count(-1) == 1:
        known, total = 1, 1
        for size in shape:
            known *= 1 if size == -1 else size
        for size in view.shape:
            total *= size
        if known <= 0 or total % known:
            return None
        shape = [total // known if size == -1 else size for size in shape]
    return None if any(n < 0 for n in shape) else views.reshaped(view, shape)


def _flatten(step: Step) -> View | None:
    view, axis = step.views[0], step.number("axis")
    if view is None:
        return None
    axis, rank = 1 if axis is None else axis, len(view.shape)
    if not -rank <= axis <= rank:
        return None
    rows = columns = 1
    for place, size in enumerate(view.shape):
        if place < (axis + rank if axis < 0 else axis):
            rows *= size
        else:
            columns *= size
    return views.reshaped(view, [rows, columns])


def _squeeze(step: Step) -> View | None:
    view, axes = step.views[0], step.numbers("axes", 1)
    if view is None or (axes is None and step.given("axes", 1)):
        return None
    return views.squeezed(view, axes)


def _unsqueeze(step: Step) -> View | None:
    view, axes = step.views[0], step.numbers("axes", 1)
    return None if view is None or axes is None else views.unsqueezed(view, axes)


def _slice(step: Step) -> View | None:
    view = step.views[0]
    starts, ends = step.numbers("starts", 1), step.numbers("ends", 2)
    if view is None or starts is None or ends is None:
        return None
    axes, steps = step.numbers("axes", 3), step.numbers("steps", 4)
    unknown = [name for name, found in (("axes", axes), ("steps", steps)) if not found]
    if any(step.given(name, 3 if name == "axes" else 4) for name in unknown):
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    rank = len(view.shape)
    if {len(ends), len(axes), len(steps)} != {len(starts)} or set(steps) - {1}:
        return None
    if any(not -rank <= axis < rank for axis in axes):
        return None
    for axis, start, end in zip(axes, starts, ends, strict=True):
        begin, stop, _ = slice(start, end).indices(view.shape[axis])
        found = views.sliced(view, axis % rank, begin, max(begin, stop))
        if found is None:
            return None
        view = found
    return view


def _split(step: Step) -> View | None:
    view, axis = step.views[0], step.number("axis") or 0
    if view is None or not -len(view.shape) <= axis < len(view.shape):
        return None
    size, sizes = view.shape[axis], step.numbers("split", 1)
    if sizes is None:
        if step.given("split", 1) or step.number("num_outputs") not in (
            None,
            step.outputs,
        ):
            return None
        each = -(-size // step.outputs)
        ends = [min(size, each * (place + 1)) for place in range(step.outputs)]
        sizes = [end - min(size, each * place) for place, end in enumerate(ends)]
    if sum(sizes) != size or min(sizes) < 0 or step.index >= len(sizes):
        return None
    begin = sum(sizes[: step.index])
    end = begin + sizes[step.index]
    return views.sliced(view, axis % len(view.shape), begin, end)


def _concat(step: Step) -> View | None:
    found, axis = [view for view in step.views if view], step.number("axis")
    if not found or len(found) != len(step.views):
        return None
    return views.joined(found, 1 if axis is None else axis)


def _multiply(step: Step) -> View | None:
    return _scaled(step, scaled_input(step, either=True))


def _divide(step: Step) -> View | None:
    return _scaled(step, scaled_input(step, either=False))


def scaled_input(step: Step, *, either: bool) -> int | None:
    """Which input of Mul or Div the other one scales, or None.

    A scale has fewer axes of more than one element; with as many it is a mask.
    """
    if len(step.views) != 2 or step.given("axis", 2):  # as it was before opset 7
        return None
    one, other = step.views
    if one is None or other is None or len(one.shape) < len(other.shape):
        return 1 if either and one and other and _scales(one, other) else None
    if _scales(other, one):
        return 0
    return 1 if either and _scales(one, other) else None


def _scales(scale: View, view: View) -> bool:
    apart = len(view.shape) - len(scale.shape)
    if apart < 0:
        return False
    sizes = list(zip(scale.shape, view.shape[apart:], strict=True))
    fits = all(own in (1, size) for own, size in sizes)
    shorter = [1] * apart + [own for own, _ in sizes] != list(view.shape)
    return fits and (shorter or all(size == 1 for size in view.shape))


def _scaled(step: Step, index: int | None) -> View | None:
    if index is None:
        return None
    view, scale = step.views[index], step.views[1 - index]
    assert view is not None and scale is not None
    apart = len(view.shape) - len(scale.shape)
    return views.scaled(
        view, [axis + apart for axis, size in enumerate(scale.shape) if size != 1]
    )


def _quantize(step: Step) -> View | None:
    view = step.views[0]
    if view is None:
        return None
    zero = step.zero(2)
    pieces = [replace(p, meaning=p.meaning.quantized(zero)) for p in view.pieces]
    return View(view.shape, tuple(pieces))


def _dequantize(step: Step) -> View | None:
    view, axis = step.views[0], step.number("axis")
    if view is None:
        return None
    return _dequantized(view, step.zero(2), 1 if axis is None else axis)


def _dequantized(view: View, zero: ZeroInput, axis: int) -> View:
    pieces = []
    for piece in view.pieces:
        zeros = _zeros(view, piece, zero, axis)
        meaning = piece.meaning.dequantized(zero, zeros, piece.tensor)
        pieces.append(replace(piece, meaning=meaning))
    return View(view.shape, tuple(pieces))


def _zeros(view: View, piece: Piece, zero: ZeroInput, axis: int) -> Zeros | None:
    """The codes of zero of a stored tensor, from the zero points of an operand."""
    if zero.codes is None:
        return None
    found = along(zero.codes, len(view.shape), axis)
    if found is None:
        return zeros_of(zero.codes, piece.tensor, None, 0)
    runs = [run for run in piece.axes[found] if run.size != 1]
    runs = runs or list(piece.axes[found][:1])
    place = None
    if len(runs) == 1 and runs[0].stride == 1:
        run = runs[0]
        place = (piece.at[found], run.size, run.axis, piece.first[run.axis])
    return zeros_of(zero.codes, piece.tensor, place, view.shape[found])


Rule = Callable[[Step], View | None]


@dataclass(frozen=True)
class LookedThrough:
    """An operator that is looked through, and how.

    Attributes:
        rule: What the operand looks like behind it.
        inputs: How many of its inputs, from the first on, an operand may come from;
            None: all.
        when: Under which condition, for the documentation.
    """

    rule: Rule
    inputs: int | None = 1
    when: str = ""


_BROKEN = "every group lies along one stored axis"
_SCALE = "by a constant: one number for each output, for each input or for all"
_QUANTIZE = LookedThrough(_quantize)
_DEQUANTIZE = LookedThrough(_dequantize)
LOOKED_THROUGH: dict[tuple[str, str], LookedThrough] = {
    ("", "Cast"): LookedThrough(_cast),
    ("", "CastLike"): LookedThrough(_cast),
    ("", "Concat"): LookedThrough(_concat, None, "of stored tensors"),
    ("", "DequantizeLinear"): _DEQUANTIZE,
    ("", "Div"): LookedThrough(_divide, 2, _SCALE),
    ("", "Flatten"): LookedThrough(_flatten, when=_BROKEN),
    ("", "Identity"): LookedThrough(_same),
    ("", "Mul"): LookedThrough(_multiply, 2, _SCALE),
    ("", "QuantizeLinear"): _QUANTIZE,
    ("", "Reshape"): LookedThrough(_reshape, when=f"constant shape, {_BROKEN}"),
    ("", "Slice"): LookedThrough(_slice, when="constant ranges, steps of 1"),
    ("", "Split"): LookedThrough(_split, when="constant sizes"),
    ("", "Squeeze"): LookedThrough(_squeeze, when="constant axes"),
    ("", "Transpose"): LookedThrough(_transpose),
    ("", "Unsqueeze"): LookedThrough(_unsqueeze, when="constant axes"),
    (MICROSOFT, "QuantizeLinear"): _QUANTIZE,
    (MICROSOFT, "DequantizeLinear"): _DEQUANTIZE,
    **{
        ("trt", f"TRT_{kind}{direction}Linear"): rule
        for kind in ("INT8", "FP8", "INT4", "FP4", "MXFP8")
        for direction, rule in (("Quantize", _QUANTIZE), ("Dequantize", _DEQUANTIZE))
    },
    # Back and forth in one node, so that 0 stays 0; IntQuant is its later name.
    **{
        (domain, name): LookedThrough(_cast)
        for domain in ("qonnx.custom_op.general", "onnx.brevitas")
        for name in ("Quant", "IntQuant")
    },
}


def domain_of(domain: str) -> str:
    """A domain by its shorter name."""
    return "" if domain == "ai.onnx" else domain


_SIDES = {
    "left": "[.., out, in]",
    "right": "[.., in, out]",
    "kernel": "[out, in, window..]",
    "gates": "[directions, gates, in]",
}


def product_rows() -> Iterator[tuple[str, str, str, str]]:
    """The products, for the documentation: domain, name, inputs and how they lie."""
    for (domain, name), factors in PRODUCTS.items():
        inputs = ", ".join(str(factor.index) for factor in factors)
        lie = ", ".join(dict.fromkeys(_SIDES[factor.side] for factor in factors))
        turned = [x for f in factors for x in (f.turned, f.batched) if x]
        yield domain or "ai.onnx", name, inputs, " ".join([lie, *turned])


def looked_through_rows() -> Iterator[tuple[str, str, str]]:
    """What is looked through, for the documentation: domain, name and condition."""
    for (domain, name), operator in LOOKED_THROUGH.items():
        yield domain or "ai.onnx", name, operator.when


def other_product_rows() -> Iterator[tuple[str, str]]:
    """The products whose weights are untraced, for the documentation."""
    for domain, name in OTHER_PRODUCTS:
        yield domain or "ai.onnx", name
