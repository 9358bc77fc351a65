"""Which libraries have sparse kernels for what: the table, each entry with its source.

Only a build, or a run on the device, decides which kernels are used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from step_cli.nm.pattern import NMPattern

TWO_FOUR, ONE_TWO, FOUR_EIGHT = NMPattern(2, 4), NMPattern(1, 2), NMPattern(4, 8)
# Channels in and out from which sparse kernels tend to win: NVIDIA's engineers in
# TensorRT issues 3849 and 4065.
WORTH_IT = 256

TargetName = Literal["tensorrt", "cusparselt", "hipsparselt", "torch"]


@dataclass(frozen=True)
class Kernel:
    """Sparse kernels for some dtypes.

    Attributes:
        dtypes: Of the weights, in NumPy spelling.
        pattern: Which has to hold along the inputs.
        inputs: What their number has to be a multiple of.
        outputs: Likewise.
        paired: Whether zeros come in pairs: of four pairs, two are zero.
        doubt: Why they may not be chosen, or gain nothing.
        note: What else to know.
    """

    dtypes: frozenset[str]
    pattern: NMPattern = TWO_FOUR
    inputs: int = 4
    outputs: int = 1
    paired: bool = False
    doubt: str | None = None
    note: str | None = None

    @property
    def words(self) -> str:
        """The pattern as people call it."""
        return f"paired {self.pattern}" if self.paired else str(self.pattern)


@dataclass(frozen=True)
class Target:
    """A library.

    Attributes:
        title: Its name.
        kernels: Of one dtype, the first that fits counts.
        convolutions: Whether it has sparse ones, of 1x1 windows at least.
        windows: Whether of larger windows, too.
        stacks: Whether it multiplies stacked matrices.
        last_axis: Whether the inputs have to be the last axis as stored.
    """

    title: str
    kernels: tuple[Kernel, ...]
    convolutions: bool = True
    windows: bool = False
    stacks: bool = True
    last_axis: bool = False


HALF = frozenset({"float16", "bfloat16"})
_INT8, _FP8 = frozenset({"int8"}), frozenset({"float8_e4m3fn"})
_BOTH_FP8 = _FP8 | {"float8_e5m2"}
_FP32, _FP4 = frozenset({"float32"}), frozenset({"float4_e2m1fn"})
_NEWER = "fp8 needs compute capability 8.9; a gain is known only from 9.0 on"
_TF32 = "in TF32, which rounds the operands to 10 mantissa bits"

TARGETS: Mapping[TargetName, Target] = {
    # 2:4 along the input channels, whose number is a multiple of 4: NVIDIA TensorRT
    # developer guide 8.5, "Structured Sparsity". FP16, BF16 and INT8 from compute
    # capability 8.0, FP8 from 8.9: its support matrix; no gain on 8.9: TensorRT-LLM
    # issue 1913. No kernels for FP32 are documented.
    "tensorrt": Target(
        "TensorRT",
        (Kernel(HALF), Kernel(_INT8), Kernel(_FP8, doubt=_NEWER)),
        windows=True,
    ),
    # Patterns by dtype: cuSPARSELt 0.8 documentation, "cusparseLtSparsity_t": 2:4 for
    # half, bfloat16, int8, e4m3 and e5m2, 1:2 for float, paired 4:8 for e2m1. Sizes of
    # a structured matrix are multiples of 32 bytes: `_DTYPE_SHAPE_CONSTRAINTS` of
    # torch/sparse/semi_structured.py, 2.13, and for float32 of 2.2; e2m1 by that rule.
    "cusparselt": Target(
        "cuSPARSELt",
        (
            Kernel(HALF, inputs=16, outputs=16),
            Kernel(_INT8 | _BOTH_FP8, inputs=32, outputs=32),
            Kernel(_FP32, ONE_TWO, inputs=8, outputs=8, note=_TF32),
            Kernel(
                _FP4,
                FOUR_EIGHT,
                inputs=64,
                outputs=64,
                paired=True,
                note="fp4 needs compute capability 10.0",
            ),
        ),
    ),
    # Dtypes on AMD: hipSPARSELt documentation 7.14, "Data type support" (float32 on
    # NVIDIA alone). Sizes: `validateMatrixArgs` in rocsparselt_spmm_utils.hpp of
    # ROCm/hipSPARSELt (0ba2313): multiples of 16 for 8 bits, of 8 for the others.
    "hipsparselt": Target(
        "hipSPARSELt",
        (
            Kernel(HALF, inputs=8, outputs=8),
            Kernel(_INT8 | _BOTH_FP8, inputs=16, outputs=16),
        ),
    ),
    # `_DTYPE_SHAPE_CONSTRAINTS` of both backends, and two axes:
    # torch/sparse/semi_structured.py, 2.13. float32 is compressed as 1:2:
    # torch/sparse/_semi_structured_conversions.py.
    "torch": Target(
        "torch",
        (
            Kernel(HALF, inputs=16, outputs=16),
            Kernel(_INT8 | _FP8, inputs=32, outputs=32),
            Kernel(_INT8, inputs=128, outputs=16),
            Kernel(_FP32, ONE_TWO, inputs=32, outputs=32, note=_TF32),
        ),
        convolutions=False,
        stacks=False,
        last_axis=True,
    ),
}
