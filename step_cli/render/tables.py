"""Reports for people: one function for each kind, chosen by the report's type."""

import os
from collections import Counter
from functools import singledispatch
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from step_cli.render.text import one_line
from step_cli.reports import (
    AutoswitchProfileReport,
    ExportReport,
    PrunedLayer,
    PruneReport,
    Report,
    TrainReport,
    VerifyReport,
)


def draw(report: Report, out: TextIO, *, verbose: bool, forge: bool = False) -> None:
    """Write ``report`` to ``out`` as text, coloured on a terminal only.

    With ``forge``, a report that has annotations adds them where a forge reads them.
    """
    if isinstance(report, VerifyReport):
        from step_cli.render import verify_table

        verify_table.draw(report, out, verbose=verbose, forge=forge)
        return
    show(report, console(out), verbose=verbose)


class PlainSpokenConsole(Console):
    """A console that reports a closed pipe, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Let the caller decide; the verdict stands."""
        raise BrokenPipeError


def console(out: TextIO) -> Console:
    """A console that keeps its escape codes to terminals that want them."""
    environment = os.environ
    plain = (
        not out.isatty()
        or "NO_COLOR" in environment
        or "CI" in environment
        or environment.get("TERM") == "dumb"
    )
    return PlainSpokenConsole(
        file=out,
        force_terminal=not plain,
        no_color=plain,
        width=None if out.isatty() else 110,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
    )


def new_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table whose first column holds names; the columns in ``right`` hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold"
        )
    return table


def name(text: str) -> Text:
    """A name from a file, as plain text."""
    return Text(one_line(text))


def verdict(console: Console, ok: bool, text: str) -> None:
    """One line that says whether the checks passed."""
    word = Text("ok  " if ok else "FAILED  ", "green" if ok else "red")
    console.print(word + text, soft_wrap=True)


@singledispatch
def show(report: Report, console: Console, *, verbose: bool) -> None:
    """Draw one kind of report; each kind registers its own function."""
    raise TypeError(f"no table for {type(report).__name__}")


@show.register
def _train(report: TrainReport, console: Console, *, verbose: bool) -> None:
    table = new_table("metric", "sparse", "dense", right=("sparse", "dense"))
    for key, value in report.metrics.items():
        dense = (report.dense_metrics or {}).get(key)
        table.add_row(key, f"{value:.4f}", "-" if dense is None else f"{dense:.4f}")
    console.print(table)
    switch = report.switch
    if switch is not None:
        console.print(
            f"switched after step {switch.step} of {report.steps} "
            f"({switch.criterion}, {switch.reason})"
        )
    for line in report.advice:
        console.print(line)
    parts = [report.recipe, report.pattern, f"density {report.density:.4f}"]
    text = ", ".join(part for part in parts if part)
    verdict(console, report.ok, f"{text}: {one_line(report.run_dir)}")


@show.register
def _autoswitch_profile(
    report: AutoswitchProfileReport, console: Console, *, verbose: bool
) -> None:
    columns = ("criterion", "switch", "without clipping", "decided by", "change after")
    table = new_table(*columns, right=("switch", "without clipping", "change after"))
    for row in report.criteria:
        decided = row.reason + (" (clipped)" if row.clipped else "")
        table.add_row(
            row.name,
            "-" if row.switch_step is None else str(row.switch_step),
            "-" if row.raw_step is None else str(row.raw_step),
            decided,
            "-" if row.post_switch_change is None else f"{row.post_switch_change:.3g}",
        )
    console.print(
        f"{report.steps} steps, beta2 {report.beta2:g}, eps {report.eps:g}, "
        f"window {report.window}, clipped to {report.t_min}-{report.t_max}"
    )
    console.print(table)
    for line in report.advice:
        console.print(line)


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
    for line in _advice_on(report.layers):
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
