"""Results for people: one function for each kind of report, chosen by its type.

That of `verify-nm` has a module of its own, so that a check loads none of these, and so
has the longest, of `autoswitch-profile`.
"""

from collections import Counter
from collections.abc import Sequence
from functools import singledispatch
from typing import TYPE_CHECKING

from step_cli.render.export_words import coded, export_facts, export_summary, mark
from step_cli.render.text import one_line
from step_cli.render.verify_words import coverage_words
from step_cli.reports import (
    AutoswitchProfileReport,
    CompareDryRunReport,
    CompareReport,
    ExportLayer,
    ExportReport,
    PrunedLayer,
    PruneReport,
    RefittedBlock,
    Report,
    SkippedTensor,
    TrainReport,
)

if TYPE_CHECKING:
    from step_cli.render.console import AnyConsole


SHOWN = 20  # layers, without -v


@singledispatch
def draw(report: Report, console: "AnyConsole", *, verbose: bool) -> None:
    """Draw one kind of report; each kind registers its own function."""
    raise TypeError(f"no table for {type(report).__name__}")


@draw.register(TrainReport)
def _train(report: TrainReport, console: "AnyConsole", *, verbose: bool) -> None:
    columns = ("metric", "the model", "its dense weights")
    twin = report.dense_metrics
    rows = [
        [key, f"{value:.4f}", *([] if twin is None else [f"{twin[key]:.4f}"])]
        for key, value in report.metrics.items()
    ]
    console.table(columns[: 2 if twin is None else 3], rows, right=columns[1:])
    switch = report.switch
    if switch is not None:
        console.line(
            f"switched after step {switch.step} of {report.steps} "
            f"({switch.criterion}, {switch.reason})"
        )
    for line in report.advice:
        console.line(line)
    if report.stays_dense:
        share = 100 * sum(left.share for left in report.stays_dense)
        console.line(
            f"{share:.1f} % of all layer weights stay dense, as report.json tells"
        )
    if report.written is not None:
        page = one_line(f"{report.written}/report.html")
        console.line(f"curves and layers: {page}")
    parts = [report.recipe, report.pattern, f"density {report.density:.4f}"]
    if report.overall_density is not None:
        parts.append(f"of all layers {report.overall_density:.4f}")
    text = ", ".join(part for part in parts if part)
    console.verdict(report.ok, f"{text}: {one_line(report.run_dir)}")


@draw.register(CompareReport)
def _compare(report: CompareReport, console: "AnyConsole", *, verbose: bool) -> None:
    from step_cli.render import compare_table

    compare_table.draw(report, console)


@draw.register(CompareDryRunReport)
def _compare_dry_run(
    report: CompareDryRunReport, console: "AnyConsole", *, verbose: bool
) -> None:
    from step_cli.render import compare_table

    compare_table.draw_dry_run(report, console)


@draw.register(AutoswitchProfileReport)
def _autoswitch_profile(
    report: AutoswitchProfileReport, console: "AnyConsole", *, verbose: bool
) -> None:
    from step_cli.render import profile_table

    profile_table.draw(report, console, verbose=verbose)


@draw.register(PruneReport)
def _prune(report: PruneReport, console: "AnyConsole", *, verbose: bool) -> None:
    columns = ("layer", "pattern", "axis", "density", "retained", "changed")
    errors = ("error", "fitted", "held out") if report.refit != "none" else ()
    rows = [
        [
            one_line(layer.name),
            layer.pattern,
            str(layer.axis),
            f"{layer.density:.4f}",
            f"{layer.retained:.4f}",
            str(layer.changed),
            *(_errors_of(layer) if errors else ()),
        ]
        for layer in report.layers
    ]
    console.table((*columns, *errors), rows, right=(*columns[2:], *errors))
    if report.blocks:
        _blocks(report.blocks, console)
    lines = [*_order_of(report.layers), *_fits_of(report), *_advice_on(report.layers)]
    for line in lines:
        console.line(line)
    if verbose and report.skipped:
        _skipped(report.skipped, console)
    totals = report.totals
    done = "would change" if report.dry_run else "changed"
    text = (
        f"{one_line(report.out)}: {totals.changed} weights {done} in "
        f"{totals.layers} layers, density {totals.density:.4f}, "
        f"retained {totals.retained:.4f}, {totals.skipped} skipped"
    )
    missed = coverage_words(totals.coverage, report.skipped, "pruned")
    text += f", {missed}" if missed else ""
    if report.dry_run:
        text += (
            f"; needs {report.bytes_needed} bytes, {report.bytes_free} free; "
            "nothing written"
        )
    console.verdict(report.ok, text)


