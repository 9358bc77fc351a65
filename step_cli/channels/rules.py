"""What each operator does to the axes of its tensors, in PyTorch and ONNX alike.

Each rule holds for every order of the channels that it leaves free: permute them in
all inputs alike, and the output is the same but for that order. What no rule knows
fixes the channels of all it reads and makes.
"""

from collections.abc import Iterable, Sequence

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
from step_cli.channels.graph import GraphAxes, Operator, TensorAxes, sizes

A_PLACE = "it is a place, not a channel"


def elementwise(graph: GraphAxes, node: Operator) -> TensorAxes:
    """Element by element, shapes aligned at their ends and broadcast."""
    return _aligned(graph, node.tensors, node.shape)


def _aligned(
    graph: GraphAxes, inputs: Sequence[TensorAxes], shape: Sequence[int]
) -> TensorAxes:
    made = []
    for place, size in enumerate(reversed(shape), 1):
        met = [axes[-place] for axes in inputs if len(axes) >= place]
        met = [axis for axis in met if find(axis).size == size != 1]
        for axis in met[1:]:
            unify(met[0], axis)
        made.append(met[0] if met else leaf(size))
    return graph.add(reversed(made))


def expand(graph: GraphAxes, node: Operator) -> TensorAxes:
    """The first input, its axes of one channel repeated, and new ones in front."""
    return _aligned(graph, [node.x], node.shape)


def matmul(graph: GraphAxes, node: Operator) -> TensorAxes:
    """A product of matrices, the axes before the last two side by side, and a sum."""
    one, other = node.x, node.tensor(1)
    added = node.optional(2)
    unify(one[-1], other[-2] if len(other) > 1 else other[-1])
    rows = one[-2:-1]
    columns = other[-1:] if len(other) > 1 else ()
    batch = node.shape[: len(node.shape) - len(rows) - len(columns)]
    beside = _aligned(graph, [one[:-2], other[:-2]], batch)
    made = graph.add((*beside, *rows, *columns))
    return made if added is None else _aligned(graph, [made, added], node.shape)


def einsum(graph: GraphAxes, node: Operator) -> TensorAxes:
    """A product by an equation such as ``bhd,hde->bhe``."""
    equation = node.equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    known: dict[str, Axis] = {}
    plain = arrow and "." not in equation and len(set(right)) == len(right)
    if not plain or any(len(set(term)) != len(term) for term in terms):
        return _unknown(graph, node, "einsum is not understood")
    for term, axes in zip(terms, node.tensors, strict=True):
        for letter, axis in zip(term, axes, strict=True):
            if find(known.setdefault(letter, axis)).size != find(axis).size:
                return _unknown(graph, node, "einsum broadcasts")
            unify(known[letter], axis)
    return graph.add(known[letter] for letter in right)


def convolution(graph: GraphAxes, node: Operator) -> TensorAxes:
    """A convolution: its channels are summed over, its places stay."""
    return _convolved(graph, node, transposed=False)


def transposed_convolution(graph: GraphAxes, node: Operator) -> TensorAxes:
    """The same with the two channel axes of its weight exchanged."""
    return _convolved(graph, node, transposed=True)


