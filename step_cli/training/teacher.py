"""The teacher of a run: a frozen model beside the one that is trained.

It is in evaluation mode, computes in the precision of training, and is placed as the
trained model is, under FSDP2 in shares. It belongs to no optimizer and no checkpoint; a
run remembers a digest of it, so that ``--resume`` refuses another one.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from step_cli.config.data import BYTES
from step_cli.config.train import TrainConfig
from step_cli.data.batch import IGNORED, Batch, Dataset
from step_cli.data.model_fit import other_number
from step_cli.data.tokens import numbers_of
from step_cli.errors import InputError, NonFiniteError, naming
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.json_text import read_json
from step_cli.formats.huggingface.directory import TOKENIZER_FILES
from step_cli.formats.open import open_checkpoint
from step_cli.models.source import ModelSource, model_source
from step_cli.models.spec import build_model, load_weights
from step_cli.models.start_weights import refuse_non_finite
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.recipe import Recipe
from step_cli.training.distributed import Processes
from step_cli.training.evaluate import Precision, autocast, scores_of
from step_cli.training.records import save_text
from step_cli.training.wrapping import place_frozen

logger = logging.getLogger(__name__)

FILE = "teacher.json"  # by what the teacher of a run is known
SCHEMA = "step-cli/teacher/1"
LARGEST = 1 << 16  # bytes of the file
SAMPLED = 256  # numbers of each tensor in the digest
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Teacher:
    """A model that is not trained, and when it is asked.

    Attributes:
        model: Frozen, in evaluation mode, on the device of this process.
        path: The CHECKPOINT.
        sha256: Of its weights, see :func:`digest_of`.
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
        if self.steps_without is not None:
            return optimizer.steps_taken >= self.steps_without
        # A recipe that ends dense keeps the teacher that its sparse phase had.
        return optimizer.recipe.before.sparse or optimizer.current_phase.sparse

    def first_step(self, optimizer: SparseOptimizer) -> int:
        """The first step with it, from 1, of a run in which it :meth:`is_at_work`."""
        if self.steps_without is not None:
            return self.steps_without + 1
        return 1 if optimizer.recipe.before.sparse else (optimizer.switch_step or 0) + 1

    def scores(self, batch: Batch, device: torch.device) -> Tensor:
        """Its scores in fp32, of the shape of the student's; no graph is kept.

        Raises:
            InputError: It does not fit the data.
        """
        with naming(file=self.path), torch.no_grad(), autocast(device, self.precision):
            return scores_of(self.model, batch, device)[0]


def load_teacher(
    config: TrainConfig, recipe: Recipe, processes: Processes, *, quiet: bool = False
) -> Teacher | None:
    """The teacher of ``[distill]``; None where none changes the loss.

    Args:
        config: The configuration.
        recipe: What is trained by.
        processes: The processes that train together.
        quiet: That none changes it was told before.

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
    source = _source(config, checkpoint)
    with naming(file=path):
        model = build_model(source.spec, source.options).model
        places = load_weights(model, checkpoint)
    refuse_non_finite(model, path, places, "take another teacher")
    _refuse_other_tokens(checkpoint, config.data.tokenizer)
    model.eval().requires_grad_(False)
    digest = digest_of(model.state_dict())
    place_frozen(model, processes, compile=config.train.compile)
    return Teacher(model, path, digest, config.train.precision, without)


def _source(config: TrainConfig, checkpoint: Checkpoint) -> ModelSource:
    """What builds the teacher: its own source with its options, else the student's."""
    if config.distill.teacher_model:
        return model_source(config.distill.teacher_model, checkpoint)
    return ModelSource(config.model.source, config.model.options)


def _refuse_other_tokens(checkpoint: Checkpoint, tokenizer: str | None) -> None:
    """Refuse a teacher that lies with a tokenizer which numbers tokens otherwise."""
    home = checkpoint.path / "model" if checkpoint.format == "run" else checkpoint.path
    if tokenizer in (None, BYTES):
        return
    if not any((home / name).is_file() for name in TOKENIZER_FILES):
        return
    theirs, ours = numbers_of(home), numbers_of(Path(tokenizer or ""))
    for token, number in ours.items():
        if theirs.get(token) != number:
            raise InputError(
                f"its tokenizer numbers {token!r} {theirs.get(token)}, data.tokenizer "
                f"{number}: a teacher of other tokens teaches nothing; take one of "
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


def digest_of(state: Mapping[str, Tensor]) -> str:
    """A digest of weights that any change of one number changes.

    Of each tensor: name, type, shape, numbers at even distances, and the exact sum of
    all its numbers taken as integers, which is quicker than hashing them.
    """
    digest = hashlib.sha256()
    for name, value in state.items():
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        bits = flat.view(BITS.get(value.dtype.itemsize, torch.int64))
        digest.update(f"{int(bits.sum(dtype=torch.int64))}\n".encode())
        every = max(1, len(bits) // SAMPLED)
        digest.update(bits[::every].contiguous().numpy().tobytes())
    return digest.hexdigest()


def record_teacher(run_dir: Path, teacher: Teacher) -> None:
    """Record by what the teacher is known again: ``teacher.json``."""
    document = {"schema": SCHEMA, "sha256": teacher.sha256}
    save_text(run_dir / FILE, json.dumps(document, indent=2) + "\n")


def refuse_other_teacher(run_dir: Path, teacher: Teacher) -> None:
    """Refuse to go on with another teacher than the run began with.

    Raises:
        InputError: It is another, or there is no record.
    """
    begun: dict[str, Any] = read_json(
        run_dir / FILE, "a record of the teacher", limit_bytes=LARGEST
    )
    if begun.get("sha256") != teacher.sha256:
        raise InputError(
            f"not the teacher the run began with: the weights of {teacher.path} are "
            "others than they were; it would not go on bit for bit",
            file=run_dir,
        )
