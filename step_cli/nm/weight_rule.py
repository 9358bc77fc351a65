"""Which tensors are weights by name, shape and dtype, and why the others are not.

Works on descriptions alone, so that it serves tensors of files and parameters of
modules. Nothing here reads data.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from step_cli.nm.tensor_data import Part

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
# A product may use them, so they count as not covered, and --strict fails them.
UNCOVERED: frozenset[SkipReason] = frozenset(
    {"packed", "reparametrized", "flat", "untraced", "kind", "size", "dtype"}
)
# Components that wrappers put into names: DataParallel, torch.compile, activation
# checkpointing, FSDP, PEFT.
WRAPPERS = {
    "module",
    "_orig_mod",
    "_checkpoint_wrapped_module",
    "_fsdp_wrapped_module",
    "base_layer",
}

# E8M0 is left out: it holds scales only and has no zero.
_FLOATING = re.compile(r"float(64|32|16)|bfloat16|float8_(?!e8m0)\w+")
_INTEGER = re.compile(r"u?int\d+|float4_\w+")
_RECURRENT = re.compile(r"weight_([ih]h|hr)(_l\d+(_reverse)?)?")
_EXPERT = re.compile(r"(\w+_)?projs?|w[123]|\w*weight")
# What else stands in a module of experts, besides their matrices.
_NO_EXPERT = re.compile(
    r"bias|scale|zero|mask|norm|amax|absmax|quant|blocks|idx|index|shape"
)
_FLAT = re.compile(r"_?flat_param(_\d+)?")
_HEADS = {"lm_head", "classifier", "score"}
_EMBEDDINGS = {"wte", "wpe", "shared", "emb", "relative_attention_bias"}
# What holds several codes a byte, or blocks, under a name of its own: GPTQ and AWQ,
# compressed-tensors; and by the tensor beside it: Marlin, HQQ, AQLM, QuIP#.
_PACKED = {
    "qweight": (),
    "weight_packed": (),
    "B": ("s",),
    "B_24": ("s", "B_meta"),
    "W_q": ("meta", "scale", "zero"),
    "codes": ("codebooks",),
    "Qidxs": ("SU", "SV"),
}
# What stands beside a `*weight` of packed codes: NVFP4 and BitNet, bitsandbytes.
_BESIDE_CODES = ("_scale", "_scale_2", "_scale_inv", ".absmax", ".quant_map")


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
        """The group axis, where the source gives it; else None: by evidence."""

    @property
    def output_axis(self) -> int | None:
        """The axis of the outputs, where the source gives it."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of it that products use; empty: all of it."""

    @property
    def skip(self) -> SkipReason | None:
        """Why the source itself rules it out, or None."""

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
    skip: SkipReason | None = None
    is_weight: bool = False
    output_axis: int | None = None
    parts: tuple[Part, ...] = ()


def without_wrappers(name: str) -> str:
    """A tensor's name without the components that wrappers of modules add."""
    *modules, own = name.split(".")
    return ".".join([*(part for part in modules if part not in WRAPPERS), own])


def skip_reason(tensor: Described, names: Collection[str] = ()) -> SkipReason | None:
    """The default rule: why a tensor is no weight that can be judged, or None.

    Args:
        tensor: Its description.
        names: Of all tensors beside it, which tell codes from weights.
    """
    if tensor.skip is not None or tensor.is_weight:
        return tensor.skip
    return name_reason(tensor, names) or uncheckable(tensor, names)


def name_reason(tensor: Described, names: Collection[str] = ()) -> SkipReason | None:
    """Why a tensor's name, with its rank, rules it out; None if it does not."""
    name, shape = without_wrappers(tensor.name), tensor.shape
    *modules, own = name.split(".")
    if _FLAT.fullmatch(own):
        return "flat"
    whole = computed_weight(tensor, names)
    if whole is not None:
        return name_reason(whole) or "reparametrized"
    module = modules[-1] if modules else ""
    if len(shape) < 2 and _names_norm(module):
        return "norm"
    if len(shape) == 2 and _names_embedding(module):
        return "embedding"
    if _is_packed(tensor, own, names):
        return "packed"
    if not (
        own.endswith("weight")
        or _RECURRENT.fullmatch(own)
        or is_fused_experts(name, shape)
    ):
        return "name"
    return None


def computed_weight(
    tensor: Described, names: Collection[str] = ()
) -> Description | None:
    """The matrix that a module computes from this tensor, of the same shape, or None.

    Args:
        tensor: Its description.
        names: Of all tensors beside it.
    """
    base = _reparametrized(tensor.name, names)
    if base is None or len(tensor.shape) < 2:
        return None
    return Description(base, tensor.dtype, tensor.shape, skip=tensor.skip)


def uncheckable(tensor: Described, names: Collection[str] = ()) -> SkipReason | None:
    """Why a tensor that is wanted cannot be judged, whatever its pattern, or None."""
    if tensor.skip == "kind":
        return "kind"
    if len(tensor.shape) < 2:
        return "rank"
    if tensor.is_weight or _FLOATING.fullmatch(tensor.dtype):
        return None  # by its product, so integer codes have a meaning
    signed_codes = tensor.dtype == "int8" and f"{tensor.name}_scale" in names
    return None if signed_codes else "dtype"


def is_head(name: str) -> bool:
    """Whether a weight's name is that of an output head, which is mostly left dense."""
    modules = name.split(".")[:-1]
    return any(module in _HEADS or module.endswith("head") for module in modules)


def is_fused_experts(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor holds the matrices of all experts of a layer."""
    *modules, own = name.split(".")
    if len(shape) != 3 or not any("experts" in part for part in modules):
        return False
    if _EXPERT.fullmatch(own):
        return True
    return "experts" in modules[-1] and _NO_EXPERT.search(own) is None


def _names_norm(module: str) -> bool:
    return "norm" in module.lower() or module.lower().startswith("ln_")


def _names_embedding(module: str) -> bool:
    return "embed" in module.lower() or module in _EMBEDDINGS or module.endswith("_emb")


def _reparametrized(name: str, names: Collection[str]) -> str | None:
    """The name of the weight that a module computes from this tensor, or None.

    Of torch's pruning and spectral norm, its weight norm, and ``parametrizations``;
    not what only scales or masks.
    """
    *outer, own = name.split(".")
    if own.startswith("original") and outer[-2:-1] == ["parametrizations"]:
        if own == "original0" and f"{name[:-1]}1" in names:
            return None  # the magnitude of weight norm
        return ".".join([*outer[:-2], outer[-1]])
    if own.endswith("_orig"):
        return name.removesuffix("_orig")
    if own.endswith("_v") and f"{name[:-2]}_g" in names:
        return name[:-2]
    return None


def _is_packed(tensor: Described, own: str, names: Collection[str]) -> bool:
    """Whether it holds several codes a byte, or blocks of them."""
    if len(tensor.shape) < 2 or not _INTEGER.fullmatch(tensor.dtype):
        return False
    if own in _PACKED:
        module, others = tensor.name[: -len(own)], _PACKED[own]
        return not others or any(module + other in names for other in others)
    if own.endswith("_blocks"):  # MXFP4 of gpt_oss
        return f"{tensor.name[: -len('_blocks')]}_scales" in names
    if not own.endswith("weight") or tensor.dtype == "int8":
        return False
    return tensor.dtype.startswith("float4") or any(
        tensor.name + beside in names for beside in _BESIDE_CODES
    )
