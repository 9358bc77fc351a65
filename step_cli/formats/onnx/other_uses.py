"""What uses the numbers of a weight besides its products."""

from collections.abc import Iterator

from step_cli.formats.onnx.model import Node
from step_cli.formats.onnx.weight_uses import Uses
from step_cli.formats.onnx.weights.loops import is_loop
from step_cli.formats.onnx.weights.scopes import Scope, Source
from step_cli.formats.onnx.weights.tracer import is_choice, looked_through

SIZES = ("Shape", "Size")  # they look at no numbers


def other_uses(uses: Uses) -> dict[int, str]:
    """What else uses each weight, in words, by the id of the stored tensor."""
    found: dict[int, str] = {}
    weights = {id(use.tensor) for use in uses.products}
    if not weights:
        return found
    for source, words in _readings(uses):
        view = uses.tracer.view(source)
        for piece in view.pieces if view is not None else ():
            if id(piece.tensor) in weights:
                found.setdefault(id(piece.tensor), words)
    return found


def _readings(uses: Uses) -> Iterator[tuple[Source, str]]:
    """Every value that is read by what is no product of ours, and by what.

    What only hands a value on reads nothing: the call of a function, a loop, and the
    operators that are looked through, whose results are followed instead.
    """
    for scope in uses.scopes:
        for node in scope.graph.nodes:
            if scope.function(node) is not None or node.op_type in SIZES:
                continue
            handed_on = set(_handed_on(uses, scope, node))
            for index, name in enumerate(node.inputs):
                source = uses.tracer.source(scope, name)
                known = (id(scope), id(node), index) in uses.edges
                if source is not None and not known and index not in handed_on:
                    yield source, _called(node)
        for name in _read_outputs(uses, scope):
            source = uses.tracer.source(scope, name)
            if source is not None:
                yield source, f"the output {name!r}"


def _handed_on(uses: Uses, scope: Scope, node: Node) -> Iterator[int]:
    """The inputs of a node that it hands on, to its results or to its body."""
    for name in node.outputs:
        made = scope.made.get(name)
        if made is None or looked_through(made) is None:
            break
        if uses.tracer.view(made) is not None:
            yield from (index for index, _ in uses.tracer.followed(made))
    for body in scope.inside.get(id(node), []) if is_loop(node) else ():
        turns = scope.turns(node, body.graph)
        yield from (turns.first + state for state in turns.kept)
        first = turns.first + turns.states
        yield from range(first, first + len(turns.axes))


def _read_outputs(uses: Uses, scope: Scope) -> list[str]:
    """The outputs of a graph that are not followed any further."""
    node, outer = scope.owner, scope.outer
    if node is None or outer is None:
        return scope.graph.outputs
    if scope.is_function:
        return []
    if is_choice(node):
        made = zip(node.outputs, scope.graph.outputs, strict=False)
        views = ((uses.tracer.view(outer.find(name)), own) for name, own in made)
        return [own for view, own in views if view is None]
    turns = outer.turns(node, scope.graph)
    kept = {turns.handed_on(state) for state in turns.kept}
    return [name for name in scope.graph.outputs if name not in kept]


def _called(node: Node) -> str:
    name = repr(node.name) if node.name else f"of {', '.join(node.outputs)!r}"
    return f"{node.op_type} node {name}"
