"""The user's choice of tensors, and what each chosen one promises.

The same for files and for modules, as it works on descriptions alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from step_cli.errors import InputError, NothingSelectedError, UsageError, nearest
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.nm.weight_rule import (
    Described,
    SkipReason,
    default_axis,
    name_reason,
    skip_reason,
    unreadable,
)

DEFAULT_PATTERN = NMPattern(2, 4)

T = TypeVar("T", bound=Described)


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

    layers: list[tuple[T, NMSpec]] = field(default_factory=list)
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
        patterns: Globs with the pattern of the tensors they match; the first match
            wins, also over ``pattern``.
        pattern: For every selected tensor; None: that of the plan, 2:4 without one.
        plan: Selects its layers and no others.
        prefix: What stands before these names where the user gave them.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    axes: Sequence[tuple[str, int]] = ()
    patterns: Sequence[tuple[str, NMPattern]] = ()
    pattern: NMPattern | None = None
    plan: Plan | None = None
    prefix: str = "--"

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
                f"give the plan that belongs to it with {self.prefix}plan"
            )
        for glob in self.include:
            if not any(matches(name, glob) for name in names):
                raise NothingSelectedError(
                    f"{self.prefix}include {glob!r} matches no tensor"
                    f"{nearest(glob, names, most=5)}"
                )

    def _warnings(self, names: Sequence[str]) -> list[str]:
        given = [("exclude", glob) for glob in self.exclude]
        given += [("axis", glob) for glob, _ in self.axes]
        return [
            f"{self.prefix}{option} {glob!r} matches no tensor"
            f"{nearest(glob, names, most=5)}"
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
        reason = skip_reason(tensor)
        if not wanted:
            return reason or "excluded"
        if named or self.plan is not None:
            return None
        # Of a kind that cannot be read, but otherwise a weight: --strict fails on it.
        by_name = tensor.is_weight or name_reason(tensor.name, tensor.shape) is None
        return None if reason == "kind" and by_name else reason

    def _place(self, tensor: T, chosen: Chosen[T]) -> None:
        """File a selected tensor under the layers, or among those without groups."""
        reason = unreadable(tensor)
        if reason is None:
            layer = self._layer_plan(tensor)
            size = tensor.shape[layer.axis]
            if size % layer.pattern.m == 0 and 0 not in tensor.shape:
                chosen.layers.append((tensor, layer))
                return
            reason = "size"
        chosen.skipped.append((tensor, reason))
        chosen.unchecked.append(tensor)

    def _layer_plan(self, tensor: Described) -> NMSpec:
        planned = self.plan.get(tensor.name) if self.plan else None
        own = [given for glob, given in self.patterns if matches(tensor.name, glob)]
        pattern = own[0] if own else self.pattern
        pattern = pattern or (planned.pattern if planned else DEFAULT_PATTERN)
        return NMSpec(pattern, self._axis(tensor, planned))

    def _axis(self, tensor: Described, planned: NMSpec | None) -> int:
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
