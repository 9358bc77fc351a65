"""What of a model's layers stays dense, told once with reasons and shares."""

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from step_cli.errors import few
from step_cli.nm.selection import Chosen
from step_cli.nm.weight_rule import Description

logger = logging.getLogger(__name__)

FROZEN, NOT_GIVEN = "frozen", "not-given"  # beside the reasons of a selection
BY_NAME = (
    "layers were chosen by names and shapes, as no module was given: give model=, so "
    "that the types of its modules choose"
)
# What follows "stays dense: ", for each reason.
WHY: Mapping[str, str] = {
    "embedding": "an embedding",
    "norm": "a norm",
    "consumer": "of a transposed convolution, or used along several axes",
    "name": "nothing tells that a product uses it",
    "size": "shape {} has no whole groups",
    "dtype": "{} is no floating type that is trained",
    "reparametrized": "its module computes the weight from it",
    "rank": "it has a single axis",
    "flat": "it holds the parameters of several layers",
    "packed": "it holds several codes a number",
    FROZEN: "its requires_grad is False",
    NOT_GIVEN: "it was not given to the optimizer",
}


@dataclass(frozen=True)
class LeftDense:
    """A parameter of a layer that is not N:M.

    Attributes:
        name: Its name.
        shape: Its shape.
        dtype: Its dtype.
        reason: A key of `WHY`, or another reason of a selection.
        share: Of all layer weights.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str
    share: float

    @property
    def why(self) -> str:
        """The reason in words."""
        if self.reason == "excluded":
            return "excluded"
        found = self.dtype if self.reason == "dtype" else list(self.shape)
        return WHY.get(self.reason, self.reason).format(found)


@dataclass(frozen=True)
class Coverage:
    """Which layer weights (parameters of rank 2 or more) stay dense.

    Attributes:
        left: Each of them, in the order of the model.
        chosen_share: Of all layer weights, those that are to become N:M.
        names: All layer weights, chosen or not.
    """

    left: tuple[LeftDense, ...] = ()
    chosen_share: float = 1.0
    names: tuple[str, ...] = ()

    def sentence(self) -> str | None:
        """One line with reasons and shares; None where nothing stays dense."""
        if not self.left:
            return None
        alike: defaultdict[str, list[LeftDense]] = defaultdict(list)
        for each in self.left:
            alike[each.reason].append(each)
        parts = [_told(some) for some in sorted(alike.values(), key=_share)[::-1]]
        return f"{_percent(_share(self.left))} of all layer weights stay dense; " + (
            "; ".join(parts)
        )


def coverage_of(
    chosen: Chosen[Description], planned: Collection[str], also: Mapping[str, str]
) -> Coverage:
    """What stays dense of all that a selection has seen.

    Args:
        chosen: What it found.
        planned: The names of what is to become N:M.
        also: Names that stay dense for a reason that no selection knows.
    """
    reasons: dict[str, str] = {
        t.name: reason for t, reason in chosen.skipped if t.name not in planned
    }
    reasons |= also
    named = {tensor.name for tensor in chosen.unchecked}
    found = [t for t, _ in chosen.skipped] + [layer.tensor for layer in chosen.layers]
    layers = [t for t in found if len(t.shape) > 1 or t.name in named]
    sizes = {t.name: math.prod(t.shape) for t in layers}
    total = max(1, sum(sizes.values()))
    left = tuple(
        LeftDense(t.name, t.shape, t.dtype, reasons[t.name], sizes[t.name] / total)
        for t in layers
        if sizes[t.name] and t.name in reasons
    )
    kept = sum(sizes.get(name, 0) for name in planned if name not in reasons)
    return Coverage(left, kept / total, tuple(sizes))


def tell(coverage: Coverage, *, by_name: bool = False) -> None:
    """Say in one warning what stays dense, and that names had to choose if they had."""
    said = [coverage.sentence(), BY_NAME if by_name else None]
    if any(said):
        logger.warning("%s", "; ".join(text for text in said if text))


def overall_density(weights: Mapping[str, Tensor], coverage: Coverage) -> float:
    """Share of non-zeros among all layer weights, chosen or not."""
    held = [weights[name] for name in coverage.names if name in weights]
    total = sum(weight.numel() for weight in held)
    kept = sum(int(weight.count_nonzero()) for weight in held)
    return kept / total if total else 1.0


def _told(some: list[LeftDense]) -> str:
    first, one = some[0], len(some) == 1
    why = first.why
    if not one and first.reason in ("size", "dtype"):
        why += " (the first)"
    verb = "stays" if one else "stay"
    names = few([each.name for each in some])
    if first.reason == "excluded":
        return f"excluded: {names} ({_percent(_share(some))})"
    return f"{names} {verb} dense: {why} ({_percent(_share(some))})"


def _share(some: Collection[LeftDense]) -> float:
    return sum(each.share for each in some)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "below 0.1 %"
