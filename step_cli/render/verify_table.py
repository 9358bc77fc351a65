"""The table of `verify-nm`: the worst layers first, what is wrong, the verdict."""

import io
import os
from typing import TYPE_CHECKING, TextIO

from step_cli.render.console import PlainConsole, console_for
from step_cli.render.text import one_line
from step_cli.render.verify_words import (
    COLUMNS,
    NUMBERS,
    advice,
    cells,
    messages,
    summary,
    targets_of,
    title_of,
    view_word,
    worst_first,
)
from step_cli.reports import (
    CheckpointVerdict,
    LayerVerdict,
    VerifyReport,
)

if TYPE_CHECKING:
    from step_cli.render.console import AnyConsole

MOST_ROWS = 20
MOST_MESSAGES = 10


def draw(report: VerifyReport, out: TextIO, *, verbose: bool, annotate: bool) -> None:
    """Write the tables; on GitHub's runner no name in them can act as a command."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        _draw(report, console_for(out), verbose=verbose)
        return
    import hashlib

    buffer = io.StringIO()
    _draw(report, PlainConsole(buffer), verbose=verbose)
    # Any line may start with any text. No text can hold a digest of itself, so none
    # can end the stop.
    token = hashlib.sha256(buffer.getvalue().encode()).hexdigest()
    out.write(f"::stop-commands::{token}\n{buffer.getvalue()}::{token}::\n")
    if annotate:
        from step_cli.render import github

        out.write(github.text(report))
        github.append_summary(report)


def _draw(report: VerifyReport, console: "AnyConsole", *, verbose: bool) -> None:
    for checkpoint in report.shown:
        if checkpoint.layers:
            _layers(checkpoint, console, verbose=verbose)
            for line in advice(checkpoint):
                console.line(one_line(line, longest=2000))
        _messages(checkpoint, console, verbose=verbose)
        if verbose and checkpoint.skipped:
            _skipped(checkpoint, console)
        if verbose and checkpoint.integrity is not None:
            console.line(f"integrity: {checkpoint.integrity}")
        shown = one_line(checkpoint.path)
        console.verdict(checkpoint.ok, f"{shown}: {summary(checkpoint)}")


def _layers(
    checkpoint: CheckpointVerdict, console: "AnyConsole", *, verbose: bool
) -> None:
    layers = worst_first(checkpoint.layers)
    hidden = [] if verbose else layers[MOST_ROWS:]
    targets = targets_of(checkpoint)
    rows = [
        [*_row(layer), *(view_word(layer, target) for target in targets)]
        for layer in layers[: len(layers) - len(hidden)]
    ]
    if hidden:
        bad = sum(not layer.ok for layer in hidden)
        rows.append([f"and {len(hidden)} more, {bad} failed; -v shows all"])
    console.table([*COLUMNS, *map(title_of, targets)], rows, NUMBERS)


def _row(layer: LayerVerdict) -> list[str]:
    name, *others = cells(layer)
    if layer.tied_to:
        others[-1] += f", tied to {one_line(layer.tied_to, 60)}"
    return [one_line(name), *others]


def _messages(
    checkpoint: CheckpointVerdict, console: "AnyConsole", *, verbose: bool
) -> None:
    found = messages(checkpoint)
    lines = [f"{one_line(name, 120)}: {one_line(text)}" for name, text in found]
    most = len(lines) if verbose else MOST_MESSAGES
    for line in lines[:most]:
        console.line(line)
    if lines[most:]:
        console.line(f"and {len(lines) - most} more; -v shows all")


def _skipped(checkpoint: CheckpointVerdict, console: "AnyConsole") -> None:
    rows = [
        [one_line(tensor.name), str(tensor.shape), tensor.dtype, tensor.reason]
        for tensor in checkpoint.skipped
    ]
    console.table(["skipped", "shape", "dtype", "reason"], rows)
