"""From a build log to a verdict for each layer: eligible, chosen, tactic.

Each rung is True, False or None; None means that nothing was observed. Several pairs
may stand in a log; the last one is judged.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from step_cli.formats.tensorrt.layers import EngineLayer
from step_cli.formats.tensorrt.log import BuildLog

SparseWeights = Literal["used", "permitted", "ignored"]


@dataclass(frozen=True)
class Rungs:
    """What was seen of one ONNX node in the engine."""

    eligible: bool | None = None
    chosen: bool | None = None
    tactic: str | None = None


def rungs(log: BuildLog, node: str) -> Rungs:
    """Look one ONNX node up in a build log."""
    layers = [layer for layer in log.layers if node in layer.onnx_names]
    last = log.pairs[-1] if log.pairs else None
    eligible = last.eligible.holds(node) if last and last.eligible else None
    chosen = last.chosen.holds(node) if last and last.chosen else None
    if eligible is None:
        eligible = _any(layer.has_sparse_weights for layer in layers)
    tactic = _tactic(layers)
    if chosen is None or any(layer.runs_sparse for layer in layers):
        chosen = _any(layer.runs_sparse for layer in layers)
    # What was chosen was eligible, even where only the tactic tells.
    return Rungs(True if chosen else eligible, chosen, tactic)


def sparse_weights(log: BuildLog, *, honoured: bool) -> SparseWeights:
    """What became of the permission to use sparse weights, for the whole engine."""
    if not honoured:
        return "ignored"
    chosen = log.pairs[-1].chosen if log.pairs else None
    if (chosen and chosen.count) or any(layer.runs_sparse for layer in log.layers):
        return "used"
    return "permitted"


def _any(claims: Iterable[bool | None]) -> bool | None:
    """True if one is, else None if one is unknown or there is none, else False."""
    seen = list(claims)
    if True in seen:
        return True
    return None if None in seen or not seen else False


def _tactic(layers: list[EngineLayer]) -> str | None:
    """The tactic of the layer, the sparse one first."""
    named = [layer for layer in layers if layer.tactic]
    named.sort(key=lambda layer: not layer.runs_sparse)
    return named[0].tactic if named else None
