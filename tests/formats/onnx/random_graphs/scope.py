"""Writes values into graphs, subgraphs and functions, each name where it is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from formats.onnx.random_graphs.protos import (
    Model,
    declared,
    element_type,
    sparse_proto,
    tensor_proto,
)
from formats.onnx.random_graphs.values import (
    Leaf,
    Made,
    Runtime,
    Stored,
    Value,
)
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

BY_REFERENCE = (
    AttributeProto.INT,
    AttributeProto.INTS,
    AttributeProto.FLOAT,
    AttributeProto.STRING,
)


class Scope:
    """A graph, a branch, the body of a Loop or Scan, or a function."""

    def __init__(
        self,
        model: Model,
        kind: str = "graph",
        parent: "Scope | None" = None,
        holds: Callable[[Value], bool] = lambda value: True,
    ) -> None:
        self.model, self.kind, self.parent, self.holds = model, kind, parent, holds
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.sparse: list[onnx.SparseTensorProto] = []
        self.known: dict[int, Any] = {}
        self.entered: list[tuple[str, str, Value]] = []  # name outside, name inside
        self.attributes: dict[str, AttributeProto] = {}
        self.defaults: dict[str, AttributeProto] = {}
        self.making: Value | None = None  # what this function is for
        self.changes: dict[str, str] = {}  # how a Loop changes what is carried
        self.elements: list[tuple[str, str]] = []  # what a Scan takes apart
        self.count = 0

    @property
    def in_function(self) -> "Scope | None":
        if self.kind == "function" or self.parent is None:
            return self if self.kind == "function" else None
        return self.parent.in_function

    def fresh(self) -> str:
        """A name: functions count for themselves, so theirs are used elsewhere too."""
        if self.kind in ("branch", "body"):
            assert self.parent is not None
            return self.parent.fresh()
        self.count += 1
        return f"v{self.count}"

    # ------------------------------------------------------------------------ values

    def emit(self, value: Value) -> str:
        """The name of a value here, written first if need be."""
        if id(value) not in self.known:
            self.known[id(value)] = self._written(value)
        name = self.known[id(value)]
        assert isinstance(name, str)
        return name

    def _written(self, value: Value) -> str:
        outside = isinstance(value, Runtime) or (
            isinstance(value, Leaf) and self.model.fed
        )
        if self.parent is not None and (outside or not self.holds(value)):
            return self._entering(value, self.parent.emit(value))
        if isinstance(value, Runtime):
            self.model.inputs[value.name] = (value.dtype, value.shape)
            return value.name
        if isinstance(value, Leaf):
            return self._stored(value.stored)
        assert isinstance(value, Made)
        if value.inside and self.making is not value:
            function = self.child("function", lambda other: id(other) in value.inside)
            function.making = value
            return self.call(function, function.emit(value))
        return value.write(self, [self.emit(source) for source in value.sources])

    def _entering(self, value: Value, outer: str) -> str:
        state = self.kind == "body" and value.entry == "state" and not self.holds(value)
        if self.kind != "function" and not state:
            return outer
        inner = self.fresh()
        self.entered.append((outer, inner, value))
        return inner

    def _stored(self, stored: Stored) -> str:
        if self.model.fed:
            return self._fed(stored)
        proto = tensor_proto(stored.typed(), stored.name, self.model)
        function = self.in_function
        constant = function is not None or "constant" in stored.form
        if "sparse" in stored.form:
            sparse = sparse_proto(stored)
            if constant:
                return self._constant(stored.name, sparse_value=sparse)
            self.sparse.append(sparse)
        elif stored.form == "constant-floats":
            return self._constant(stored.name, value_floats=stored.typed().tolist())
        elif function is not None and stored.form == "reference":
            node = helper.make_node("Constant", [], [stored.name], value=proto)
            function.refer(node.attribute[0], default=False)
            self.nodes.append(node)
        elif constant:
            return self._constant(stored.name, value=proto)
        else:
            self.initializers.append(proto)
            if self.parent is None and self.model.chance(f"input {stored.name}", 6):
                self.model.inputs[stored.name] = (stored.dtype, stored.shape)
        return stored.name

    def _constant(self, name: str, **value: Any) -> str:
        self.nodes.append(helper.make_node("Constant", [], [name], **value))
        return name

    def _fed(self, stored: Stored) -> str:
        direct = stored.dtype in ("float32", "float64", "float16", "int8", "uint8")
        dtype = stored.dtype if direct else "float32"
        self.model.inputs[stored.name] = (dtype, stored.shape)
        if direct:
            return stored.name
        return self.node("Cast", [stored.name], to=element_type(stored.dtype))

    # ------------------------------------------------------------------------- nodes

    def node(
        self,
        op: str,
        inputs: list[str],
        outputs: int = 1,
        domain: str = "",
        **facts: Any,
    ) -> Any:
        """Write a node; returns the name of its output, or their names."""
        names = [self.fresh() for _ in range(outputs)]
        overload = facts.pop("overload", "")
        made = helper.make_node(
            op, inputs, names, domain=domain, overload=overload, **facts
        )
        function = self.in_function
        for attribute in made.attribute:
            about = f"{op} {attribute.name}"
            if (
                function is not None
                and attribute.type in BY_REFERENCE
                and self.model.chance("reference " + about, 2)
            ):
                function.refer(
                    attribute, default=self.model.chance("default " + about, 2)
                )
        self.nodes.append(made)
        return names[0] if outputs == 1 else names

    def refer(self, attribute: AttributeProto, default: bool) -> None:
        """Make an attribute of a node in this function one of the function."""
        outer = AttributeProto()
        outer.CopyFrom(attribute)
        outer.name = f"a{len(self.attributes)}"
        self.attributes[outer.name] = outer
        if default:
            self.defaults[outer.name] = outer
        kind, name = attribute.type, attribute.name
        attribute.Clear()
        attribute.name, attribute.type = name, kind
        attribute.ref_attr_name = outer.name

    def carry(self, outer: str, value: Value, change: str) -> str:
        """The name of what this Loop carries from trip to trip and changes."""
        inner = self.fresh()
        self.entered.append((outer, inner, value))
        self.changes[inner] = change
        return inner

    def element(self, outer: str) -> str:
        """The name of the element of ``outer`` that this trip of a Scan has."""
        self.elements.append((outer, self.fresh()))
        return self.elements[-1][1]

    def constant(self, array: Any, dtype: str = "int64") -> str:
        """The name of a number, shape or scale that a node needs."""
        if self.parent is not None and self.model.chance(f"outside {self.count}", 3):
            outer = self.parent.constant(array, dtype)
            if self.kind != "function":
                return outer
            inner = self.fresh()
            self.entered.append((outer, inner, Value((), dtype)))
            return inner
        name = self.fresh()
        values = np.asarray(array).astype(dtype)
        plain = {"int64": "value_int", "float32": "value_float"}.get(dtype)
        if (
            plain
            and values.ndim < 2
            and values.size
            and self.model.chance(f"plain {name}", 3)
        ):
            listed = values.tolist()
            return self._constant(name, **{plain + "s" * values.ndim: listed})
        proto = numpy_helper.from_array(values, name)
        if self.in_function is None and self.model.chance(f"constant {name}", 2):
            self.initializers.append(proto)
            return name
        return self._constant(name, value=proto)

    def child(self, kind: str, holds: Callable[[Value], bool]) -> "Scope":
        return Scope(self.model, kind, self, holds)

    def graph(self, inputs: list[Any], outputs: list[Any]) -> onnx.GraphProto:
        return helper.make_graph(
            self.nodes,
            "graph",
            inputs,
            outputs,
            self.initializers,
            sparse_initializer=self.sparse,
        )

    # --------------------------------------------------------------------- functions

    def call(self, function: "Scope", output: str) -> str:
        """Call what was written into ``function``, a child; equal ones are one."""
        inner = [name for _, name, _ in function.entered]
        body = [node.SerializeToString(deterministic=True) for node in function.nodes]
        names = [*inner, output, *sorted(function.attributes)]
        key = b"\0".join([*body, *(name.encode() for name in names)])
        if key not in self.model.functions:
            self.model.functions[key] = declared(self.model, function, inner, output)
        made = self.model.functions[key]
        default = {a.name: a.SerializeToString() for a in made.attribute_proto}
        before = len(self.nodes)
        name = self.node(
            made.name,
            [outer for outer, _, _ in function.entered],
            domain="local",
            overload=made.overload,
        )
        call = self.nodes[before]
        for key_, attribute in function.attributes.items():
            if default.get(key_) != attribute.SerializeToString():
                call.attribute.add().CopyFrom(attribute)
        self._pass_on(call)
        assert isinstance(name, str)
        return name

    def _pass_on(self, call: NodeProto) -> None:
        """Let some attributes of a call be those of the function it stands in."""
        function = self.in_function
        if function is not None:
            for attribute in call.attribute:
                if self.model.chance(f"pass on {attribute.name}", 2):
                    function.refer(attribute, default=False)
