"""Tensors that are one weight under several names: pruned under all, or under none."""

from collections.abc import Iterable, Mapping

from step_cli.errors import UsageError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.nm.pattern import NMSpec
from step_cli.nm.weight_rule import SkipReason


def tied_to_skipped(
    checkpoint: Checkpoint, skipped: Iterable[tuple[NamedTensor, SkipReason]]
) -> dict[str, tuple[str, SkipReason]]:
    """The names of selected tensors that are tied to skipped ones.

    Args:
        checkpoint: All tensors.
        skipped: Those that are not selected, each with its reason.

    Returns:
        By name: a tensor to which it is tied and which is skipped, and why; of what
        the user left out nothing is said here.
    """
    reasons = {tensor.name: reason for tensor, reason in skipped}
    ties: dict[str, list[str]] = {}
    for tensor in checkpoint.tensors:
        ties.setdefault(tensor.tied_to or tensor.name, []).append(tensor.name)
    found = {}
    for names in ties.values():
        others = [name for name in names if reasons.get(name, "excluded") != "excluded"]
        for name in names:
            if others and name not in reasons:
                found[name] = others[0], reasons[others[0]]
    return found


def refuse_torn_ties(checkpoint: Checkpoint, specs: Mapping[str, NMSpec]) -> None:
    """Pruning one of two tied tensors prunes the other as well.

    Raises:
        UsageError: One of them has another pattern or axis, or none.
    """
    for tensor in checkpoint.tensors:
        first = tensor.tied_to
        if first is not None and specs.get(first) != specs.get(tensor.name):
            raise UsageError(
                f"tied to {first!r}: select both or neither, with one pattern and "
                f"axis: --exclude {first!r} --exclude {tensor.name!r}",
                tensor=tensor.name,
            )
