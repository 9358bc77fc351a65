"""``train --evaluate``: the metrics of a checkpoint, or of an ONNX file, as it is.

A checkpoint is loaded into the model of the configuration; an ONNX file is a model by
itself, which ONNX Runtime runs. Data, losses and scores are the same for both.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from torch import nn

from step_cli.commands.export.source import refuse_nonfinite
from step_cli.commands.verify.counted import Counted, count_layers
from step_cli.config.train import TrainConfig
from step_cli.data.batch import Dataset
from step_cli.data.load import load_data
from step_cli.data.model_fit import say_misfits
from step_cli.data.said import found_in
from step_cli.errors import naming
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.open import open_checkpoint
from step_cli.models.onnx_graph import OnnxGraph
from step_cli.models.spec import build_model, load_weights
from step_cli.models.start_weights import refuse_non_finite
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.nm.selection import Layer
from step_cli.optim.layers import choose_layers, density, plan_of
from step_cli.optim.stays_dense import coverage_of, overall_density
from step_cli.render.status_line import working_on
from step_cli.reports import TrainReport
from step_cli.training.distributed import Processes, process_group
from step_cli.training.evaluate import evaluate
from step_cli.training.memory import translate_memory_errors
from step_cli.training.setup import selection
from step_cli.training.wrapping import parallelize

DENSE = NMPattern(1, 1)  # to count non-zeros alone


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: On the device of this process, or spread over the processes.
        plan: The patterns that are stored with it.
        density: Share of non-zeros among its planned weights.
        overall_density: Share of non-zeros among all its layer weights.
        runtime: What computes, if it is not PyTorch.
    """

    model: nn.Module
    plan: Plan
    density: float
    overall_density: float
    runtime: str | None = None


def evaluate_checkpoint(config: TrainConfig, path: Path) -> TrainReport:
    """The metrics of any checkpoint that fits the model, or of an ONNX file.

    Nothing is written.

    Raises:
        StepError: Something the user can mend.
    """
    with (
        translate_memory_errors(config.train),
        process_group(config.train) as processes,
    ):
        with working_on(f"reading {path}"):
            checkpoint = open_checkpoint(path)
            is_graph = checkpoint.format == "onnx"
            subject = (
                _graph(checkpoint)
                if is_graph
                else _trained(config, checkpoint, processes)
            )
        data = load_data(config.data)
        say_misfits(data, config.data.source, getattr(subject.model, "config", None))
        with naming(file=path if is_graph else None):
            metrics = _metrics(config, subject.model, data, processes)
    patterns = sorted({str(layer.pattern) for layer in subject.plan.values()})
    return TrainReport(
        ok=True,
        recipe=None,
        pattern=", ".join(patterns) or None,
        steps=0,
        switch=None,
        metrics=metrics,
        dense_metrics=None,
        density=subject.density,
        overall_density=subject.overall_density,
        run_dir=str(path),
        parallel=processes.kind,
        processes=processes.size,
        data=found_in(data),
        runtime=subject.runtime,
    )


def _metrics(
    config: TrainConfig, model: nn.Module, data: Dataset, processes: Processes
) -> dict[str, float]:
    size, precision = config.train.batch_size, config.train.precision
    if isinstance(model, OnnxGraph):
        precision = "fp32"  # its own is in the file
        if model.batch is not None:  # no more copies of samples than need be
            own = ceil(size / processes.size / model.batch) * model.batch
            size = own * processes.size
    return evaluate(model, data.held_out, processes, precision, batch_size=size)


def _trained(
    config: TrainConfig, checkpoint: Checkpoint, processes: Processes
) -> Subject:
    """The model of the configuration with the weights of a checkpoint."""
    model = build_model(config.model.source, config.model.options).model
    places = load_weights(model, checkpoint)
    refuse_non_finite(model, checkpoint.path, places)
    given = checkpoint.plan or {}
    stored = {places[name]: given[name] for name in given if name in places}
    chosen = choose_layers(model, selection(config))
    plan = stored or plan_of(chosen)
    coverage = coverage_of(chosen, plan, {})
    state = model.state_dict()
    kept = density(state, plan), overall_density(state, coverage)
    parallelize(model, plan, processes, compile=config.train.compile)
    return Subject(model, stored, *kept)


def _graph(checkpoint: Checkpoint) -> Subject:
    """An ONNX file, to be run as it is."""
    model = OnnxGraph(checkpoint.path)
    products: dict[str, Layer[NamedTensor]] = {}
    for tensor in checkpoint.tensors:
        if tensor.is_weight and tensor.skip is None and tensor.axis is not None:
            layer = Layer.alone(tensor, NMSpec(DENSE, tensor.axis))
            products.setdefault(tensor.name, layer)
    counted = count_layers(list(products.values()))
    refuse_nonfinite(counted, checkpoint.path)
    plan = {name: s for name, s in (checkpoint.plan or {}).items() if name in products}
    planned = [layer for layer in counted if layer.tensor.name in plan]
    kept = _density(planned or counted), _density(counted)
    return Subject(model, plan, *kept, model.runtime)


def _density(counted: list[Counted]) -> float:
    elements = sum(layer.counts.elements for layer in counted)
    nonzeros = sum(layer.counts.nonzeros for layer in counted)
    return nonzeros / elements if elements else 1.0
