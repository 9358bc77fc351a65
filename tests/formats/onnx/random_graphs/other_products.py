"""Recurrent layers and attention, whose outputs are not linear in their weights."""

import random
from typing import Any

import numpy as np
from formats.onnx.random_graphs.integer_products import MICROSOFT
from formats.onnx.random_graphs.products import ROWS, Feed, Product, operand

ALIKE = 0.999
EACH = 8  # rows, which tell the gates apart


def _state(rng: random.Random, directions: int, gates: int, hidden: int) -> Any:
    """Biases, and cells that differ from row to row."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    biases = numbers.uniform(-1, 1, (directions, 2 * gates * hidden))
    cells = numbers.uniform(-1, 1, (directions, EACH, hidden))
    return biases, np.tile(cells, (1, ROWS, 1))


def _recurrent(op: str, gates: int) -> Any:
    def make(rng: random.Random) -> Product:
        inputs, hidden = rng.choice([4, 8, 12]), rng.choice([4, 4, 8])
        both = rng.random() < 0.3
        directions = 2 if both else 1
        facts: dict[str, Any] = {"hidden_size": hidden}
        if both or rng.random() < 0.4:
            way = rng.choice(["forward", "reverse"])
            facts["direction"] = "bidirectional" if both else way
        if op == "GRU" and rng.random() < 0.8:
            facts["linear_before_reset"] = 1
        biases, cells = _state(rng, directions, gates, hidden)

        def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
            bias = scope.constant(biases, "float32")
            names = [xs[0], ws[0], ws[1], bias, "", xs[1]]
            if op == "LSTM":
                names.append(scope.constant(cells, "float32"))
            return scope.node(op, names, **facts)

        rows = gates * hidden
        return Product(
            op,
            [
                Feed((1, ROWS * EACH, inputs), 2, 1, each=EACH, size=0.25),
                Feed((directions, ROWS * EACH, hidden), 2, 1, each=EACH, size=0.25),
            ],
            [
                operand((directions, rows, inputs), 2),
                operand((directions, rows, hidden), 2, feed=1),
            ],
            write,
            4,
            2,
            linear=False,
            alike=ALIKE,
        )

    return make


lstm, gru, rnn = _recurrent("LSTM", 4), _recurrent("GRU", 3), _recurrent("RNN", 1)


COPIES = 4


def _past(rng: random.Random, hidden: int) -> tuple[Any, Any]:
    """Biases, and earlier keys and values, which tell the parts of a query apart."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    past = numbers.uniform(-1, 1, (2, COPIES, 2, 5, hidden // 2))
    return numbers.uniform(-0.5, 0.5, 3 * hidden), np.tile(past, (1, ROWS, 1, 1, 1))


def attention(rng: random.Random) -> Product:
    hidden, rows = rng.choice([4, 8]), 4
    biases, past = _past(rng, hidden)

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        inputs = [
            xs[0],
            ws[0],
            scope.constant(biases, "float32"),
            "",
            scope.constant(past, "float32"),
        ]
        made = scope.node(
            "Attention", inputs, 2, domain=MICROSOFT, num_heads=2, unidirectional=1
        )
        return made[0]

    feed = Feed((ROWS * COPIES, rows, hidden), 2, 0, each=COPIES, size=0.25)
    return Product(
        "Attention",
        [feed],
        [operand((hidden, 3 * hidden), 0)],
        write,
        3,
        0,
        linear=False,
        alike=ALIKE,
    )


def quantized_attention(rng: random.Random) -> Product:
    hidden, rows, dtype = rng.choice([4, 8]), 4, rng.choice(["int8", "uint8"])
    point = 3 if dtype == "int8" else 128
    biases, past = _past(rng, hidden)

    def write(scope: Any, xs: list[str], ws: list[str]) -> Any:
        inputs = [
            xs[0],
            ws[0],
            scope.constant(biases, "float32"),
            scope.constant(2.0**-8, "float32"),
            scope.constant(2.0**-4, "float32"),
            "",
            scope.constant(128, "uint8"),
            scope.constant(point, dtype),
            scope.constant(past, "float32"),
        ]
        made = scope.node(
            "QAttention", inputs, 2, domain=MICROSOFT, num_heads=2, unidirectional=1
        )
        return made[0]

    feed = Feed((ROWS * COPIES, rows, hidden), 2, 0, "uint8", 128, each=COPIES)
    return Product(
        "QAttention",
        [feed],
        [operand((hidden, 3 * hidden), 0, dtype, np.array(point))],
        write,
        3,
        0,
        linear=False,
        alike=ALIKE,
    )
