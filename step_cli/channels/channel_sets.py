"""Sets of channels that may be permuted, and the layers that are pruned along them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.channels.axes import Axis, factors, find, leaves
from step_cli.channels.graph import GraphAxes, TensorAxes
from step_cli.nm.pattern import NMSpec, Plan

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Occurrence:
    """Where a leaf stands on an axis: channel c of it at ``starts + stride * c``.

    Attributes:
        starts: Of each time it stands there.
        stride: From one channel to the next.
        inner: How far into the block of ``stride`` that a channel is each start lies.
        beside: Of leaves that it is multiplied with: their channel at each start.
    """

    leaf: Axis
    starts: Index
    stride: int
    inner: Index
    beside: Mapping[Axis, Index]

    def positions(self) -> Index:
        """``[starts, channels]``."""
        return self.starts[:, None] + self.stride * np.arange(self.leaf.size)


@dataclass
class ChannelSet:
    """Channels that are permuted together in every tensor that has them.

    Attributes:
        leaf: The channels.
        within: Leaves along which the order may differ, such as heads.
        layers: Weights that are pruned in groups of these channels.
    """

    leaf: Axis
    within: tuple[Axis, ...]
    layers: list[str] = field(default_factory=list)


def occurrences(axis: Axis) -> Iterator[Occurrence]:
    """All leaves of an axis, and where they stand."""
    axis = find(axis)
    if axis.kind == "leaf":
        nothing = np.zeros(1, np.int64)
        yield Occurrence(axis, nothing, 1, nothing, {})
    elif axis.kind == "row":
        at = 0
        for part in axis.parts:
            for found in occurrences(part):
                yield replace(found, starts=found.starts + at)
            at += find(part).size
    else:
        parts = factors(axis)
        for place, part in enumerate(parts):
            for found in occurrences(part):
                yield _multiplied(found, parts, place)


def _multiplied(found: Occurrence, parts: Sequence[Axis], place: int) -> Occurrence:
    """An occurrence within a part of a product, as seen from the product."""
    sizes = [find(part).size for part in parts]
    inner = int(np.prod(sizes[place + 1 :], dtype=np.int64))
    others = [size for k, size in enumerate(sizes) if k != place]
    index = np.indices(others, np.int64).reshape(len(others), -1)  # of other parts
    starts = np.zeros(index.shape[1], np.int64)
    behind = np.zeros(index.shape[1], np.int64)  # of parts faster than this one
    beside: dict[Axis, Index] = {}
    for row, k in zip(index, (k for k in range(len(parts)) if k != place), strict=True):
        stride = int(np.prod(sizes[k + 1 :], dtype=np.int64))
        starts = starts + row * stride
        behind = behind + (row * stride if k > place else 0)
        if find(parts[k]).kind == "leaf":
            beside[find(parts[k])] = row
    count = len(found.starts)
    beside = {leaf: np.repeat(row, count) for leaf, row in beside.items()}
    for leaf, row in found.beside.items():
        beside[leaf] = np.tile(row, len(starts))
    return Occurrence(
        found.leaf,
        (starts[:, None] + found.starts * inner).ravel(),
        found.stride * inner,
        (behind[:, None] + found.inner * inner).ravel(),
        beside,
    )


def find_channel_sets(
    graph: GraphAxes, parameters: Mapping[str, TensorAxes], plan: Plan
) -> tuple[list[ChannelSet], dict[str, str]]:
    """The channels of a network that may be permuted, and why other layers have none.

    Args:
        graph: All of its tensors.
        parameters: The axes of its weights, by name.
        plan: The layers that are pruned.
    """
    sparse = {name: p for name, p in plan.items() if not p.pattern.dense}
    by_leaf: dict[Axis, list[str]] = {}
    reasons: dict[str, str] = {}
    for name, layer in sparse.items():
        if name not in parameters:
            reasons[name] = "the model does not use it as it is stored"
            continue
        found = [o for o in occurrences(parameters[name][layer.axis])]
        movable = [o.leaf for o in found if _may_move(o, layer)]
        reasons[name] = _reason(found, layer)
        for leaf in dict.fromkeys(movable):
            by_leaf.setdefault(leaf, []).append(name)
    sets = []
    for leaf, names in by_leaf.items():
        problem = _problem(leaf, parameters, sparse)
        if problem is None:
            sets.append(ChannelSet(leaf, (), names))
        else:
            reasons.update((name, problem) for name in names)
    moving = {channels.leaf for channels in sets}
    within = _separators(graph, parameters.values(), moving)
    for channels in sets:
        order = sorted(within[channels.leaf], key=lambda leaf: leaf.size)
        channels.within = tuple(order)
        for name in channels.layers:
            reasons.pop(name, None)
    return sets, reasons


def _may_move(found: Occurrence, layer: NMSpec) -> bool:
    """Whether an order of the leaf changes what groups hold, and none crosses it."""
    m = layer.pattern.m
    whole = found.leaf.size % m == 0 and not (found.starts % m).any()
    return (
        found.leaf.fixed is None and found.stride == 1 and whole and found.leaf.size > m
    )


def _reason(found: Iterable[Occurrence], layer: NMSpec) -> str:
    for occurrence in found:
        if occurrence.leaf.fixed is not None:
            return occurrence.leaf.fixed
    return f"groups of {layer.pattern.m} do not fit the parts of its inputs"


def _problem(
    leaf: Axis, parameters: Mapping[str, TensorAxes], plan: Plan
) -> str | None:
    """Why a leaf must stay after all: some layer that has it would lose by it."""
    patterns = set()
    for name, layer in plan.items():
        if name not in parameters:
            continue
        m = layer.pattern.m
        for found in occurrences(parameters[name][layer.axis]):
            if found.leaf is not leaf:
                continue
            if found.stride % m == 0 and not ((found.starts - found.inner) % m).any():
                continue  # whole groups move
            if not _may_move(found, layer):
                return f"groups of {name} would cross its channels"
            patterns.add(layer.pattern)
    if len(patterns) > 1:
        return "layers of different patterns share its channels"
    return None


def _separators(
    graph: GraphAxes, parameters: Iterable[TensorAxes], moving: set[Axis]
) -> dict[Axis, set[Axis]]:
    """Of each leaf: those along which its order may differ.

    Every tensor that has the leaf must have them too, once, multiplied with it: then
    each channel of them has the leaf to itself. What an operator mixes is none.
    """
    found: dict[Axis, set[Axis]] = {}
    for tensor in graph.tensors:
        for leaf, beside in _beside(tensor, moving):
            found[leaf] = found.get(leaf, beside) & beside
    # Orders of parameters are applied axis by axis, to whole blocks.
    for tensor in parameters:
        for axis in tensor:
            for leaf, beside in _beside((axis,), moving, slower=True):
                found[leaf] = found.get(leaf, beside) & beside
    for axes, tensor in graph.mixed:
        inside = {leaf for axis in axes for leaf in leaves(axis)}
        for leaf in {leaf for axis in tensor for leaf in leaves(axis)} - inside:
            if leaf in found:
                found[leaf] = found[leaf] - inside
    return {leaf: found.get(leaf, set()) - moving for leaf in moving}


def _beside(
    tensor: TensorAxes, moving: set[Axis], *, slower: bool = False
) -> Iterator[tuple[Axis, set[Axis]]]:
    """Each moving leaf of a tensor as often as it stands there, and its co-factors.

    Args:
        tensor: The tensor.
        moving: Leaves that matter.
        slower: Whether only those count that stand before it on its axis.
    """
    for place, axis in enumerate(tensor):
        others = [
            leaf
            for other, another in enumerate(tensor)
            if other != place
            for leaf in _cofactors(another)
        ]
        for leaf, beside in _within(axis, others, slower=slower):
            if leaf in moving:
                once = {b for b in beside if beside.count(b) == 1}
                yield leaf, (set() if leaf in beside else once)


def _within(
    axis: Axis, beside: list[Axis], *, slower: bool
) -> Iterator[tuple[Axis, list[Axis]]]:
    axis = find(axis)
    if axis.kind == "leaf":
        yield axis, beside
    for place, part in enumerate(axis.parts):
        siblings = [
            leaf
            for other, another in enumerate(axis.parts)
            if axis.kind == "product" and (other < place if slower else other != place)
            for leaf in _cofactors(another)
        ]
        yield from _within(part, [*beside, *siblings], slower=slower)


def _cofactors(axis: Axis) -> list[Axis]:
    """Leaves that every channel of an axis has one channel of."""
    axis = find(axis)
    if axis.kind == "row":
        return []
    if axis.kind == "leaf":
        return [axis]
    return [leaf for part in axis.parts for leaf in _cofactors(part)]
