"""Scores, loss and metrics of a model, the same for every task."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from step_cli.data.batch import IGNORED, Batch, Split
from step_cli.data.order import batches_of
from step_cli.errors import InputError, NonFiniteError, StepError
from step_cli.render.status_line import working_on
from step_cli.training.distributed import Processes
from step_cli.training.memory import is_out_of_memory
from step_cli.training.metrics import metrics_of, sums_of

Precision = Literal["fp32", "bf16"]
BEYOND_EMBEDDING = "index out of range in self"  # what torch says of it on a CPU
OTHER = (
    "; of a Hugging Face directory, [model.options] can name another class, such as "
    'architectures = ["BertForSequenceClassification"] and num_labels'
)


@working_on("evaluating held-out samples")
def evaluate(
    model: nn.Module,
    split: Split,
    processes: Processes,
    precision: Precision = "fp32",
    *,
    batch_size: int,
) -> dict[str, float]:
    """The metrics of all of ``split``: means over scored items, not over batches.

    Args:
        model: On the device of this process.
        split: At least one sample.
        processes: The processes, each of which takes a share of the samples.
        precision: Of the forward pass.
        batch_size: Samples at a time, of all processes together; it changes no metric
            but by rounding.

    Raises:
        InputError: The model does not fit the data.
        NonFiniteError: The loss is NaN or infinite.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, float] = {}
    with torch.no_grad():
        own, share = batch_size // processes.size, (processes.rank, processes.size)
        for batch, counts in batches_of(split, own, share):
            with autocast(processes.device, precision):
                scores, labels = scores_of(model, batch, processes.device)
            loss = loss_of(scores, labels, reduction="sum")
            for name, value in sums_of(scores, labels, loss).items():
                sums[name] = sums.get(name, 0.0) + (value if counts else 0.0)
    whole = processes.total(torch.tensor([*sums.values()], dtype=torch.float64))
    sums = dict(zip(sums, whole.tolist(), strict=True))
    model.train(was_training)
    if not sums.get("items"):
        raise InputError("the held-out data has nothing to score")
    if not math.isfinite(sums["loss"]):
        raise NonFiniteError(f"the loss on held-out data is {sums['loss']}")
    return metrics_of(sums)


def scores_of(
    model: nn.Module, batch: Batch, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The model's scores in fp32, and the labels, both on ``device``.

    A single input is given by position, so that its name need not be the model's.

    Returns:
        Scores ``[n, classes]``, ``[n, tokens, vocabulary]`` or, where labels are
        float, ``[n]``; labels as in `Batch`.

    Raises:
        InputError: The model does not fit the data.
    """
    inputs = {name: values.to(device) for name, values in batch.inputs.items()}
    with translate_model_errors():
        output = model(*inputs.values()) if len(inputs) == 1 else model(**inputs)
        scores = _fitting(_scores_in(output), batch.labels)
        return scores.float(), batch.labels.to(device)


def _scores_in(output: object) -> object:
    """What scores the classes: the output, its ``logits``, or those under that key."""
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", output)


def loss_of(
    scores: Tensor,
    labels: Tensor,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean squared error for float labels, else cross-entropy of the scored items.

    Of the latter, ``label_smoothing`` spreads a share of the target over all classes.
    """
    if labels.is_floating_point():
        return functional.mse_loss(scores, labels, reduction=reduction)
    return functional.cross_entropy(
        scores.flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def mean_over(
    processes: Processes, labels: Tensor, loss: Callable[[str], Tensor]
) -> Tensor:
    """A loss of a share of a batch.

    Its mean over processes is the mean loss over the scored items of the whole batch,
    of which one process may have more than another.

    Args:
        processes: Each has a share of the batch.
        labels: Of this process.
        loss: Of its items, by a ``reduction`` of torch: ``mean`` or ``sum``.
    """
    if processes.size == 1 or labels.dim() == 1:
        return loss("mean")
    items = processes.total((labels != IGNORED).sum())
    return loss("sum") * processes.size / items


def _fitting(scores: object, labels: Tensor) -> Tensor:
    """The scores, if they are such that ``labels``, still on the CPU, can be scored."""
    if not isinstance(scores, Tensor):
        raise InputError(
            f"the model does not fit the data: it returns {type(scores).__name__}, "
            f"not a tensor of scores, nor a dictionary or an object with logits{OTHER}"
        )
    if labels.is_floating_point() and scores.shape == (len(labels), 1):
        scores = scores.squeeze(1)
    wanted = scores.shape if labels.is_floating_point() else scores.shape[:-1]
    if labels.shape != wanted or _is_number(scores, labels):
        raise InputError(
            f"the model does not fit the data: it returns scores {list(scores.shape)} "
            f"for {_kind(labels)} labels {list(labels.shape)}{_advice(scores, labels)}"
        )
    if not labels.is_floating_point():
        _refuse_foreign(labels, classes=scores.shape[-1])
    return scores


def _advice(scores: Tensor, labels: Tensor) -> str:
    """What to do where labels are of the other kind than the model."""
    if _is_number(scores, labels):
        return (
            "; a model of one score is for numbers: write labels with a decimal point, "
            "or take a model of as many scores as classes"
        )
    if labels.is_floating_point() and scores.dim() == 2:
        return (
            "; of classes, write labels as whole numbers without a decimal point, else "
            "take a model of one score"
        )
    if labels.dim() == 1 and scores.dim() == 3:
        return f": it scores tokens, and labels are of texts{OTHER}"
    return ""


def _is_number(scores: Tensor, labels: Tensor) -> bool:
    """Whether a model gives one number for each sample where labels are classes."""
    one = scores.shape in ((len(labels),), (len(labels), 1))
    return labels.dim() == 1 and not labels.is_floating_point() and one


def _kind(labels: Tensor) -> str:
    return "float" if labels.is_floating_point() else "integer"


def _refuse_foreign(labels: Tensor, *, classes: int) -> None:
    foreign = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if foreign.numel():
        advice = _advice_on(foreign, labels, classes)
        raise InputError(
            f"the model does not fit the data: label {int(foreign[0])} is none of its "
            f"{classes} classes, 0 to {classes - 1}{advice}"
        )


def _advice_on(foreign: Tensor, labels: Tensor, classes: int) -> str:
    if labels.dim() != 1:
        return ""
    if int(foreign.min()) == int(foreign.max()) == classes and int(labels.min()) > 0:
        return "; classes count from 0: subtract 1 from each label if they begin at 1"
    if int(foreign.max()) >= classes:
        return "; of a Hugging Face directory, set num_labels in [model.options]"
    return ""


@contextmanager
def translate_model_errors() -> Iterator[None]:
    """Raise what a model raises on its data in one line; memory is another matter."""
    try:
        yield
    except StepError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        said = (str(error).strip().splitlines() or [""])[0]
        if said == BEYOND_EMBEDDING:
            said += (
                ": a token or a position that the model has no embedding for; see "
                "data.tokenizer and data.length"
            )
        raise InputError(
            f"the model does not fit the data: {type(error).__name__}: {said}"
        ) from error


def autocast(
    device: torch.device, precision: Precision
) -> AbstractContextManager[object]:
    """Where the forward pass runs in bf16, if the configuration has it so."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
