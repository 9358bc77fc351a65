"""What a verdict on a random graph has to be, by what ONNX Runtime shows of it."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx.printer
from formats.onnx.group_oracle import Learned, Witness
from formats.onnx.random_graphs.example import Example
from formats.onnx.random_graphs.values import (
    EITHER,
    LISTED,
    OPAQUE,
    OPEN,
    Array,
    Path,
    Stored,
)


@dataclass(frozen=True)
class Layer:
    """The groups of a stored tensor along one axis."""

    axis: int
    groups: int
    violations: int
    first: tuple[list[int], int] | None  # index and non-zeros


@dataclass
class Expected:
    """What is expected of one stored tensor.

    Attributes:
        stored: The tensor.
        layers: Its layers by their axis, of what can be judged of it.
        judged: Whether products use it in ways that must be judged.
        either: Whether they use it in ways that may be called untraced.
        refused: Whether they use it in ways that must be.
        open: Whether they use it in ways that depend on inputs of the graph.
        unknown: Whether its groups are known only in part.
    """

    stored: Stored
    layers: dict[int, Layer] = field(default_factory=dict)
    judged: bool = False
    either: bool = False
    refused: bool = False
    open: bool = False
    unknown: bool = False

    def is_missed(self, is_layer: bool) -> bool:
        """Whether something of it was not judged that a product uses."""
        return self.refused or (not is_layer and (self.judged or self.either))


def expected(example: Example, witness: Witness) -> dict[str, Expected]:
    """What is expected of each stored tensor.

    Raises:
        Ambiguous: ONNX Runtime does not show the groups of a product.
    """
    found = {stored.name: Expected(stored) for stored in example.stored}
    groups: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    n, m = example.pattern
    for placed in example.placed:
        for number in range(len(placed.values)):
            kinds = {path.kind for path in placed.paths(number)}
            paths = [p for p in placed.paths(number) if (p.ids >= 0).any()]
            if OPAQUE in kinds or OPEN in kinds:
                _not_followed(found, paths, kinds)
                continue
            learned = witness.learn(placed, number)
            verdicts = [kind_of(path, learned, m) for path in paths]
            followed = {*verdicts, *kinds} == {LISTED}
            for path, kind in zip(paths, verdicts, strict=True):
                tensor = found[path.stored.name]
                tensor.refused |= kind == OPAQUE
                # where a part of an operand is not followed, none of it need be
                tensor.judged |= followed
                tensor.either |= kind != OPAQUE and not followed
                for group in learned.groups.get(path.stored.name, set()):
                    axis = axis_of(group, path.stored.shape)
                    if axis is None:
                        tensor.unknown = True
                    else:
                        groups.setdefault((path.stored.name, axis), set()).add(group)
    for (name, axis), members in groups.items():
        found[name].layers[axis] = layer(found[name].stored, axis, members, n)
    return found


def _not_followed(
    found: dict[str, Expected], paths: list[Path], kinds: set[str]
) -> None:
    """An operand behind a step that is not listed."""
    for path in paths:
        tensor = found[path.stored.name]
        tensor.refused |= path.kind == OPAQUE and OPEN not in kinds
        tensor.either |= path.kind != OPAQUE and OPEN not in kinds
        tensor.open |= OPEN in kinds
        tensor.unknown = True


def axis_of(group: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """The axis that a group lies along, or None if it lies along several."""
    where = np.array(np.unravel_index(group, shape))
    moving = np.flatnonzero((where != where[:, :1]).any(1))
    return int(moving[0]) if len(moving) == 1 else None


def kind_of(path: Path, learned: Learned, m: int) -> str:
    """Whether what a product uses of a tensor must, may or cannot be judged."""
    name, shape = path.stored.name, path.stored.shape
    if name in learned.rest or name in learned.joined:
        return OPAQUE
    used = np.array(np.nonzero(path.ids >= 0))
    numbers = learned.inputs[name]
    begin, end = used.min(1), used.max(1) + 1
    kind = path.kind if is_matrix(path.stored) else EITHER
    if name in learned.uneven or _scattered(path.stored.zero):
        kind = EITHER
    if used.shape[1] != int(np.prod(end - begin)):
        kind = EITHER  # not a box
    flat = set(np.ravel_multi_index(used, shape).tolist())
    for group in learned.groups[name]:
        axis = axis_of(group, shape)
        if axis is None:
            return OPAQUE
        where = np.array(np.unravel_index(group, shape))[axis]
        in_order = (np.diff(where) == 1).all()
        parts = (end - begin)[axis] % m or (
            not flat.issuperset(group) and flat & {*group}
        )
        if not in_order or parts:
            kind = EITHER
        if group[0] in flat and numbers[group[0]] % m:
            kind = EITHER
    return kind


def is_matrix(stored: Stored) -> bool:
    """Whether it is more than a row of numbers."""
    return sum(size > 1 for size in stored.shape) > 1


def _scattered(zero: Array) -> bool:
    """Whether the code that means zero differs along more than one axis."""
    axes = range(zero.ndim)
    return sum(bool((zero != zero.take([0], a)).any()) for a in axes) > 1


def layer(stored: Stored, axis: int, groups: set[tuple[int, ...]], n: int) -> Layer:
    """Count the groups that hold too many numbers that are not zero."""
    typed = stored.typed().astype(np.float64)
    kept = (typed != (stored.zero if stored.is_codes else 0)).reshape(-1)
    counts = {group: int(kept[list(group)].sum()) for group in groups}
    broken = sorted(group for group, count in counts.items() if count > n)
    first = None
    if broken:
        index = np.unravel_index(broken[0][0], stored.shape)
        first = [int(i) for i in index], counts[broken[0]]
    return Layer(axis, len(groups), len(broken), first)


# ------------------------------------------------------------------------- comparison


def disagreements(
    example: Example, wanted: dict[str, Expected], report: Any, strict: Any
) -> list[str]:
    """How a report, and one with --strict, differ from what is expected; in words."""
    (found,), (strictly,) = report.checkpoints, strict.checkpoints
    if found.error is not None and found.error.exit != 3:
        return [f"refused: {found.error}"]
    said: list[str] = []
    layers: dict[str, list[Any]] = {}
    for one in found.layers:
        layers.setdefault(one.name, []).append(one)
    reasons = {one.name: one.reason for one in found.skipped}
    for name in layers.keys() - wanted.keys():
        said.append(f"{name}: a layer, but no product multiplies by it")
    for name, tensor in wanted.items():
        said += _of_tensor(name, tensor, layers.get(name, []), reasons.get(name))
    if any(tensor.open for tensor in wanted.values()):
        return said
    missed = [t for t in wanted.values() if t.is_missed(t.stored.name in layers)]
    if missed and strictly.ok:
        said.append("passes --strict, but a tensor was not judged")
    if any(is_matrix(t.stored) for t in missed) and strictly.error is not None:
        said.append(f"--strict is no failed check, but {strictly.error}")
    if not missed and strictly.ok != found.ok:
        said.append("fails --strict, but every tensor was judged")
    covered = found.totals.coverage == 1
    if covered and any(is_matrix(tensor.stored) for tensor in missed):
        said.append("covers all, but a tensor was not judged")
    if not missed and not covered:
        said.append(f"covers {found.totals.coverage}, but every tensor was judged")
    return said


def _of_tensor(
    name: str, wanted: Expected, layers: list[Any], reason: str | None
) -> list[str]:
    if not layers:
        if wanted.judged and not wanted.refused:
            return [f"{name}: must be judged, but is {reason}"]
        reasons = ["untraced", "size"]
        if wanted.refused and wanted.stored.is_codes:
            reasons.append("kind")  # a zero point that is no single number
        elif _scattered(wanted.stored.zero):
            reasons.append("kind")
        used = wanted.refused or wanted.either
        if used and reason not in reasons and is_matrix(wanted.stored):
            return [f"{name}: skipped as {reason}, not as untraced"]
        return []
    if not (wanted.judged or wanted.either):
        return [f"{name}: judged, but must not be: {_words(layers)}"]
    if wanted.unknown or wanted.refused or (wanted.judged and wanted.either):
        return []
    axes = sorted(one.axis for one in layers)
    if axes != sorted(wanted.layers):
        return [f"{name}: axes {axes}, not {sorted(wanted.layers)}"]
    said = []
    for one in layers:
        right = wanted.layers[one.axis]
        first = one.first_violation
        got = Layer(
            one.axis,
            one.groups,
            one.violations,
            None if first is None else (first.index, first.nonzeros),
        )
        if got != right or one.ok == bool(right.violations):
            said.append(f"{name}: {got} and ok={one.ok}, not {right}")
    return said


def _words(layers: list[Any]) -> str:
    return ", ".join(f"axis {one.axis} ok={one.ok}" for one in layers)


def listing(example: Example) -> str:
    """The graph, for a person: long lists of numbers are left out."""
    text = onnx.printer.to_text(example.model())
    text = re.sub(r"\{(?:-?[\w.+-]+,){8,}[^{}]*\}", "{...}", text)
    stored = [f"{s.name}: {s.dtype} {s.shape}, {s.form}" for s in example.stored]
    return "\n".join([f"seed {example.seed}", *stored, text])
