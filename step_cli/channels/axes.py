"""Axes of tensors, and which of their channels must move together.

An axis starts as a leaf: channels of which nothing is known but their number. Reshaping
splits a leaf into a product, heads times channels; slicing cuts it into a row, queries
beside keys beside values. Two axes that one operator goes along together become one.
A leaf that no operator fixes may be permuted: every tensor that has it alike.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(eq=False)
class Axis:
    """An axis, or a part of one.

    Attributes:
        size: Number of channels.
        kind: A leaf, a product (the first part is the slowest) or a row of parts.
        parts: Of a product or row.
        fixed: Of a leaf: why its channels must stay where they are.
        same: What it has become; look at it through `find`.
    """

    size: int
    kind: Literal["leaf", "product", "row"] = "leaf"
    parts: tuple["Axis", ...] = ()
    fixed: str | None = None
    same: "Axis | None" = None


ONE = Axis(1, "product")


def find(axis: Axis) -> Axis:
    """What an axis is by now."""
    root = axis
    while root.same is not None:
        root = root.same
    while axis.same is not None:  # next time the way is short
        axis.same, axis = root, axis.same
    return root


def leaf(size: int, fixed: str | None = None) -> Axis:
    """A new leaf; an axis of one channel has none."""
    return ONE if size == 1 else Axis(size, fixed=fixed)


def product(parts: Iterable[Axis]) -> Axis:
    """Axes laid into one, the first the slowest."""
    flat = [factor for part in parts for factor in factors(part)]
    if len(flat) == 1:
        return flat[0]
    return Axis(math.prod(part.size for part in flat), "product", tuple(flat))


def row(parts: Iterable[Axis]) -> Axis:
    """Axes one behind the other."""
    flat = [segment for part in parts for segment in segments(part)]
    if len(flat) == 1:
        return flat[0]
    return Axis(sum(part.size for part in flat), "row", tuple(flat))


def factors(axis: Axis) -> list[Axis]:
    """The parts of a product, none a product itself; else the axis alone."""
    axis = find(axis)
    if axis.kind != "product":
        return [axis]
    return [factor for part in axis.parts for factor in factors(part)]


def segments(axis: Axis) -> list[Axis]:
    """The parts of a row, none a row itself; else the axis alone."""
    axis = find(axis)
    if axis.kind != "row":
        return [axis]
    return [segment for part in axis.parts for segment in segments(part)]


def leaves(axis: Axis) -> Iterator[Axis]:
    """All leaves below an axis; one comes as often as it stands there."""
    axis = find(axis)
    if axis.kind == "leaf":
        yield axis
    for part in axis.parts:
        yield from leaves(part)


def fix(axis: Axis, why: str) -> None:
    """Keep every channel of an axis in its place."""
    for found in leaves(axis):
        found.fixed = found.fixed or why


def unify(one: Axis, other: Axis) -> None:
    """Make two axes one: an operator takes channel i of both together.

    Where their parts do not match, all stay in place.
    """
    one, other = find(one), find(other)
    if one is other:
        return
    if one.kind != "leaf":
        one, other = other, one
    if one.size != other.size:
        _fix_all([one, other])
    elif one.kind == "leaf":
        if one.fixed:
            fix(other, one.fixed)
        one.same = other
    elif one.kind != other.kind:
        _fix_all([one, other])
    elif one.kind == "product":
        _match(factors(one), factors(other), "product")
    else:
        _match(segments(one), segments(other), "row")


def _match(
    ours: list[Axis], theirs: list[Axis], kind: Literal["product", "row"]
) -> None:
    """Unify part by part; a leaf is split where the other side has smaller parts."""
    expanded = factors if kind == "product" else segments
    while True:
        for parts in (ours, theirs):
            parts[:1] = [found for part in parts[:1] for found in expanded(part)]
        if not ours or not theirs:
            return
        one, other = ours.pop(0), theirs.pop(0)
        if one.size == other.size:
            unify(one, other)
            continue
        small, large = (one, other) if one.size < other.size else (other, one)
        cut = split if kind == "product" else cut_at
        halves = cut(large, small.size)
        if halves is None:
            _fix_all([one, other, *ours, *theirs])
            return
        (ours if large is one else theirs).insert(0, halves[1])
        unify(small, halves[0])


def split(axis: Axis, first: int) -> tuple[Axis, Axis] | None:
    """Make a leaf a product whose first part has ``first`` channels, if it can be."""
    axis = find(axis)
    if axis.kind != "leaf" or axis.size % first:
        return None
    parts = leaf(first, axis.fixed), leaf(axis.size // first, axis.fixed)
    axis.same = product(parts)
    return parts


def cut_at(axis: Axis, first: int) -> tuple[Axis, Axis] | None:
    """Make a leaf a row whose first part has ``first`` channels, if it can be."""
    axis = find(axis)
    if axis.kind != "leaf" or not 0 < first < axis.size:
        return None
    parts = Axis(first, fixed=axis.fixed), Axis(axis.size - first, fixed=axis.fixed)
    axis.same = row(parts)
    return parts


def cut(axis: Axis, start: int, stop: int) -> Axis | None:
    """The channels ``start`` to ``stop`` of an axis, which becomes a row."""
    wanted, at = [], 0
    waiting = segments(axis)
    while waiting:
        part = find(waiting.pop(0))
        if part.kind == "row":
            waiting[:0] = segments(part)
            continue
        end = at + part.size
        for border in (start, stop):
            if at < border < end:
                halves = cut_at(part, border - at)
                if halves is None:
                    return None
                waiting[:0] = halves
                break
        else:
            if start <= at and end <= stop:
                wanted.append(part)
            at = end
    return row(wanted) if wanted else None


def reshaped(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis] | None:
    """Axes of the same elements in another shape; None where parts do not match."""
    waiting = [factor for axis in axes for factor in factors(axis)]
    made = []
    if 0 in shape:
        return None
    for size in shape:
        parts, missing = [], size
        while missing != 1:
            if not waiting or not missing:
                return None
            part = find(waiting.pop(0))
            if part.kind == "product":
                waiting[:0] = factors(part)
            elif missing % part.size == 0:
                parts.append(part)
                missing //= part.size
            else:
                halves = split(part, missing)
                if halves is None:
                    return None
                parts.append(halves[0])
                waiting.insert(0, halves[1])
                missing = 1
        made.append(product(parts))
    return None if waiting else made


def _fix_all(axes: Iterable[Axis]) -> None:
    for axis in axes:
        fix(axis, "its channels are grouped in two ways that do not match")
