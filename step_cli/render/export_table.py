"""The report of `export` for people: layers, sizes, parity, backend, what it means."""

from typing import TYPE_CHECKING

from step_cli.render.text import one_line
from step_cli.reports import ExportLayer, ExportReport

if TYPE_CHECKING:
    from step_cli.render.console import AnyConsole

SHOWN = 20  # layers, without -v

MEANING = {
    "used": "sparse kernels were chosen",
    "permitted": "sparse kernels were permitted, and none is known to be chosen",
    "ignored": "sparse weights are ignored",
}


def draw(report: ExportReport, console: "AnyConsole", *, verbose: bool) -> None:
    """Draw the report; ``verbose`` lists every layer."""
    layers = report.layers if verbose else report.layers[:SHOWN]
    if layers:
        _layers(layers, console, engine=report.backend is not None)
    if len(layers) < len(report.layers):
        console.line(f"and {len(report.layers) - len(layers)} more; -v lists them")
    for line in _facts(report):
        console.line(one_line(line, longest=10_000))
    console.verdict(report.ok, _summary(report))


def _layers(layers: list[ExportLayer], console: "AnyConsole", *, engine: bool) -> None:
    evidence = ("eligible", "chosen") if engine else ()
    rows = [
        [
            one_line(layer.name),
            layer.pattern,
            _mark(layer.pattern_ok),
            *([_mark(layer.eligible), _mark(layer.chosen)] if engine else []),
            one_line(layer.advice or layer.tactic or ""),
        ]
        for layer in layers
    ]
    console.table(("layer", "pattern", "holds", *evidence, "advice"), rows)


def _mark(claim: bool | None) -> str:
    """Evidence that is missing is a question mark, never a guess."""
    return "?" if claim is None else "yes" if claim else "no"


def _facts(report: ExportReport) -> list[str]:
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


def _count(number: int | None) -> str:
    return "?" if number is None else str(number)


def _summary(report: ExportReport) -> str:
    if report.output is None:
        return f"{report.to}: nothing written"
    size = report.bytes.output or 0
    smaller = report.to == "compressed" and (report.ratio or 0) > 1
    ratio = f", {report.ratio:.2f}x smaller" if smaller else ""
    dense = report.bytes.dense
    of = f" of {dense:,} dense" if dense is not None else ""
    return f"{one_line(report.output)}: {size:,} bytes{of}{ratio}"
