"""An ONNX model without its data: its graphs, nodes and attributes."""

from dataclasses import dataclass, field

from step_cli.formats.onnx.protobuf import Field

Extent = tuple[int, int]  # first byte, and one past the last
STANDARD = ("", "ai.onnx")  # both name the domain of ONNX itself


def domain_of(domain: str) -> str:
    """A domain by its shorter name."""
    return "" if domain in STANDARD else domain


@dataclass(eq=False)
class Tensor:
    """A TensorProto: its data is raw, external, or in a field of its type.

    A SparseTensorProto has its own data in ``values`` and ``indices``.
    """

    name: str = ""
    shape: list[int] = field(default_factory=list)
    data_type: int = 0
    raw: Extent | None = None
    typed: dict[int, list[Field]] = field(default_factory=dict)  # by field number
    external: dict[str, str] = field(default_factory=dict)
    external_at: dict[str, Extent] = field(default_factory=dict)  # where each stands
    is_external: bool = False
    around: tuple[Field, ...] = ()  # the messages it is in, outermost first, and itself
    values: "Tensor | None" = None  # of a sparse tensor: the numbers that it stores
    indices: "Tensor | None" = None  # and where they stand

    @property
    def stored(self) -> "list[Tensor]":
        """The tensors that hold data: itself, or the two of a sparse one."""
        return [one for one in (self.values, self.indices) if one] or [self]


@dataclass(eq=False)
class Attribute:
    """An AttributeProto, as far as weights need it.

    ``reference`` is the name of the function's attribute that it stands for.
    """

    name: str = ""
    integer: int | None = None
    integers: list[int] = field(default_factory=list)
    tensor: Tensor | None = None
    graphs: list["Graph"] = field(default_factory=list)
    reference: str = ""
    place: Field | None = None


@dataclass(eq=False)
class Node:
    """A NodeProto."""

    name: str = ""
    op_type: str = ""
    domain: str = ""
    overload: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, Attribute] = field(default_factory=dict)


@dataclass(eq=False)
class Graph:
    """A GraphProto; those of If, Loop and Scan are in the attributes of its nodes."""

    name: str = ""
    nodes: list[Node] = field(default_factory=list)
    initializers: list[Tensor] = field(default_factory=list)
    sparse: list[Tensor] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Function:
    """A FunctionProto: a node of its name stands for its nodes.

    ``defaults`` are the attributes that a call may leave out.
    """

    name: str = ""
    domain: str = ""
    overload: str = ""
    graph: Graph = field(default_factory=Graph)
    defaults: dict[str, Attribute] = field(default_factory=dict)


@dataclass
class Model:
    """A ModelProto."""

    graph: Graph
    functions: list[Function] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)  # metadata_props
    property_fields: dict[str, Extent] = field(default_factory=dict)  # where each is
    data: memoryview = field(default_factory=lambda: memoryview(b""))  # of its file
