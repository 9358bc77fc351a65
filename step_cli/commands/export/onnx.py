"""`export --to onnx`: written, checked, compared with PyTorch, its pattern verified."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from step_cli.commands.export.bench import time_against_dense, times_engine
from step_cli.commands.export.model import LoadedModel, examples_for, load_model
from step_cli.commands.export.parity import compare, reference
from step_cli.commands.export.source import Source, judge, refuse_nonfinite
from step_cli.commands.verify.layer import Judged
from step_cli.config.commands import ExportConfig
from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.onnx.exporter import (
    DEFAULT_OPSET,
    OnnxExport,
    check_inputs,
    export_onnx,
    need_export_libraries,
)
from step_cli.formats.onnx.publish import staged_onnx
from step_cli.formats.onnx.reader import open_onnx
from step_cli.formats.onnx.weight_uses import operators_of
from step_cli.nm.plan import LayerPlan
from step_cli.reports import BenchReport, ExportBytes, ExportLayer, ExportReport, Parity

NOTHING_VERIFIED = "no layer of the plan is a weight of the graph: nothing to verify"


class CheckFailedError(Exception):
    """A check of what was written failed, so it is not published."""

    def __init__(self, report: ExportReport) -> None:
        super().__init__("a check failed")
        self.report = report


@dataclass(frozen=True)
class WrittenOnnx:
    """An ONNX file and what its checks found.

    Attributes:
        loaded: The model it was made from.
        layers: The first rung of the ladder for each layer of the plan.
        parity: The comparison with PyTorch, or None without one.
        parity_precision: The precision it was made in, or None.
        bench: Its time in ONNX Runtime, if asked for.
        size_bytes: Of the model file, and of its data file if there is one.
    """

    loaded: LoadedModel
    layers: list[ExportLayer]
    parity: Parity | None
    parity_precision: str | None
    bench: BenchReport | None
    size_bytes: int

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        broken = any(layer.pattern_ok is False for layer in self.layers)
        verified = self.verified and not broken
        return verified and (self.parity is None or self.parity.ok)

    @property
    def verified(self) -> bool:
        """Whether the pattern of any layer was seen in the file."""
        return any(layer.pattern_ok is not None for layer in self.layers)


def to_onnx(config: ExportConfig, source: Source) -> ExportReport:
    """Write the ONNX file; nothing is published unless every check passes."""
    need_export_libraries()
    loaded = load_model(config, source.checkpoint, source.plan)
    target, inputs = config.out, source.inputs
    try:
        with staged_onnx(target, force=config.force, inputs=inputs) as place:
            written = write_onnx(config, loaded, place.path, place.data_name)
            report = onnx_report(config, source, written)
            if not written.ok:
                raise CheckFailedError(report)
    except CheckFailedError as failed:
        return failed.report
    return report


def write_onnx(
    config: ExportConfig,
    loaded: LoadedModel,
    path: Path,
    data_name: str,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> WrittenOnnx:
    """Write the ONNX file of a model to ``path``, and check it.

    Args:
        config: The options.
        loaded: The model.
        path: The file to write.
        data_name: Name beside it for weights that are too large for it.
        shapes: Sizes of the example inputs, where their dimensions have names.

    Raises:
        StepError: It cannot be written, or onnx.checker refuses it.
    """
    check_inputs(loaded.model, loaded.inputs)
    examples = examples_for(loaded, shapes)
    # Before the tracer, whose words on a faulty model are hard to read.
    expected = None if config.no_check else reference(loaded, examples)
    export = export_onnx(
        loaded.model,
        loaded.inputs,
        examples,
        loaded.plan,
        path,
        opset=config.opset or DEFAULT_OPSET,
        data_name=data_name,
    )
    _check_model(path)
    layers = _layers(loaded, export, path)
    parity, precision = None, None
    if expected is not None:
        parity, precision = compare(config, loaded, examples, path, expected)
    files = [path, path.with_name(data_name)]
    size = sum(file.stat().st_size for file in files if file.exists())
    bench = None
    if config.bench and not times_engine(config):
        bench = time_against_dense(path, examples)
    return WrittenOnnx(loaded, layers, parity, precision, bench, size)


def onnx_report(
    config: ExportConfig, source: Source, written: WrittenOnnx
) -> ExportReport:
    """What is known once the ONNX file was written."""
    return ExportReport(
        ok=written.ok,
        to=str(config.to),
        output=str(config.out) if written.ok else None,
        bytes=ExportBytes(dense=source.dense_bytes, output=written.size_bytes),
        ratio=source.dense_bytes / written.size_bytes,
        parity=written.parity,
        parity_precision=written.parity_precision,
        layers=written.layers,
        skipped=source.skipped,
        precision=written.loaded.precision,
        opset=config.opset or DEFAULT_OPSET,
        bench=written.bench,
        notes=[] if written.verified else [NOTHING_VERIFIED],
    )


def _check_model(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        line = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise InputError(f"onnx.checker refuses the exported model: {line}") from None


def _layers(loaded: LoadedModel, export: OnnxExport, path: Path) -> list[ExportLayer]:
    """Verify the pattern in the file, with the checker's own idea of axes."""
    stored = {tensor.name: tensor for tensor in open_onnx(map_file(path)).tensors}
    places: dict[str, set[str]] = {}  # a weight may stand there in both directions
    for weight in export.weights:
        places.setdefault(weight.name, set()).add(weight.onnx_name)
    jobs = [
        (name, (stored[place], LayerPlan(layer.pattern, axis)))
        for name, layer in loaded.plan.items()
        for place in sorted(places.get(name, ()))
        if place in stored and (axis := stored[place].axis) is not None
    ]
    judged = judge([job for _, job in jobs])
    refuse_nonfinite(judged, path)
    found: dict[str, Judged] = {}
    for (name, _), item in zip(jobs, judged, strict=True):
        if name not in found or not item.verdict.ok:
            found[name] = item
    operators = operators_of(path)
    layers = [
        _verified(_layer(loaded, name), found[name])
        if name in found
        else _unverified(_layer(loaded, name), name, operators.get(name))
        for name in loaded.plan
    ]
    return sorted(layers, key=lambda layer: layer.name)


def _layer(loaded: LoadedModel, name: str) -> ExportLayer:
    layer = loaded.plan[name]
    return ExportLayer(
        name=loaded.checkpoint_names[name], pattern=str(layer.pattern), axis=layer.axis
    )


def _verified(layer: ExportLayer, item: Judged) -> ExportLayer:
    verdict = item.verdict
    layer.onnx_name, layer.pattern_ok = verdict.name, verdict.ok
    if not verdict.ok:
        layer.advice = (
            f"{verdict.violations} of {verdict.groups} groups along axis "
            f"{verdict.axis} of {verdict.name} break {layer.pattern} in the graph"
        )
    return layer


def _unverified(
    layer: ExportLayer, name: str, operators: set[str] | None
) -> ExportLayer:
    if operators is None:
        layer.advice = "not in the graph: unused, or folded into another tensor"
    else:
        layer.onnx_name = name
        layer.advice = f"used by {', '.join(sorted(operators))}: no sparse kernels"
    return layer