def _convolved(graph: GraphAxes, node: Operator, *, transposed: bool) -> TensorAxes:
    x, weight, bias = node.x, node.tensor(1), node.optional(2)
    at = 1 if len(x) == len(weight) else 0  # behind the batch, if there is one
    for axis in (*x[at + 1 :], *weight[2:]):
        fix(axis, A_PLACE)
    group = leaf(node.groups)
    inside = leaf(find(x[at]).size // node.groups)
    outside = leaf(node.shape[at] // node.groups)
    # The first axis of the weight has the channels of all groups, the other of one.
    first, second = (inside, outside) if transposed else (outside, inside)
    unify(x[at], product([group, inside]))
    unify(weight[0], product([group, first]))
    unify(weight[1], second)
    out = product([group, outside])
    if bias is not None:
        unify(bias[0], out)
    places = [leaf(size, A_PLACE) for size in node.shape[at + 1 :]]
    return graph.add((*x[:at], out, *places))


def pool(graph: GraphAxes, node: Operator) -> TensorAxes:
    """Pooling, resizing, padding: the first axes go through, the others stay."""
    x, kept = node.x, node.kept
    for axis in x[kept:]:
        fix(axis, A_PLACE)
    rest = [leaf(size, A_PLACE) for size in node.shape[kept:]]
    return graph.add((*x[:kept], *rest))


def normalize(graph: GraphAxes, node: Operator) -> TensorAxes:
    """Softmax and norms; a parameter has one number for each channel of the axes."""
    x, along = node.x, node.along
    for parameter in _parameters(node):
        if len(parameter) != len(along):
            raise LookupError("a parameter of other axes")
        for axis, place in zip(parameter, along, strict=True):
            unify(axis, x[place])
    graph.mixed.append((tuple(x[place] for place in along), x))
    return graph.add(x)


def normalize_groups(graph: GraphAxes, node: Operator) -> TensorAxes:
    """A norm over the channels of each group and all places."""
    x = node.x
    inside = leaf(find(x[1]).size // node.groups)
    unify(x[1], product([leaf(node.groups), inside]))
    for parameter in _parameters(node):
        unify(parameter[0], x[1])
    graph.mixed.append(((inside, *x[2:]), x))
    return graph.add(x)


def per_channel(graph: GraphAxes, node: Operator) -> TensorAxes:
    """Each channel of axis 1 by numbers of its own."""
    for parameter in _parameters(node):
        if len(parameter) == 1:
            unify(parameter[0], node.x[1])
    return graph.add(node.x)


def normalize_instances(graph: GraphAxes, node: Operator) -> TensorAxes:
    """A norm over all places of a channel, then each by numbers of its own."""
    x = node.x
    graph.mixed.append((x[2:], x))
    return per_channel(graph, node)


def reduce(graph: GraphAxes, node: Operator) -> TensorAxes:
    """A sum, mean or maximum, whatever the order."""
    gone, made = node.along, []
    for place, axis in enumerate(node.x):
        if place not in gone:
            made.append(axis)
        elif node.keep_axes:
            made.append(ONE)
    return graph.add(made)


def transpose(graph: GraphAxes, node: Operator) -> TensorAxes:
    """The same axes in another order."""
    return graph.add(node.x[place] for place in node.order)


def reshape(graph: GraphAxes, node: Operator) -> TensorAxes:
    """The same elements in another shape."""
    made = reshaped(node.x, node.shape)
    if made is None:
        return _unknown(graph, node, "it is reshaped across its channels")
    return graph.add(made)


def slice_axes(graph: GraphAxes, node: Operator) -> TensorAxes:
    """Some channels of some axes, one behind the other."""
    x = node.x
    for axis, start, end, step in node.slices:
        if step != 1:
            raise LookupError("a step")
        size = find(x[axis]).size
        first, last, _ = slice(start, end).indices(size)
        x = _cut(graph, x, axis % len(x), first, last)
    return x


def _cut(
    graph: GraphAxes, x: TensorAxes, axis: int, start: int, stop: int
) -> TensorAxes:
    if (start, stop) == (0, find(x[axis]).size):
        return graph.add(x)
    part = cut(x[axis], start, stop)
    if part is None:
        fix(x[axis], "it is sliced across its parts")
        part = leaf(stop - start, "it is sliced across its parts")
    return graph.add((*x[:axis], part, *x[axis + 1 :]))


def split(graph: GraphAxes, node: Operator) -> list[TensorAxes]:
    """Cut into parts, as long as the results."""
    at, parts = 0, []
    for shape in node.shapes:
        size = shape[node.axis]
        parts.append(_cut(graph, node.x, node.axis, at, at + size))
        at += size
    return parts


def concatenate(graph: GraphAxes, node: Operator) -> TensorAxes:
    """Tensors one behind the other."""
    first, along = node.tensors[0], node.axis
    for axes in node.tensors[1:]:
        for place, (one, other) in enumerate(zip(first, axes, strict=True)):
            if place != along:
                unify(one, other)
    long = row(axes[along] for axes in node.tensors)
    return graph.add((*first[:along], long, *first[along + 1 :]))


def stack(graph: GraphAxes, node: Operator) -> TensorAxes:
    """Tensors side by side along a new axis."""
    place = (node.axes or [0])[0] % len(node.shape)
    shape = (*node.shape[:place], *node.shape[place + 1 :])
    beside = _aligned(graph, node.tensors, shape)
    new = leaf(len(node.tensors), "tensors are stacked along it")
    return graph.add((*beside[:place], new, *beside[place:]))


def look_up(graph: GraphAxes, node: Operator) -> TensorAxes:
    """Channels of an axis by their number, which may not change then."""
    x, index, along = node.x, node.tensor(1), node.axis
    fix(x[along], "it is looked up by number")
    return graph.add((*x[:along], *index, *x[along + 1 :]))


def unbind(graph: GraphAxes, node: Operator) -> list[TensorAxes]:
    """Each channel of an axis as a tensor of its own."""
    return [look_up(graph, node) for _ in node.shapes]


def repeat(graph: GraphAxes, node: Operator) -> TensorAxes:
    """Each channel of an axis several times in a row."""
    x, along = node.x, node.axis
    long = product([x[along], leaf(node.times)])
    return graph.add((*x[:along], long, *x[along + 1 :]))


def accumulate(graph: GraphAxes, node: Operator) -> TensorAxes:
    """A running sum or product: along one axis the order counts."""
    x, along = node.x, node.axis
    fix(x[along], "its channels are in an order")
    new = leaf(node.shape[along], "its channels are in an order")
    return graph.add((*x[:along], new, *x[along + 1 :]))


def attention(graph: GraphAxes, node: Operator) -> TensorAxes:
    """Scaled dot-product attention; key heads may serve several query heads."""
    query, key, value = (node.tensor(place) for place in range(3))
    mask = node.optional(3)
    unify(query[-1], key[-1])
    unify(key[-2], value[-2])
    shared = len(query) > 3 and find(query[-3]).size != find(key[-3]).size
    if shared:
        unify(key[-3], value[-3])
        served = leaf(find(query[-3]).size // find(key[-3]).size)
        unify(query[-3], product([key[-3], served]))
    alike = -3 if shared else -2
    for one, other, third in zip(
        query[:alike], key[:alike], value[:alike], strict=True
    ):
        unify(one, other)
        unify(one, third)
    if mask is not None:
        scores = (*query[:-1], key[-2])
        _aligned(graph, [scores, mask], sizes(scores))
    if node.causal:
        for axis in (query[-2], key[-2]):
            fix(axis, "its places are in an order")
    return graph.add((*query[:-1], value[-1]))


def create(graph: GraphAxes, node: Operator) -> list[TensorAxes]:
    """Numbers out of nothing, or out of a shape."""
    return [graph.new(shape, "it is made in the graph") for shape in node.shapes]


def _parameters(node: Operator) -> Iterable[TensorAxes]:
    return (axes for axes in node.inputs[1:] if axes is not None)


def _unknown(graph: GraphAxes, node: Operator, why: str) -> TensorAxes:
    return graph.unknown(node.tensors, node.shapes, why)[0]
