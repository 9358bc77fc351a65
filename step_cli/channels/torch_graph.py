"""The channels of a PyTorch model, followed through its graph of ``torch.export``.

The trace holds no weights, only their shapes. An operator that the rules do not know
keeps the channels of all it touches in place.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from step_cli.channels.graph import GraphAxes, Network, TensorAxes, apply_rule
from step_cli.channels.torch_operators import RULES, SILENT, translate
from step_cli.errors import InputError, UsageError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.huggingface.model import inputs_of, is_transformers
from step_cli.formats.onnx.inputs import (
    all_equal,
    example_tensors,
    inputs_of_examples,
    parse_input,
)
from step_cli.formats.onnx.session import torch_outputs
from step_cli.formats.quiet import quiet
from step_cli.models.runnable import RunnableModel, open_model
from step_cli.models.source import ModelSource
from step_cli.nm.weight_rule import SkipReason
from step_cli.optim.module_kinds import stays_dense

log = logging.getLogger(__name__)


def torch_network(
    source: ModelSource, checkpoint: Checkpoint, inputs: Sequence[str]
) -> Network:
    """Build the model, trace it, and follow its channels.

    Args:
        source: What builds it.
        checkpoint: Its weights.
        inputs: What it takes, ``NAME:DTYPE:SHAPE``; empty: those of the model.

    Raises:
        UsageError: What it takes is not known.
        InputError: The weights do not fit it, or torch cannot trace it.
    """
    runnable = open_model(source, checkpoint, wide=False)
    examples = _examples(runnable, inputs)
    traced = trace(runnable.model, examples)
    tensors = {
        name: traced.parameters[place]
        for name, place in runnable.names.items()
        if place in traced.parameters
    }
    held = {id(axes) for axes in tensors.values()}
    for axes in traced.parameters.values():
        if id(axes) not in held:
            traced.graph.fix(axes, "the checkpoint does not hold it as it is")
    outputs = partial(_outputs, source, examples)
    return Network(traced.graph, tensors, outputs, _stay_dense(runnable))


def _stay_dense(runnable: RunnableModel) -> dict[str, SkipReason]:
    modules = dict(runnable.model.named_modules())
    reasons = {
        name: stays_dense(modules[place.rpartition(".")[0]])
        for name, place in runnable.names.items()
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _outputs(
    source: ModelSource, examples: Mapping[str, Tensor], checkpoint: Checkpoint
) -> list[npt.NDArray[Any]]:
    return torch_outputs(open_model(source, checkpoint).model, examples)


def _examples(runnable: RunnableModel, inputs: Sequence[str]) -> dict[str, Tensor]:
    """Seeded numbers to trace with, and to compare the outputs on."""
    model: Any = runnable.model
    if inputs:
        return example_tensors([parse_input(text) for text in inputs])
    if runnable.examples is not None:
        given = dict(runnable.examples)
        if not all_equal(given):
            return given
        return example_tensors(inputs_of_examples(given))
    if is_transformers(model):
        takes, vocabulary = inputs_of(model)
        if takes:
            return example_tensors(takes, highest=vocabulary)
    raise UsageError(
        "--permute traces the model: give what it takes, such as "
        "--input x:float32:1x3x224x224"
    )


@dataclass
class Traced:
    """A model's graph, run through the rules.

    Attributes:
        graph: All tensors of it.
        parameters: The axes of each parameter and saved buffer, by its name.
    """

    graph: GraphAxes = field(default_factory=GraphAxes)
    parameters: dict[str, TensorAxes] = field(default_factory=dict)


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
            values[node] = _called(node, values, traced.graph)
        elif node.op == "output":
            for result in node.all_input_nodes:
                for axes in _each(values.get(result)):
                    traced.graph.fix(axes, "it leaves the model")
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
    one: dict[int, TensorAxes] = {}
    for name, tensor in saved.items():
        if id(tensor) not in one:
            one[id(tensor)] = traced.graph.new(tensor.shape)
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
            values[node] = known or traced.graph.new(shape, "it enters the model")
    return values


def _called(node: fx.Node, values: Mapping[fx.Node, Any], graph: GraphAxes) -> Any:
    """What a node makes: a tensor, a list of them, or None for what is none."""
    if getattr(node.target, "__name__", "") == "getitem":
        source, place = node.args[0], int(str(node.args[1]))
        found = values.get(source) if isinstance(source, fx.Node) else None
        return found[place] if isinstance(found, list) else None
    name, result = _name_of(node.target), node.meta.get("val")
    if name in SILENT:
        return None
    shapes = _shapes(result)
    made = None
    if name in RULES:
        with suppress(LookupError):  # an argument that the rule does not expect
            inputs, arguments = _arguments(node, values)
            operator = translate(name, inputs, shapes, arguments)
            made = apply_rule(graph, RULES[name], operator)
    if made is None:
        touched = [
            axes for given in node.all_input_nodes for axes in _each(values.get(given))
        ]
        why = f"{name} may treat each channel in its own way"
        made = graph.unknown(touched, shapes, why)
    return made if isinstance(result, list | tuple) else made[0] if made else None


def _arguments(
    node: fx.Node, values: Mapping[fx.Node, Any]
) -> tuple[list[TensorAxes | None], dict[str, Any]]:
    """The axes of tensors, in the order of the arguments; all others, by name."""
    schema = getattr(node.target, "_schema", None)
    declared = [] if schema is None else schema.arguments
    given = dict(zip((a.name for a in declared), node.args, strict=False))
    given = {a.name: a.default_value for a in declared} | given | dict(node.kwargs)
    inputs: list[TensorAxes | None] = []
    for argument in declared:
        if "Tensor" in str(argument.type):
            value = given.pop(argument.name)
            listed = value if isinstance(value, list | tuple) else [value]
            inputs += [_axes_of(item, values) for item in listed]
    return inputs, given


def _axes_of(item: Any, values: Mapping[fx.Node, Any]) -> TensorAxes | None:
    """The axes of a tensor; None for a number, or what is left out."""
    if not isinstance(item, fx.Node):
        return None
    found = values[item]
    if not isinstance(found, tuple):
        raise LookupError(item)
    return found


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


def _each(made: Any) -> list[TensorAxes]:
    return [] if made is None else made if isinstance(made, list) else [made]
