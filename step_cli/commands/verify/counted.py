"""What was counted in each selected layer, and how its mask differs from a baseline."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.nm.count import TensorCounts, TensorToCheck, count_tensors
from step_cli.nm.groups import index_of
from step_cli.nm.pattern import NMSpec
from step_cli.reports import MaskDifference


@dataclass(frozen=True)
class Counted:
    """A layer, its pattern, and what was found in it.

    Attributes:
        tensor: Whose weights were counted.
        spec: The pattern and axis that it is to hold.
        counts: The counts.
        exact: Whether exactly N of each group are to be non-zero, not at most N.
        tied_to: The first listed name of the same storage, or None.
        difference: Where its mask is not that of the baseline, if there is one.
    """

    tensor: NamedTensor
    spec: NMSpec
    counts: TensorCounts
    exact: bool = False
    tied_to: str | None = None
    difference: MaskDifference | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        wrong = self.counts.violations or self.counts.nonfinite or self.difference
        return not wrong

    @property
    def first_nonfinite(self) -> list[int] | None:
        """The index of the first NaN or infinity."""
        position = self.counts.nonfinite_at
        return None if position is None else list(index_of(position, self.tensor.shape))


def count_layers(
    layers: Sequence[tuple[NamedTensor, NMSpec]],
    *,
    exact: bool = False,
    baseline: Checkpoint | None = None,
) -> list[Counted]:
    """Count the non-zeros of each layer.

    Args:
        layers: The tensors, each with its pattern.
        exact: Whether at most N non-zeros are too few.
        baseline: Whose masks the layers are to have.

    Returns:
        The layers in the order of their names.
    """
    all_counts = count_tensors(
        TensorToCheck(tensor.data(), spec, exact) for tensor, spec in layers
    )
    counted = sorted(
        zip(layers, all_counts, strict=True), key=lambda item: item[0][0].name
    )
    ties = _first_listed([tensor for (tensor, _), _ in counted])
    others = {tensor.name: tensor for tensor in baseline.tensors} if baseline else {}
    found = []
    for ((tensor, spec), counts), tied_to in zip(counted, ties, strict=True):
        other = None
        if baseline is not None:
            other = _difference(tensor, others.get(tensor.name))
        found.append(Counted(tensor, spec, counts, exact, tied_to, other))
    return found


def _first_listed(tensors: Sequence[NamedTensor]) -> Iterator[str | None]:
    """For each tensor the name that stands for its storage: the first one listed."""
    listed = {tensor.name for tensor in tensors}
    firsts: dict[str, str] = {}
    for tensor in tensors:
        storage = tensor.tied_to or tensor.name
        first = firsts.setdefault(storage, tensor.name)
        if first != tensor.name:
            yield first
        else:
            yield None if storage in listed else tensor.tied_to


def _difference(
    tensor: NamedTensor, other: NamedTensor | None
) -> MaskDifference | None:
    if other is None:
        return MaskDifference(
            count=None, first_index=None, message="the baseline lacks this tensor"
        )
    if other.shape != tensor.shape or other.skip == "kind":
        found = f"shape {list(other.shape)}, dtype {other.dtype}"
        return MaskDifference(
            count=None,
            first_index=None,
            message=f"the baseline has {found}, which cannot be compared",
        )
    from step_cli.nm.diagnosis import mismatch

    found_at = mismatch(tensor.data(), other.data())
    if found_at is None:
        return None
    index = list(found_at.index)
    return MaskDifference(
        count=found_at.count,
        first_index=index,
        message=f"{found_at.count} weights are kept in one of this and the baseline "
        f"only, the first at {index}",
    )
