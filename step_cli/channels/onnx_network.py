"""The network in an ONNX file: its own graph proves which channels may move."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.channels.axes import find
from step_cli.channels.flow import Flow, Value
from step_cli.channels.network import Network
from step_cli.channels.onnx_rules import RULES, Call
from step_cli.errors import MissingError, UsageError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.onnx.inputs import GraphInput
from step_cli.formats.onnx.nodes import inputs_of_onnx
from step_cli.formats.onnx.session import OrtSession

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

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
    flow = Flow()
    tensors = _Graph(checkpoint, feeds, flow).follow()
    before = {tensor.name: tensor.read for tensor in checkpoint.tensors}

    def outputs(now: Checkpoint) -> list[Array]:
        moved = {
            tensor.name: tensor.read()
            for tensor in now.tensors
            if tensor.read is not before[tensor.name]
        }
        return OrtSession(path, moved).run(feeds)

    return Network(flow, tensors, outputs)


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


class _Graph:
    """A graph with the shapes of all values, as far as they can be inferred."""

    def __init__(
        self, checkpoint: Checkpoint, feeds: Mapping[str, Array], flow: Flow
    ) -> None:
        import onnx

        path = checkpoint.path
        self._flow = flow
        model = onnx.load(str(path), load_external_data=False)
        self._graph = model.graph
        self._stored = {tensor.name: tensor for tensor in checkpoint.tensors}
        self._opset = max(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
            default=1,
        )
        self._results = [output.name for output in model.graph.output]
        self._inputs = feeds
        self._constants: dict[str, Array] = {}
        self._values: dict[str, Value] = {}
        self._shapes: dict[str, Shape] = {}
        for name, value in _every_value(model, path.parent, feeds).items():
            self._shapes[name] = value.shape
            if value.size <= MOST_NUMBERS and value.dtype.kind in "iu":
                self._constants[name] = value

    def follow(self) -> dict[str, Value]:
        """Run all nodes through the rules; the axes of the checkpoint's tensors."""
        for name, feed in self._inputs.items():
            self._values[name] = self._flow.fresh(feed.shape, "it enters the model")
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
        self._values[name] = self._flow.fresh(shape, why)
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
        known = node.domain in ("", "ai.onnx")
        if known and node.op_type in RULES and self._complete(node):
            call = Call(
                self._flow,
                [self._values.get(name) if name else None for name in node.input],
                [self._constants.get(name) for name in node.input],
                attributes,
                [self._shapes[name] for name in node.output if name in self._shapes],
                self._opset,
            )
            with suppress(LookupError):  # an argument that the rule does not expect
                made = RULES[node.op_type](call)
        results = made if isinstance(made, list) else [made] if made else []
        shapes = [self._shapes.get(name) for name in node.output[: len(results)]]
        if not results or [_sizes(value) for value in results] != shapes:
            self._unknown(node)
        else:
            self._values.update(zip(node.output, results, strict=False))

    def _complete(self, node: Any) -> bool:
        """Whether the axes of all inputs and the shape of the output are known."""
        given = all(not name or name in self._values for name in node.input)
        return given and all(n in self._shapes for n in node.output[:1])

    def _unknown(self, node: Any) -> None:
        why = f"{node.op_type} may treat each channel in its own way"
        self._fix([*node.input, *_inside(node)], why)
        for name in node.output:
            if name in self._shapes:
                self._values[name] = self._flow.fresh(self._shapes[name], why)

    def _fix(self, names: list[str], why: str) -> None:
        for name in names:
            self._flow.fix(self._values.get(name, ()), why)


def _every_value(
    model: Any, folder: Path, feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """What each node makes of ``feeds``; ``model`` is left with all as outputs."""
    results = {output.name for output in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in results:
                model.graph.output.add(name=name)
    session = OrtSession.of_bytes(model.SerializeToString(), folder.resolve())
    return dict(zip(session.outputs, session.run(feeds), strict=True))


def _inside(node: Any) -> Iterator[str]:
    """Names that graphs within a node use."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _inside(inner)
            yield from (output.name for output in graph.output)


def _sizes(value: Value) -> Shape:
    return tuple(find(axis).size for axis in value)
