"""Which tensors are weights, and what each of them promises: one rule for all commands.

Works on descriptions alone (name, dtype, shape), so that it serves tensors of files and
parameters of modules. Nothing here reads data.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Generic, Literal, Protocol, TypeVar

from step_cli.core.pattern import NMPattern
from step_cli.core.plan import LayerPlan, Plan
from step_cli.errors import InputError, NothingSelectedError, UsageError

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
]

DEFAULT_PATTERN = NMPattern(2, 4)

# E8M0 is left out: it holds scales only and has no zero.
_FLOATING = re.compile(r"float(64|32|16)|bfloat16|float8_(?!e8m0)\w+")
_RECURRENT = re.compile(r"weight_[ih]h_l\d+(_reverse)?")
_EXPERT = re.compile(r"(\w+_)?proj|w[123]|\w*weight")
_EMBEDDINGS = {"wte", "wpe", "shared", "relative_attention_bias"}
# Hugging Face's Conv1D stores [in, out]; the GPT-2 family is the one that uses it.
_CONV1D = re.compile(
    r"(.*\.)?h\.\d+\.(attn|crossattention|mlp)\.(c_attn|q_attn|c_proj|c_fc)\.weight"
)


class Described(Protocol):
    """What the rule needs to know of a tensor; `formats.weights.NamedTensor` is one."""

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
        """The group axis, where the source tells it; else None: by name and shape."""

    @property
    def skip(self) -> str | None:
        """Why the source itself rules it out (``consumer``, ``kind``), or None."""

    @property
    def is_weight(self) -> bool:
        """Whether the source itself tells that it is a weight, whatever its name."""


@dataclass(frozen=True)
class Description:
    """A description on its own, for tensors that come from no file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int | None = None
    skip: str | None = None
    is_weight: bool = False


T = TypeVar("T", bound=Described)


def weight_skip_reason(
    name: str, dtype: str, shape: Sequence[int]
) -> SkipReason | None:
    """Say why the default rule does not take a tensor for a weight; None if it does."""
    return _name_reason(name, shape) or _uncheckable(dtype, shape)


def _name_reason(name: str, shape: Sequence[int]) -> SkipReason | None:
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


def default_axis(name: str, shape: Sequence[int]) -> int:
    """The group (reduction) axis of a weight of which only name and shape are known."""
    if _is_fused_experts(name, shape):
        return len(shape) - 1  # [experts, out, in]
    if len(shape) == 2 and _CONV1D.fullmatch(name):
        return 0  # [in, out]
    return min(1, len(shape) - 1)  # [out, in], [out, in, k...]


def _unreadable(tensor: Described) -> SkipReason | None:
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


