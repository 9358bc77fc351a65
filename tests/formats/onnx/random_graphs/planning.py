"""Plans a random graph."""

import random
from dataclasses import replace

from formats.onnx.random_graphs import (
    cuts,
    entries,
    float_products,
    integer_products,
    opaque,
    other_products,
    scales,
    steps,
)
from formats.onnx.random_graphs.example import Example, Placed
from formats.onnx.random_graphs.extras import into_functions, use_again
from formats.onnx.random_graphs.growth import Grower
from formats.onnx.random_graphs.numbers import fill
from formats.onnx.random_graphs.places import Place, Wrapper
from formats.onnx.random_graphs.products import Operand
from formats.onnx.random_graphs.values import (
    Made,
    Runtime,
    Value,
)

MAKERS = {
    "MatMul": float_products.matmul,
    "Gemm": float_products.gemm,
    "Conv": float_products.conv,
    "FusedMatMul": float_products.fused_matmul,
    "FusedGemm": float_products.fused_gemm,
    "FusedConv": float_products.fused_conv,
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
    cuts.slice_,
    steps.split,
    *[steps.concat] * 2,
    steps.alone,
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
        use_again(example, rng)
    into_functions(example, rng)
    if example.has_functions:  # ONNX Runtime 1.31 crashes on sparse tensors beside them
        for stored in example.stored:
            stored.form = stored.form.replace("sparse-", "")
    example.decoys = [f"d{number}" for number in range(rng.choice([0, 0, 1, 2]))]
    example.pattern = rng.choice([(2, 4)] * 6 + [(1, 2), (1, 4), (2, 8)])
    example.old = rng.random() < 0.4 and _fits_old_opsets(example)
    fill(example, rng)
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
    host = Placed(product, values, runtimes, where, f"y{number}")
    example.placed.append(host)
    alike = product.rank == 2 and product.dtype == "float32"
    if alike and wrappers == ("if",) and rng.random() < 0.6:
        _add_guest(example, grower, host)


def _add_guest(example: Example, grower: Grower, host: Placed) -> None:
    """A product in the other branch."""
    wrapper, number = host.place.wrappers[0], len(example.placed)
    other = replace(wrapper, taken=not wrapper.taken)
    product = float_products.gemm(grower.rng)
    values = [_operand(example, grower, o, (other,), False) for o in product.operands]
    feed = product.feeds[0]
    x = Runtime(feed.shape, feed.dtype, name=f"x{number}")
    place = Place((other,), x, product.dtype)
    guest = Placed(product, values, [x], place, host.output, is_guest=True)
    host.place = replace(host.place, guest=guest.write_inside)
    example.placed.append(guest)


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
    if not plain and rng.random() < 0.25:
        hidden = opaque.some_step(rng, target.dtype)
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
