"""``layers.jsonl``: how much of each layer's mask flipped, at every logged step.

Its first line tells the layers: name, shape, pattern and group axis.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import override

from step_cli.nm.pattern import Plan
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.training.callback import Follower
from step_cli.training.run_files import LineRecord

SCHEMA = "step-cli/layers/1"
FILE = "layers.jsonl"


@dataclass(frozen=True)
class PlannedLayer:
    """One weight that is to become N:M."""

    name: str
    shape: list[int]
    pattern: str
    axis: int


@dataclass(frozen=True)
class LayerHistory:
    """The layers of a run and, for each, the share of its mask that flipped.

    Attributes:
        layers: In the order of the model.
        steps: The logged steps of the sparse phase.
        flip_rates: ``[steps][layers]``, share of mask entries in one step.
    """

    layers: list[PlannedLayer]
    steps: list[int]
    flip_rates: list[list[float]]

    def of(self, number: int) -> list[float]:
        """What layer ``number`` did over the logged steps."""
        return [rates[number] for rates in self.flip_rates]


class LayerRecords(Follower):
    """Writes the file.

    Args:
        run_dir: Where it is.
        model: Gives names and shapes.
        optimizer: Measures the flips when it is told to watch the masks.
        plan: Pattern and axis of each weight, by name.
        after: The step to go on after.
    """

    def __init__(
        self,
        run_dir: Path,
        model: nn.Module,
        optimizer: SparseOptimizer,
        plan: Plan,
        after: int,
    ) -> None:
        weights = dict(model.named_parameters())
        self._optimizer = optimizer
        self._weights = [weights[name] for name in plan]
        layers = [
            PlannedLayer(name, list(weights[name].shape), str(each.pattern), each.axis)
            for name, each in plan.items()
        ]
        listed = [asdict(layer) for layer in layers]
        header = json.dumps({"schema": SCHEMA, "layers": listed}) + "\n"
        self._file = LineRecord(run_dir / FILE, header, after)

    @override
    def recorded(self, values: Mapping[str, Any]) -> None:
        rates = self._optimizer.flip_rates()
        if rates is not None:
            # Four digits: a large model has hundreds of layers.
            shares = [float(f"{rates[weight]:.4g}") for weight in self._weights]
            line = {"step": values["step"], "flip_rate": shares}
            self._file.write(json.dumps(line) + "\n")

    @override
    def close(self) -> None:
        self._file.close()


def read_layers(run_dir: Path) -> LayerHistory:
    """What a run has recorded so far; a torn last line is left out."""
    text = (run_dir / FILE).read_text(encoding="utf-8")
    lines = list(_whole(text))
    return LayerHistory(
        [PlannedLayer(**layer) for layer in lines[0]["layers"]],
        [line["step"] for line in lines[1:]],
        [line["flip_rate"] for line in lines[1:]],
    )


def _whole(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
