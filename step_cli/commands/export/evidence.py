"""The ladder of each layer: pattern, size advice, eligible, chosen, sparse tactic."""

from pathlib import Path

from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.onnx.reader import open_onnx
from step_cli.formats.onnx.weight_uses import nodes_of_weights
from step_cli.formats.tensorrt.api import TrtRuntime, compute_capabilities
from step_cli.formats.tensorrt.engine import EngineOptions
from step_cli.formats.tensorrt.evidence import (
    BuildLog,
    Evidence,
    evidence_of,
    sparse_weights,
)
from step_cli.nm.count import Job
from step_cli.nm.diagnosis import holds_pattern
from step_cli.nm.pattern import NMPattern
from step_cli.nm.plan import LayerPlan
from step_cli.nm.targets import TWO_FOUR, implies_two_four, tensorrt_view
from step_cli.reports import BackendReport, ExportLayer, ExportReport


def climb(report: ExportReport, onnx_path: Path) -> bool:
    """Add to each layer what TensorRT would say of it before any build.

    Returns:
        Whether any layer holds 2:4 in the graph: reason to permit sparse weights.
    """
    tensors = {tensor.name: tensor for tensor in open_onnx(map_file(onnx_path)).tensors}
    fits = False
    for layer in report.layers:
        tensor = tensors.get(layer.onnx_name or "")
        if tensor is None or tensor.axis is None:
            continue
        plan = LayerPlan(NMPattern.parse(layer.pattern), tensor.axis)
        job = Job(tensor.weights(), plan)
        holds = layer.pattern_ok is True
        layer.advice = layer.advice or tensorrt_view(tensor, job, holds=holds).advice
        fits = fits or _is_two_four(job, holds=holds)
    return fits


def _is_two_four(job: Job, *, holds: bool) -> bool:
    if holds and implies_two_four(job.plan.pattern):
        return True
    axis = job.plan.axis
    divisible = job.weights.array.shape[axis] % TWO_FOUR.m == 0
    return divisible and holds_pattern(job, TWO_FOUR, axis)


def backend_report(
    report: ExportReport,
    runtime: TrtRuntime,
    seen: BuildLog,
    options: EngineOptions,
    onnx_path: Path,
) -> None:
    """Add backend and rungs to the report; without evidence they stay null."""
    targets = list(options.compute_capabilities)
    if not targets and runtime.kind == "tensorrt":
        targets = compute_capabilities()[:1]
    honoured = runtime.honours_sparsity
    became = sparse_weights(seen, honoured=honoured)
    report.backend = BackendReport(
        name=runtime.kind,
        version=runtime.version,
        compute_capabilities=targets,
        # Where they are honoured and no layer fits, there was nothing to permit.
        sparse_weights=became if options.sparse or not honoured else None,
    )
    if not honoured:
        return  # kernels are made on the user's GPU: names here are no evidence
    nodes = nodes_of_weights(onnx_path)
    for layer in report.layers:
        if layer.onnx_name is not None and layer.onnx_name not in nodes:
            layer.eligible = False  # of another operator, such as ConvTranspose
        else:
            _add_rungs(layer, seen, nodes.get(layer.onnx_name or "", []))


def _add_rungs(layer: ExportLayer, seen: BuildLog, nodes: list[str]) -> None:
    """The rungs of the node that got furthest, where several share a weight."""
    found = [evidence_of(seen, node) for node in nodes]
    found.sort(key=lambda one: (one.chosen is not True, one.eligible is not True))
    best = found[0] if found else Evidence()
    layer.eligible, layer.chosen, layer.tactic = best.eligible, best.chosen, best.tactic
    if best.chosen is True:
        layer.advice = None
    elif best.eligible is False and layer.advice is None:
        layer.advice = (
            "not eligible: look for an operation between the weight and its product, "
            "such as a reshape, a multiplication, or a concatenation"
        )
    elif best.eligible is True and best.chosen is False and layer.advice is None:
        layer.advice = (
            "a dense kernel was faster at this shape; try a larger --opt batch"
        )
