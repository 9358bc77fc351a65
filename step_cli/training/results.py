"""What a run ends with: its report, the ``model/`` directory, the curves.

A model of transformers is saved as its library saves it, so that ``from_pretrained``
loads it without step-cli; of any other, ``model.json`` names where it came from.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from step_cli.config.data import BYTES
from step_cli.config.train import TrainConfig
from step_cli.data.said import found_in
from step_cli.errors import OutputError, StepError
from step_cli.formats.files.staged import staged
from step_cli.formats.huggingface.directory import copy_tokenizer
from step_cli.formats.huggingface.model import is_transformers
from step_cli.formats.huggingface.saved_plan import stored_plan, write_plan
from step_cli.formats.plan import KEY as PLAN_KEY
from step_cli.formats.plan import plan_json
from step_cli.formats.pytorch.arrays import to_array
from step_cli.formats.quiet import quiet
from step_cli.formats.safetensors.writer import save_safetensors
from step_cli.models.source import ModelSource, write_source
from step_cli.nm.pattern import Plan
from step_cli.optim.layers import density
from step_cli.optim.stays_dense import overall_density
from step_cli.render.status_line import working_on
from step_cli.reports import Distilled, StaysDense, TrainReport
from step_cli.training.history import read_metrics, switch_point
from step_cli.training.page import show_run
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
        report = _report(trainer, run_dir, metrics, dense_metrics, kept, taught)
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
        save_model(path / "model", setup.model, plan, source, tokenizers, state)
    # With report.json a page means that the run is complete, so none is older.
    (path / "report.html").unlink(missing_ok=True)
    save_text(path / "report.json", report.document() + "\n")
    show_run(path, config, setup, report)


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
            show_run(path, trainer.config, trainer.setup, None)
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
) -> TrainReport:
    config, optimizer = trainer.config, trainer.setup.optimizer
    sparse = trainer.setup.is_sparse
    reached = optimizer.switch_step is not None or not optimizer.recipe.switches
    return TrainReport(
        ok=reached,
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
        advice=[] if reached else [_never_switched(trainer)],
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


def _never_switched(trainer: Trainer) -> str:
    steps, (_, t_max) = trainer.config.train.steps, trainer.config.clip
    rule = trainer.setup.optimizer.rule
    assert rule is not None
    seen = "" if rule.lowest is None else f"; its lowest value was {rule.lowest:.3g}"
    return (
        f"the switch was never reached in {steps} steps ({rule.criterion.name} against "
        f"{rule.criterion.threshold}{seen}), and no model was written; lower "
        f"switch.t_max, now {t_max}, or raise switch.eps"
    )


def save_model(
    directory: Path,
    model: nn.Module,
    plan: Plan | None,
    source: ModelSource,
    tokenizers: Iterable[Path] = (),
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the model, complete or not at all.

    Args:
        directory: Becomes ``model/`` of the run.
        model: With its final weights.
        plan: Of its sparse weights, or None for a dense model.
        source: What built it.
        tokenizers: Hugging Face directories whose tokenizer goes with it.
        state: Its ``state_dict``, where ``model`` holds but a share of it.
    """
    state = model.state_dict() if state is None else state
    with staged(directory, force=True, directory=True) as staging:
        for path in tokenizers:
            copy_tokenizer(path, staging)
        if is_transformers(model):
            _save_transformers(staging, model, state, plan)
            return
        arrays = {name: to_array(value) for name, value in state.items()}
        metadata = {"format": "pt"}
        if plan:
            metadata[PLAN_KEY] = plan_json(plan)
        save_safetensors(staging / "model.safetensors", arrays, metadata)
        write_source(staging, source)


def _save_transformers(
    directory: Path, model: Any, state: Mapping[str, Tensor], plan: Plan | None
) -> None:
    files = _save_pretrained(directory, model, state)
    if not plan:
        return
    stored = stored_plan(directory, model, plan)
    if stored is None:
        # The plan names tensors in one piece; transformers reads both forms.
        for file in files:
            file.unlink()
        _save_pretrained(directory, model, state, save_original_format=False)
        stored = plan
    write_plan(directory, stored)


def _save_pretrained(
    directory: Path, model: Any, state: Mapping[str, Tensor], **options: bool
) -> list[Path]:
    """Have transformers save a model; returns the files of its weights."""
    try:
        with quiet():
            model.save_pretrained(directory, state_dict=dict(state), **options)
    except SafetensorError as error:
        raise OutputError(str(error).splitlines()[0], file=directory) from None
    return sorted(directory.glob("*.safetensors"))
