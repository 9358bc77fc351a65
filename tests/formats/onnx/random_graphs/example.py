"""One random graph: products, the ways to what they multiply by, and other nodes."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from formats.onnx.random_graphs import (
    integer_products,
    opaque,
    other_products,
    products,
    scales,
    steps,
)
from formats.onnx.random_graphs.growth import Grower, Target
from formats.onnx.random_graphs.numbers import fill
from formats.onnx.random_graphs.places import Place, Wrapper
from formats.onnx.random_graphs.products import Operand, Product
from formats.onnx.random_graphs.scope import OPSETS, Model, Scope, element_type
from formats.onnx.random_graphs.values import (
    OPAQUE,
    Leaf,
    Made,
    Path,
    Runtime,
    Stored,
    Value,
    ancestors,
    paths,
)

MAKERS = {
    "MatMul": products.matmul,
    "Gemm": products.gemm,
    "Conv": products.conv,
    "FusedMatMul": products.fused_matmul,
    "FusedGemm": products.fused_gemm,
    "FusedConv": products.fused_conv,
    "MatMulInteger": integer_products.matmul_integer,
    "MatMulInteger-left": integer_products.matmul_integer_left,
    "ConvInteger": integer_products.conv_integer,
    "QLinearConv": integer_products.qlinear_conv,
    "QLinearMatMul": integer_products.qlinear_matmul,
    "QGemm": integer_products.qgemm,
    "DynamicQuantizeMatMul": integer_products.dynamic_matmul,
    "MatMulIntegerToFloat": integer_products.integer_to_float,
    "LSTM": other_products.lstm,
    "GRU": other_products.gru,
    "RNN": other_products.rnn,
    "Attention": other_products.attention,
    "QAttention": other_products.quantized_attention,
}
STEPS = (
    steps.transpose,
    steps.transpose,
    steps.identity,
    steps.cast,
    steps.reshape,
    steps.reshape,
    steps.squeeze,
    steps.unsqueeze,
    steps.flatten,
    steps.slice_,
    steps.split,
    steps.concat,
    scales.scale,
    scales.scale,
    scales.weight_only,
    scales.dequantize,
    scales.dequantize,
    scales.quantize,
)
PLAIN = (
    steps.identity,
    steps.reshape,
    steps.flatten,
)
WRAPPERS = (
    *[()] * 8,
    *[("function",), ("if",), ("loop",), ("scan",)] * 2,
    ("function", "function"),
    ("if", "function"),
    ("function", "if"),
    ("loop", "function"),
    ("function", "loop"),
)


@dataclass(eq=False)
class Placed:
    """A product of the graph."""

    product: Product
    values: list[Value]  # the operands
    runtimes: list[Runtime]
    place: Place
    output: str

    def paths(self, number: int) -> list[Path]:
        """Every way from a stored tensor to the operand of this number."""
        shape = self.values[number].shape
        ids = np.arange(int(np.prod(shape))).reshape(shape)
        return list(paths(self.values[number], ids))

    @property
    def all_paths(self) -> list[Path]:
        return [
            path for number in range(len(self.values)) for path in self.paths(number)
        ]

    @property
    def is_opaque(self) -> bool:
        return any(path.kind == OPAQUE for path in self.all_paths)

    def write(self, scope: Scope) -> str:
        def inner(inside: Scope) -> str:
            xs = [inside.emit(runtime) for runtime in self.runtimes]
            return self.product.write(inside, xs, [inside.emit(v) for v in self.values])

        return self.place.write(scope, inner)


@dataclass(eq=False)
class Example:
    """A random graph; ``decoys`` are stored tensors that are no weights."""

    seed: int
    placed: list[Placed] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    decoys: list[str] = field(default_factory=list)
    looked_up: list[Stored] = field(default_factory=list)

    @property
    def has_functions(self) -> bool:
        """Whether a function is called anywhere."""
        wrappers = [w for placed in self.placed for w in placed.place.wrappers]
        values = [value for placed in self.placed for value in placed.values]
        every = [value for root in values for value in ancestors(root)]
        return any(wrapper.kind == "function" for wrapper in wrappers) or any(
            isinstance(value, Made) and value.inside for value in every
        )

    def model(self, fed: bool = False) -> onnx.ModelProto:
        """The graph; with ``fed`` its stored tensors are inputs."""
        model = Model(self.seed, fed)
        scope = Scope(model)
        outputs = []
        for placed in self.placed:
            name = scope.node("Identity", [placed.write(scope)])
            scope.nodes[-1].output[0] = placed.output
            rank = placed.product.rank + placed.place.axes
            kind = element_type(placed.product.dtype)
            assert name != placed.output
            outputs.append(
                helper.make_tensor_value_info(placed.output, kind, [None] * rank)
            )
        if not fed:
            outputs += [info for info in self._others(scope)]
        inputs = [
            helper.make_tensor_value_info(name, element_type(dtype), shape)
            for name, (dtype, shape) in model.inputs.items()
        ]
        return helper.make_model(
            scope.graph(inputs, outputs),
            opset_imports=[helper.make_opsetid(*opset) for opset in OPSETS.items()],
            functions=list(model.functions.values()),
            ir_version=10,
        )

    def _others(self, scope: Scope) -> list[Any]:
        """Nodes that are no products: a bias, a table that rows are looked up in."""
        infos = []
        tables = [stored.name for stored in self.looked_up]
        for number, name in enumerate([*self.decoys, *tables]):
            if name in self.decoys:
                table = np.ones((8, 12), np.float32)
                scope.initializers.append(onnx.numpy_helper.from_array(table, name))
            if number % 2 and name in self.decoys:
                made = scope.node("Add", [name, scope.constant(1.0, "float32")])
            else:
                made = scope.node("Gather", [name, scope.constant([0])])
            info = helper.make_empty_tensor_value_info(made)
            info.type.tensor_type.elem_type = 1
            for _ in range(2):
                info.type.tensor_type.shape.dim.add()
            infos.append(info)
        return infos


def random_example(seed: int) -> Example:
    """The graph of a seed."""
    rng = random.Random(f"graph {seed}")
    kinds = list(MAKERS)
    example = Example(seed)
    grower = Grower(rng, STEPS, PLAIN, example.stored)
    kind = kinds[seed % len(kinds)]
    twin = rng.random() < 0.12
    if twin:
        kind = rng.choice(["Gemm", "FusedGemm", "FusedMatMul"])
    _place(example, grower, kind, ("function",) if twin else rng.choice(WRAPPERS), twin)
    if twin or rng.random() < 0.25:
        again = kind if twin else rng.choice(kinds[:3])
        wrappers = ("function",) if twin else rng.choice(WRAPPERS)
        _place(example, grower, again, wrappers, twin)
    if rng.random() < 0.15:
        _use_again(example, rng)
    _into_functions(example, rng)
    if example.has_functions:  # ONNX Runtime 1.31 crashes on sparse tensors beside them
        for stored in example.stored:
            stored.form = stored.form.replace("sparse-", "")
    for number in range(rng.choice([0, 0, 1, 2])):
        example.decoys.append(f"d{number}")
    fill(example.stored, [(p.product, p.values) for p in example.placed], rng)
    return example


def _place(
    example: Example, grower: Grower, kind: str, wrappers: tuple[str, ...], plain: bool
) -> None:
    rng, number = grower.rng, len(example.placed)
    product = MAKERS[kind](rng)
    hidden = rng.choice(list(opaque.OPAQUE_STEPS.values()))
    hidden = hidden if rng.random() < 0.15 and not plain else None
    values = [
        grower.grow(o.target, rng.randint(0, 2 if plain else 6), hidden)
        for o in product.operands
    ]
    runtimes = [
        Runtime(feed.shape, feed.dtype, name=f"x{number}{place or ''}")
        for place, feed in enumerate(product.feeds)
    ]
    made = []
    for level, name in enumerate(wrappers):
        condition = Runtime((), "bool", name=f"c{number}{level}")
        made.append(
            Wrapper(
                name,
                condition if name == "if" else None,
                rng.random() < 0.5,
                rng.choice([1, 2]),
            )
        )
    place = Place(tuple(made), runtimes[0], product.dtype)
    for value in values:
        _settle(value, 0 if plain else len(made), rng)
    example.placed.append(Placed(product, values, runtimes, place, f"y{number}"))


def _settle(value: Value, deepest: int, rng: random.Random) -> int:
    """Choose a scope for each value: no further out than its sources."""
    below = max((_settle(s, deepest, rng) for s in value.sources), default=0)
    value.level = rng.randint(below, deepest)
    value.entry = rng.choice(["capture", "state"])
    return value.level


def _use_again(example: Example, rng: random.Random) -> None:
    """Multiply by a stored tensor once more, or look rows of it up."""
    leaves = [
        leaf
        for placed in example.placed
        for value in placed.values
        for leaf in ancestors(value)
        if isinstance(leaf, Leaf) and leaf.dtype == "float32" and len(leaf.shape) == 2
        if max(leaf.shape) < 2**products.BITS
    ]
    if not leaves:
        return
    leaf = rng.choice(leaves)
    leaf.level = 0
    if leaf.stored.form == "reference":
        leaf.stored.form = "initializer"
    if rng.random() < 0.3:
        if "sparse" not in leaf.stored.form:
            leaf.stored.form = "initializer"
            example.looked_up.append(leaf.stored)
        return
    number, axis = len(example.placed), rng.randrange(2)
    feed = products.Feed((products.ROWS, leaf.shape[axis]), 1, 0)
    product = Product(
        "Gemm",
        [feed],
        [products.operand(leaf.shape, axis)],
        lambda scope, xs, ws: scope.node("Gemm", [xs[0], ws[0]], transB=axis),
        2,
        0,
    )
    x = Runtime(feed.shape, feed.dtype, name=f"x{number}")
    place = Place((), x, "float32")
    example.placed.append(Placed(product, [leaf], [x], place, f"y{number}"))


def _into_functions(example: Example, rng: random.Random) -> None:
    """Have a part of the way to an operand made in a function."""
    uses: dict[int, int] = {}
    every = [v for p in example.placed for value in p.values for v in ancestors(value)]
    for value in every:
        uses[id(value)] = uses.get(id(value), 0) + 1
        if isinstance(value, Leaf) and value.stored in example.looked_up:
            uses[id(value)] += 1
    for value in every:
        if not isinstance(value, Made) or value.inside or rng.random() > 0.08:
            continue
        inside, front = {id(value)}, list(value.sources)
        while front:
            source = front.pop()
            alone = uses[id(source)] == 1 and source.level == value.level
            if alone and rng.random() < 0.7:
                inside.add(id(source))
                front += source.sources
        value.inside = frozenset(inside)


__all__ = ["Example", "Operand", "Placed", "Target", "random_example"]
