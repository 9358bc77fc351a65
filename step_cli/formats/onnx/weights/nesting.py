"""All graphs of a model: within others too, and functions wherever they are called."""

from collections.abc import Iterator

from step_cli.formats.onnx.graph import MOST_PARTS
from step_cli.formats.onnx.model import Function, Model, Node, domain_of
from step_cli.formats.onnx.protobuf import WireError
from step_cli.formats.onnx.weights.loops import is_loop
from step_cli.formats.onnx.weights.scopes import Alias, Entering, Scope

MOST_SCOPES = 10_000  # graphs, and functions as often as they are called


def scopes_of(model: Model) -> list[Scope]:
    """All graphs of a model; those of a function wherever it is called.

    Raises:
        WireError: They are too many, or nested too deep.
    """
    functions = {
        (domain_of(one.domain), one.name, one.overload): one for one in model.functions
    }
    scopes: list[Scope] = []
    nodes = 0
    for scope in _scopes(Scope(model.graph, functions, model.data)):
        scopes.append(scope)
        nodes += len(scope.graph.nodes)
        if len(scopes) > MOST_SCOPES:
            raise WireError(f"more than {MOST_SCOPES} graphs and calls of functions")
        if nodes > MOST_PARTS:
            raise WireError(f"more than {MOST_PARTS} nodes in calls of functions")
    return scopes


def _scopes(scope: Scope) -> Iterator[Scope]:
    """A graph, and those in its nodes; a function counts wherever it is called."""
    yield scope
    for node in scope.graph.nodes:
        for inner in _within(scope, node):
            scope.inside.setdefault(id(node), []).append(inner)
            yield from _scopes(inner)


def _within(scope: Scope, node: Node) -> Iterator[Scope]:
    called = scope.function(node)
    if called is not None:
        yield _called(scope, node, called)
        return
    for own in node.attributes:
        attribute = scope.attribute(node, own)
        for graph in attribute.graphs if attribute is not None else ():
            inner = Scope(graph, scope.functions, scope.data, scope, owner=node)
            if is_loop(node):
                _enter(inner, scope, node)
            yield inner


def _called(scope: Scope, node: Node, function: Function) -> Scope:
    """The scope of a call, its inputs and attributes as the node gives them."""
    entries = {
        inside: Alias(scope, name)
        for inside, name in zip(function.graph.inputs, node.inputs, strict=False)
    }
    attributes = dict(function.defaults)
    for name in node.attributes:
        given = scope.attribute(node, name)
        if given is not None:
            attributes[name] = given
    return Scope(
        function.graph,
        scope.functions,
        scope.data,
        scope,
        dict(entries),
        attributes,
        is_function=True,
        owner=node,
    )


def _enter(body: Scope, scope: Scope, node: Node) -> None:
    """Say what the inputs of the body of a Loop or Scan are."""
    turns = scope.turns(node, body.graph)
    for place in range(turns.states + len(turns.axes)):
        index = turns.first + place
        if index >= len(body.graph.inputs) or index >= len(node.inputs):
            return
        name = body.graph.inputs[index]
        if place >= turns.states:
            axis = turns.axes[place - turns.states]
            body.entries[name] = Entering(scope, node, index, axis, body)
        elif place in turns.kept:
            body.entries[name] = Alias(scope, node.inputs[index])
        else:
            output = turns.handed_on(place)
            body.entries[name] = Entering(scope, node, index, None, body, output)
