"""The teacher of a run: a frozen model beside the one that is trained.

It is in evaluation mode, computes in the precision of training, and is placed as the
trained model is, under FSDP2 in shares. An ONNX file is a model by itself: ONNX Runtime
runs it on the CPU, in the precision of the file. It belongs to no optimizer and no
checkpoint; a run remembers a digest of it, so that ``--resume`` refuses another one.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from step_cli.config.data import BYTES
from step_cli.config.train import TrainConfig
from step_cli.data.batch import IGNORED, Batch, Dataset
from step_cli.data.model_fit import other_number
from step_cli.data.tokens import numbers_of
from step_cli.errors import InputError, NonFiniteError, UsageError, naming
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.huggingface.directory import TOKENIZER_FILES
from step_cli.formats.open import open_checkpoint
from step_cli.models.onnx_graph import OnnxGraph
from step_cli.models.source import ModelSource, model_source
from step_cli.models.spec import build_model, load_weights
from step_cli.models.start_weights import refuse_non_finite
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.recipe import Recipe
from step_cli.render.status_line import working_on
from step_cli.training.distributed import Processes
from step_cli.training.evaluate import Precision, autocast, scores_of
from step_cli.training.weights_record import digest_of, digest_of_files
from step_cli.training.wrapping import place_frozen

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Teacher:
    """A model that is not trained, and when it is asked.

    Attributes:
        model: Frozen, in evaluation mode, on the device of this process.
        path: The CHECKPOINT.
        sha256: Of its weights, see :func:`digest_of`, or of the files of its graph.
        precision: That of training.
        steps_without: Before the first step with it; None: until masks are learned.
    """

    model: nn.Module
    path: Path
    sha256: str
    precision: Precision
    steps_without: int | None

    def is_at_work(self, optimizer: SparseOptimizer) -> bool:
        """Whether the next step learns from it."""
        first = self.first_step(optimizer)
        return first is not None and optimizer.steps_taken + 1 >= first

    def first_step(self, optimizer: SparseOptimizer) -> int | None:
        """The first step with it, from 1; None while nobody knows when that will be."""
        if self.steps_without is not None:
            return self.steps_without + 1
        if optimizer.recipe.before.sparse:  # also where it ends dense
            return 1
        return None if optimizer.switch_step is None else optimizer.switch_step + 1

    def scores(self, batch: Batch, device: torch.device) -> Tensor:
        """Its scores in fp32, of the shape of the student's; no graph is kept.

        Raises:
            InputError: It does not fit the data.
        """
        with naming(file=self.path), torch.no_grad(), autocast(device, self.precision):
            return scores_of(self.model, batch, device)[0]


@working_on("loading the teacher")
def load_teacher(
    config: TrainConfig,
    recipe: Recipe,
    student: nn.Module,
    processes: Processes,
    *,
    quiet: bool = False,
) -> Teacher | None:
    """The teacher of ``[distill]``; None where none changes the loss.

    Args:
        config: The configuration.
        recipe: That of the run.
        student: The model that is trained.
        processes: The processes.
        quiet: That the teacher is left out was told before.

    Raises:
        StepError: It cannot be opened, is of another model, or not finite.
    """
    section = config.distill
    if not section.counts:
        return None
    without = section.steps_without(config.train.steps)
    if without is None and not (recipe.before.sparse or recipe.after.sparse):
        if not quiet:
            logger.warning(
                "distill.from is 'switch', and recipe %s learns no masks: the teacher "
                "is never asked, and not loaded", config.sparsity.recipe,
            )  # fmt: skip
        return None
    path = Path(section.teacher)
    checkpoint = open_checkpoint(path)
    _refuse_other_tokens(checkpoint, config.data.tokenizer)
    if checkpoint.format == "onnx":
        model, digest = _graph(config, checkpoint)
    else:
        model, digest = _stored(config, checkpoint, student, processes)
    return Teacher(model, path, digest, config.train.precision, without)


def _graph(config: TrainConfig, checkpoint: Checkpoint) -> tuple[nn.Module, str]:
    """The teacher in an ONNX file, and its digest; each process runs it by itself."""
    if config.distill.teacher_model:
        raise UsageError(
            "distill.teacher_model: an ONNX file is a model by itself: leave it out"
        )
    return OnnxGraph(checkpoint.path).eval(), digest_of_files(checkpoint.files)


def _stored(
    config: TrainConfig,
    checkpoint: Checkpoint,
    student: nn.Module,
    processes: Processes,
) -> tuple[nn.Module, str]:
    """The teacher whose weights a checkpoint holds, and its digest."""
    path, source = checkpoint.path, _source(config, checkpoint)
    with naming(file=path):
        model = build_model(source.spec, source.options).model
        _refuse_shared_parts(model, student, source.spec)
        try:
            places = load_weights(model, checkpoint)
        except InputError as error:
            if config.distill.teacher_model:
                raise
            said = f"{error.message}; give distill.teacher_model if it is of another"
            raise InputError(said, file=error.file, tensor=error.tensor) from None
    refuse_non_finite(model, path, places, "take another teacher")
    model.eval().requires_grad_(False)
    digest = digest_of(model.state_dict())
    place_frozen(model, processes, compile=config.train.compile)
    return model, digest


def _source(config: TrainConfig, checkpoint: Checkpoint) -> ModelSource:
    """What builds the teacher: its own source with its options, else the student's."""
    if config.distill.teacher_model:
        return model_source(config.distill.teacher_model, checkpoint)
    return ModelSource(config.model.source, config.model.options)


