"""The network of a checkpoint whose model is a PyTorch module."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt
from torch import Tensor

from step_cli.channels.network import Network
from step_cli.channels.torch_graph import trace
from step_cli.errors import UsageError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.huggingface.model import inputs_of, is_transformers
from step_cli.formats.model_json import ModelSource
from step_cli.formats.onnx.example_inputs import (
    all_equal,
    example_tensors,
    inputs_of_examples,
)
from step_cli.formats.onnx.inputs import parse_input
from step_cli.formats.onnx.session import torch_outputs
from step_cli.models.runnable import RunnableModel, open_model


def torch_network(
    source: ModelSource, checkpoint: Checkpoint, inputs: Sequence[str]
) -> Network:
    """Build the model, trace it, and follow its channels.

    Args:
        source: What builds it.
        checkpoint: Its weights.
        inputs: What it takes, ``NAME:DTYPE:SHAPE``; empty: as the model says.

    Raises:
        UsageError: Nothing says what it takes.
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
    held = {id(value) for value in tensors.values()}
    for value in traced.parameters.values():
        if id(value) not in held:
            traced.flow.fix(value, "the checkpoint does not hold it as it is")
    return Network(traced.flow, tensors, partial(_outputs, source, examples))


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
        "--permute traces the model: say what it takes, such as "
        "--input x:float32:1x3x224x224"
    )
