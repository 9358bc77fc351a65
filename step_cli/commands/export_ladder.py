"""The ladder of each layer: pattern, size advice, eligible, chosen, sparse tactic."""

from pathlib import Path

from step_cli.commands.verify_layer import weights_of
from step_cli.core.check import Job
from step_cli.core.pattern import NMPattern
from step_cli.core.plan import LayerPlan
from step_cli.core.tensorrt_rule import View, tensorrt_view
from step_cli.formats.cuda_device import compute_capabilities
from step_cli.formats.mapped_file import map_file
from step_cli.formats.onnx_nodes import nodes_of_weights
from step_cli.formats.onnx_weights import open_onnx
from step_cli.formats.trt_api import TrtRuntime
from step_cli.formats.trt_engine import EngineOptions
from step_cli.formats.trt_ladder import Rungs, rungs, sparse_weights
from step_cli.formats.trt_log import BuildLog
from step_cli.reports import BackendReport, ExportLayer, ExportReport


def climb(report: ExportReport, onnx_path: Path) -> dict[str, View]:
    """Judge each layer of the report as TensorRT would, before any build.

    Returns:
        The view of each layer that is in the graph, by its name there.
    """
    tensors = {tensor.name: tensor for tensor in open_onnx(map_file(onnx_path)).tensors}
    views = {}
    for layer in report.layers:
        tensor = tensors.get(layer.onnx_name or "")
        if tensor is None or tensor.axis is None:
            continue
        plan = LayerPlan(NMPattern.parse(layer.pattern), tensor.axis)
        job = Job(weights_of(tensor), plan)
        view = tensorrt_view(tensor, job, holds=layer.pattern_ok is True)
        views[tensor.name] = view
        layer.advice = layer.advice or view.advice
    return views


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
    used = sparse_weights(seen, honoured=runtime.honours_sparsity)
    report.backend = BackendReport(
        name=runtime.kind,
        version=runtime.version,
        compute_capabilities=targets,
        # Without the flag nothing was permitted, ignored or used.
        sparse_weights=used if options.sparse else None,
    )
    if not runtime.honours_sparsity:
        return  # kernels are made on the user's GPU: names here are no evidence
    nodes = nodes_of_weights(onnx_path)
    for layer in report.layers:
        _add_rungs(layer, seen, nodes.get(layer.onnx_name or "", []))


def _add_rungs(layer: ExportLayer, seen: BuildLog, nodes: list[str]) -> None:
    """The rungs of the node that got furthest, where several share a weight."""
    found = [rungs(seen, node) for node in nodes]
    found.sort(key=lambda one: (one.chosen is not True, one.eligible is not True))
    best = found[0] if found else Rungs()
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
