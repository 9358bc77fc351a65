"""Optimization profiles: the smallest, likeliest and largest shape of each input.

TensorRT times tactics at the likeliest one, so a batch of 1 there can hide what sparse
weights win at a batch of 16. Everything is checked here, before any build.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from step_cli.errors import UsageError
from step_cli.formats.onnx.inputs import GraphInput

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """The three shapes of one dynamic input: minimum, optimum, maximum."""

    name: str
    shapes: tuple[Shape, Shape, Shape]


def parse_shape(option: str, text: str) -> tuple[str, Shape]:
    """Read ``x:1x3x32x32`` or ``input_ids:1,128``; the name may hold colons.

    Raises:
        UsageError: The text is not NAME:SHAPE with positive sizes.
    """
    name, _, sizes = text.rpartition(":")
    words = sizes.replace("x", ",").split(",")
    if not name or not all(w.isascii() and w.isdigit() and int(w) for w in words):
        raise UsageError(f"--{option}: expected NAME:SHAPE such as x:1x128, got {text}")
    return name, tuple(int(word) for word in words)


def parse_shapes(given: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Shape]]:
    """The shapes of each input by option name, such as min, then by input name.

    Raises:
        UsageError: A text is no NAME:SHAPE, or an input is named twice.
    """
    shapes: dict[str, dict[str, Shape]] = {}
    for option, texts in given.items():
        found = [parse_shape(option, text) for text in texts]
        shapes[option] = dict(found)
        if len(shapes[option]) < len(found):
            raise UsageError(f"--{option}: an input is given twice")
    return shapes


def make_profiles(
    inputs: Sequence[GraphInput], given: Mapping[str, Sequence[str]]
) -> list[Profile]:
    """Pair the dynamic inputs with ``--min``, ``--opt`` and ``--max``.

    A missing bound takes the likeliest shape, a missing likeliest shape the largest.

    Args:
        inputs: The inputs of the ONNX graph.
        given: The options' texts by option name: min, opt, max.

    Raises:
        UsageError: A shape does not fit its input, or a dynamic input has none.
    """
    shapes = parse_shapes(given)
    known = {graph_input.name: graph_input for graph_input in inputs}
    for option, by_name in shapes.items():
        for name, shape in by_name.items():
            _check_fits(option, name, shape, known)
    return [
        _profile(graph_input, *(shapes.get(o, {}) for o in ("min", "opt", "max")))
        for graph_input in inputs
        if graph_input.dynamic
    ]


def _profile(
    graph_input: GraphInput,
    minima: Mapping[str, Shape],
    optima: Mapping[str, Shape],
    maxima: Mapping[str, Shape],
) -> Profile:
    name = graph_input.name
    optimum = optima.get(name) or maxima.get(name) or minima.get(name)
    if optimum is None:
        raise UsageError(
            f"input {graph_input} has a dynamic size; give its smallest, likeliest and "
            f"largest shape: --min {name}:SHAPE --opt {name}:SHAPE --max {name}:SHAPE"
        )
    low, high = minima.get(name, optimum), maxima.get(name, optimum)
    if not all(a <= b <= c for a, b, c in zip(low, optimum, high, strict=True)):
        raise UsageError(
            f"input {name}: expected min <= opt <= max in every dimension, "
            f"got {_text(low)}, {_text(optimum)}, {_text(high)}"
        )
    return Profile(name, (low, optimum, high))


def _check_fits(
    option: str, name: str, shape: Shape, known: Mapping[str, GraphInput]
) -> None:
    graph_input = known.get(name)
    if graph_input is None:
        inputs = ", ".join(map(str, known.values()))
        raise UsageError(f"--{option}: no input {name}; the model has {inputs}")
    expected = graph_input.shape
    fits = len(shape) == len(expected) and all(
        isinstance(want, str) or want == size
        for want, size in zip(expected, shape, strict=True)
    )
    if not fits:
        raise UsageError(
            f"--{option}: {_text(shape)} does not fit input {graph_input}; "
            "only named dimensions may vary"
        )


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
