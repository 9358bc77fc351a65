"""``export --report``: what was written, and the evidence on each layer, as a page."""

from collections import Counter
from collections.abc import Sequence

from step_cli.render.export_words import coded, export_facts, export_summary, mark
from step_cli.render.page_charts import Bar, BarChart
from step_cli.render.page_frame import (
    NONE,
    Cell,
    Table,
    bullets,
    code,
    facts,
    framed,
    header,
    section,
    small_print,
)
from step_cli.reports import (
    ExportLayer,
    ExportReport,
    OutputDifference,
    QuantizationReport,
)

MOST_ROWS = 5000
UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))
CLAIMS = {
    "pattern_ok": "holds its pattern",
    "zeros_kept": "zeros kept",
    "eligible": "eligible",
    "chosen": "chosen",
}
OF_ENGINES = ("eligible", "chosen")  # shown as not observed, too
MEANINGS = {
    "pattern_ok": "Holds its pattern: every group of the weight was counted, in the "
    "ONNX graph where one was made.",
    "zeros_kept": "Zeros kept: every zero of the weight has the code 0.",
    "eligible": "Eligible: the builder counts the layer among those that may use a "
    "sparse kernel.",
    "chosen": "Chosen: the engine uses a sparse kernel for the layer.",
}
UNSEEN = "A question mark stands where nothing was observed."
DIFFERENCES = ("samples", "max abs", "max rel", "mean abs", "cosine")


def html(report: ExportReport, checkpoint: str) -> str:
    """The page.

    Args:
        report: What was exported.
        checkpoint: What it was made of, as the user named it.
    """
    built = report.backend is not None
    claims = [
        name
        for name in CLAIMS
        if _known(report.layers, name) or (built and name in OF_ENGINES)
    ]
    top = header("What was exported", export_summary(report), ok=report.ok)
    body = "".join(
        (
            section("summary", "Summary", facts(_summary(report, checkpoint), 2000)),
            section("found", "What was found", bullets(export_facts(report), 2000)),
            section("size", "Size", _size_chart(report)),
            section("time", "Time", _time_chart(report)),
            section("codes", "Quantized against fp32", _codes(report.quantization)),
            section("evidence", "Evidence", _evidence_chart(report.layers, claims)),
            section("layers", "Layers", *_layers(report, claims)),
            section("skipped", "Left out", _skipped(report)),
            section("trtexec", "The same build by trtexec", code(report.trtexec or "")),
        )
    )
    page = f"{top}<main>\n{body}</main>\n"
    return framed("What was exported \u00b7 step-cli export", page)


def _known(layers: Sequence[ExportLayer], claim: str) -> bool:
    """Whether there is evidence on the claim for any layer."""
    return any(getattr(layer, claim) is not None for layer in layers)


def _summary(report: ExportReport, checkpoint: str) -> list[tuple[str, str]]:
    backend = report.backend
    made = [(f"SHA-256 of {kind}", digest) for kind, digest in report.sha256.items()]
    patterns = Counter(layer.pattern for layer in report.layers)
    return [
        ("from", checkpoint),
        ("to", report.to),
        ("file", report.output or "nothing was written"),
        ("layers", ", ".join(f"{k} ({n})" for k, n in patterns.most_common(10))),
        ("precision", report.precision or ""),
        ("opset", "" if report.opset is None else str(report.opset)),
        ("backend", "" if backend is None else f"{backend.name} {backend.version}"),
        ("build log", report.build_log or ""),
        *made,
    ]


def _size_chart(report: ExportReport) -> str:
    size, found = report.bytes, report.quantization
    rows = {
        "dense weights": size.dense,
        "fp32 graph": None if found is None else found.fp32_bytes,
        "output": size.output,
        "kept values in it": size.values,
        "sparse metadata in it": size.metadata,
    }
    known = {name: count for name, count in rows.items() if count is not None}
    if len(known) < 2:
        return ""
    largest = max(known.values())
    factor, unit = next(pair for pair in UNITS if largest >= pair[0] or pair[0] == 1)
    return BarChart(
        label="Sizes of the dense weights and of what was written",
        rows_title="part",
        axis_title=f"size ({unit})",
        series=[("size", "main")],
        bars=[
            Bar(name, [count / factor], f"{count:,} bytes")
            for name, count in known.items()
        ],
    ).html()


