"""What a run ends with: its report, the ``model/`` directory, the curves."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from step_cli.config.data import BYTES
from step_cli.config.train import TrainConfig
from step_cli.data.batch import Dataset
from step_cli.data.model_fit import name_classes
from step_cli.data.said import found_in, summary
from step_cli.errors import StepError
from step_cli.formats.huggingface.model import is_transformers
from step_cli.formats.huggingface.model_card import (
    NAME,
    has_other_metadata,
    read_card,
    with_section,
)
from step_cli.models.save import save_model
from step_cli.models.source import ModelSource
from step_cli.nm.count import TensorCounts
from step_cli.optim.layers import density
from step_cli.optim.stays_dense import overall_density
from step_cli.render.markdown import escaped
from step_cli.render.model_card import CountedLayers, ModelCard, metadata, section
from step_cli.render.status_line import working_on
from step_cli.reports import Distilled, StaysDense, TrainReport
from step_cli.training.history import lowest_value, read_metrics, switch_point
from step_cli.training.page import counted_weights, last_part, show_run
from step_cli.training.records import save_text
from step_cli.training.setup import Setup
from step_cli.training.trainer import Trainer
from step_cli.training.wrapping import shared_buffers, whole_state

logger = logging.getLogger(__name__)


def finish(trainer: Trainer, path: Path, run_dir: Path) -> TrainReport:
    """Evaluate, and write what a run leaves; all processes must call it.

    Args:
        trainer: Has taken its last step.
        path: The run directory.
        run_dir: How the user named it.
    """
    setup, processes = trainer.setup, trainer.setup.processes
    metrics = trainer.final_metrics()
    dense_metrics = trainer.evaluate_dense() if setup.is_sparse else None
    with shared_buffers(setup.model, processes):
        state = whole_state(setup.model, processes)
        kept = (0.0, 0.0)
        if processes.first:
            kept = (
                density(state, setup.plan),
                overall_density(state, setup.coverage),
            )
        kept = processes.from_first(kept)
        taught = processes.from_first(_taught(trainer, path))
        never = processes.from_first(_never_switched(trainer, path))
        report = _report(trainer, run_dir, metrics, dense_metrics, kept, taught, never)
        if processes.first:
            _write(trainer, state, report, path)
    processes.wait()
    return report


@working_on("writing the results")
def _write(
    trainer: Trainer, state: Mapping[str, Tensor], report: TrainReport, path: Path
) -> None:
    config, setup = trainer.config, trainer.setup
    if report.ok:
        plan = setup.plan if setup.is_sparse else None
        source = ModelSource(config.model.source, config.model.options)
        tokenizers = _tokenizers(config)
        name_classes(setup.data.classes, getattr(setup.model, "config", None))
        save_model(path / "model", setup.model, plan, source, tokenizers, state)
    counts = counted_weights(path, setup)
    if report.ok:
        _write_card(path, config, setup, report, counts)
    # With report.json a page means that the run is complete, so none is older.
    (path / "report.html").unlink(missing_ok=True)
    save_text(path / "report.json", report.document() + "\n")
    show_run(path, config, setup, report, counts)


def _write_card(
    path: Path,
    config: TrainConfig,
    setup: Setup,
    report: TrainReport,
    counts: Mapping[str, TensorCounts],
) -> None:
    """Write ``model/README.md``: that of the model at the start, and what was done."""
    places = [Path(config.model.weights or config.model.source)]
    places.append(places[0] / "model")  # of a run directory
    started = next(filter(None, map(read_card, places)), "")
    patterns = Counter(str(setup.plan[name].pattern) for name in counts)
    counted = CountedLayers(
        patterns.most_common(),
        sum(count.groups for count in counts.values()),
        sum(count.violations for count in counts.values()),
    )
    card = ModelCard(
        name=path.name,
        report=report,
        counted=counted if setup.is_sparse else None,
        facts=_how_trained(config, setup),
        dataset=last_part(config.data.source),
        task=_task(setup.data),
        library="transformers" if is_transformers(setup.model) else "",
        other_metadata=has_other_metadata(started),
    )
    text = with_section(started, metadata(card), escaped(path.name), section(card))
    save_text(path / "model" / NAME, text)


def _how_trained(config: TrainConfig, setup: Setup) -> list[tuple[str, str]]:
    train, given = config.train, config.sparsity.options
    options = ", ".join(f"{key} = {value}" for key, value in sorted(given.items()))
    left = left_dense(setup)
    share = 100 * sum(one.share for one in left)
    facts = [
        ("options of the recipe", options),
        (
            "steps",
            f"{train.steps} of {train.batch_size * train.grad_accumulation} samples, "
            f"{train.optimizer}, lr {train.lr:g} {train.schedule}",
        ),
        ("model", last_part(config.model.source)),
        ("start weights", last_part(config.model.weights)),
        ("teacher", last_part(config.distill.teacher) if setup.teacher else ""),
        ("data", f"{last_part(config.data.source)}: {summary(setup.data)}"),
        ("stays dense", f"{share:.1f} % of all layer weights" if left else ""),
    ]
    return [(label, value) for label, value in facts if value]


def _task(data: Dataset) -> str | None:
    """What the Hugging Face Hub calls the task; None where the data leave it open."""
    batch = data.held_out[torch.tensor([0])]
    inputs, labels = batch.inputs, batch.labels
    if labels.ndim > 1:
        return "translation" if "decoder_input_ids" in inputs else "text-generation"
    measured = labels.is_floating_point()
    if "input_ids" in inputs:
        return None if measured else "text-classification"
    widest = max(value.ndim for value in inputs.values())
    if widest == 4:
        return None if measured else "image-classification"
    return "tabular-regression" if measured else "tabular-classification"


def left_dense(setup: Setup) -> list[StaysDense]:
    """What of the model's layers stays dense though the recipe prunes."""
    left = setup.coverage.left if setup.optimizer.recipe.ends_sparse else ()
    return [
        StaysDense(name=w.name, shape=list(w.shape), reason=w.reason, share=w.share)
        for w in left
    ]


