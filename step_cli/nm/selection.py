"""The user's choice of tensors, and what each chosen one promises.

The same for files and for modules, as it works on descriptions alone.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Generic, NamedTuple, TypeVar

from step_cli.errors import InputError, NothingSelectedError, UsageError, nearest
from step_cli.nm.axis_rule import Axis, AxisFrom, AxisRule
from step_cli.nm.families import NOTHING_KNOWN, ModelConfig
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.nm.weight_rule import (
    UNCOVERED,
    Described,
    SkipReason,
    computed_weight,
    name_reason,
    skip_reason,
    uncheckable,
)

DEFAULT_PATTERN = NMPattern(2, 4)

T = TypeVar("T", bound=Described)


class Layer(NamedTuple, Generic[T]):
    """A selected weight, and what it promises.

    Attributes:
        tensor: Its description.
        spec: Its pattern and group axis.
        outputs: The axis of the outputs.
        inputs: The group axis by evidence, whatever the user or a plan says.
        axis_from: What tells the axis.
        assumed: Whether nothing settles the axis.
    """

    tensor: T
    spec: NMSpec
    outputs: int
    inputs: int
    axis_from: AxisFrom
    assumed: bool = False

    @classmethod
    def alone(cls, tensor: T, spec: NMSpec) -> "Layer[T]":
        """A layer of which nothing beside it need be known, such as one of a graph."""
        rule = AxisRule([tensor])
        axis = rule.of(tensor)
        outputs = rule.outputs(tensor, spec.axis)
        return cls(tensor, spec, outputs, axis.axis, axis.source, axis.assumed)


@dataclass(frozen=True)
class Chosen(Generic[T]):
    """What a selection found, in the order of the tensors given.

    Attributes:
        layers: The selected weights that can hold their pattern.
        skipped: All others, each with its reason.
        unchecked: The tensors of ``skipped`` that a product may use and that cannot be
            judged, and those that the user named.
        warnings: Sentences for the user.
    """

    layers: list[Layer[T]] = field(default_factory=list)
    skipped: list[tuple[T, SkipReason]] = field(default_factory=list)
    unchecked: list[T] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def leave_out(self, tensor: T, reason: SkipReason) -> None:
        """File a tensor that should be judged under those that are not."""
        self.skipped.append((tensor, reason))
        self.unchecked.append(tensor)


@dataclass(frozen=True)
class Selection:
    """The user's choice of tensors, patterns and axes.

    Attributes:
        include: Globs (`*` crosses dots); a tensor's exact name selects it even where
            the default rule would not.
        exclude: Globs; wins over ``include``.
        axes: Globs with the group axis for the tensors they match; the last match wins.
            None: the axis by evidence.
        patterns: Globs with the pattern of the tensors they match; the first match
            wins, also over ``pattern``.
        pattern: For every selected tensor; None: that of the plan, 2:4 without one.
        plan: Selects its layers and no others.
        prefix: What stands before these names where the user gave them.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    axes: Sequence[tuple[str, int | None]] = ()
    patterns: Sequence[tuple[str, NMPattern]] = ()
    pattern: NMPattern | None = None
    plan: Plan | None = None
    prefix: str = "--"

    def choose(
        self, tensors: Sequence[T], config: ModelConfig = NOTHING_KNOWN
    ) -> Chosen[T]:
        """Select the weights among ``tensors``.

        Args:
            tensors: All of a checkpoint, or of a model.
            config: What the checkpoint's ``config.json`` tells of their axes.

        Raises:
            InputError: The plan names a tensor that is not there, or no axis of it.
            NothingSelectedError: A glob of ``include`` matches no name.
            UsageError: An axis of ``axes`` lies beyond the rank of a selected tensor,
                or a tensor that no product uses is named without an axis.
        """
        names = [tensor.name for tensor in tensors]
        self._refuse_unknown_names(names)
        chosen: Chosen[T] = Chosen(warnings=self._warnings(names))
        known, rule = frozenset(names), AxisRule(tensors, config)
        decided: set[str] = set()
        for tensor in tensors:
            reason = self._reason(tensor, known, rule)
            if reason is None and tensor.skip == "untraced" and tensor.name in decided:
                reason = "untraced"  # a further product uses it in an unknown way
            if reason is None:
                axis = self._axis(tensor, rule)
                # One of two uses is enough where the user says which axis holds.
                if axis.source in ("option", "plan") and tensor.name in decided:
                    continue
                decided.add(tensor.name)
                self._place(tensor, axis, rule, chosen)
            elif self._must_be_judged(tensor, reason, known):
                chosen.leave_out(tensor, reason)
            else:
                chosen.skipped.append((tensor, reason))
        return chosen

    @property
    def _axis_option(self) -> str:
        """Where the user gives a group axis."""
        return "axis" if self.prefix == "--" else "layer"

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
        given += [(self._axis_option, glob) for glob, _ in self.axes]
        return [
            f"{self.prefix}{option} {glob!r} matches no tensor"
            f"{nearest(glob, names, most=5)}"
            for option, glob in given
            if not any(matches(name, glob) for name in names)
        ]

    def _reason(
        self, tensor: Described, names: Set[str], rule: AxisRule
    ) -> SkipReason | None:
        """Why a tensor is not judged; None if it is to be."""
        computed = computed_weight(tensor, names)
        reason = rule.reason(computed or tensor) or skip_reason(tensor, names)
        if reason in ("name", "embedding") and rule.knows(computed or tensor):
            reason = "reparametrized" if computed else uncheckable(tensor, names)
        if not self._wanted(tensor):
            return "excluded" if reason is None or reason in UNCOVERED else reason
        if not self._named(tensor):
            return reason
        unfit = uncheckable(tensor, names)
        return reason if unfit and reason in UNCOVERED else unfit

    def _wanted(self, tensor: Described) -> bool:
        included = not self.include or _any_matches(tensor.name, self.include)
        planned = self.plan is None or tensor.name in self.plan
        return included and planned and not _any_matches(tensor.name, self.exclude)

    def _named(self, tensor: Described) -> bool:
        """Whether the user, or the plan, asks for just this tensor."""
        return tensor.name in self.include or self.plan is not None

    def _must_be_judged(
        self, tensor: Described, reason: SkipReason, names: Set[str]
    ) -> bool:
        if not self._wanted(tensor) or self._named(tensor):
            return self._wanted(tensor)
        if reason != "kind" or tensor.is_weight:
            return reason in UNCOVERED
        # Of a kind that cannot be read: only what is a weight otherwise is missed.
        return len(tensor.shape) > 1 and name_reason(tensor, names) is None

    def _place(self, tensor: T, axis: Axis, rule: AxisRule, chosen: Chosen[T]) -> None:
        """File a tensor under the layers, or among those without whole groups."""
        spec = NMSpec(self._pattern(tensor), axis.axis)
        if not _has_groups(tensor, spec):
            chosen.leave_out(tensor, "size")
            return
        found = rule.of(tensor)
        inputs = axis.axis if found.assumed else found.axis
        outputs = rule.outputs(tensor, axis.axis)
        layer = Layer(tensor, spec, outputs, inputs, axis.source, axis.assumed)
        chosen.layers.append(layer)

    def _pattern(self, tensor: Described) -> NMPattern:
        own = [given for glob, given in self.patterns if matches(tensor.name, glob)]
        planned = self.plan.get(tensor.name) if self.plan else None
        pattern = own[0] if own else self.pattern
        return pattern or (planned.pattern if planned else DEFAULT_PATTERN)

    def _axis(self, tensor: Described, rule: AxisRule) -> Axis:
        rank = len(tensor.shape)
        matching = [axis for glob, axis in self.axes if matches(tensor.name, glob)]
        given = [axis for axis in matching[-1:] if axis is not None]
        planned = self.plan.get(tensor.name) if self.plan else None
        if not given and planned is None:
            if tensor.skip in ("consumer", "untraced") and tensor.axis is None:
                raise UsageError(
                    f"no product is known that uses it: give its group axis, "
                    f"{self.prefix}{self._axis_option} '{tensor.name}=1'",
                    tensor=tensor.name,
                )
            return rule.of(tensor)
        axis = given[-1] if given else planned.axis if planned else 0
        if -rank <= axis < rank:
            return Axis(axis % rank, "option" if given else "plan")
        found = f"axis {axis} of a tensor of {rank} axes, shape {list(tensor.shape)}"
        if given:
            raise UsageError(
                f"{self.prefix}{self._axis_option}: {found}; use 0 to {rank - 1}",
                tensor=tensor.name,
            )
        raise InputError(f"the plan names {found}", tensor=tensor.name)


def _has_groups(tensor: Described, spec: NMSpec) -> bool:
    """Whether the groups of M along the axis are whole in all that is used."""
    m, axis = spec.pattern.m, spec.axis
    if 0 in tensor.shape:
        return False
    if not tensor.parts:
        return tensor.shape[axis] % m == 0
    return not any(
        (part.end[axis] - part.begin[axis]) % m or part.phase % m
        for part in tensor.parts
    )


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
