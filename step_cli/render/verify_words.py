"""What several formats show of a verdict: columns, cells and sentences."""

from collections import Counter
from collections.abc import Sequence

from step_cli.errors import few
from step_cli.reports import CheckpointVerdict, LayerVerdict, SkippedTensor

COLUMNS = ("layer", "pattern", "axis", "groups", "bad", "density", "verdict")
NUMBERS = COLUMNS[2:6]


def cells(layer: LayerVerdict) -> list[str]:
    """The cells of ``COLUMNS``; the name is as it is stored."""
    return [
        layer.name,
        layer.pattern,
        str(layer.axis),
        str(layer.groups),
        str(layer.violations),
        f"{layer.density:.4f}",
        ", ".join(["ok" if layer.ok else "FAILED", *layer.notes]),
    ]


def worst_first(layers: Sequence[LayerVerdict]) -> list[LayerVerdict]:
    """The failing layers with the most violations first, then the others by name."""
    return sorted(layers, key=lambda layer: (layer.ok, -layer.violations))


def failing(checkpoint: CheckpointVerdict) -> list[LayerVerdict]:
    """The layers that fail, the worst first."""
    return worst_first([layer for layer in checkpoint.layers if not layer.ok])


def unchecked(checkpoint: CheckpointVerdict) -> list[SkippedTensor]:
    """The tensors that were selected, but could not be checked."""
    return [tensor for tensor in checkpoint.skipped if tensor.selected]


def why_unchecked(tensor: SkippedTensor) -> str:
    """One sentence for a tensor that was selected, but could not be checked."""
    shape = f"shape {tensor.shape}, dtype {tensor.dtype}"
    causes = {
        "size": "its groups of M along the group axis are not whole",
        "rank": "a vector has no reduction axis",
        "dtype": "not a floating dtype, nor int8 beside a scale",
        "kind": "this kind of tensor is not supported",
        "packed": "it holds packed codes",
        "reparametrized": "the module computes its weight from it",
        "flat": "it holds the parameters of several layers in a row",
        "untraced": "it reaches a product through an operator not looked through",
    }
    note = f"; {tensor.note}" if tensor.note else ""
    cause = causes.get(tensor.reason, tensor.reason)
    return f"cannot be checked, {cause}: {shape}{note}"


def targets_of(checkpoint: CheckpointVerdict) -> list[str]:
    """The libraries that layers were judged for."""
    found = (target for layer in checkpoint.layers for target in layer.targets or ())
    return list(dict.fromkeys(found))


def title_of(target: str) -> str:
    """The name of a library, as its makers write it."""
    from step_cli.nm.target_table import TARGETS

    titles: dict[str, str] = {name: known.title for name, known in TARGETS.items()}
    return titles[target]


def view_word(layer: LayerVerdict, target: str) -> str:
    """Whether a library may run a layer sparse: likely, possible, no."""
    view = (layer.targets or {}).get(target)
    if view is None:
        return "-"
    return "likely" if view.likely else "possible" if view.possible else "no"


def advice(checkpoint: CheckpointVerdict) -> list[str]:
    """Why layers may not run sparse: a line for each reason, not for each layer."""
    lines = []
    for target in targets_of(checkpoint):
        reasons: dict[tuple[str, str], list[str]] = {}
        for layer in checkpoint.layers:
            view = (layer.targets or {}).get(target)
            if view is not None and view.advice:
                key = view_word(layer, target), view.advice
                reasons.setdefault(key, []).append(layer.name)
        for (word, why), names in sorted(reasons.items(), key=lambda x: -len(x[1])):
            said = f"{word} for {len(names)} layer{'' if len(names) == 1 else 's'}"
            which = f": {few(names)}" if len(names) < len(checkpoint.layers) else ""
            lines.append(f"{title_of(target)}: {said}: {why}{which}")
    return lines + [f"note: {note}" for note in checkpoint.notes]


def messages(checkpoint: CheckpointVerdict) -> list[tuple[str, str]]:
    """Each tensor that that fails or could not be checked, and why."""
    found = [(layer.name, layer.message or "") for layer in failing(checkpoint)]
    return found + [(one.name, why_unchecked(one)) for one in unchecked(checkpoint)]


def skipped_counts(checkpoint: CheckpointVerdict) -> str:
    """``3 skipped (2 name, 1 embedding)``, or nothing."""
    counts = Counter(tensor.reason for tensor in checkpoint.skipped)
    if not counts:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    return f"{len(checkpoint.skipped)} skipped ({reasons})"


def summary(checkpoint: CheckpointVerdict) -> str:
    """The verdict in numbers: ``2 layers, 1 failed, 1 of 96 groups bad, ...``."""
    totals = checkpoint.totals
    if totals is None:
        return "could not be checked"
    plural = "" if totals.layers == 1 else "s"
    parts = [
        f"{totals.layers} layer{plural}, {totals.failed} failed",
        f"{totals.violations} of {totals.groups} groups bad",
        f"density {totals.density:.4g}",
        skipped_counts(checkpoint),
    ]
    parts.append(checkpoint.shortfall or coverage(checkpoint))
    return ", ".join(part for part in parts if part)


def coverage(checkpoint: CheckpointVerdict) -> str:
    """``coverage 0.25, not judged: 1 flat``, or nothing where all was judged."""
    if checkpoint.totals is None:
        return ""
    return coverage_words(checkpoint.totals.coverage, checkpoint.skipped, "judged")


def coverage_words(share: float, skipped: Sequence[SkippedTensor], done: str) -> str:
    """``coverage 0.25, not judged: 1 flat``, or nothing where none was missed."""
    counts = Counter(tensor.reason for tensor in skipped if tensor.selected)
    if not counts:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    return f"coverage {_share(share)}, not {done}: {reasons}"


def _share(of: float) -> str:
    """A share in four digits; never 1 where something is missing, never 0 for some."""
    shown = f"{of:.4g}"
    if of < 1 and float(shown) == 1:
        return "0.9999"
    return shown
