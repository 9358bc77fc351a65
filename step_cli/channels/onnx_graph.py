"""The channels of an ONNX file, followed through its own graph."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.channels.graph import (
    GraphAxes,
    Network,
    Operator,
    Shape,
    TensorAxes,
    apply_rule,
)
from step_cli.channels.onnx_operators import ARGUMENTS, RULES, translate
from step_cli.errors import InputError, MissingError, UsageError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.onnx.inputs import GraphInput, inputs_of_onnx
from step_cli.formats.onnx.session import OrtSession

Array = npt.NDArray[Any]

MOST_NUMBERS = 1024  # of a constant that may be a shape or a list of axes
FIRST_SIZE, APART, IMAGE = 2, 3, 32  # of open dimensions


def onnx_network(checkpoint: Checkpoint) -> Network:
    """Follow the channels of an ONNX file.

    Raises:
        InputError: An input has no shape.
        UsageError: The weights are bf16, for which it has no kernels.
        MissingError: ONNX Runtime, which compares the outputs, is not installed.
    """
    if find_spec("onnxruntime") is None:
        raise MissingError(
            "--permute compares the outputs in ONNX Runtime: pip install "
            "'step-cli[export]'"
        )
    path = checkpoint.path
    if any(tensor.dtype == "bfloat16" for tensor in checkpoint.tensors):
        raise UsageError(
            "--permute compares the outputs in ONNX Runtime, which has no bf16 kernels "
            "for the CPU; permute the model before it is exported",
            file=path,
        )
    feeds = _feeds(inputs_of_onnx(path))
    graph = GraphAxes()
    tensors = _OnnxGraph(checkpoint, feeds, graph).follow()
    before = {tensor.name: tensor.read for tensor in checkpoint.tensors}

    def outputs(now: Checkpoint) -> list[Array]:
        moved = {
            tensor.name: tensor.read()
            for tensor in now.tensors
            if tensor.read is not before[tensor.name]
        }
        return OrtSession(path, moved).run(feeds)

    return Network(graph, tensors, outputs)


def _feeds(inputs: list[GraphInput]) -> dict[str, Array]:
    """Seeded numbers; open dimensions get sizes, one for each name."""
    random = np.random.default_rng(0)
    sizes: dict[str, int] = {}
    feeds = {}
    for given in inputs:
        image = len(given.shape) == 4 and "float" in given.dtype
        shape = []
        for place, size in enumerate(given.shape):
            if isinstance(size, str):
                new = IMAGE if image and place > 1 else FIRST_SIZE + APART * len(sizes)
                size = sizes.setdefault(size, new)
            shape.append(size)
        if "float" in given.dtype:
            values: Array = random.standard_normal(shape)
        elif "mask" in given.name:
            values = np.ones(shape)
        else:
            values = random.integers(0, 2, shape)
        feeds[given.name] = values.astype(given.dtype)
    return feeds


class _OnnxGraph:
    """A graph with the shapes of all values, as far as they can be inferred."""

    def __init__(
        self, checkpoint: Checkpoint, feeds: Mapping[str, Array], axes: GraphAxes
    ) -> None:
        import onnx

        path = checkpoint.path
        self._axes = axes
        model = onnx.load(str(path), load_external_data=False)
        self._graph = model.graph
        self._stored = {tensor.name: tensor for tensor in checkpoint.tensors}
        self._opset = max(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
            default=1,
        )
        self._results = [output.name for output in model.graph.output]
        self._read = {name for node in model.graph.node for name in _read_by(node)}
        self._read |= set(self._results)
        self._inputs = feeds
        self._constants: dict[str, Array] = {}
        self._values: dict[str, TensorAxes] = {}
        self._shapes: dict[str, Shape] = {}
        for name, value in _every_value(model, path.parent, feeds).items():
            self._shapes[name] = value.shape
            if value.size <= MOST_NUMBERS and value.dtype.kind in "iu":
                self._constants[name] = value

    def follow(self) -> dict[str, TensorAxes]:
        """Run all nodes through the rules; the axes of the checkpoint's tensors."""
        for name, feed in self._inputs.items():
            self._values[name] = self._axes.new(feed.shape, "it enters the model")
        for tensor in self._graph.initializer:
            self._store(tensor.name, tensor)
        for node in self._graph.node:
            self._node(node)
        self._fix(self._results, "it leaves the model")
        return {n: self._values[n] for n in self._stored if n in self._values}

    def _store(self, name: str, tensor: Any) -> None:
        from onnx import numpy_helper

        shape = tuple(tensor.dims)
        why = None if name in self._stored else "it is a constant in the graph"
        self._values[name] = self._axes.new(shape, why)
        inline = not tensor.external_data
        if inline and int(np.prod(shape, dtype=np.int64)) <= MOST_NUMBERS:
            self._constants[name] = numpy_helper.to_array(tensor)

    def _node(self, node: Any) -> None:
        from onnx.helper import get_attribute_value

        attributes = {a.name: get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            self._store(node.output[0], attributes["value"])
            return
        made = None
        known = node.domain in ("", "ai.onnx") and node.op_type in RULES
        names = self._used(node.output)
        if known and all(name in self._shapes for name in names):
            with suppress(LookupError):  # an argument that the rule does not expect
                operator = self._operator(node, attributes, names)
                made = apply_rule(self._axes, RULES[node.op_type], operator)
        if made is None:
            self._unknown(node)
        else:
            self._values.update(zip(names, made, strict=True))

    def _operator(
        self, node: Any, arguments: dict[str, Any], names: list[str]
    ) -> Operator:
        """A node in the terms of the rules.

        Raises:
            LookupError: The axes of an input, or an argument, are not known.
        """
        for place, key in ARGUMENTS.get(node.op_type, {}).items():
            if place < len(node.input) and node.input[place]:
                constant = self._constants[node.input[place]]
                arguments[key] = [int(number) for number in constant.reshape(-1)]
        inputs = [self._values[name] if name else None for name in node.input]
        shapes = [self._shapes[name] for name in names]
        return translate(node.op_type, inputs, shapes, arguments, self._opset)

    def _used(self, outputs: Sequence[str]) -> list[str]:
        """The outputs of a node up to the last that anything reads."""
        names = list(outputs)
        while len(names) > 1 and names[-1] not in self._read:
            names.pop()
        return names

    def _unknown(self, node: Any) -> None:
        why = f"{node.op_type} may treat each channel in its own way"
        self._fix(_read_by(node), why)
        for name in node.output:
            if name in self._shapes:
                self._values[name] = self._axes.new(self._shapes[name], why)

    def _fix(self, names: Iterable[str], why: str) -> None:
        for name in names:
            self._axes.fix(self._values.get(name, ()), why)


def _every_value(
    model: Any, folder: Path, feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """What each node makes of ``feeds``; ``model`` is left with all as outputs.

    Raises:
        InputError: A node cannot compute with them.
    """
    results = {output.name for output in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in results:
                model.graph.output.add(name=name)
    session = OrtSession.of_bytes(model.SerializeToString(), folder.resolve())
    try:
        made = session.run(feeds)
    except InputError as error:
        raise InputError(
            f"--permute: {error.message}; give its inputs fixed sizes"
        ) from None
    return dict(zip(session.outputs, made, strict=True))


def _read_by(node: Any) -> Iterator[str]:
    """Names of what a node reads, in the graphs within it as well."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read_by(inner)
            yield from (output.name for output in graph.output)
