"""``variance.jsonl``: what each step did to Adam's variance, one line a step.

A first line may hold the settings of the recording. Some lines may hold more, layer by
layer: ``layer_v_l1`` and ``layer_dv_l1``, in the order of the first line's
``layers``. Needs no torch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from step_cli.autoswitch.criterion import VarianceSample, window_of

SCHEMA = "step-cli/variance/1"
FIELDS = ("step", "v_l1", "v_l2", "dv_l1", "dv_log", "d")
LAYER_FIELDS = ("layer_v_l1", "layer_dv_l1")
# What a step did to each layer: L1 norm of its v, sum of its changes.
LayerSums = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class RecordedLayer:
    """A parameter tensor of the recorded model: its name and number of coordinates."""

    name: str
    d: int


@dataclass(frozen=True)
class VarianceHeader:
    """The settings of a recording; None where it does not hold one.

    Attributes:
        beta2: Adam's beta2.
        eps: Adam's eps.
        steps: Steps the training was to have, which fractions refer to.
        layers: What the lines with sums of each layer are about.
    """

    beta2: float | None = None
    eps: float | None = None
    steps: int | None = None
    layers: tuple[RecordedLayer, ...] = ()


def header_line(header: VarianceHeader) -> str:
    """The first line of a recording."""
    document: dict[str, object] = {"schema": SCHEMA}
    document |= {name: getattr(header, name) for name in ("beta2", "eps", "steps")}
    if header.layers:
        document["layers"] = [{"name": x.name, "d": x.d} for x in header.layers]
    return json.dumps(document) + "\n"


def layers_due(header: VarianceHeader, step: int) -> bool:
    """Whether the line of ``step`` holds sums of each layer: ten in each window do.

    That is enough for means over a window, and adds little to the file.
    """
    if not header.layers or header.beta2 is None:
        return False
    return step % max(1, window_of(header.beta2) // 10) == 0


def sample_line(sample: VarianceSample, layers: LayerSums = ()) -> str:
    """The line of one step: what it did to all of v, and to each layer."""
    document = {name: getattr(sample, name) for name in FIELDS}
    if layers:
        columns = zip(*layers, strict=True)
        document |= dict(zip(LAYER_FIELDS, map(list, columns), strict=True))
    return json.dumps(document) + "\n"
