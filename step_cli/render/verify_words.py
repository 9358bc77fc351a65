"""The sentences about a verdict that several formats share."""

from collections import Counter
from collections.abc import Sequence

from step_cli.reports import CheckpointVerdict, LayerVerdict, SkippedTensor


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
        "size": "its group axis is not a multiple of M",
        "rank": "a vector has no reduction axis",
        "dtype": "not a floating dtype",
        "kind": "this kind of tensor is not supported",
    }
    return f"cannot be checked, {causes.get(tensor.reason, tensor.reason)}: {shape}"


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
    if unchecked(checkpoint):
        parts.append(f"{len(unchecked(checkpoint))} could not be checked")
    return ", ".join(part for part in parts if part)
