"""One random graph: products, the ways to what they multiply by, and other nodes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from formats.onnx.random_graphs.places import Place
from formats.onnx.random_graphs.products import Product
from formats.onnx.random_graphs.protos import Model, element_type
from formats.onnx.random_graphs.scope import Scope
from formats.onnx.random_graphs.values import (
    OPAQUE,
    Made,
    Path,
    Runtime,
    Stored,
    Value,
    ancestors,
    paths,
)
from onnx import helper


@dataclass(eq=False)
class Placed:
    """A product of the graph."""

    product: Product
    values: list[Value]  # the operands
    runtimes: list[Runtime]
    place: Place
    output: str
    is_guest: bool = False  # in the other branch of the If of the one before

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
        return self.place.write(scope, self.write_inside)

    def write_inside(self, scope: Scope) -> str:
        """Write the product alone."""
        xs = [scope.emit(runtime) for runtime in self.runtimes]
        return self.product.write(scope, xs, [scope.emit(v) for v in self.values])


@dataclass(eq=False)
class Example:
    """A random graph.

    Attributes:
        seed: What it is made from.
        placed: Its products.
        stored: The tensors that they may multiply by.
        decoys: The names of stored tensors that are no weights.
        looked_up: Stored tensors that rows are looked up in, too.
        scalars: Inputs of the graph that are a single number.
        pattern: N and M.
        old: Whether it has an opset in which axes are attributes.
    """

    seed: int
    placed: list[Placed] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    decoys: list[str] = field(default_factory=list)
    looked_up: list[Stored] = field(default_factory=list)
    scalars: list[str] = field(default_factory=list)
    pattern: tuple[int, int] = (2, 4)
    old: bool = False

    def every_value(self) -> list[Value]:
        """All that the products multiply by, and what it is made of."""
        roots = [value for placed in self.placed for value in placed.values]
        return [value for root in roots for value in ancestors(root)]

    @property
    def has_functions(self) -> bool:
        """Whether a function is called anywhere."""
        wrappers = [w for placed in self.placed for w in placed.place.wrappers]
        return any(wrapper.kind == "function" for wrapper in wrappers) or any(
            isinstance(value, Made) and value.inside for value in self.every_value()
        )

    def model(self, fed: bool = False) -> onnx.ModelProto:
        """The graph; with ``fed`` its stored tensors are inputs."""
        model = Model(self.seed, fed, self.old)
        scope = Scope(model)
        outputs = []
        for placed in self.placed:
            if placed.is_guest:
                continue
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
            opset_imports=[helper.make_opsetid(*one) for one in model.opsets.items()],
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
