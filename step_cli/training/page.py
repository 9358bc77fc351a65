"""``curves.svg`` and ``report.html`` of a run, finished or stopped."""

import math
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import torch

from step_cli.config.train import TrainConfig, to_toml
from step_cli.data.said import summary
from step_cli.formats.open import open_checkpoint
from step_cli.formats.pytorch.arrays import to_array
from step_cli.nm.count import TensorCounts, TensorToCheck, count_tensors
from step_cli.nm.pattern import Plan
from step_cli.nm.tensor_data import TensorData
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.shards import is_shard
from step_cli.plots.drawing import INKS
from step_cli.render.html_pages import LayerRow, LeftRow, MetricRow, RunPage, html
from step_cli.reports import TrainReport
from step_cli.training.curves import draw_curves
from step_cli.training.history import History, read_history, switch_point
from step_cli.training.records import read_layers, save_text
from step_cli.training.setup import Setup

LIBRARIES = ("step-cli", "torch", "numpy")


def show_run(
    run_dir: Path,
    config: TrainConfig,
    setup: Setup,
    report: TrainReport | None,
    counts: Mapping[str, TensorCounts],
) -> None:
    """Draw the curves and write the page.

    Args:
        run_dir: Where the records are, and both files go.
        config: The configuration.
        setup: The parts of the run, as they are now.
        report: The results; None if the run was stopped.
        counts: Of the weights, as `counted_weights` finds them.

    Raises:
        MissingError: matplotlib, jinja2 or tomli-w is not installed.
        OutputError: A file cannot be written.
    """
    optimizer = setup.optimizer
    history = read_history(run_dir, config, optimizer.rule, switch_point(optimizer))
    draw_curves(run_dir / "curves.svg", history)
    page = RunPage(
        name=run_dir.name,
        state=_state(optimizer, history, report),
        ok=None if report is None else report.ok,
        facts=list(_facts(config, setup, history, report)),
        advice=[] if report is None else report.advice,
        metrics=_metrics(history, report),
        measured=history.last_evaluation.get("step", 0),
        curves=(run_dir / "curves.svg").read_text(encoding="utf-8"),
        layers=list(_layers(run_dir, setup, counts)),
        left=list(_left(setup)),
        config=to_toml(config),
        versions=list(_versions(setup)),
    )
    save_text(run_dir / "report.html", html(page, INKS))


def _state(
    optimizer: SparseOptimizer, history: History, report: TrainReport | None
) -> str:
    if report is None:
        taken, steps = optimizer.steps_taken, history.steps
        return f"stopped after step {taken} of {steps}, go on with --resume"
    return f"finished {report.steps} steps" if report.ok else "the switch never came"


def _facts(
    config: TrainConfig, setup: Setup, history: History, report: TrainReport | None
) -> Iterator[tuple[str, str]]:
    optimizer, sparse = setup.optimizer, setup.is_sparse
    yield "recipe", config.sparsity.recipe
    patterns = sorted({str(layer.pattern) for layer in setup.plan.values()})
    yield "pattern", ", ".join(patterns) if optimizer.recipe.ends_sparse else "none"
    yield "model", config.model.source
    yield "data", config.data.source
    yield "samples", summary(setup.data)
    yield "phase", optimizer.phase
    yield "switch", _switch(history, switches=optimizer.recipe.switches)
    yield "sparse layers", f"{len(setup.plan) if sparse else 0} of {len(setup.plan)}"
    if report is not None:
        yield "density", f"{report.density:.4f}"
        if report.overall_density is not None:
            yield "density of all layers", f"{report.overall_density:.4f}"
    if setup.teacher is not None:
        yield "teacher", config.distill.teacher
        yield "distillation", _distillation(config, setup, history)
    yield "steps", f"{optimizer.steps_taken} of {history.steps}"


