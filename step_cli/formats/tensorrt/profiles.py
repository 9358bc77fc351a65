"""Optimization profiles: the smallest, likeliest and largest shape of each input.

TensorRT times tactics at the likeliest one, so a batch of 1 there can hide what sparse
weights win at a batch of 16. Everything is checked here, before any build.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from step_cli.errors import UsageError
from step_cli.formats.onnx.inputs import GraphInput

Shape = tuple[int, ...]

BOUNDS = ("min", "opt", "max")
ITEMS = (1, 8, 32)  # of a batch, where nothing is given


@dataclass(frozen=True)
class Profile:
    """The three shapes of one dynamic input: minimum, optimum, maximum.

    Attributes:
        name: Of the input.
        shapes: Each as long as the rank.
        is_default: Whether nothing was given for it.
    """

    name: str
    shapes: tuple[Shape, Shape, Shape]
    is_default: bool = False


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
    inputs: Sequence[GraphInput],
    given: Mapping[str, Sequence[str]],
    longest: int | None = None,
) -> list[Profile]:
    """Pair dynamic inputs with ``--min``, ``--opt`` and ``--max``, or with defaults.

    A missing bound takes the likeliest shape, a missing likeliest shape the largest. An
    input of which nothing is given takes `ITEMS` where its first dimension has a name,
    and 1, a quarter of ``longest`` and ``longest`` for other names; or the sizes that a
    given input has for the same name.

    Args:
        inputs: The inputs of the ONNX graph.
        given: The options' texts by option name: min, opt, max.
        longest: How many tokens the model takes, or None: it is not known.

    Raises:
        UsageError: A shape does not fit its input, or a dynamic input has none.
    """
    shapes = parse_shapes(given)
    known = {graph_input.name: graph_input for graph_input in inputs}
    for option, by_name in shapes.items():
        for name, shape in by_name.items():
            _check_fits(option, name, shape, known)
    found = {
        one.name: _given_profile(one, *(shapes.get(o, {}) for o in BOUNDS))
        for one in inputs
        if one.dynamic and any(one.name in by_name for by_name in shapes.values())
    }
    sizes = _sizes(inputs, found, longest)
    return [
        found.get(one.name) or _default_profile(one, sizes)
        for one in inputs
        if one.dynamic
    ]


def default_note(profiles: Sequence[Profile]) -> str | None:
    """Which sizes nobody gave, and how to give them; None: all were given."""
    chosen = [profile for profile in profiles if profile.is_default]
    if not chosen:
        return None
    first = chosen[0].name
    shapes = "; ".join(
        f"{one.name} {', '.join(map(_text, one.shapes))}" for one in chosen
    )
    return (
        f"default sizes (smallest, most common, largest): {shapes}; kernels are timed "
        f"at the most common; to change them give --min {first}:SHAPE, "
        f"--opt {first}:SHAPE, --max {first}:SHAPE"
    )


def _given_profile(
    graph_input: GraphInput,
    minima: Mapping[str, Shape],
    optima: Mapping[str, Shape],
    maxima: Mapping[str, Shape],
) -> Profile:
    name = graph_input.name
    optimum = optima.get(name) or maxima.get(name) or minima[name]
    low, high = minima.get(name, optimum), maxima.get(name, optimum)
    if not all(a <= b <= c for a, b, c in zip(low, optimum, high, strict=True)):
        raise UsageError(
            f"input {name}: expected min <= opt <= max in every dimension, "
            f"got {_text(low)}, {_text(optimum)}, {_text(high)}"
        )
    return Profile(name, (low, optimum, high))


def _sizes(
    inputs: Sequence[GraphInput], found: Mapping[str, Profile], longest: int | None
) -> dict[str, Shape]:
    """The three sizes of each named dimension, as far as they are known."""
    sizes: dict[str, Shape] = {}
    for graph_input in inputs:
        for place, name in enumerate(graph_input.shape):
            if isinstance(name, int):
                continue
            if profile := found.get(graph_input.name):
                sizes[name] = tuple(shape[place] for shape in profile.shapes)
            elif place == 0:
                sizes.setdefault(name, ITEMS)
            elif longest is not None:
                sizes.setdefault(name, (1, max(1, longest // 4), longest))
    return sizes


def _default_profile(graph_input: GraphInput, sizes: Mapping[str, Shape]) -> Profile:
    name, three = graph_input.name, list[Shape]()
    for size in graph_input.shape:
        if isinstance(size, int):
            three.append((size,) * len(BOUNDS))
        elif size in sizes:
            three.append(sizes[size])
        else:
            raise UsageError(
                f"input {graph_input} has a dynamic size, and no config.json says how "
                f"large {size} may be; give its smallest, most common and largest "
                f"shape: --min {name}:SHAPE --opt {name}:SHAPE --max {name}:SHAPE"
            )
    low, optimum, high = zip(*three, strict=True)
    return Profile(name, (low, optimum, high), is_default=True)


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
