"""What uses the numbers of a weight besides its products."""

from collections.abc import Iterator

from step_cli.formats.onnx.model import Node, Tensor
from step_cli.formats.onnx.weight_uses import Uses
from step_cli.formats.onnx.weights.loops import is_loop
from step_cli.formats.onnx.weights.scopes import Made, Scope, Source
from step_cli.formats.onnx.weights.tracer import is_choice, looked_through

SIZES = ("Shape", "Size")  # they look at no numbers


def other_uses(uses: Uses) -> dict[int, str]:
    """What else uses each weight, in words, by the id of the stored tensor."""
    found: dict[int, str] = {}
    read: set[int] = set()  # ids of all values that something reads
    for source, words, known in _readings(uses):
        read.add(id(source))
        if not known and id(source) in uses.followed:
            for tensor in _behind(uses, source):
                found.setdefault(id(tensor), words)
    for source in list(uses.followed.values()):
        for beside in _other_outputs(source):
            if id(beside) in read and id(beside) not in uses.followed:
                words = f"the output {beside.node.outputs[beside.index]!r} of "
                for tensor in _behind(uses, source):
                    found.setdefault(id(tensor), words + _called(beside.node))
    return found


def _readings(uses: Uses) -> Iterator[tuple[Source, str, bool]]:
    """Every value that is read, by what, and whether that is known to be a product's.

    What only hands a value on, such as the call of a function, reads nothing.
    """
    followed = (one for one in uses.followed.values() if isinstance(one, Made))
    chosen = {(id(one.scope), id(one.node)) for one in followed if is_choice(one.node)}
    for scope in uses.scopes:
        for node in scope.graph.nodes:
            for index in _read_inputs(scope, node):
                source = uses.tracer.source(scope, node.inputs[index])
                if source is not None:
                    known = (id(scope), id(node), index) in uses.edges
                    yield source, _called(node), known
        names = [] if scope.is_function else scope.graph.outputs
        kept = _handed_on(scope)
        known = (id(scope.outer), id(scope.owner)) in chosen
        for name in names:
            source = uses.tracer.source(scope, name)
            if source is not None and name not in kept:
                yield source, f"the output {name!r}", known


def _read_inputs(scope: Scope, node: Node) -> list[int]:
    """The inputs whose numbers a node reads."""
    named = [index for index, name in enumerate(node.inputs) if name]
    if scope.function(node) is not None or node.op_type in SIZES:
        return []
    for body in scope.inside.get(id(node), []) if is_loop(node) else ():
        turns = scope.turns(node, body.graph)
        named = [index for index in named if index - turns.first not in turns.kept]
    return named


def _handed_on(scope: Scope) -> set[str]:
    """What the body of a loop hands on as it was given it."""
    node, outer = scope.owner, scope.outer
    if node is None or outer is None or not is_loop(node):
        return set()
    turns = outer.turns(node, scope.graph)
    return {turns.handed_on(state) for state in turns.kept}


def _other_outputs(source: Source) -> list[Made]:
    """What else a node makes of an operand, as Split does."""
    if not isinstance(source, Made) or looked_through(source) is None:
        return []
    made = [source.scope.made.get(name) for name in source.node.outputs if name]
    return [one for one in made if one is not None and one is not source]


def _behind(uses: Uses, source: Source) -> list[Tensor]:
    """The stored tensors that a value is made of."""
    view = uses.tracer.view(source)
    return [] if view is None else [piece.tensor for piece in view.pieces]


def _called(node: Node) -> str:
    name = repr(node.name) if node.name else f"of {', '.join(node.outputs)!r}"
    return f"{node.op_type} node {name}"
