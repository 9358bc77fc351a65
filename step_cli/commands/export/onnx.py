"""`export --to onnx`: written, checked, compared with PyTorch, its pattern verified."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from step_cli.commands.export.bench import time_against_dense, times_engine
from step_cli.commands.export.model import LoadedModel, examples_for, load_model
from step_cli.commands.export.parity import compare, reference
from step_cli.commands.export.quantized import compared, quantize, with_quantizers
from step_cli.commands.export.samples import Samples, read_samples
from step_cli.commands.export.source import Source, refuse_nonfinite
from step_cli.commands.verify.counted import Counted, count_layers
from step_cli.config.commands import ExportConfig, Precision
from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.files.temporary import temporary_directory
from step_cli.formats.onnx.exporter import (
    DEFAULT_OPSET,
    OnnxExport,
    check_inputs,
    export_onnx,
    need_export_libraries,
)
from step_cli.formats.onnx.publish import OnnxPlace, staged_onnx
from step_cli.formats.onnx.reader import open_onnx
from step_cli.formats.onnx.weight_uses import operators_of
from step_cli.nm.pattern import NMSpec
from step_cli.nm.selection import Layer
from step_cli.render.status_line import working_on
from step_cli.reports import BenchReport, ExportLayer, Parity, QuantizationReport

if TYPE_CHECKING:
    from torch import Tensor


class CheckFailedError(Exception):
    """A check of what was written failed; it ends a `staged` block unpublished."""


@dataclass(frozen=True)
class WrittenOnnx:
    """An ONNX file and what its checks found.

    Attributes:
        precision: fp32, fp16 or bf16.
        opset: Of the graph.
        layers: Whether each layer of the plan holds its pattern in the graph.
        parity: The comparison with PyTorch, or None without one.
        parity_precision: The precision it was made in, or None.
        bench: Its time in ONNX Runtime, with ``--bench``.
        size_bytes: Of the model file, and of its data file if there is one.
        quantization: What became of it with ``--quantize``.
    """

    precision: Precision
    opset: int
    layers: list[ExportLayer]
    parity: Parity | None
    parity_precision: str | None
    bench: BenchReport | None
    size_bytes: int
    quantization: QuantizationReport | None = None

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        broken = any(layer.pattern_ok is False for layer in self.layers)
        verified = self.verified and not broken
        if self.quantization is not None and not self.quantization.ok:
            return False
        return verified and (self.parity is None or self.parity.ok)

    @property
    def verified(self) -> bool:
        """Whether the pattern of any layer was seen in the file."""
        return any(layer.pattern_ok is not None for layer in self.layers)


def to_onnx(config: ExportConfig, source: Source) -> WrittenOnnx:
    """Write the ONNX file; nothing is published unless every check passes."""
    need_export_libraries()
    loaded = load_model(config, source.checkpoint, source.plan)
    target, inputs = config.out, source.inputs
    with (
        suppress(CheckFailedError),
        staged_onnx(target, force=config.force, inputs=inputs) as place,
    ):
        written = write_onnx(config, loaded, place)
        if not written.ok:
            raise CheckFailedError
    return written


def write_onnx(
    config: ExportConfig,
    loaded: LoadedModel,
    place: OnnxPlace,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> WrittenOnnx:
    """Write the ONNX file of a model, and check it.

    Args:
        config: The options.
        loaded: The model.
        place: The file to write, and one for weights that are too large for it.
        shapes: Sizes of the example inputs, where their dimensions have names.

    Raises:
        StepError: It cannot be written, or onnx.checker refuses it.
    """
    check_inputs(loaded.model, loaded.inputs)
    samples = read_samples(config, loaded) if config.quantize else None
    examples = examples_for(loaded, shapes)
    # Before the tracer, whose messages on a faulty model are hard to read.
    expected = None if config.no_check else reference(loaded, examples)
    parity, compared_in = None, None
    with _traced_place(place, samples) as traced:
        export = _trace(config, loaded, examples, traced)
        if expected is not None:
            path = traced.path
            parity, compared_in = compare(config, loaded, examples, path, expected)
        layers, quantization = _finish(config, loaded, export, traced, place, samples)
    timed = config.bench and not times_engine(config)
    return WrittenOnnx(
        loaded.precision,
        config.opset or DEFAULT_OPSET,
        layers,
        parity,
        compared_in,
        time_against_dense(place.path, examples) if timed else None,
        place.size_bytes(),
        quantization,
    )


@working_on("tracing the model")
def _trace(
    config: ExportConfig,
    loaded: LoadedModel,
    examples: "Mapping[str, Tensor]",
    place: OnnxPlace,
) -> OnnxExport:
    export = export_onnx(
        loaded.model,
        loaded.inputs,
        examples,
        loaded.plan,
        place.path,
        opset=config.opset or DEFAULT_OPSET,
        data_name=place.data_name,
    )
    _check_model(place.path)
    return export


def _finish(
    config: ExportConfig,
    loaded: LoadedModel,
    export: OnnxExport,
    traced: OnnxPlace,
    place: OnnxPlace,
    samples: Samples | None,
) -> tuple[list[ExportLayer], QuantizationReport | None]:
    """Quantize the traced graph, if asked to, and look at what was written."""
    if samples is None or config.quantize is None:
        return _layers(loaded, export, place.path), None
    done = quantize(config.quantize, samples, traced.path, export.plan, place)
    _check_model(place.path)
    layers, faults = with_quantizers(_layers(loaded, export, place.path), done)
    return layers, compared(done, samples, faults)


@contextmanager
def _traced_place(place: OnnxPlace, samples: Samples | None) -> Iterator[OnnxPlace]:
    """Where the traced graph is written: a folder of its own if it is quantized."""
    if samples is None:
        yield place
        return
    with temporary_directory("fp32") as folder:
        yield OnnxPlace(folder / "model.onnx")


@working_on("running onnx.checker")
def _check_model(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        line = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise InputError(f"onnx.checker refuses the exported model: {line}") from None


@working_on("counting the non-zeros of the graph")
def _layers(loaded: LoadedModel, export: OnnxExport, path: Path) -> list[ExportLayer]:
    """Verify each layer in the file, along the axes that its own products have."""
    stored = {tensor.name: tensor for tensor in open_onnx(map_file(path)).tensors}
    in_graph: dict[str, dict[str, NMSpec]] = {name: {} for name in loaded.plan}
    for weight in export.weights:  # a weight may stand there in both directions
        place, layer = weight.onnx_name, loaded.plan.get(weight.name)
        axis = stored[place].axis if place in stored else None
        if layer is not None and axis is not None:
            in_graph[weight.name][place] = NMSpec(layer.pattern, axis)
    every = {item for specs in in_graph.values() for item in specs.items()}
    counted = count_layers([Layer.alone(stored[name], spec) for name, spec in every])
    refuse_nonfinite(counted, path)
    found = {(layer.tensor.name, layer.spec): layer for layer in counted}
    operators = operators_of(path)
    layers = []
    for name, specs in in_graph.items():
        own = [found[item] for item in sorted(specs.items())]
        worst = min(own, key=lambda layer: layer.ok, default=None)
        layers.append(_layer(loaded, name, worst, operators.get(name)))
    return sorted(layers, key=lambda layer: layer.name)


def _layer(
    loaded: LoadedModel, name: str, counted: Counted | None, operators: set[str] | None
) -> ExportLayer:
    """One layer of the plan.

    Args:
        loaded: The model.
        name: Of its weight.
        counted: The weight as a product of the graph uses it, or None.
        operators: What uses it else; None if it is not in the graph.
    """
    spec = loaded.plan[name]
    onnx_name, holds, advice = None, None, None
    if counted is not None:
        onnx_name, holds = counted.tensor.name, counted.ok
        if not holds:
            advice = (
                f"{counted.counts.violations} of {counted.counts.groups} groups along "
                f"axis {counted.spec.axis} of {onnx_name} break {spec.pattern} in the "
                "graph"
            )
    elif operators is None:
        advice = "not in the graph: unused, or folded into another tensor"
    else:
        onnx_name = name
        advice = f"used by {', '.join(sorted(operators))}: no sparse kernels"
    return ExportLayer(
        name=loaded.checkpoint_names[name],
        onnx_name=onnx_name,
        pattern=str(spec.pattern),
        axis=spec.axis,
        pattern_ok=holds,
        advice=advice,
    )
