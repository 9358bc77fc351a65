"""The records of a run, one flushed JSON line at a time.

``metrics.jsonl``, ``variance.jsonl``, and ``layers.jsonl``: how much of each layer's
mask flipped, at every logged step; its first line lists the layers: name, shape,
pattern and group axis.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from torch import Tensor, nn
from typing_extensions import override

from step_cli.autoswitch.autoswitch import VarianceSample
from step_cli.autoswitch.variance_log import (
    RecordedLayer,
    VarianceHeader,
    header_line,
    layers_due,
    sample_line,
)
from step_cli.config.train import TrainConfig
from step_cli.errors import OutputError
from step_cli.formats.files.json_text import record_of_step
from step_cli.formats.files.staged import staged
from step_cli.nm.pattern import Plan
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.variance import variances
from step_cli.training.callbacks import Callback

LAYERS_SCHEMA = "step-cli/layers/1"
LAYERS_FILE = "layers.jsonl"


class JsonLines:
    """A file of JSON lines, each flushed when it is written.

    Args:
        path: The file.
        header: Its first line, or nothing.
        after: The step to go on after; what was recorded later is cut off.

    Raises:
        OutputError: It cannot be written; also by :meth:`write`.
    """

    def __init__(self, path: Path, header: str = "", after: int = 0) -> None:
        save_text(path, header + _up_to(path, after))
        try:
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError((error.strerror or "").lower(), file=path) from None

    def write(self, line: str) -> None:
        """Record one step; ``line`` ends with its line end."""
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{(error.strerror or 'cannot write').lower()}", file=self._file.name
            ) from None

    def close(self) -> None:
        """No more is recorded."""
        self._file.close()


class Unrecorded:
    """What a process does that leaves recording to another: it measures as that does.

    Args:
        header: First line of ``variance.jsonl``.
    """

    def __init__(self, header: VarianceHeader) -> None:
        self._header = header

    def takes_layers(self, step: int) -> bool:
        """Whether ``step`` is to be recorded layer by layer too."""
        return layers_due(self._header, step)

    def metrics(self, values: dict[str, Any]) -> None:
        """Record one logged step."""

    def variance(
        self, sample: VarianceSample, layers: Sequence[tuple[float, float]] = ()
    ) -> None:
        """Record one step in which the variance was updated."""


class Records(Unrecorded):
    """``metrics.jsonl`` and ``variance.jsonl``, one flushed line at a time.

    Args:
        run_dir: Where they are.
        header: First line of ``variance.jsonl``.
        after: The step to go on after; what was recorded later is cut off.
    """

    def __init__(self, run_dir: Path, header: VarianceHeader, after: int = 0) -> None:
        super().__init__(header)
        self._metrics = JsonLines(run_dir / "metrics.jsonl", after=after)
        first = header_line(header)
        self._variance = JsonLines(run_dir / "variance.jsonl", first, after)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._metrics.close()
        self._variance.close()

    @override
    def metrics(self, values: dict[str, Any]) -> None:
        self._metrics.write(json.dumps(values, allow_nan=False) + "\n")

    @override
    def variance(
        self, sample: VarianceSample, layers: Sequence[tuple[float, float]] = ()
    ) -> None:
        self._variance.write(sample_line(sample, layers))


def _up_to(path: Path, step: int) -> str:
    """The whole lines of a record up to ``step``; a crash may have torn the last."""
    if not step or not path.exists():
        return ""
    kept = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines(keepends=True):
        record = record_of_step(line) if line.endswith("\n") else None
        if record is not None and 0 < record["step"] <= step:
            kept.append(line)
    return "".join(kept)


def save_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    with staged(path, force=True) as staging:
        staging.write_text(text, encoding="utf-8")


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


class LayerRecords(Callback):
    """Writes the file.

    Args:
        run_dir: Where it is.
        model: Gives names and shapes.
        optimizer: Measures the flips where it is to watch the masks.
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
        header = json.dumps({"schema": LAYERS_SCHEMA, "layers": listed}) + "\n"
        self._file = JsonLines(run_dir / LAYERS_FILE, header, after)

    @override
    def on_log(self, values: Mapping[str, Any]) -> None:
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
    text = (run_dir / LAYERS_FILE).read_text(encoding="utf-8")
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


def variance_header(
    config: TrainConfig, model: nn.Module, optimizer: SparseOptimizer
) -> VarianceHeader:
    """The settings, and the parameters in the order the optimizer measures them."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    found = [p for p, _, _ in variances(optimizer)]
    layers = tuple(RecordedLayer(names.get(p, "?"), p.numel()) for p in found)
    train = config.train
    return VarianceHeader(train.betas[1], train.eps, train.steps, layers)
