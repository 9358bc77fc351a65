"""From a checkpoint to a model that can be traced: its source, precision and inputs."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from step_cli.commands.export.bench import times_engine
from step_cli.config.commands import ExportConfig, Precision
from step_cli.errors import InputError, NonFiniteError, UsageError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.onnx.inputs import GraphInput, parse_input
from step_cli.models.source import ModelSource, model_source
from step_cli.nm.pattern import Plan
from step_cli.render.status_line import working_on

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

log = logging.getLogger(__name__)
PRECISIONS: dict[str, Precision] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
}
DTYPES = {precision: dtype for dtype, precision in PRECISIONS.items()}


@dataclass(frozen=True)
class LoadedModel:
    """A trained model in evaluation mode, and how to call it.

    Attributes:
        model: Its parameters have ``precision``.
        plan: Of its weights, in the model's own names.
        checkpoint_names: The checkpoint's name of each weight of ``plan``.
        inputs: What ``forward`` takes.
        vocabulary: Integer inputs stay below it.
        examples: Tensors from the model's source, or None.
        precision: fp32, fp16 or bf16.
        spec: What built it.
    """

    model: "nn.Module"
    plan: Plan
    checkpoint_names: Mapping[str, str]
    inputs: list[GraphInput]
    vocabulary: int
    examples: "dict[str, Tensor] | None"
    precision: Precision
    spec: str


def load_model(config: ExportConfig, checkpoint: Checkpoint, plan: Plan) -> LoadedModel:
    """Build the model of a checkpoint, load its weights, set its precision.

    Raises:
        UsageError: Neither model nor inputs are known.
        InputError: The weights do not fit the model.
        NonFiniteError: A weight overflows in the chosen precision.
    """
    loaded = _built(model_source(config.model, checkpoint), checkpoint, plan)
    if config.input:
        inputs = [parse_input(text) for text in config.input]
        loaded = replace(loaded, inputs=inputs, examples=None)
    if not loaded.inputs:
        first = next(iter(inspect.signature(loaded.model.forward).parameters), "x")
        raise UsageError(
            f"--input: name what the model takes, such as --input {first}:"
            "float32:1x3x224x224"
        )
    precision = precision_of(config, checkpoint, plan)
    if config.bench and precision == "bf16" and not times_engine(config):
        raise UsageError("--bench: ONNX Runtime has no bf16 kernels for the CPU")
    loaded.model.eval()
    cast(loaded.model, precision, config.checkpoint)
    inputs = [in_precision(given, precision) for given in loaded.inputs]
    return replace(loaded, inputs=inputs, precision=precision)


def precision_of(config: ExportConfig, checkpoint: Checkpoint, plan: Plan) -> Precision:
    """That of the options, else the checkpoint's; engines default to 16 bits.

    Quantized graphs are fp32 around their codes: half precision has no room for the
    scales of small weights.
    """
    if config.quantize is not None:
        return "fp32"
    if config.precision is not None:
        return config.precision
    dtypes = [tensor.dtype for tensor in checkpoint.tensors if tensor.name in plan]
    own = PRECISIONS.get(dtypes[0], "fp32")
    if dtypes[0] not in PRECISIONS and config.to == "onnx":
        log.warning("%s weights become fp32; see --precision", dtypes[0])
    if config.to != "tensorrt":
        return own
    chosen: Precision = "bf16" if own == "bf16" else "fp16"
    log.info("the engine is %s, as fp32 has no sparse kernels; see --precision", chosen)
    return chosen


def cast(model: "nn.Module", precision: Precision, file: Path) -> None:
    """Give all floating parameters and buffers one precision.

    Raises:
        NonFiniteError: A finite number becomes infinite.
    """
    import torch

    dtype = getattr(torch, DTYPES[precision])
    largest = torch.finfo(dtype).max
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.numel():
            highest = float(value.abs().max())
            if largest < highest < float("inf"):
                raise NonFiniteError(
                    f"its largest value {highest:g} overflows {precision}; "
                    "use --precision bf16",
                    file=file,
                    tensor=name,
                )
    model.to(dtype)


def in_precision(given: GraphInput, precision: Precision) -> GraphInput:
    """A floating input takes the model's precision, as its layers demand."""
    if "float" not in given.dtype or given.dtype == DTYPES[precision]:
        return given
    return replace(given, dtype=DTYPES[precision])


@working_on("building the model")
def _built(source: ModelSource, checkpoint: Checkpoint, plan: Plan) -> LoadedModel:
    from step_cli.formats.onnx.inputs import inputs_of_examples
    from step_cli.models.spec import build_model, load_weights

    built = build_model(source.spec, source.options)
    places = load_weights(built.model, checkpoint)
    names = _names_in(checkpoint, plan, places)
    examples = built.example_inputs
    inputs = inputs_of_examples(examples) if examples else list(built.inputs)
    renamed = {name: plan[stored] for name, stored in names.items()}
    return LoadedModel(
        built.model,
        renamed,
        names,
        inputs,
        built.vocabulary,
        examples,
        "fp32",
        source.spec,
    )


def _names_in(
    checkpoint: Checkpoint, plan: Plan, places: Mapping[str, str]
) -> dict[str, str]:
    """The checkpoint's name of each planned weight, by the model's."""
    lost = [name for name in plan if name not in places]
    if lost:
        raise InputError(
            "transformers changes this tensor when it loads it; exclude it",
            file=checkpoint.path,
            tensor=lost[0],
        )
    return {places[name]: name for name in plan}


def examples_for(
    loaded: LoadedModel, shapes: Mapping[str, Sequence[int]] | None = None
) -> "dict[str, Tensor]":
    """Tensors to trace and to compare with, in the precision of the model."""
    from step_cli.formats.onnx.inputs import all_equal, example_tensors

    if loaded.examples is not None and not all_equal(loaded.examples):
        return {
            given.name: loaded.examples[given.name].to(_torch_dtype(given))
            for given in loaded.inputs
        }
    return example_tensors(loaded.inputs, shapes=shapes, highest=loaded.vocabulary)


def _torch_dtype(given: GraphInput) -> "torch.dtype":
    import torch

    dtype: torch.dtype = getattr(torch, given.dtype)
    return dtype
