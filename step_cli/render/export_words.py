"""What the table and the page of `export` show alike: cells and sentences."""

from step_cli.render.text import one_line
from step_cli.reports import ExportLayer, ExportReport, QuantizationReport

MEANING = {
    "used": "sparse kernels were chosen",
    "permitted": "sparse kernels were permitted, and none is known to be chosen",
    "ignored": "sparse weights are ignored",
}


def coded(layer: ExportLayer) -> str:
    """Which of a layer's input, weight and output are codes."""
    found = layer.quantizers
    if found is None:
        return "none"
    sides = {"input": found.input, "weight": found.weight, "output": found.output}
    return ", ".join(side for side, dtype in sides.items() if dtype) or "none"


def mark(claim: bool | None) -> str:
    """Evidence that is missing is a question mark, never a guess."""
    return "?" if claim is None else "yes" if claim else "no"


def export_facts(report: ExportReport) -> list[str]:
    """What is known of the whole: sizes, parity, codes, backend, times, notes."""
    lines = []
    size = report.bytes
    if size.values is not None and size.metadata is not None:
        lines.append(
            f"compressed layers: {size.values:,} bytes of values, "
            f"{size.metadata:,} of sparse metadata"
        )
    if report.negative_zeros:
        lines.append(f"{report.negative_zeros:,} negative zeros became positive")
    parity = report.parity
    if parity is not None:
        precision = report.parity_precision or ""
        compared = "within" if parity.ok else "NOT within"
        lines.append(
            f"ONNX Runtime against PyTorch ({precision}): max abs "
            f"{parity.max_abs:.3g}, max rel {parity.max_rel:.3g}, "
            f"{compared} {parity.tolerance:g}"
        )
    if report.quantization is not None:
        lines += _quantization_facts(report.quantization)
    backend = report.backend
    if backend is not None:
        targets = ", ".join(backend.compute_capabilities) or "its default targets"
        meaning = MEANING.get(backend.sparse_weights or "", "no layer could use them")
        lines.append(f"{backend.name} {backend.version} for {targets}: {meaning}")
    for pair in report.sparsity:
        lines.append(
            f"{_count(pair.chosen)} of {_count(pair.eligible)} eligible layers"
        )
    if report.bench is not None:
        lines.append(
            f"{report.bench.runtime}: {report.bench.sparse_ms:.3f} ms, "
            f"with dense weights {report.bench.dense_ms:.3f} ms (medians)"
        )
    return lines + report.notes


def _quantization_facts(found: QuantizationReport) -> list[str]:
    lines = [f"{found.codes}: {found.layers} layers quantized"]
    for name, one in (("calibration", found.calibration), ("held-out", found.held_out)):
        if one is None:
            lines.append(f"{found.codes} against fp32 on {name} samples: not compared")
            continue
        lines.append(
            f"{found.codes} against fp32 ({found.runtime}) on {one.samples} {name} "
            f"samples: max abs {_number(one.max_abs)}, mean abs "
            f"{_number(one.mean_abs)}, cosine {_number(one.cosine, 6)}"
        )
    return lines + found.faults


def _number(value: float | None, digits: int = 3) -> str:
    return "?" if value is None else f"{value:.{digits}g}"


def _count(number: int | None) -> str:
    return "?" if number is None else str(number)


def export_summary(report: ExportReport) -> str:
    """What was written, in one sentence."""
    if report.output is None:
        return f"{report.to}: nothing written"
    size = report.bytes.output or 0
    smaller = report.to == "compressed" and (report.ratio or 0) > 1
    ratio = f", {report.ratio:.2f}x smaller" if smaller else ""
    dense = report.bytes.dense
    of = f" of {dense:,} dense" if dense is not None else ""
    return f"{one_line(report.output)}: {size:,} bytes{of}{ratio}"