def _time_chart(report: ExportReport) -> str:
    bench = report.bench
    if bench is None:
        return ""
    times = {"sparse weights": bench.sparse_ms, "dense weights": bench.dense_ms}
    return BarChart(
        label="Median time of one run with sparse and with dense weights",
        rows_title="model",
        axis_title=f"median time of one run (ms, {bench.runtime})",
        series=[("time", "main")],
        bars=[Bar(name, [ms], f"{ms:.3f} ms") for name, ms in times.items()],
    ).html()


def _codes(found: QuantizationReport | None) -> str:
    if found is None:
        return ""
    pairs = (("calibration", found.calibration), ("held out", found.held_out))
    rows = [[name, *_difference(one)] for name, one in pairs if one is not None]
    explained = (
        "How far the outputs of the quantized graph are from those of the fp32 one, "
        f"over all numbers of all outputs. Computed by: {found.runtime}."
    )
    table = Table(("samples of", *DIFFERENCES), rows, DIFFERENCES).html("codes")
    return table + small_print(explained if rows else "")


def _difference(one: OutputDifference) -> list[str]:
    values = (one.max_abs, one.max_rel, one.mean_abs)
    shown = [NONE if value is None else f"{value:.3g}" for value in values]
    cosine = NONE if one.cosine is None else f"{one.cosine:.6f}"
    return [str(one.samples), *shown, cosine]


def _evidence_chart(layers: Sequence[ExportLayer], claims: Sequence[str]) -> str:
    bars = []
    for claim in claims:
        counts = Counter(mark(getattr(layer, claim)) for layer in layers)
        values = [counts[answer] for answer in ("yes", "no", "?")]
        words = "{} yes, {} no, {} ?".format(*values)
        bars.append(Bar(CLAIMS[claim], values, words))
    chart = BarChart(
        label="For how many layers each claim was observed to be true or false",
        rows_title="claim",
        axis_title="layers (count)",
        series=[("yes", "good"), ("no", "bad"), ("? not observed", "rest")],
        bars=bars,
        whole=True,
    )
    said = " ".join([*(MEANINGS[claim] for claim in claims), UNSEEN])
    return chart.html() + small_print(said if bars else "")


def _layers(report: ExportReport, claims: Sequence[str]) -> tuple[str, str]:
    """The table of layers; columns without any content are left out."""
    layers = report.layers
    quantized = ["codes"] if any(layer.quantizers for layer in layers) else []
    words = [one for one in ("tactic", "advice") if _known(layers, one)]
    shown = layers[:MOST_ROWS]
    rows: list[list[str | Cell]] = [
        [
            Cell(layer.name, "name"),
            layer.pattern,
            str(layer.axis),
            *(coded(layer) for _ in quantized),
            *(_answer(layer, claim) for claim in claims),
            *(Cell(getattr(layer, word) or NONE, "long") for word in words),
        ]
        for layer in shown
    ]
    titles = [CLAIMS[claim].removesuffix(" its pattern") for claim in claims]
    columns = ("layer", "pattern", "axis", *quantized, *titles, *words)
    hidden = len(layers) - len(shown)
    more = f"And {hidden} more; --json lists all." if hidden else ""
    return Table(columns, rows, ("axis",)).html("layers"), small_print(more)


def _answer(layer: ExportLayer, claim: str) -> Cell:
    seen = getattr(layer, claim)
    return Cell(mark(seen), "bad" if seen is False else "")


def _skipped(report: ExportReport) -> str:
    counts = Counter(tensor.reason for tensor in report.skipped)
    rows = [[reason, str(count)] for reason, count in counts.most_common()]
    return Table(("reason", "tensors"), rows, ("tensors",)).html("skipped")