@dataclass(frozen=True)
class Chosen(Generic[T]):
    """What a selection found, in the order of the tensors given.

    Attributes:
        layers: The selected weights that can hold their pattern, each with its plan.
        skipped: All others, each with its reason.
        unchecked: The tensors of ``skipped`` that were selected, but have no whole
            groups of M (``size``), or a rank, dtype or kind that cannot be judged.
        warnings: Sentences for the user.
    """

    layers: list[tuple[T, LayerPlan]] = field(default_factory=list)
    skipped: list[tuple[T, SkipReason]] = field(default_factory=list)
    unchecked: list[T] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Selection:
    """The user's choice of tensors, patterns and axes.

    Attributes:
        include: Globs (`*` crosses dots); a tensor's exact name selects it even where
            the default rule would not.
        exclude: Globs; wins over ``include``.
        axes: Globs with the group axis for the tensors they match; the last match wins.
        pattern: For every selected tensor; None: as the plan says, 2:4 without one.
        plan: Selects its layers and no others.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    axes: Sequence[tuple[str, int]] = ()
    pattern: NMPattern | None = None
    plan: Plan | None = None

    def choose(self, tensors: Sequence[T]) -> Chosen[T]:
        """Select the weights among ``tensors``.

        Raises:
            InputError: The plan names a tensor that is not there, or no axis of it.
            NothingSelectedError: A glob of ``include`` matches no name.
            UsageError: An axis of ``axes`` lies beyond the rank of a selected tensor.
        """
        names = [tensor.name for tensor in tensors]
        self._refuse_unknown_names(names)
        chosen: Chosen[T] = Chosen(warnings=self._warnings(names))
        for tensor in tensors:
            reason = self._unselected(tensor)
            if reason is None:
                self._place(tensor, chosen)
            else:
                chosen.skipped.append((tensor, reason))
        return chosen

    def _refuse_unknown_names(self, names: Sequence[str]) -> None:
        known = set(names)
        missing = [name for name in self.plan or () if name not in known]
        if missing:
            shown = ", ".join(repr(name) for name in missing[:3])
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise InputError(
                f"the plan names {shown}{more}, which the checkpoint lacks; "
                "give the plan that belongs to it with --plan"
            )
        for glob in self.include:
            if not any(matches(name, glob) for name in names):
                raise NothingSelectedError(
                    f"--include {glob!r} matches no tensor{_nearest(glob, names)}"
                )

    def _warnings(self, names: Sequence[str]) -> list[str]:
        given = [("--exclude", glob) for glob in self.exclude]
        given += [("--axis", glob) for glob, _ in self.axes]
        return [
            f"{option} {glob!r} matches no tensor{_nearest(glob, names)}"
            for option, glob in given
            if not any(matches(name, glob) for name in names)
        ]

    def _unselected(self, tensor: Described) -> SkipReason | None:
        """Why a tensor is not even selected; None for those that are."""
        named = tensor.name in self.include
        wanted = (
            (named or not self.include or _any_matches(tensor.name, self.include))
            and not _any_matches(tensor.name, self.exclude)
            and (self.plan is None or tensor.name in self.plan)
        )
        reason = _rule(tensor)
        if not wanted:
            return reason or "excluded"
        if named or self.plan is not None:
            return None
        # Of a kind that cannot be read, but by its name a weight: --strict wants to know.
        if reason == "kind" and _name_reason(tensor.name, tensor.shape) is None:
            return None
        return reason

    def _place(self, tensor: T, chosen: Chosen[T]) -> None:
        """File a selected tensor under the layers, or among those without groups."""
        reason = _unreadable(tensor)
        if reason is None:
            layer = self._layer_plan(tensor)
            size = tensor.shape[layer.axis]
            if size % layer.pattern.m == 0 and 0 not in tensor.shape:
                chosen.layers.append((tensor, layer))
                return
            reason = "size"
        chosen.skipped.append((tensor, reason))
        chosen.unchecked.append(tensor)

    def _layer_plan(self, tensor: Described) -> LayerPlan:
        planned = self.plan.get(tensor.name) if self.plan else None
        pattern = self.pattern or (planned.pattern if planned else DEFAULT_PATTERN)
        return LayerPlan(pattern, self._axis(tensor, planned))

    def _axis(self, tensor: Described, planned: LayerPlan | None) -> int:
        rank = len(tensor.shape)
        given = [axis for glob, axis in self.axes if matches(tensor.name, glob)]
        axis = given[-1] if given else planned.axis if planned else tensor.axis
        if axis is None:
            return default_axis(tensor.name, tensor.shape)
        if -rank <= axis < rank:
            return axis % rank
        found = f"axis {axis} of a tensor of {rank} axes, shape {list(tensor.shape)}"
        if given:
            raise UsageError(
                f"--axis: {found}; use 0 to {rank - 1}", tensor=tensor.name
            )
        raise InputError(f"the plan names {found}", tensor=tensor.name)


def _any_matches(name: str, globs: Sequence[str]) -> bool:
    return any(matches(name, glob) for glob in globs)


def matches(name: str, glob: str) -> bool:
    """Whether a tensor's name is ``glob``, or matches it; `*` crosses dots."""
    return name == glob or fnmatchcase(name, glob)


def parse_axis(text: str) -> tuple[str, int]:
    """Read ``GLOB=AXIS``, as given to --axis.

    Raises:
        ValueError: The text is not of that form.
    """
    glob, _, axis = text.rpartition("=")
    if not glob or not re.fullmatch(r"-?[0-9]{1,3}", axis.strip()):
        raise ValueError(f"expected GLOB=AXIS such as 'fc*=0', got '{text}'")
    return glob, int(axis)


def _rule(tensor: Described) -> SkipReason | None:
    """The default rule, where the source has not decided already."""
    if tensor.skip is not None:
        return "kind" if tensor.skip == "kind" else "consumer"
    if tensor.is_weight:
        return None
    return weight_skip_reason(tensor.name, tensor.dtype, tensor.shape)


def _nearest(glob: str, names: Iterable[str]) -> str:
    """``; nearest: ...`` with up to five names."""
    # Comparing is quadratic in the length: hostile files have long names, and many.
    short = [name for name in names if len(name) <= 200][:2000]
    close = get_close_matches(glob[:200], short, n=5, cutoff=0.0)
    return f"; nearest: {', '.join(close)}" if close else ""
