"""What a verdict on a random graph has to be, by what ONNX Runtime shows of it."""

from dataclasses import dataclass, field

import numpy as np
from formats.onnx.group_oracle import Learned, Witness
from formats.onnx.random_graphs.example import Example
from formats.onnx.random_graphs.products import Operand
from formats.onnx.random_graphs.values import (
    EITHER,
    LISTED,
    OPAQUE,
    OPEN,
    Array,
    Path,
    Stored,
)


@dataclass(frozen=True)
class Layer:
    """The groups of a stored tensor along one axis."""

    axis: int
    groups: int
    violations: int
    first: tuple[list[int], int] | None  # index and non-zeros


@dataclass
class Expected:
    """What is expected of one stored tensor.

    Attributes:
        stored: The tensor.
        layers: Its layers by their axis, of what can be judged of it.
        judged: Whether products use it in ways that must be judged.
        either: Whether they use it in ways that may be called untraced.
        refused: Whether they use it in ways that must be.
        open: Whether they use it in ways that depend on inputs of the graph.
        unknown: Whether its groups are known only in part.
    """

    stored: Stored
    layers: dict[int, Layer] = field(default_factory=dict)
    judged: bool = False
    either: bool = False
    refused: bool = False
    open: bool = False
    unknown: bool = False

    def is_missed(self, is_layer: bool) -> bool:
        """Whether something of it was not judged that a product uses."""
        return self.refused or (not is_layer and (self.judged or self.either))


def expected(example: Example, witness: Witness) -> dict[str, Expected]:
    """What is expected of each stored tensor.

    Raises:
        Ambiguous: ONNX Runtime does not show the groups of a product.
    """
    found = {stored.name: Expected(stored) for stored in example.stored}
    groups: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    n, m = example.pattern
    for placed in example.placed:
        for number in range(len(placed.values)):
            kinds = {path.kind for path in placed.paths(number)}
            paths = [p for p in placed.paths(number) if (p.ids >= 0).any()]
            if OPAQUE in kinds or OPEN in kinds:
                _not_followed(found, paths, kinds)
                continue
            learned = witness.learn(placed, number)
            operand = placed.product.operands[number]
            verdicts = [kind_of(path, learned, operand, m) for path in paths]
            followed = {*verdicts, *kinds} == {LISTED}
            for path, kind in zip(paths, verdicts, strict=True):
                tensor = found[path.stored.name]
                tensor.refused |= kind == OPAQUE
                # where a part of an operand is not followed, none of it need be
                tensor.judged |= followed
                tensor.either |= kind != OPAQUE and not followed
                for group in learned.groups.get(path.stored.name, set()):
                    axis = axis_of(group, path.stored.shape)
                    if axis is None:
                        tensor.unknown = True
                    else:
                        groups.setdefault((path.stored.name, axis), set()).add(group)
    for (name, axis), members in groups.items():
        found[name].layers[axis] = layer(found[name].stored, axis, members, n)
    return found


def _not_followed(
    found: dict[str, Expected], paths: list[Path], kinds: set[str]
) -> None:
    """An operand behind a step that is not listed."""
    for path in paths:
        tensor = found[path.stored.name]
        tensor.refused |= path.kind == OPAQUE and OPEN not in kinds
        tensor.either |= path.kind != OPAQUE and OPEN not in kinds
        tensor.open |= OPEN in kinds
        tensor.unknown = True


def axis_of(group: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """The axis that a group lies along, or None if it lies along several."""
    where = np.array(np.unravel_index(group, shape))
    moving = np.flatnonzero((where != where[:, :1]).any(1))
    return int(moving[0]) if len(moving) == 1 else None


def kind_of(path: Path, learned: Learned, operand: Operand, m: int) -> str:
    """Whether what a product uses of a tensor must, may or cannot be judged."""
    name, shape = path.stored.name, path.stored.shape
    if name in learned.rest or name in learned.joined:
        return OPAQUE
    used = np.array(np.nonzero(path.ids >= 0))
    numbers = learned.inputs[name]
    begin, end = used.min(1), used.max(1) + 1
    kind = path.kind if is_matrix(path.stored) else EITHER
    if name in learned.uneven or is_scattered(path.stored.zero):
        kind = EITHER
    if not _same_inputs(path, operand):
        kind = EITHER
    if used.shape[1] != int(np.prod(end - begin)):
        kind = EITHER  # not a box
    flat = set(np.ravel_multi_index(used, shape).tolist())
    for group in learned.groups[name]:
        axis = axis_of(group, shape)
        if axis is None:
            return OPAQUE
        where = np.array(np.unravel_index(group, shape))[axis]
        in_order = (np.diff(where) == 1).all()
        parts = (end - begin)[axis] % m or (
            not flat.issuperset(group) and flat & {*group}
        )
        if not in_order or parts:
            kind = EITHER
        if group[0] in flat and numbers[group[0]] % m:
            kind = EITHER
    return kind


def _same_inputs(path: Path, operand: Operand) -> bool:
    """Whether every sum that a part takes part in has the same of its inputs."""
    ids = path.ids[path.ids >= 0]
    sums = operand.sums().reshape(-1)[ids]
    inputs = operand.target.inputs.reshape(-1)[ids]
    found = {frozenset(inputs[sums == one].tolist()) for one in np.unique(sums)}
    return len(found) == 1


def is_matrix(stored: Stored) -> bool:
    """Whether it is more than a row of numbers."""
    return sum(size > 1 for size in stored.shape) > 1


def is_scattered(zero: Array) -> bool:
    """Whether the code that means zero differs along more than one axis."""
    axes = range(zero.ndim)
    return sum(bool((zero != zero.take([0], a)).any()) for a in axes) > 1


def layer(stored: Stored, axis: int, groups: set[tuple[int, ...]], n: int) -> Layer:
    """Count the groups that hold too many numbers that are not zero."""
    typed = stored.typed().astype(np.float64)
    kept = (typed != (stored.zero if stored.is_codes else 0)).reshape(-1)
    counts = {group: int(kept[list(group)].sum()) for group in groups}
    broken = sorted(group for group, count in counts.items() if count > n)
    first = None
    if broken:
        index = np.unravel_index(broken[0][0], stored.shape)
        first = [int(i) for i in index], counts[broken[0]]
    return Layer(axis, len(groups), len(broken), first)
