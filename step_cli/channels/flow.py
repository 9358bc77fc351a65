"""How operators carry axes from their inputs to their outputs.

Each rule holds for every order of the channels that it leaves free: permute them in
all inputs alike, and the output is the same but for that order. What no rule knows
fixes the channels of all it reads and makes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from step_cli.channels.axes import (
    ONE,
    Axis,
    cut,
    find,
    fix,
    leaf,
    product,
    reshaped,
    row,
    unify,
)

Value = tuple[Axis, ...]  # the axes of a tensor


@dataclass
class Flow:
    """The tensors of a graph seen so far.

    Attributes:
        values: All of them.
        mixed: Axes whose channels an operator mixes, and the tensor they are of: what
            stands beside them must be in one order along all of them.
    """

    values: list[Value] = field(default_factory=list)
    mixed: list[tuple[Value, Value]] = field(default_factory=list)

    def note(self, axes: Iterable[Axis]) -> Value:
        """A tensor with these axes."""
        value = tuple(axes)
        self.values.append(value)
        return value

    def fresh(self, shape: Sequence[int], fixed: str | None = None) -> Value:
        """A tensor of which nothing is known, or that must stay as it is."""
        return self.note(leaf(size, fixed) for size in shape)

    def unknown(self, inputs: Iterable[Value], shape: Sequence[int], why: str) -> Value:
        """What an operator makes that may treat each channel in its own way."""
        for value in inputs:
            self.fix(value, why)
        return self.fresh(shape, why)

    def fix(self, value: Value, why: str) -> None:
        """No channel of the tensor may move."""
        for axis in value:
            fix(axis, why)

    def same(self, one: Value, other: Value) -> None:
        """Two tensors are one."""
        for left, right in zip(one, other, strict=True):
            unify(left, right)

    def elementwise(self, inputs: Sequence[Value], shape: Sequence[int]) -> Value:
        """Element by element, shapes aligned at their ends and broadcast."""
        made = []
        for place, size in enumerate(reversed(shape), 1):
            met = [v[-place] for v in inputs if len(v) >= place]
            met = [axis for axis in met if find(axis).size == size != 1]
            for axis in met[1:]:
                unify(met[0], axis)
            made.append(met[0] if met else leaf(size))
        return self.note(reversed(made))

    def expand(self, value: Value, shape: Sequence[int]) -> Value:
        """Axes of one channel repeated, and new ones in front."""
        return self.elementwise([value], shape)

    def matmul(self, one: Value, other: Value, shape: Sequence[int]) -> Value:
        """A product of matrices, the axes before the last two side by side."""
        unify(one[-1], other[-2] if len(other) > 1 else other[-1])
        rows = one[-2:-1]
        columns = other[-1:] if len(other) > 1 else ()
        batch = shape[: len(shape) - len(rows) - len(columns)]
        beside = self.elementwise([one[:-2], other[:-2]], batch)
        return self.note((*beside, *rows, *columns))

    def linear(self, x: Value, weight: Value, bias: Value | None) -> Value:
        """``x @ weight.T + bias``."""
        unify(x[-1], weight[-1])
        if bias is not None:
            unify(bias[-1], weight[0])
        return self.note((*x[:-1], weight[0]))

    def einsum(
        self, equation: str, inputs: Sequence[Value], shape: Sequence[int]
    ) -> Value:
        """A product by an equation such as ``bhd,hde->bhe``."""
        left, arrow, right = equation.replace(" ", "").partition("->")
        terms = left.split(",")
        known: dict[str, Axis] = {}
        plain = arrow and "." not in equation and len(set(right)) == len(right)
        if not plain or any(len(set(term)) != len(term) for term in terms):
            return self.unknown(inputs, shape, "einsum is not understood")
        for term, value in zip(terms, inputs, strict=True):
            for letter, axis in zip(term, value, strict=True):
                if find(known.setdefault(letter, axis)).size != find(axis).size:
                    return self.unknown(inputs, shape, "einsum broadcasts")
                unify(known[letter], axis)
        return self.note(known[letter] for letter in right)

    def convolution(
        self,
        x: Value,
        weight: Value,
        bias: Value | None,
        shape: Sequence[int],
        *,
        groups: int = 1,
        transposed: bool = False,
        batched: bool = True,
    ) -> Value:
        """A convolution: its channels are summed over, its places stay."""
        at = 1 if batched else 0
        for axis in (*x[at + 1 :], *weight[2:]):
            fix(axis, "it is a place, not a channel")
        into, out = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
        if groups == 1:
            unify(x[at], into)
        else:
            group = leaf(groups)
            inside = leaf(find(x[at]).size // groups)
            outside = leaf(shape[at] // groups)
            unify(x[at], product([group, inside]))
            if transposed:
                unify(weight[0], product([group, inside]))
                unify(weight[1], outside)
            else:
                unify(weight[0], product([group, outside]))
                unify(weight[1], inside)
            out = product([group, outside])
        if bias is not None:
            unify(bias[0], out)
        places = [
            leaf(size, "it is a place, not a channel") for size in shape[at + 1 :]
        ]
        return self.note((*x[:at], out, *places))

    def places_changed(self, x: Value, shape: Sequence[int], kept: int) -> Value:
        """The first ``kept`` axes go through; the others are places that stay."""
        for axis in x[kept:]:
            fix(axis, "it is a place, not a channel")
        rest = [leaf(size, "it is a place, not a channel") for size in shape[kept:]]
        return self.note((*x[:kept], *rest))

    def normalized(
        self, x: Value, axes: Sequence[int], parameters: Sequence[Value | None]
    ) -> Value:
        """Over ``axes``; a parameter has one number for each of their channels."""
        for value in parameters:
            if value is not None:
                for axis, place in zip(value, axes, strict=True):
                    unify(axis, x[place])
        self.mixed.append((tuple(x[place] for place in axes), x))
        return self.note(x)

    def group_normalized(
        self, x: Value, groups: int, parameters: Sequence[Value | None]
    ) -> Value:
        """Over the channels of each group and all places."""
        inside = leaf(find(x[1]).size // groups)
        unify(x[1], product([leaf(groups), inside]))
        for value in parameters:
            if value is not None:
                unify(value[0], x[1])
        self.mixed.append(((inside, *x[2:]), x))
        return self.note(x)

    def per_channel(self, x: Value, parameters: Sequence[Value | None]) -> Value:
        """Each channel of axis 1 by numbers of its own."""
        for value in parameters:
            if value is not None and len(value) == 1:
                unify(value[0], x[1])
        return self.note(x)

    def reduced(self, x: Value, axes: Sequence[int], *, keep: bool) -> Value:
        """A sum, mean or maximum over ``axes``, whatever their order."""
        made = []
        for place, axis in enumerate(x):
            if place not in axes:
                made.append(axis)
            elif keep:
                made.append(ONE)
        return self.note(made)

    def permuted(self, x: Value, order: Sequence[int]) -> Value:
        """A transposition."""
        return self.note(x[place] for place in order)

    def reshaped(self, x: Value, shape: Sequence[int]) -> Value:
        """The same elements in another shape."""
        made = reshaped(x, shape)
        if made is None:
            return self.unknown([x], shape, "it is reshaped across its channels")
        return self.note(made)

    def cut(self, x: Value, axis: int, start: int, stop: int) -> Value:
        """A slice."""
        if (start, stop) == (0, find(x[axis]).size):
            return self.note(x)
        part = cut(x[axis], start, stop)
        if part is None:
            fix(x[axis], "it is sliced across its parts")
            part = leaf(stop - start, "it is sliced across its parts")
        return self.note((*x[:axis], part, *x[axis + 1 :]))

    def selected(self, x: Value, axis: int) -> Value:
        """One channel of an axis, which may not move then."""
        fix(x[axis], "one of its channels is selected")
        return self.note((*x[:axis], *x[axis + 1 :]))

    def joined(self, inputs: Sequence[Value], axis: int) -> Value:
        """Tensors one behind the other along ``axis``."""
        first = inputs[0]
        for value in inputs[1:]:
            for place, (one, other) in enumerate(zip(first, value, strict=True)):
                if place != axis:
                    unify(one, other)
        long = row(value[axis] for value in inputs)
        return self.note((*first[:axis], long, *first[axis + 1 :]))

    def looked_up(self, table: Value, index: Value) -> Value:
        """Rows of a table."""
        fix(table[0], "it is looked up by number")
        return self.note((*index, *table[1:]))

    def attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        mask: Value | None,
        *,
        causal: bool,
    ) -> Value:
        """Scaled dot-product attention; key heads may serve several query heads."""
        unify(query[-1], key[-1])
        unify(key[-2], value[-2])
        shared = len(query) > 3 and find(query[-3]).size != find(key[-3]).size
        if shared:
            unify(key[-3], value[-3])
            served = leaf(find(query[-3]).size // find(key[-3]).size)
            unify(query[-3], product([key[-3], served]))
        places = -3 if shared else -2
        for one, other, third in zip(
            query[:places], key[:places], value[:places], strict=True
        ):
            unify(one, other)
            unify(one, third)
        if mask is not None:
            scores = (*query[:-1], key[-2])
            self.elementwise([scores, mask], [find(axis).size for axis in scores])
        if causal:
            for axis in (query[-2], key[-2]):
                fix(axis, "its places are in an order")
        return self.note((*query[:-1], value[-1]))
