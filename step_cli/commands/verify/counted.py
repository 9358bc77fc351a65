"""What was counted in each selected layer, and how its mask differs from a baseline."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.nm.count import TensorCounts, TensorToCheck, count_tensors
from step_cli.nm.groups import index_of
from step_cli.nm.pattern import NMSpec
from step_cli.nm.selection import Layer
from step_cli.nm.tensor_data import Part
from step_cli.reports import MaskDifference


@dataclass(frozen=True)
class Counted:
    """A layer, its pattern, and what was found in it.

    Attributes:
        layer: Whose weights were counted, with the pattern that they are to hold.
        counts: The counts.
        exact: Whether exactly N of each group are to be non-zero, not at most N.
        tied_to: The first listed name of the same storage, or None.
        difference: Where its mask is not that of the baseline, if there is one.
    """

    layer: Layer[NamedTensor]
    counts: TensorCounts
    exact: bool = False
    tied_to: str | None = None
    difference: MaskDifference | None = None

    @property
    def tensor(self) -> NamedTensor:
        """Whose weights were counted."""
        return self.layer.tensor

    @property
    def spec(self) -> NMSpec:
        """The pattern and axis that it is to hold."""
        return self.layer.spec

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
    layers: Sequence[Layer[NamedTensor]],
    *,
    exact: bool = False,
    baseline: Checkpoint | None = None,
) -> list[Counted]:
    """Count the non-zeros of each layer, of the parts that are used.

    Args:
        layers: The tensors, each with its pattern.
        exact: Whether at most N non-zeros are too few.
        baseline: Whose masks the layers are to have.

    Returns:
        The layers in the order of their names.
    """
    all_counts = _counts(layers, exact)
    counted = sorted(
        zip(layers, all_counts, strict=True), key=lambda item: item[0].tensor.name
    )
    ties = _first_listed([layer.tensor for layer, _ in counted])
    others = {tensor.name: tensor for tensor in baseline.tensors} if baseline else {}
    found = []
    for (layer, counts), tied_to in zip(counted, ties, strict=True):
        other = None
        if baseline is not None:
            other = _difference(layer.tensor, others.get(layer.tensor.name))
        found.append(Counted(layer, counts, exact, tied_to, other))
    return found


def _counts(
    layers: Sequence[Layer[NamedTensor]], exact: bool
) -> Iterator[TensorCounts]:
    """What was counted in each layer; positions are those in the whole tensor."""
    counted = count_tensors(_to_check(layers, exact))
    for layer in layers:
        shape, parts = layer.tensor.shape, layer.tensor.parts
        if not parts:
            yield next(counted)
            continue
        total = TensorCounts()
        for part in parts:
            total.add(_moved(next(counted), part, shape))
        yield total


def _to_check(
    layers: Sequence[Layer[NamedTensor]], exact: bool
) -> Iterator[TensorToCheck]:
    for layer in layers:
        data = layer.tensor.data()
        for part in layer.tensor.parts:
            yield TensorToCheck(data.part(part), layer.spec, exact)
        if not layer.tensor.parts:
            yield TensorToCheck(data, layer.spec, exact)


def _moved(counts: TensorCounts, part: Part, shape: tuple[int, ...]) -> TensorCounts:
    """What was counted in a part, with the positions that it has in the tensor."""
    sizes = tuple(end - begin for begin, end in zip(part.begin, part.end, strict=True))

    def position(of: int) -> int:
        index = zip(part.begin, index_of(of, sizes), strict=True)
        at = 0
        for size, (begin, step) in zip(shape, index, strict=True):
            at = at * size + begin + step
        return at

    if counts.violation is not None:
        first, nonzeros = counts.violation
        counts.violation = position(first), nonzeros
    if counts.nonfinite_at is not None:
        counts.nonfinite_at = position(counts.nonfinite_at)
    return counts


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
