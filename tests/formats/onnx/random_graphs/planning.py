"""Plans a random graph."""

import random

from formats.onnx.random_graphs import (
    entries,
    integer_products,
    opaque,
    other_products,
    products,
    scales,
    steps,
)
from formats.onnx.random_graphs.example import Example, Placed
from formats.onnx.random_graphs.growth import Grower
from formats.onnx.random_graphs.numbers import fill
from formats.onnx.random_graphs.places import Place, Wrapper
from formats.onnx.random_graphs.products import Operand, Product
from formats.onnx.random_graphs.values import (
    Leaf,
    Made,
    Runtime,
    Value,
    ancestors,
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
    if rng.random() < 0.2:
        _use_again(example, rng)
    _into_functions(example, rng)
    if example.has_functions:  # ONNX Runtime 1.31 crashes on sparse tensors beside them
        for stored in example.stored:
            stored.form = stored.form.replace("sparse-", "")
    example.decoys = [f"d{number}" for number in range(rng.choice([0, 0, 1, 2]))]
    example.old = rng.random() < 0.4 and _fits_old_opsets(example)
    fill(example.stored, [(p.product, p.values) for p in example.placed], rng)
    return example


def _fits_old_opsets(example: Example) -> bool:
    newer = ("bfloat16", "float8_e4m3fn")
    return not any(
        value.dtype in newer
        or (isinstance(value, Made) and value.op == "DequantizeLinear")
        for value in example.every_value()
    )


def _place(
    example: Example, grower: Grower, kind: str, wrappers: tuple[str, ...], plain: bool
) -> None:
    """Add a product; a ``plain`` one has all that is stored outside its function."""
    rng, number = grower.rng, len(example.placed)
    product = MAKERS[kind](rng)
    made = _wrappers(rng, wrappers, number)
    values = [_operand(example, grower, o, made, plain) for o in product.operands]
    runtimes = [
        Runtime(feed.shape, feed.dtype, name=f"x{number}{place or ''}")
        for place, feed in enumerate(product.feeds)
    ]
    where = Place(made, runtimes[0], product.dtype)
    example.placed.append(Placed(product, values, runtimes, where, f"y{number}"))


def _wrappers(
    rng: random.Random, kinds: tuple[str, ...], number: int
) -> tuple[Wrapper, ...]:
    made = []
    for level, kind in enumerate(kinds):
        condition = Runtime((), "bool", name=f"c{number}{level}")
        made.append(
            Wrapper(
                kind,
                condition if kind == "if" else None,
                rng.random() < 0.5,
                rng.choice([1, 2]),
            )
        )
    return tuple(made)


def _operand(
    example: Example,
    grower: Grower,
    operand: Operand,
    wrappers: tuple[Wrapper, ...],
    plain: bool,
) -> Value:
    """What a product multiplies by."""
    rng, target = grower.rng, operand.target
    entry = None
    if wrappers and not plain and rng.random() < 0.4:
        if wrappers[0].kind == "loop" and wrappers[0].trips > 1:
            entry = entries.changing(rng, target)
        elif wrappers[0].kind == "scan":
            entry = entries.scanned(target, wrappers[0].trips)
    if entry is not None:
        value = grower.made(target, entry, rng.randint(0, 4))
        _settle(value, 0, rng)
        value.level, value.bound = 1, True
        for source in value.sources:
            source.entry = "capture"
        return value
    hidden = None
    if not plain and rng.random() < 0.18:
        hidden = rng.choice(list(opaque.OPAQUE_STEPS.values()))
    elif not plain and rng.random() < 0.03:
        name = f"s{len(example.scalars)}"
        example.scalars.append(name)
        hidden = scales.open_scale(name)
    made = grower.grow(target, rng.randint(0, 2 if plain else 6), hidden)
    _settle(made, 0 if plain else len(wrappers), rng)
    return made


def _settle(value: Value, deepest: int, rng: random.Random) -> int:
    """Choose a scope for each value: no further out than its sources."""
    below = max((_settle(s, deepest, rng) for s in value.sources), default=0)
    value.level = rng.randint(below, deepest)
    value.entry = rng.choice(["capture", "state"])
    return value.level


def _use_again(example: Example, rng: random.Random) -> None:
    """Multiply by a value once more, or by the rest of a Split, or look rows up."""
    every = example.every_value()
    leaves = [value for value in every if isinstance(value, Leaf) and _fits(value)]
    rests = [
        sibling
        for value in every
        if isinstance(value, Made)
        for sibling in value.siblings
        if _fits(sibling)
    ]
    if leaves and rng.random() < 0.25:
        _look_up(example, rng.choice(leaves))
    elif rests or leaves:
        again = rng.choice(rests or leaves)
        for value in ancestors(again):
            value.level = 0
            if isinstance(value, Leaf) and value.stored.form == "reference":
                value.stored.form = "initializer"
        _multiply(example, again, rng.randrange(2))


def _fits(value: Value) -> bool:
    matrix = value.dtype == "float32" and len(value.shape) == 2
    return matrix and max(value.shape) < 2**products.BITS


def _look_up(example: Example, leaf: Leaf) -> None:
    leaf.level = 0
    leaf.stored.form = "initializer"
    example.looked_up.append(leaf.stored)


def _multiply(example: Example, value: Value, axis: int) -> None:
    number = len(example.placed)
    feed = products.Feed((products.ROWS, value.shape[axis]), 1, 0)
    product = Product(
        "Gemm",
        [feed],
        [products.operand(value.shape, axis)],
        lambda scope, xs, ws: scope.node("Gemm", [xs[0], ws[0]], transB=axis),
        2,
        0,
    )
    x = Runtime(feed.shape, feed.dtype, name=f"x{number}")
    place = Place((), x, "float32")
    example.placed.append(Placed(product, [value], [x], place, f"y{number}"))


def _into_functions(example: Example, rng: random.Random) -> None:
    """Have a part of the way to an operand made in a function."""
    uses: dict[int, int] = {}
    every = example.every_value()
    for value in every:
        uses[id(value)] = uses.get(id(value), 0) + 1
        if isinstance(value, Leaf) and value.stored in example.looked_up:
            uses[id(value)] += 1
    for value in every:
        if not isinstance(value, Made) or value.inside or value.bound:
            continue
        if rng.random() < 0.08:
            value.inside = _inside(value, uses, rng)


def _inside(value: Made, uses: dict[int, int], rng: random.Random) -> frozenset[int]:
    """Which of the values before this one, beside itself, its function makes."""
    inside, front = {id(value)}, list(value.sources)
    while front:
        source = front.pop()
        bound = isinstance(source, Made) and source.bound
        alone = uses[id(source)] == 1 and source.level == value.level and not bound
        if alone and rng.random() < 0.7:
            inside.add(id(source))
            front += source.sources
    return frozenset(inside)