def _skipped(skipped: Sequence[SkippedTensor], console: "AnyConsole") -> None:
    """The tensors that were left out, and why."""
    rows = [
        [
            one_line(tensor.name),
            "x".join(str(size) for size in tensor.shape),
            tensor.dtype,
            tensor.reason,
        ]
        for tensor in skipped
    ]
    console.table(("skipped", "shape", "dtype", "reason"), rows)


def _errors_of(part: PrunedLayer | RefittedBlock) -> list[str]:
    """Relative errors before and after a fit, and after it on samples held out."""
    found = (part.error_before, part.error_after, part.held_out_after)
    return ["-" if error is None else f"{error:.4f}" for error in found]


def _blocks(blocks: Sequence[RefittedBlock], console: "AnyConsole") -> None:
    """The blocks that were fitted as a whole."""
    columns = ("block", "kept", "error", "fitted", "held out")
    rows = [
        [one_line(block.name), "yes" if block.refitted else "no", *_errors_of(block)]
        for block in blocks
    ]
    console.table(columns, rows, right=columns[2:])


def _fits_of(report: PruneReport) -> list[str]:
    """What a fit left as it was, and which statistics were measured anew."""
    lines = [
        f"not fitted: {one_line(layer.name)}: {one_line(layer.not_refitted)}"
        for layer in report.layers
        if layer.not_refitted
    ]
    if report.batch_norms is not None:
        lines.append(f"{len(report.batch_norms)} batch norms measured anew")
    return lines


def _order_of(layers: list[PrunedLayer]) -> list[str]:
    """How many layers got another order, and why the others could not."""
    known = [layer for layer in layers if layer.permuted is not None]
    if not known:
        return []
    moved = sum(bool(layer.permuted) for layer in known)
    left = [layer for layer in known if layer.not_permuted]
    return [
        f"{moved} of {len(known)} layers permuted",
        *(f"  {one_line(x.name)}: {one_line(x.not_permuted or '')}" for x in left),
    ]


def _advice_on(layers: list[PrunedLayer]) -> list[str]:
    """Each piece of advice once, with how many layers it is for."""
    counts = Counter(layer.advice for layer in layers if layer.advice)
    return [
        f"TensorRT: {count} of {len(layers)} layers: {one_line(advice)}"
        for advice, count in counts.items()
    ]


@draw.register(ExportReport)
def _export(report: ExportReport, console: "AnyConsole", *, verbose: bool) -> None:
    """Layers, sizes, parity, backend, what it means; ``verbose`` lists every layer."""
    layers = report.layers if verbose else report.layers[:SHOWN]
    if layers:
        _export_layers(layers, console, engine=report.backend is not None)
    if len(layers) < len(report.layers):
        console.line(f"and {len(report.layers) - len(layers)} more; -v lists them")
    for line in export_facts(report):
        console.line(one_line(line, longest=10_000))
    console.verdict(report.ok, export_summary(report))


def _export_layers(
    layers: list[ExportLayer], console: "AnyConsole", *, engine: bool
) -> None:
    evidence = ("eligible", "chosen") if engine else ()
    quantized = any(layer.quantizers for layer in layers)
    rows = [
        [
            one_line(layer.name),
            layer.pattern,
            mark(layer.pattern_ok),
            *([coded(layer)] if quantized else []),
            *([mark(layer.eligible), mark(layer.chosen)] if engine else []),
            one_line(layer.advice or layer.tactic or ""),
        ]
        for layer in layers
    ]
    codes = ("codes",) if quantized else ()
    console.table(("layer", "pattern", "holds", *codes, *evidence, "advice"), rows)
