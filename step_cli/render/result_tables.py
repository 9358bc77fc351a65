"""Results for people: one function for each kind of report, chosen by its type.

That of `verify-nm` has a module of its own, so that a check loads none of these.
"""

from collections import Counter
from functools import singledispatch

from rich.console import Console

from step_cli.render.tables import name, new_table, verdict
from step_cli.render.text import one_line
from step_cli.reports import (
    AutoswitchProfileReport,
    ExportReport,
    PrunedLayer,
    PruneReport,
    Report,
    TrainReport,
)


@singledispatch
def show(report: Report, console: Console, *, verbose: bool) -> None:
    """Draw one kind of report; each kind registers its own function."""
    raise TypeError(f"no table for {type(report).__name__}")


@show.register
def _train(report: TrainReport, console: Console, *, verbose: bool) -> None:
    columns = ("metric", "the model", "its dense weights")
    twin = report.dense_metrics
    table = new_table(*columns[: 2 if twin is None else 3], right=columns[1:])
    for key, value in report.metrics.items():
        dense = [] if twin is None else [f"{twin[key]:.4f}"]
        table.add_row(key, f"{value:.4f}", *dense)
    console.print(table)
    switch = report.switch
    if switch is not None:
        console.print(
            f"switched after step {switch.step} of {report.steps} "
            f"({switch.criterion}, {switch.reason})"
        )
    for line in report.advice:
        console.print(line)
    if report.written is not None:
        page = one_line(f"{report.written}/report.html")
        console.print(f"curves and layers: {page}", soft_wrap=True)
    parts = [report.recipe, report.pattern, f"density {report.density:.4f}"]
    text = ", ".join(part for part in parts if part)
    verdict(console, report.ok, f"{text}: {one_line(report.run_dir)}")


@show.register
def _autoswitch_profile(
    report: AutoswitchProfileReport, console: Console, *, verbose: bool
) -> None:
    from step_cli.render import profile_table

    profile_table.draw(report, console, verbose=verbose)


@show.register
def _prune(report: PruneReport, console: Console, *, verbose: bool) -> None:
    columns = ("layer", "pattern", "axis", "density", "retained", "changed")
    table = new_table(*columns, right=columns[2:])
    for layer in report.layers:
        table.add_row(
            name(layer.name),
            layer.pattern,
            str(layer.axis),
            f"{layer.density:.4f}",
            f"{layer.retained:.4f}",
            str(layer.changed),
        )
    console.print(table)
    for line in [*_order_of(report.layers), *_advice_on(report.layers)]:
        console.print(line)
    if verbose and report.skipped:
        skipped = new_table("skipped", "shape", "dtype", "reason")
        for tensor in report.skipped:
            shape = "x".join(str(size) for size in tensor.shape)
            skipped.add_row(name(tensor.name), shape, tensor.dtype, tensor.reason)
        console.print(skipped)
    totals = report.totals
    done = "would change" if report.dry_run else "changed"
    text = (
        f"{one_line(report.out)}: {totals.changed} weights {done} in "
        f"{totals.layers} layers, density {totals.density:.4f}, "
        f"retained {totals.retained:.4f}, {totals.skipped} skipped"
    )
    if report.dry_run:
        text += (
            f"; needs {report.bytes_needed} bytes, {report.bytes_free} free; "
            "nothing written"
        )
    verdict(console, report.ok, text)


def _order_of(layers: list[PrunedLayer]) -> list[str]:
    """How many layers got another order, and why the others could not."""
    asked = [layer for layer in layers if layer.permuted is not None]
    if not asked:
        return []
    moved = sum(bool(layer.permuted) for layer in asked)
    left = [layer for layer in asked if layer.not_permuted]
    return [
        f"{moved} of {len(asked)} layers permuted",
        *(f"  {name(x.name)}: {one_line(x.not_permuted or '')}" for x in left),
    ]


def _advice_on(layers: list[PrunedLayer]) -> list[str]:
    """Each piece of advice once, with how many layers it is for."""
    counts = Counter(layer.advice for layer in layers if layer.advice)
    return [
        f"TensorRT: {count} of {len(layers)} layers: {one_line(advice)}"
        for advice, count in counts.items()
    ]


@show.register
def _export(report: ExportReport, console: Console, *, verbose: bool) -> None:
    from step_cli.render import export_table

    export_table.draw(report, console, verbose=verbose)
