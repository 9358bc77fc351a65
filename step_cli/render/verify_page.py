"""`--format html`: the verdict as a page, with the worst layers first.

Without -v it shows a limited number of layers, so it stays small for any file.
"""

from collections import Counter

from step_cli.render.page_charts import Bar, BarChart
from step_cli.render.page_frame import (
    Cell,
    Table,
    bullets,
    facts,
    framed,
    header,
    section,
    sizes,
    small_print,
)
from step_cli.render.verify_words import (
    advice,
    coverage,
    failing,
    messages,
    summary,
    targets_of,
    title_of,
    view_word,
    worst_first,
)
from step_cli.reports import CheckpointVerdict, LayerVerdict, VerifyReport

MOST_BARS = 20
MOST_ROWS = 200
MOST_MESSAGES = 50
COLUMNS = (
    "layer", "shape", "type", "pattern", "axis", "axis from", "groups", "bad",
    "density", "verdict",
)  # fmt: skip
NUMBERS = ("axis", "groups", "bad", "density")
WHAT_IT_MEANS = (
    "A group is M weights in a row along the axis. It is bad if more than N of them "
    "are not 0. Density: the share of a layer's weights that are not 0. Every group "
    "was counted."
)


def text(report: VerifyReport, *, verbose: bool) -> str:
    """The page: a part for each checkpoint; ``verbose`` lists everything."""
    shown = report.shown
    failed = sum(not checkpoint.ok for checkpoint in shown)
    if len(shown) == 1:
        state = f"{'passed' if report.ok else 'FAILED'}: {summary(shown[0])}"
    elif failed:
        state = f"FAILED: {failed} of {len(shown)} checkpoints"
    else:
        state = f"passed: {len(shown)} checkpoints"
    top = header("Does it hold its N:M pattern?", state, ok=report.ok)
    parts = [
        _checkpoint(checkpoint, number, verbose=verbose)
        for number, checkpoint in enumerate(shown, start=1)
    ]
    body = f"{top}<main>\n{''.join(parts)}</main>\n"
    return framed("N:M pattern \u00b7 step-cli verify-nm", body)


def _checkpoint(checkpoint: CheckpointVerdict, number: int, *, verbose: bool) -> str:
    most = None if verbose else MOST_ROWS
    layers = worst_first(checkpoint.layers)
    return "".join(
        (
            section(
                f"checkpoint-{number}",
                checkpoint.path,
                facts(_facts(checkpoint)),
                _messages(checkpoint, None if verbose else MOST_MESSAGES),
            ),
            section(f"bad-{number}", "Bad groups", _bad_chart(checkpoint)),
            section(f"density-{number}", "Density", _density_chart(layers)),
            section(f"covered-{number}", "Coverage", _coverage_chart(checkpoint)),
            section(f"layers-{number}", "Layers", *_layers(checkpoint, number, most)),
            section(
                f"skipped-{number}",
                "What was not judged",
                _skipped(checkpoint, number, verbose=verbose),
            ),
        )
    )


def _facts(checkpoint: CheckpointVerdict) -> list[tuple[str, str]]:
    totals, layers = checkpoint.totals, checkpoint.layers
    found = [
        ("verdict", "passed" if checkpoint.ok else "FAILED"),
        ("format", checkpoint.format or ""),
    ]
    if totals is not None:
        patterns = Counter(layer.pattern for layer in layers)
        found += [
            ("patterns", ", ".join(f"{k} ({n})" for k, n in patterns.most_common(10))),
            ("layers", f"{totals.layers}, of which {totals.failed} failed"),
            ("groups", f"{totals.groups:,}, of which {totals.violations:,} bad"),
            ("weights", f"{totals.elements:,}, of which {totals.nonzeros:,} not 0"),
            ("density", f"{totals.density:.4f}"),
            ("coverage", _covered(checkpoint)),
        ]
    if checkpoint.integrity is not None:
        found.append(("integrity", checkpoint.integrity))
    return found


def _covered(checkpoint: CheckpointVerdict) -> str:
    said = checkpoint.shortfall or coverage(checkpoint) or "1"
    return said.removeprefix("coverage ")


def _messages(checkpoint: CheckpointVerdict, most: int | None) -> str:
    error = checkpoint.error
    found = [] if error is None else [(error.tensor or "", error.message)]
    found += [pair for pair in messages(checkpoint) if pair not in found]
    lines = [f"{name}: {said}" if name else said for name, said in found]
    hidden = len(lines) - len(lines[:most])
    more = [f"and {hidden} more; -v shows all"] if hidden else []
    said = bullets([*lines[:most], *more], longest=600)
    return said + bullets(advice(checkpoint), longest=2000)


