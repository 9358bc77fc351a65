"""The operators that the rule for weights knows: the one table of them.

Products, each with the inputs that may be weights, and operators that an operand is
followed through. Any other operator, and one of the same name in another domain, ends
the search. Signatures are those of onnx/docs/Operators.md and of ContribOperators.md of
ONNX Runtime; TRT_* those of the ONNX parser of TensorRT; Quant that of QONNX.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from step_cli.formats.onnx.weights import rules
from step_cli.formats.onnx.weights.node_step import NodeStep
from step_cli.formats.onnx.weights.operands import Factor
from step_cli.formats.onnx.weights.views import View

MICROSOFT = "com.microsoft"


def _pair(
    left: int = 0,
    right: int = 1,
    zeros: tuple[int | None, int | None] = (None, None),
    scales: tuple[int | None, int | None] = (None, None),
    turned: bool = False,
    batched: bool = False,
) -> tuple[Factor, ...]:
    """Both sides of a matrix product."""
    return tuple(
        Factor(
            index,
            side,
            zero,
            scale,
            f"trans{name}" if turned else None,
            f"transBatch{name}" if batched else None,
        )
        for index, side, zero, scale, name in (
            (left, "left", zeros[0], scales[0], "A"),
            (right, "right", zeros[1], scales[1], "B"),
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
    ("", "QLinearConv"): (Factor(3, "kernel", zero=5, scale=4),),
    ("", "QLinearMatMul"): _pair(0, 3, zeros=(2, 5), scales=(1, 4)),
    ("", "LSTM"): _GATES,
    ("", "GRU"): _GATES,
    ("", "RNN"): _GATES,
    (MICROSOFT, "FusedConv"): _KERNEL,
    (MICROSOFT, "FusedGemm"): _pair(turned=True),
    (MICROSOFT, "FusedMatMul"): _pair(turned=True, batched=True),
    # With channels_last too, its kernel is stored as that of the standard operator.
    (MICROSOFT, "QLinearConv"): (Factor(3, "kernel", zero=5, scale=4),),
    (MICROSOFT, "QGemm"): _pair(0, 3, (2, 5), (1, 4), turned=True),
    (MICROSOFT, "DynamicQuantizeMatMul"): _pair(zeros=(None, 3), scales=(None, 2)),
    (MICROSOFT, "DynamicQuantizeLSTM"): (
        Factor(1, "turned gates", zero=9, scale=8),
        Factor(2, "turned gates", zero=11, scale=10),
    ),
    (MICROSOFT, "MatMulIntegerToFloat"): _pair(zeros=(4, 5), scales=(2, 3)),
    (MICROSOFT, "Attention"): (Factor(1, "right"),),
    (MICROSOFT, "QAttention"): (Factor(1, "right", zero=7, scale=4),),
}
# Further products, of which the stored form or the summed axis is not worked out: their
# stored factors are untraced. The inputs that are factors.
OTHER_PRODUCTS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "DeformConv"): (1,),
    ("", "Einsum"): (0, 1, 2, 3),
    (MICROSOFT, "DecoderAttention"): (2, 3),
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
    (MICROSOFT, "QMoE"): (2, 5, 8),
    (MICROSOFT, "QOrderedMatMul"): (0, 2),
    (MICROSOFT, "SparseToDenseMatMul"): (0, 1),
    (MICROSOFT, "TransposeMatMul"): (0, 1),
}


Rule = Callable[[NodeStep], View | None]


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
_QUANTIZE = LookedThrough(rules.quantize)
_DEQUANTIZE = LookedThrough(rules.dequantize)
LOOKED_THROUGH: dict[tuple[str, str], LookedThrough] = {
    ("", "Cast"): LookedThrough(rules.cast),
    ("", "CastLike"): LookedThrough(rules.cast),
    ("", "Concat"): LookedThrough(rules.concat, None, "of stored tensors"),
    ("", "DequantizeLinear"): _DEQUANTIZE,
    ("", "Div"): LookedThrough(rules.divide, 2, _SCALE),
    ("", "Flatten"): LookedThrough(rules.flatten, when=_BROKEN),
    ("", "Identity"): LookedThrough(rules.same),
    ("", "Mul"): LookedThrough(rules.multiply, 2, _SCALE),
    ("", "QuantizeLinear"): _QUANTIZE,
    ("", "Reshape"): LookedThrough(rules.reshape, when=f"constant shape, {_BROKEN}"),
    ("", "Slice"): LookedThrough(rules.cut, when="constant ranges, steps of 1"),
    ("", "Split"): LookedThrough(rules.split, when="constant sizes"),
    ("", "Squeeze"): LookedThrough(rules.squeeze, when="constant axes"),
    ("", "Transpose"): LookedThrough(rules.transpose),
    ("", "Unsqueeze"): LookedThrough(rules.unsqueeze, when="constant axes"),
    (MICROSOFT, "QuantizeLinear"): _QUANTIZE,
    (MICROSOFT, "DequantizeLinear"): _DEQUANTIZE,
    **{
        ("trt", f"TRT_{kind}{direction}Linear"): rule
        for kind in ("INT8", "FP8", "INT4", "FP4", "MXFP8")
        for direction, rule in (("Quantize", _QUANTIZE), ("Dequantize", _DEQUANTIZE))
    },
    # Back and forth in one node, so that 0 stays 0; IntQuant is its later name.
    **{
        (domain, name): LookedThrough(rules.cast)
        for domain in ("qonnx.custom_op.general", "onnx.brevitas")
        for name in ("Quant", "IntQuant")
    },
}


_SIDES = {
    "left": "[.., out, in]",
    "right": "[.., in, out]",
    "kernel": "[out, in, window..]",
    "gates": "[directions, gates, in]",
    "turned gates": "[directions, in, gates]",
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