@working_on("writing the report of the part that was trained")
def show_stopped(trainer: Trainer, path: Path) -> None:
    """Show how far a run came; the checkpoint is what a stop is about."""
    processes = trainer.setup.processes
    if processes.first:
        try:
            counts = counted_weights(path, trainer.setup)
            show_run(path, trainer.config, trainer.setup, None, counts)
        except StepError as error:
            logger.warning("no curves and no report: %s", error.message)
    processes.wait()


def _tokenizers(config: TrainConfig) -> list[Path]:
    """The directories whose tokenizer the model was trained with, if there are any."""
    given = (config.model.source, config.data.tokenizer)
    return [Path(place) for place in given if place not in (None, BYTES)]


def _report(
    trainer: Trainer,
    run_dir: Path,
    metrics: dict[str, float],
    dense_metrics: dict[str, float] | None,
    kept: tuple[float, float],
    taught: Distilled | None,
    never: str | None,
) -> TrainReport:
    config, optimizer = trainer.config, trainer.setup.optimizer
    sparse = trainer.setup.is_sparse
    return TrainReport(
        ok=never is None,
        recipe=config.sparsity.recipe,
        pattern=str(config.sparsity.pattern) if sparse else None,
        steps=optimizer.steps_taken,
        switch=switch_point(optimizer),
        metrics=metrics,
        dense_metrics=dense_metrics,
        density=kept[0],
        overall_density=kept[1],
        stays_dense=left_dense(trainer.setup),
        run_dir=str(run_dir),
        parallel=trainer.setup.processes.kind,
        processes=trainer.setup.processes.size,
        data=found_in(trainer.setup.data),
        distill=taught,
        advice=[] if never is None else [never],
    )


def _taught(trainer: Trainer, path: Path) -> Distilled | None:
    """What the first process knows of the teacher; its losses are recorded."""
    teacher, optimizer = trainer.setup.teacher, trainer.setup.optimizer
    if teacher is None or not trainer.setup.processes.first:
        return None
    first, last = teacher.first_step(optimizer), (read_metrics(path) or [{}])[-1]
    if first is None or last.get("distill_loss") is None:
        return None
    return Distilled(
        teacher=str(teacher.path),
        weight=trainer.config.distill.weight,
        temperature=trainer.config.distill.temperature,
        first_step=first,
        task_loss=last["task_loss"],
        distill_loss=last["distill_loss"],
    )


def _never_switched(trainer: Trainer, path: Path) -> str | None:
    """What the first process says where no switch came; of all parts of the run."""
    config, optimizer = trainer.config, trainer.setup.optimizer
    rule, first = optimizer.rule, trainer.setup.processes.first
    if rule is None or optimizer.switch_step is not None or not first:
        return None
    lowest = lowest_value(path, config)
    seen = "" if lowest is None else f"; its lowest value was {lowest:.3g}"
    return (
        f"the switch was never reached in {config.train.steps} steps ("
        f"{rule.criterion.name} against {rule.criterion.threshold}{seen}), and no "
        f"model was written; lower switch.t_max, now {config.clip[1]}, or "
        "raise switch.eps"
    )