def _refuse_shared_parts(teacher: nn.Module, student: nn.Module, spec: str) -> None:
    """Refuse code that gives the same module twice: one cannot be frozen alone."""
    trained = set(student.parameters())
    if any(weight in trained for weight in teacher.parameters()):
        raise InputError(
            f"model source {spec!r} returned weights of the model that is trained, not "
            "a model of its own; have it make every module anew at each call"
        )


def _refuse_other_tokens(checkpoint: Checkpoint, tokenizer: str | None) -> None:
    """Refuse a teacher that lies with a tokenizer which numbers tokens otherwise."""
    home = checkpoint.path / "model" if checkpoint.format == "run" else checkpoint.path
    home = home.parent if home.is_file() else home
    if tokenizer is None or tokenizer == BYTES:
        return
    if not any((home / name).is_file() for name in TOKENIZER_FILES):
        return
    theirs, ours = numbers_of(home), numbers_of(Path(tokenizer))
    for token, number in ours.items():
        if theirs.get(token) != number:
            found = f"numbers it {theirs[token]}" if token in theirs else "lacks it"
            raise InputError(
                f"token {token!r} is {number} in data.tokenizer, and its tokenizer "
                f"{found}: a teacher of other tokens teaches nothing; take one of "
                "this tokenizer",
                file=checkpoint.path,
            )


def refuse_misfit(
    teacher: Teacher,
    model: nn.Module,
    data: Dataset,
    batch: Batch,
    processes: Processes,
) -> None:
    """Refuse a teacher of other classes or tokens, before anything is trained.

    Both models see ``batch`` once, in evaluation mode; all processes must call it.

    Raises:
        InputError: Their outputs differ in shape, or name classes otherwise.
        NonFiniteError: The teacher gives NaN or infinity.
    """
    device = processes.device
    _refuse_other_classes(teacher, model, data)
    theirs = teacher.scores(batch, device)
    with _asked(model), autocast(device, teacher.precision):
        ours, labels = scores_of(model, batch, device)
    if theirs.shape != ours.shape:
        raise InputError(
            f"the teacher gives scores {list(theirs.shape)} for a batch, the model "
            f"{list(ours.shape)}: both must know the same classes (tokens), in the "
            "same order; take a teacher of this task",
            file=teacher.path,
        )
    finite = theirs.isfinite()
    if not labels.is_floating_point():
        finite = finite.all(-1) | (labels == IGNORED)
    if float(processes.total((~finite).sum())):
        raise NonFiniteError(
            "the teacher's scores of the first batch are NaN or infinite; take another "
            "one, or precision = 'fp32'",
            file=teacher.path,
        )


@contextmanager
def _asked(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, without gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _refuse_other_classes(teacher: Teacher, model: nn.Module, data: Dataset) -> None:
    theirs = getattr(teacher.model, "config", None)
    own = getattr(getattr(model, "config", None), "label2id", None)
    named = sorted(own, key=own.__getitem__) if isinstance(own, dict) else ()
    for classes, whose in ((data.classes, "the data"), (named, "the model")):
        other = other_number(classes, theirs)
        if other is not None:
            name, ours, number = other
            raise InputError(
                f"class {name!r} is {ours} in {whose}, and {number} in the teacher "
                "(label2id); take a teacher of the same order",
                file=teacher.path,
            )
