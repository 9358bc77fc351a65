"""The metrics of a model on held-out samples."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from step_cli.data import Split, batches_of
from step_cli.errors import InputError, StepError

Precision = Literal["fp32", "bf16"]
BATCH = 512  # samples evaluated at a time


def evaluate(
    model: nn.Module, split: Split, device: torch.device, precision: Precision = "fp32"
) -> dict[str, float]:
    """Mean cross-entropy per sample, and the share classified correctly."""
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad(), autocast(device, precision):
        for batch in batches_of(split, BATCH):
            scores, labels = scores_of(model, batch, device)
            loss += float(loss_of(scores, labels, reduction="sum"))
            correct += int((scores.argmax(1) == labels).sum())
    model.train(was_training)
    return {"eval_loss": loss / len(split), "eval_accuracy": correct / len(split)}


def scores_of(
    model: nn.Module, batch: Split, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The model's class scores ``[batch, classes]``, fp32, and the labels."""
    with told_as_misfit():
        scores: Tensor = model(batch.inputs.to(device))
        return scores.float(), batch.labels.to(device)


def loss_of(scores: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy of class scores."""
    with told_as_misfit():
        return functional.cross_entropy(scores, labels, reduction=reduction)


@contextmanager
def told_as_misfit() -> Iterator[None]:
    """Tell what a model raises on its data in one line; memory is another matter."""
    try:
        yield
    except (StepError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"the model does not fit the data: {type(error).__name__}: {said}"
        ) from error


def autocast(
    device: torch.device, precision: Precision
) -> AbstractContextManager[object]:
    """Where the forward pass runs in bf16, if the configuration says so."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
