"""Compares a report on a random graph with what ONNX Runtime shows of it."""

import re
from typing import Any

import onnx.printer
from formats.onnx.group_verdicts import Expected, Layer, is_matrix, is_scattered
from formats.onnx.random_graphs.example import Example


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
    partly = [t for t in wanted.values() if t.judged and t.either]
    missed = [t for t in wanted.values() if t.is_missed(t.stored.name in layers)]
    if missed and strictly.ok:
        said.append("passes --strict, but a tensor was not judged")
    if any(is_matrix(t.stored) for t in missed) and strictly.error is not None:
        said.append(f"--strict is no failed check, but {strictly.error}")
    if not missed and not partly and strictly.ok != found.ok:
        said.append("fails --strict, but every tensor was judged")
    covered = found.totals.coverage == 1
    if covered and any(is_matrix(tensor.stored) for tensor in missed):
        said.append("covers all, but a tensor was not judged")
    if not missed and not partly and not covered:
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
        elif is_scattered(wanted.stored.zero):
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
