"""Write a PyTorch model as ONNX whose weights and nodes carry the modules' names.

`torch.onnx.export(dynamo=True)` transposes and renames the weight of a Linear on a 3-D
input, and stores source paths; `onnx_names` undoes the renaming and drops the paths.
Every library here is imported where it is used.
"""

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_cli.errors import (
    InputError,
    MissingError,
    StepError,
    StoppedError,
    UsageError,
)
from step_cli.formats.onnx.inputs import GraphInput
from step_cli.formats.onnx.names import OnnxWeight, name_weights, strip_metadata
from step_cli.formats.plan import KEY as PLAN_KEY
from step_cli.formats.plan import plan_json
from step_cli.formats.quiet import quiet
from step_cli.nm.pattern import NMSpec, Plan

if TYPE_CHECKING:
    import onnx_ir
    from torch import Tensor, nn

LARGEST_FILE = 2**31 - 2**24  # bytes of weights; protobuf stops at 2 GiB in all
OPSETS = range(17, 26)  # that torch 2.13 writes
DEFAULT_OPSET = 20


@dataclass(frozen=True)
class OnnxExport:
    """A finished export.

    Attributes:
        weights: Where each weight of the model is in the graph.
        plan: The plan in the file's own names and axes.
        data_file: Whether the weights are in a file of their own.
    """

    weights: list[OnnxWeight]
    plan: Plan
    data_file: bool


def need_export_libraries() -> None:
    """Refuse to start where a library of the ``export`` extra is missing.

    Raises:
        MissingError: One is.
    """
    from importlib.util import find_spec

    for name in ("torch", "onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            raise MissingError(
                f"exporting to ONNX needs {name}: pip install 'step-cli[export]'"
            )


def export_onnx(
    model: "nn.Module",
    inputs: Sequence[GraphInput],
    examples: Mapping[str, "Tensor"],
    plan: Plan,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    data_name: str | None = None,
    largest_file: int = LARGEST_FILE,
) -> OnnxExport:
    """Write ``model`` to ``path``.

    Args:
        model: In evaluation mode; its parameters decide the precision.
        inputs: What it takes, by the names of its ``forward``.
        examples: One tensor for each of ``inputs``.
        plan: In the model's names and axes.
        path: The file to write.
        opset: The ONNX operator set.
        data_name: Name of the file for weights beside ``path``, where one is needed
            (default: the name of ``path`` and ``.data``).
        largest_file: Bytes of weights that ``path`` itself may hold.

    Raises:
        UsageError: An input is not one of the model's, or a size cannot vary.
        InputError: An operator has no ONNX form, or the model cannot be traced.
    """
    import onnx_ir

    graph = _trace(model, inputs, examples, opset)
    weights = name_weights(graph, model.state_dict())
    strip_metadata(graph)
    _forget_shapes_of_initializers(graph)
    plan = {
        weight.onnx_name: NMSpec(plan[weight.name].pattern, weight.axis)
        for weight in weights
        if weight.name in plan
    }
    graph.metadata_props[PLAN_KEY] = plan_json(plan)
    outside = _size_bytes(graph) > largest_file
    data = (data_name or f"{path.name}.data") if outside else None
    with quiet():
        onnx_ir.save(graph, path, external_data=data)
    return OnnxExport(weights, plan, outside)


def _forget_shapes_of_initializers(graph: "onnx_ir.Model") -> None:
    """Leave out what the initializers say themselves.

    ONNX Runtime's quantizer turns weights around, and the shapes beside them would be
    wrong then.
    """
    for value in graph.graph.initializers.values():
        value.type = value.shape = None


def check_inputs(model: "nn.Module", inputs: Sequence[GraphInput]) -> None:
    """Refuse inputs that the model does not take.

    Raises:
        UsageError: Its ``forward`` has no parameter of such a name.
    """
    known = list(inspect.signature(model.forward).parameters)
    for given in inputs:
        if given.name not in known:
            raise UsageError(
                f"--input: the model's forward takes no {given.name}; "
                f"it takes {', '.join(known)}"
            )


def _size_bytes(graph: "onnx_ir.Model") -> int:
    return sum(
        value.const_value.nbytes
        for value in graph.graph.initializers.values()
        if value.const_value is not None
    )


def _trace(
    model: "nn.Module",
    inputs: Sequence[GraphInput],
    examples: Mapping[str, "Tensor"],
    opset: int,
) -> "onnx_ir.Model":
    import torch

    check_inputs(model, inputs)
    shapes = {
        given.name: {
            axis: size for axis, size in enumerate(given.shape) if isinstance(size, str)
        }
        for given in inputs
    }
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (),
                kwargs=dict(examples),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=shapes if any(shapes.values()) else None,
            )
    except Exception as error:
        logging.getLogger(__name__).debug("torch.onnx.export", exc_info=error)
        raise _explain(error, inputs) from None
    assert program is not None
    _check_dynamic(program.model, inputs)
    return program.model


def _check_dynamic(graph: "onnx_ir.Model", inputs: Sequence[GraphInput]) -> None:
    """Refuse a size that is to vary, where the tracer found it fixed."""
    traced = {value.name: value.shape for value in graph.graph.inputs}
    for given in inputs:
        shape = traced.get(given.name)
        if shape is None:
            raise UsageError(f"--input: the model does not use {given.name}")
        for wanted, found in zip(given.shape, shape, strict=True):
            if isinstance(wanted, str) and isinstance(found, int):
                raise _fixed(given, wanted, found)


def _fixed(given: GraphInput, dimension: str, size: object) -> UsageError:
    return UsageError(
        f"--input: {given}: the model does not let {dimension} vary "
        f"(traced as {size}); give it as a number"
    )


def _explain(error: Exception, inputs: Sequence[GraphInput]) -> BaseException:
    """The error behind the exporter's page of text, in one line."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for cause in reversed(chain):
        # Stopped on request, while torch was at work.
        if isinstance(cause, StepError | StoppedError | KeyboardInterrupt):
            return cause
        text = str(cause)
        operator = re.search(r"No ONNX function found for (\S.*?)(?:\. |$)", text, re.M)
        if operator is not None:
            return InputError(f"no ONNX form of the operator {operator[1]}")
        if re.search("Constraints violated|conflicts between user-specified", text):
            moving = [str(given) for given in inputs if given.dynamic]
            return UsageError(
                f"--input: a named size of {', '.join(moving)} cannot vary in this "
                "model; give it as a number"
            )
    deepest = chain[-1]
    return InputError(
        f"torch cannot trace this model: {type(deepest).__name__}: "
        f"{_first_line(str(deepest))}; -v shows all"
    )


def _first_line(text: str) -> str:
    lines: list[Any] = [line.strip() for line in text.splitlines() if line.strip()]
    return str(lines[0])[:200] if lines else ""
