"""The table of `verify-nm`: the worst layers first, what is wrong, the verdict."""

import io
import os
from typing import TextIO

from rich.console import Console
from rich.table import Table

from step_cli.render.tables import console, name, new_table, verdict
from step_cli.render.text import one_line
from step_cli.render.verify_words import (
    failing,
    summary,
    unchecked,
    why_unchecked,
    worst_first,
)
from step_cli.reports import CheckpointVerdict, LayerVerdict, VerifyReport

MOST_ROWS = 20
MOST_MESSAGES = 10


def draw(report: VerifyReport, out: TextIO, *, verbose: bool, forge: bool) -> None:
    """Write the tables; on GitHub's runner no name in them can act as a command."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        _draw(report, console(out), verbose=verbose)
        return
    import hashlib

    buffer = io.StringIO()
    _draw(report, console(buffer), verbose=verbose)
    # A long name is folded, so any line may start with any text. No text can hold a
    # digest of itself, so none can end the stop.
    token = hashlib.sha256(buffer.getvalue().encode()).hexdigest()
    out.write(f"::stop-commands::{token}\n{buffer.getvalue()}::{token}::\n")
    if forge:
        from step_cli.render import github, step_summary

        out.write(github.text(report))
        step_summary.append(report)


def _draw(report: VerifyReport, to: Console, *, verbose: bool) -> None:
    for checkpoint in report.shown:
        if checkpoint.layers:
            to.print(_layers(checkpoint, verbose=verbose))
        _messages(checkpoint, to, verbose=verbose)
        if verbose and checkpoint.skipped:
            to.print(_skipped(checkpoint))
        if verbose and checkpoint.integrity is not None:
            to.print(f"integrity: {checkpoint.integrity}")
        shown = one_line(checkpoint.path)
        verdict(to, checkpoint.ok, f"{shown}: {summary(checkpoint)}")


def _layers(checkpoint: CheckpointVerdict, *, verbose: bool) -> Table:
    layers = worst_first(checkpoint.layers)
    hidden = [] if verbose else layers[MOST_ROWS:]
    columns = ["layer", "pattern", "axis", "groups", "bad", "density", "verdict"]
    right = ("axis", "groups", "bad", "density")
    with_view = any(layer.tensorrt for layer in layers)
    table = new_table(*columns, *(["TensorRT"] if with_view else []), right=right)
    for layer in layers[: len(layers) - len(hidden)]:
        table.add_row(
            name(layer.name),
            layer.pattern,
            str(layer.axis),
            str(layer.groups),
            str(layer.violations),
            f"{layer.density:.4f}",
            _word(layer),
            *([_tensorrt(layer)] if with_view else []),
        )
    if hidden:
        bad = sum(not layer.ok for layer in hidden)
        table.add_row(f"and {len(hidden)} more, {bad} failed; -v shows all")
    return table


def _word(layer: LayerVerdict) -> str:
    tied = [f"tied to {one_line(layer.tied_to, 60)}"] if layer.tied_to else []
    return ", ".join(["ok" if layer.ok else "FAILED", *layer.notes, *tied])


def _tensorrt(layer: LayerVerdict) -> str:
    view = layer.tensorrt
    if view is None:
        return "-"
    word = "likely" if view.likely else "possible" if view.possible else "no"
    return f"{word}: {view.advice}" if view.advice else word


def _messages(checkpoint: CheckpointVerdict, to: Console, *, verbose: bool) -> None:
    found = [(layer.name, layer.message or "") for layer in failing(checkpoint)]
    found += [(tensor.name, why_unchecked(tensor)) for tensor in unchecked(checkpoint)]
    lines = [f"{one_line(name, 120)}: {one_line(text)}" for name, text in found]
    most = len(lines) if verbose else MOST_MESSAGES
    for line in lines[:most]:
        to.print(line, soft_wrap=True)
    if lines[most:]:
        to.print(f"and {len(lines) - most} more; -v shows all")
    for hint in checkpoint.hints:
        to.print(one_line(hint), soft_wrap=True)


def _skipped(checkpoint: CheckpointVerdict) -> Table:
    table = new_table("skipped", "shape", "dtype", "reason")
    for tensor in checkpoint.skipped:
        table.add_row(name(tensor.name), str(tensor.shape), tensor.dtype, tensor.reason)
    return table