def _bad_chart(checkpoint: CheckpointVerdict) -> str:
    """The failing layers: which share of their groups is bad."""
    layers = [layer for layer in failing(checkpoint) if layer.violations]
    shown = layers[:MOST_BARS]
    chart = BarChart(
        label="Share of the groups of each failing layer that is bad",
        rows_title="layer",
        axis_title="bad groups (% of the layer's groups)",
        series=[("bad", "bad")],
        bars=[
            Bar(
                layer.name,
                [share := 100 * layer.violations / max(1, layer.groups)],
                f"{share:.3g} % ({layer.violations:,})",
            )
            for layer in shown
        ],
    )
    return chart.html() + _of_many(len(shown), len(layers), "failing layers")


def _density_chart(layers: list[LayerVerdict]) -> str:
    """The density of each layer, and what its pattern allows."""
    shown = layers[:MOST_BARS]
    chart = BarChart(
        label="Density of each layer, and the density of its pattern",
        rows_title="layer",
        axis_title="density (share of the layer's weights that are not 0)",
        series=[("passed", "main"), ("failed", "bad")],
        bars=[
            Bar(
                layer.name,
                [layer.density, 0] if layer.ok else [0, layer.density],
                f"{layer.density:.4f}, {layer.pattern}",
                _allowed(layer.pattern),
            )
            for layer in shown
        ],
        top=1.0,
        mark_title="N/M of the pattern",
    )
    return chart.html() + _of_many(len(shown), len(layers), "layers")


def _allowed(pattern: str) -> float:
    kept, _, of = pattern.partition(":")
    return int(kept) / int(of)


def _of_many(shown: int, every: int, things: str) -> str:
    if shown == every:
        return ""
    return small_print(f"The first {shown} of {every} {things}, the worst first.")


def _coverage_chart(checkpoint: CheckpointVerdict) -> str:
    """Where the elements of matrices are, if some could not be judged."""
    totals = checkpoint.totals
    if totals is None or not totals.uncovered:
        return ""
    judged, missed = totals.elements, totals.uncovered
    chart = BarChart(
        label="Elements of matrices that were judged, and that were not",
        rows_title="elements",
        axis_title="size (elements as they are stored)",
        series=[("judged", "main"), ("not judged", "rest")],
        bars=[
            Bar("judged", [judged, 0], f"{judged:,}"),
            Bar("not judged", [0, missed], f"{missed:,}"),
        ],
        whole=True,
    )
    return chart.html() + small_print(coverage(checkpoint))


def _layers(
    checkpoint: CheckpointVerdict, number: int, most: int | None
) -> tuple[str, ...]:
    targets, layers = targets_of(checkpoint), worst_first(checkpoint.layers)
    rows = [
        [*_cells(layer), *(view_word(layer, target) for target in targets)]
        for layer in layers[:most]
    ]
    titles = [*COLUMNS, *map(title_of, targets)]
    table = Table(titles, rows, NUMBERS).html(f"layers-{number}")
    hidden = len(layers) - len(rows)
    more = f"And {hidden} more; -v lists all." if hidden else ""
    return table, small_print(more), small_print(WHAT_IT_MEANS if rows else "")


def _cells(layer: LayerVerdict) -> list[str | Cell]:
    tied = [] if layer.tied_to is None else [f"tied to {layer.tied_to}"]
    verdict = ", ".join(["ok" if layer.ok else "FAILED", *layer.notes, *tied])
    return [
        Cell(layer.name, "name"),
        sizes(layer.shape),
        layer.dtype,
        layer.pattern,
        str(layer.axis),
        layer.axis_from,
        f"{layer.groups:,}",
        Cell(f"{layer.violations:,}", "bad" if layer.violations else ""),
        f"{layer.density:.4f}",
        Cell(verdict, "" if layer.ok else "bad"),
    ]


def _skipped(checkpoint: CheckpointVerdict, number: int, *, verbose: bool) -> str:
    """How many tensors for which reason; ``verbose`` names them."""
    label = f"skipped-{number}"
    if verbose:
        rows: list[list[str | Cell]] = [
            [Cell(one.name, "name"), sizes(one.shape), one.dtype, one.reason]
            for one in checkpoint.skipped
        ]
        return Table(("tensor", "shape", "type", "reason"), rows).html(label)
    counts = Counter(tensor.reason for tensor in checkpoint.skipped)
    counted = [[reason, str(count)] for reason, count in counts.most_common()]
    table = Table(("reason", "tensors"), counted, ("tensors",)).html(label)
    return table + small_print("-v names them." if counted else "")
