"""Learns from ONNX Runtime which stored numbers a product sums up together.

Each stored number is changed alone. A number that is multiplied with input k changes
nothing where input k is zero, and only there: that is its place in the sum. Two numbers
of one sum change the same outputs, in the same proportions: that is how a sum is known.
A group is then M numbers of one sum whose inputs follow each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from formats.onnx.random_graphs.example import Example, Placed
from formats.onnx.random_graphs.products import BITS, ROWS
from formats.onnx.random_graphs.values import Array, Stored


class Ambiguous(Exception):
    """The outputs do not show the structure of a graph."""


@dataclass
class Learned:
    """What an operand of a product showed.

    Attributes:
        groups: Of each stored tensor, by row-major positions, ordered by inputs.
        rest: Stored tensors of which a sum leaves fewer than M numbers over.
        uneven: Those, and the others of such a sum.
        joined: Stored tensors of which a group holds numbers of another one, too.
    """

    groups: dict[str, set[tuple[int, ...]]] = field(default_factory=dict)
    rest: set[str] = field(default_factory=set)
    uneven: set[str] = field(default_factory=set)
    joined: set[str] = field(default_factory=set)
    inputs: dict[str, dict[int, int]] = field(default_factory=dict)


def session_of(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )


class Witness:
    """ONNX Runtime with a graph whose stored tensors are its inputs."""

    def __init__(self, example: Example) -> None:
        self.example = example
        self.fed = session_of(example.model(fed=True).SerializeToString())
        self.known = {info.name for info in self.fed.get_inputs()}
        self.rng = np.random.default_rng(example.seed)

    def runtime_feeds(self, product: Placed, feed: int | None = None) -> Any:
        """What the inputs are, so that a product runs.

        That input of it which is summed with an operand may vary from copy to copy.
        """
        one = np.float32(1)
        feeds: dict[str, Array] = {s: np.asarray(one) for s in self.example.scalars}
        for placed in self.example.placed:
            for number, runtime in enumerate(placed.runtimes):
                rng = np.random.default_rng((self.example.seed, number))
                vary = placed is product and number == feed
                feeds[runtime.name] = placed.product.feeds[number].array(rng, vary)
        for placed in (*self.example.placed, product):
            for wrapper in placed.place.wrappers:
                if wrapper.condition is not None:
                    feeds[wrapper.condition.name] = np.array(wrapper.taken)
        return feeds

    def run(self, feeds: dict[str, Array], output: str) -> Array:
        given = {name: array for name, array in feeds.items() if name in self.known}
        return np.asarray(self.fed.run([output], given)[0])

    def stored_feeds(self) -> dict[str, Array]:
        """The stored tensors as they are."""
        return {s.name: _feedable(s, s.data) for s in self.example.stored}

    # ------------------------------------------------------------------ one operand

    def learn(self, placed: Placed, number: int) -> Learned:
        """Which numbers the operand of this number groups.

        Raises:
            Ambiguous: The outputs do not show it.
        """
        feed = placed.product.operands[number].feed
        feeds = self.runtime_feeds(placed, feed)
        starts = {s.name: self._start(s, placed) for s in self.example.stored}
        feeds |= {s.name: _feedable(s, starts[s.name]) for s in self.example.stored}
        plain = self.run(feeds, placed.output)
        if placed.product.linear:
            copies = _copies(plain, placed)
            if (copies != copies[:, :1]).any():
                raise AssertionError("what counts as zero is no zero")
        names, places, responses = [], [], []
        used = _used(placed, number)
        for stored in self.example.stored:
            if stored.name not in used:
                continue
            found = list(self._responses(stored, placed, feeds, plain))
            if [place for place, _ in found] != used[stored.name]:
                raise Ambiguous("other numbers change the output than are used")
            names += [stored.name] * len(found)
            places += [place for place, _ in found]
            responses += [response for _, response in found]
        m = self.example.pattern[1]
        return _grouped(names, places, np.array(responses), placed, m)

    def _start(self, stored: Stored, placed: Placed) -> Array:
        """Zeros; small numbers where the outputs are not linear in them."""
        if placed.product.linear:
            return stored.zero.astype(np.float64)
        some = self.rng.integers(1, 5, stored.shape)
        some = some * self.rng.choice([-1, 1], stored.shape)
        if not stored.is_codes:
            return some / 8.0
        low, high = (2, 253) if stored.dtype == "uint8" else (-126, 125)
        return np.clip(stored.zero + 2 * some, low, high).astype(np.float64)

    def _responses(
        self, stored: Stored, placed: Placed, feeds: dict[str, Array], plain: Array
    ) -> Iterator[tuple[int, Array]]:
        """How the output differs when one number does, for each number that matters."""
        linear, base = placed.product.linear, feeds[stored.name]
        by = (64 if linear else 2) if stored.is_codes else (1.0 if linear else 0.125)
        middle = 128 if stored.dtype == "uint8" else 0
        for place in range(base.size):
            sign = -1 if stored.is_codes and stored.zero.flat[place] > middle else 1
            changed = self._with(stored, base, place, sign * by, feeds, placed)
            other = plain
            if not linear:
                other = self._with(stored, base, place, -sign * by, feeds, placed)
            response = _copies(changed.astype(np.float64) - other, placed)
            if response[:, 0].any():
                yield place, response

    def _with(
        self,
        stored: Stored,
        base: Array,
        place: int,
        by: float,
        feeds: dict[str, Array],
        placed: Placed,
    ) -> Array:
        values = base.copy()
        values.flat[place] = base.flat[place].item() + by
        return self.run({**feeds, stored.name: values}, placed.output)


def _used(placed: Placed, number: int) -> dict[str, list[int]]:
    """Which stored numbers an operand is made of."""
    used: dict[str, Array] = {}
    for path in placed.paths(number):
        name, on = path.stored.name, path.ids.reshape(-1) >= 0
        used[name] = used.get(name, np.zeros(len(on), bool)) | on
    return {name: np.flatnonzero(on).tolist() for name, on in used.items()}


def _feedable(stored: Stored, values: Array) -> Array:
    direct = stored.dtype in ("float32", "float64", "float16", "int8", "uint8")
    return values.astype(stored.dtype if direct else "float32")


def _copies(output: Array, placed: Placed) -> Array:
    """[trips of loops, copies of the inputs, everything else]."""
    product = placed.product
    trips = int(np.prod(output.shape[: placed.place.axes]))
    output = output.reshape(trips, *output.shape[placed.place.axes :])
    batch = product.batch if product.batch < 0 else product.batch + 1
    output = np.moveaxis(output, batch, 1)
    return output.reshape(trips, ROWS, -1)


def _grouped(
    names: list[str], places: list[int], responses: Array, placed: Placed, m: int
) -> Learned:
    """Sort numbers into sums, and these into groups."""
    learned = Learned()
    for name in names:
        learned.groups.setdefault(name, set())
    trips = responses.shape[1] if len(names) else 0
    for trip in range(trips):
        seen = responses[:, trip]
        used = np.flatnonzero(seen[:, 0].any(-1))
        inputs = _inputs(seen[used])
        for lane in _sums(seen[used, 0], placed.product.alike):
            order = lane[np.argsort(inputs[lane])]
            if len(set(inputs[order])) < len(order):
                raise Ambiguous("two numbers of a sum share an input")
            _cut([(names[i], places[i]) for i in used[order]], m, learned)
        for at, k in zip(used, inputs, strict=True):
            learned.inputs.setdefault(names[at], {})[places[at]] = int(k)
    return learned


def _inputs(seen: Array) -> Array:
    """The number of the input that each number is multiplied with."""
    silent = ~seen.any(-1)
    lacks, has = silent[:, 1::2], silent[:, 2::2]  # no response where k is left out
    if (lacks == has).any():
        raise Ambiguous("no single input")
    return (has * (1 << np.arange(BITS))).sum(1)


def _sums(seen: Array, alike: float) -> list[Array]:
    """Numbers whose responses are proportional."""
    units = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    cosines = np.abs(units @ units.T)
    same = cosines > alike
    labels = same.argmax(1)
    if ((cosines > 1 - 2 * (1 - alike)) != same).any():
        raise Ambiguous("responses almost alike")
    if (same != (labels[:, None] == labels)).any():
        raise Ambiguous("sums overlap")
    lanes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if len({len(lane) for lane in lanes}) > 1:  # every sum is over as many inputs
        raise Ambiguous("sums of different lengths")
    return lanes


def _cut(lane: list[tuple[str, int]], m: int, learned: Learned) -> None:
    over = len(lane) % m
    learned.uneven |= {name for name, _ in lane if over}
    learned.rest |= {name for name, _ in lane[len(lane) - over :]}
    for first in range(0, len(lane) - m + 1, m):
        group = lane[first : first + m]
        found = {name for name, _ in group}
        if len(found) > 1:
            learned.joined |= found
        else:
            name = found.pop()
            learned.groups[name].add(tuple(place for _, place in group))
