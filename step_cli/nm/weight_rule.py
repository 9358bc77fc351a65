"""Which tensors are weights by name, shape and dtype, and which way their groups run.

Works on descriptions alone, so that it serves tensors of files and parameters of
modules. Nothing here reads data.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

SkipReason = Literal[
    "embedding",
    "norm",
    "rank",
    "dtype",
    "name",
    "size",
    "excluded",
    "consumer",
    "kind",
    "packed",
    "reparametrized",
    "flat",
    "untraced",
]

# E8M0 is left out: it holds scales only and has no zero.
_FLOATING = re.compile(r"float(64|32|16)|bfloat16|float8_(?!e8m0)\w+")
_RECURRENT = re.compile(r"weight_[ih]h_l\d+(_reverse)?")
_EXPERT = re.compile(r"(\w+_)?proj|w[123]|\w*weight")
_HEADS = {"lm_head", "classifier", "score"}
_EMBEDDINGS = {"wte", "wpe", "shared", "relative_attention_bias"}
# Hugging Face's Conv1D stores [in, out]; the GPT-2 family is the one that uses it.
_CONV1D = re.compile(
    r"(.*\.)?h\.\d+\.(attn|crossattention|mlp)\.(c_attn|q_attn|c_proj|c_fc)\.weight"
)


class Described(Protocol):
    """What the rule needs to know of a tensor, of a file or not."""

    @property
    def name(self) -> str:
        """Its full name."""

    @property
    def dtype(self) -> str:
        """NumPy spelling, such as ``float16``, ``bfloat16``, ``float8_e4m3fn``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def axis(self) -> int | None:
        """The group axis, where the source gives it; else None: by name and shape."""

    @property
    def skip(self) -> str | None:
        """Why the source itself rules it out (``consumer``, ``kind``), or None."""

    @property
    def is_weight(self) -> bool:
        """Whether the source itself marks it as a weight, whatever its name."""


@dataclass(frozen=True)
class Description:
    """A description on its own, for tensors that come from no file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int | None = None
    skip: str | None = None
    is_weight: bool = False


def weight_skip_reason(
    name: str, dtype: str, shape: Sequence[int]
) -> SkipReason | None:
    """Say why the default rule does not take a tensor for a weight; None if it does."""
    return name_reason(name, shape) or _uncheckable(dtype, shape)


def name_reason(name: str, shape: Sequence[int]) -> SkipReason | None:
    """Say why a tensor's name rules it out; None if it does not."""
    parts = name.split(".")
    module = parts[-2].lower() if len(parts) > 1 else ""
    if "norm" in module or module.startswith("ln_"):
        return "norm"
    if "embed" in name.lower() or not _EMBEDDINGS.isdisjoint(parts):
        return "embedding"
    if not (
        name.endswith("weight")
        or _RECURRENT.fullmatch(parts[-1])
        or _is_fused_experts(name, shape)
    ):
        return "name"
    return None


def is_head(name: str) -> bool:
    """Whether a weight's name is that of an output head, which is mostly left dense."""
    modules = name.split(".")[:-1]
    return any(module in _HEADS or module.endswith("head") for module in modules)


def default_axis(name: str, shape: Sequence[int]) -> int:
    """The group (reduction) axis of a weight of which only name and shape are known."""
    if _is_fused_experts(name, shape):
        return len(shape) - 1  # [experts, out, in]
    if len(shape) == 2 and _CONV1D.fullmatch(name):
        return 0  # [in, out]
    return min(1, len(shape) - 1)  # [out, in], [out, in, k...]


def output_axis(shape: Sequence[int], axis: int) -> int:
    """The axis of the outputs, given the group axis: that of a matrix beside it.

    Of convolutions, ``[out, in, k...]``, the first; of stacked matrices, of which the
    group axis is one of the last two, the other one.
    """
    rank = len(shape)
    if rank == 2 or axis in (0, 1):
        return 1 if axis == 0 else 0
    return rank - 2 if axis == rank - 1 else rank - 1


def unreadable(tensor: Described) -> SkipReason | None:
    """Why a selected tensor cannot be judged, whatever its pattern."""
    if tensor.skip == "kind":
        return "kind"
    if tensor.is_weight:  # by its consumer, so integer codes have a meaning
        return "rank" if len(tensor.shape) < 2 else None
    return _uncheckable(tensor.dtype, tensor.shape)


def _is_fused_experts(name: str, shape: Sequence[int]) -> bool:
    *modules, own = name.split(".")
    return (
        len(shape) == 3
        and any("experts" in part for part in modules)
        and _EXPERT.fullmatch(own) is not None
    )


def _uncheckable(dtype: str, shape: Sequence[int]) -> SkipReason | None:
    if len(shape) < 2:
        return "rank"
    return None if _FLOATING.fullmatch(dtype) else "dtype"


def skip_reason(tensor: Described) -> SkipReason | None:
    """The default rule, where the source has not decided already."""
    if tensor.skip is not None:
        return "kind" if tensor.skip == "kind" else "consumer"
    if tensor.is_weight:
        return None
    return weight_skip_reason(tensor.name, tensor.dtype, tensor.shape)
