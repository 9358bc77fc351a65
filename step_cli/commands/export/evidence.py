"""The evidence on each layer: size advice, eligible, chosen, sparse tactic."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from step_cli.commands.export.views import tensorrt_views
from step_cli.formats.onnx.weight_uses import nodes_of_weights
from step_cli.formats.tensorrt.api import TrtRuntime, compute_capabilities
from step_cli.formats.tensorrt.engine import EngineBuild, EngineOptions
from step_cli.formats.tensorrt.evidence import (
    BuildLog,
    Evidence,
    evidence_of,
    sparse_weights,
)
from step_cli.reports import BackendReport, ExportLayer

if TYPE_CHECKING:
    from step_cli.commands.export.onnx import WrittenOnnx

NOT_ELIGIBLE = (
    "not eligible: look for an operation between the weight and its product, "
    "such as a reshape, a multiplication, or a concatenation"
)
NOT_CHOSEN = "a dense kernel was faster at this shape; try a larger --opt batch"


@dataclass(frozen=True)
class Engine:
    """An engine that was built, and what is known of it.

    Attributes:
        build: As it was built.
        options: What it was built with.
        seen: The evidence in the build log, and of the engine inspector.
        layers: What the build showed of each.
        backend: The library.
        written: What the checks of its ONNX file found; None where that was the input.
        onnx_sha256: Of that file.
    """

    build: EngineBuild
    options: EngineOptions
    seen: BuildLog
    layers: list[ExportLayer]
    backend: BackendReport
    written: "WrittenOnnx | None"
    onnx_sha256: str

    @property
    def used(self) -> bool:
        """Whether a sparse tactic was chosen."""
        return self.backend.sparse_weights == "used"


def before_build(
    layers: Sequence[ExportLayer], onnx_path: Path
) -> tuple[list[ExportLayer], bool]:
    """Judge each layer of a graph by what is known before any build.

    Returns:
        The layers with TensorRT's advice on each, and whether any layer holds 2:4 in
        the graph: reason to permit sparse weights.
    """
    views, any_two_four = tensorrt_views(layers, onnx_path)
    advised = [
        layer.model_copy(update={"advice": layer.advice or view.advice})
        if view is not None
        else layer
        for layer, view in zip(layers, views, strict=True)
    ]
    return advised, any_two_four


def after_build(
    layers: Sequence[ExportLayer],
    runtime: TrtRuntime,
    seen: BuildLog,
    onnx_path: Path,
) -> list[ExportLayer]:
    """Judge each layer by what the build showed; what was not observed stays null."""
    if not runtime.honours_sparsity:
        # Kernels are made on the user's GPU: names here are no evidence.
        return list(layers)
    nodes = nodes_of_weights(onnx_path)
    judged = []
    for layer in layers:
        if layer.onnx_name is not None and layer.onnx_name not in nodes:
            # Of another operator, such as ConvTranspose.
            judged.append(layer.model_copy(update={"eligible": False}))
        else:
            judged.append(_judged(layer, seen, nodes.get(layer.onnx_name or "", [])))
    return judged


def _judged(layer: ExportLayer, seen: BuildLog, nodes: list[str]) -> ExportLayer:
    """By the node with the most evidence, where several share a weight."""
    found = [evidence_of(seen, node) for node in nodes]
    found.sort(key=lambda one: (one.chosen is not True, one.eligible is not True))
    best = found[0] if found else Evidence()
    advice = layer.advice
    if best.chosen is True:
        advice = None
    elif best.eligible is False:
        advice = advice or NOT_ELIGIBLE
    elif best.eligible is True and best.chosen is False:
        advice = advice or NOT_CHOSEN
    observed = {"eligible": best.eligible, "chosen": best.chosen, "tactic": best.tactic}
    return layer.model_copy(update={**observed, "advice": advice})


def backend_report(
    runtime: TrtRuntime, seen: BuildLog, options: EngineOptions
) -> BackendReport:
    """The library that built the engine, and what became of sparse weights."""
    targets = list(options.compute_capabilities)
    if not targets and runtime.kind == "tensorrt":
        targets = compute_capabilities()[:1]
    honoured = runtime.honours_sparsity
    became = sparse_weights(seen, honoured=honoured)
    return BackendReport(
        name=runtime.kind,
        version=runtime.version,
        compute_capabilities=targets,
        # Where they are honoured and no layer fits, there was nothing to permit.
        sparse_weights=became if options.sparse or not honoured else None,
    )
