"""The metrics of a model on held-out samples."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from step_cli.data import Split, batches_of

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
            loss += float(functional.cross_entropy(scores, labels, reduction="sum"))
            correct += int((scores.argmax(1) == labels).sum())
    model.train(was_training)
    return {"eval_loss": loss / len(split), "eval_accuracy": correct / len(split)}


def scores_of(
    model: nn.Module, batch: Split, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The model's class scores ``[batch, classes]``, fp32, and the labels."""
    scores: Tensor = model(batch.inputs.to(device))
    return scores.float(), batch.labels.to(device)


def autocast(
    device: torch.device, precision: Precision
) -> AbstractContextManager[object]:
    """Where the forward pass runs in bf16, if the configuration says so."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