def _distillation(config: TrainConfig, setup: Setup, history: History) -> str:
    section, last = config.distill, history.records[-1] if history.records else {}
    words = f"weight {section.weight:g}, temperature {section.temperature:g}"
    first = setup.teacher and setup.teacher.first_step(setup.optimizer)
    if first is None or last.get("distill_loss") is None:
        return f"{words}, not begun"
    task, distill = last["task_loss"], last["distill_loss"]
    return (
        f"{words}, from step {first}; at step {last['step']} task loss {task:.4g}, "
        f"distillation loss {distill:.4g}"
    )


def _switch(history: History, *, switches: bool) -> str:
    switch, seen = history.switch, history.criterion
    if not switches:
        return "none in this recipe"
    if switch is None:
        return "not yet"
    words = f"after step {switch.step}: "
    if switch.reason == "fixed":
        return words + "as configured"
    assert seen is not None
    last = seen.value.values[-1]
    value = f"{seen.name} {last:.3g}, threshold {seen.threshold:.3g}"
    if math.isnan(last):
        value = f"{seen.name}: its window of {seen.window} steps was not full"
    reached = "t_max reached" if switch.reason == "t_max" else "threshold passed"
    return f"{words}{reached} ({value})"


def _metrics(history: History, report: TrainReport | None) -> list[MetricRow]:
    """Those of the end, or of the last evaluation."""
    last = history.last_evaluation
    if report is not None:
        dense = report.dense_metrics or {}
        return [
            MetricRow(key.removeprefix("eval_"), value, dense.get(key))
            for key, value in report.metrics.items()
        ]
    return [
        MetricRow(key.removeprefix("eval_"), value, pruned=last.get(f"pruned_{key}"))
        for key, value in last.items()
        if key.startswith("eval_")
    ]


def counted_weights(run_dir: Path, setup: Setup) -> dict[str, TensorCounts]:
    """Count each planned weight, in ``model/`` of the run if it is written yet."""
    weights = _weights(run_dir, setup)
    return dict(zip(weights, count_tensors(_jobs(weights, setup.plan)), strict=True))


def last_part(source: str) -> str:
    """The last part of a path, as what is before it tells of the machine."""
    return source.rstrip("/").rsplit("/", maxsplit=1)[-1]


def _layers(
    run_dir: Path, setup: Setup, counts: Mapping[str, TensorCounts]
) -> Iterator[LayerRow]:
    recorded = read_layers(run_dir)
    for number, layer in enumerate(recorded.layers):
        count = counts.get(layer.name)
        yield LayerRow(
            layer.name,
            layer.shape,
            layer.pattern if setup.optimizer.recipe.ends_sparse else "dense",
            layer.axis,
            None if count is None else count.nonzeros / max(1, count.elements),
            count.violations if count is not None and setup.is_sparse else None,
            recorded.of(number),
        )


def _left(setup: Setup) -> Iterator[LeftRow]:
    """What stays dense, and why; nothing where the recipe prunes nothing."""
    if setup.optimizer.recipe.ends_sparse:
        for left in setup.coverage.left:
            yield LeftRow(left.name, left.shape, left.why, left.share)


def _weights(run_dir: Path, setup: Setup) -> dict[str, TensorData]:
    if (run_dir / "model").is_dir():
        stored = open_checkpoint(run_dir / "model").tensors
        return {t.name: t.data() for t in stored if t.name in setup.plan}
    held = setup.model.state_dict()
    whole = {name: held[name] for name in setup.plan if name in held}
    return {
        name: TensorData(array := to_array(value), str(array.dtype))
        for name, value in whole.items()
        if not is_shard(value)
    }


def _jobs(weights: Mapping[str, TensorData], plan: Plan) -> Iterator[TensorToCheck]:
    return (TensorToCheck(data, plan[name]) for name, data in weights.items())


def _versions(setup: Setup) -> Iterator[tuple[str, str]]:
    """Nothing that shows whose machine it was."""
    for name in LIBRARIES:
        yield name, metadata.version(name)
    yield "Python", platform.python_version()
    yield "system", f"{platform.system()} {platform.machine()}"
    device = setup.processes.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    yield "device", name
