"""The flow of channels through a PyTorch model, traced with ``torch.export``.

The trace holds no weights, only their shapes. An operator that the tables below do not
name keeps the channels of all it touches in place.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from step_cli.channels.axes import find
from step_cli.channels.flow import Flow, Value
from step_cli.channels.torch_call import Call
from step_cli.channels.torch_rules import CREATED, RULES, SILENT
from step_cli.errors import InputError
from step_cli.formats.quiet import quiet

log = logging.getLogger(__name__)


@dataclass
class Traced:
    """A model's graph, run through the rules.

    Attributes:
        flow: All tensors of it.
        parameters: The axes of each parameter and saved buffer, by its name.
    """

    flow: Flow = field(default_factory=Flow)
    parameters: dict[str, Value] = field(default_factory=dict)


def trace(model: nn.Module, examples: Mapping[str, Tensor]) -> Traced:
    """Trace ``model`` and follow its channels.

    Args:
        model: In evaluation mode.
        examples: Arguments of its ``forward``.

    Raises:
        InputError: torch cannot trace it.
    """
    with _shapes_only(model):
        try:
            with quiet(), torch.no_grad():
                program = torch.export.export(model, (), kwargs=dict(examples))
        except Exception as error:  # of every kind
            log.debug("torch.export", exc_info=error)
            said = (str(error).strip().splitlines() or [""])[0]
            raise InputError(
                f"torch cannot trace this model: {type(error).__name__}: {said[:200]}"
            ) from None
        return _followed(model, program)


@contextmanager
def _shapes_only(model: nn.Module) -> Iterator[None]:
    """Inside, parameters are of fp32 and take no memory, as nothing touches them."""
    stored: list[tuple[nn.Module, str, nn.Parameter]] = []
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                stored.append((module, name, old))
                if id(old) not in made:
                    dtype = torch.float32 if old.is_floating_point() else old.dtype
                    empty = torch.empty(old.shape, dtype=dtype)
                    made[id(old)] = nn.Parameter(empty, requires_grad=False)
    try:
        for module, name, old in stored:
            module._parameters[name] = made[id(old)]
        yield
    finally:
        for module, name, old in stored:
            module._parameters[name] = old


def _followed(model: nn.Module, program: "torch.export.ExportedProgram") -> Traced:
    traced = Traced()
    values: dict[fx.Node, Any] = _given(model, program, traced)
    for node in program.graph_module.graph.nodes:
        if node.op == "call_function":
            values[node] = _called(node, values, traced.flow)
        elif node.op == "output":
            for result in node.all_input_nodes:
                for value in _each(values.get(result)):
                    traced.flow.fix(value, "it leaves the model")
    return traced


def _given(
    model: nn.Module, program: "torch.export.ExportedProgram", traced: Traced
) -> dict[fx.Node, Any]:
    """The axes of inputs, parameters and constants. Tied parameters are one."""
    saved = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }
    one: dict[int, Value] = {}
    for name, tensor in saved.items():
        if id(tensor) not in one:
            one[id(tensor)] = traced.flow.fresh(tensor.shape)
        traced.parameters[name] = one[id(tensor)]
    targets = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if hasattr(spec.arg, "name")
    }
    values: dict[fx.Node, Any] = {}
    for node in program.graph_module.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            known = traced.parameters.get(targets.get(node.name) or "")
            shape = node.meta["val"].shape
            values[node] = known or traced.flow.fresh(shape, "it enters the model")
    return values


def _called(node: fx.Node, values: Mapping[fx.Node, Any], flow: Flow) -> Any:
    """What a node makes: a value, a list of values, or None for what is no tensor."""
    if getattr(node.target, "__name__", "") == "getitem":
        source, place = node.args[0], int(str(node.args[1]))
        found = values.get(source) if isinstance(source, fx.Node) else None
        return found[place] if isinstance(found, list) else None
    call = Call(flow, _arguments(node), _shapes(node.meta.get("val")), values)
    name = _name_of(node.target)
    if name in SILENT:
        return None
    if name in CREATED:
        return flow.fresh(call.shape, f"{name} makes it")
    rule = RULES.get(name)
    made = None
    if rule is not None:
        with suppress(LookupError):  # an argument that the rule does not expect
            made = rule(call)
    if [_sizes(value) for value in _each(made)] != call.shapes or made is None:
        return _unknown(node, name, values, flow)
    return made


def _unknown(
    node: fx.Node, name: str, values: Mapping[fx.Node, Any], flow: Flow
) -> Any:
    why = f"{name} may treat each channel in its own way"
    for given in node.all_input_nodes:
        for value in _each(values.get(given)):
            flow.fix(value, why)
    result = node.meta.get("val")
    made = [flow.fresh(shape, why) for shape in _shapes(result)]
    return made if isinstance(result, list | tuple) else made[0] if made else None


def _sizes(value: Value) -> tuple[int, ...]:
    return tuple(find(axis).size for axis in value)


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    defaults = {a.name: a.default_value for a in schema.arguments}
    return defaults | given | dict(node.kwargs)


def _name_of(target: Any) -> str:
    """``add`` for ``aten.add_.Tensor``: in place or not, the channels go one way."""
    name = str(getattr(target, "_opname", getattr(target, "__name__", target)))
    return name if name.startswith("_") else name.removesuffix("_")


def _shapes(result: Any) -> list[tuple[int, ...]]:
    if isinstance(result, Tensor):
        return [tuple(int(size) for size in result.shape)]
    if isinstance(result, list | tuple):
        return [shape for item in result for shape in _shapes(item)]
    return []


def _each(made: Any) -> list[Value]:
    return [] if made is None else made if isinstance(made, list) else [made]
