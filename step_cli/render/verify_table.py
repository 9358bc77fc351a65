"""The table of `verify-nm`: the worst layers first, what is wrong, the verdict."""

import io
import os
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from step_cli.render.console import PlainConsole, console_for
from step_cli.render.text import one_line
from step_cli.render.verify_words import (
    COLUMNS,
    NUMBERS,
    cells,
    messages,
    summary,
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
            _advice(checkpoint, console)
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
    targets = _targets(checkpoint)
    rows = [
        [*_row(layer), *(_view_word(layer, target) for target in targets)]
        for layer in layers[: len(layers) - len(hidden)]
    ]
    if hidden:
        bad = sum(not layer.ok for layer in hidden)
        rows.append([f"and {len(hidden)} more, {bad} failed; -v shows all"])
    console.table([*COLUMNS, *map(_title, targets)], rows, NUMBERS)


def _row(layer: LayerVerdict) -> list[str]:
    name, *others = cells(layer)
    if layer.tied_to:
        others[-1] += f", tied to {one_line(layer.tied_to, 60)}"
    return [one_line(name), *others]


def _targets(checkpoint: CheckpointVerdict) -> list[str]:
    """The libraries that layers were judged for."""
    found = (target for layer in checkpoint.layers for target in layer.targets or ())
    return list(dict.fromkeys(found))


def _title(target: str) -> str:
    from step_cli.nm.target_table import TARGETS

    titles: dict[str, str] = {name: known.title for name, known in TARGETS.items()}
    return titles[target]


def _view_word(layer: LayerVerdict, target: str) -> str:
    view = (layer.targets or {}).get(target)
    if view is None:
        return "-"
    return "likely" if view.likely else "possible" if view.possible else "no"


def _advice(checkpoint: CheckpointVerdict, console: "AnyConsole") -> None:
    """Why layers may not run sparse: a line for each reason, not for each layer."""
    for target in _targets(checkpoint):
        reasons = Counter(
            (_view_word(layer, target), view.advice)
            for layer in checkpoint.layers
            if (view := (layer.targets or {}).get(target)) and view.advice
        )
        for (word, advice), count in reasons.most_common():
            said = f"{word} for {count} layer{'' if count == 1 else 's'}"
            console.line(f"{_title(target)}: {said}: {one_line(advice)}")
    for note in checkpoint.notes:
        console.line(f"note: {one_line(note)}")


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
