"""Sums over scored items, and the metrics that follow from them.

Sums add up over batches and over processes, so the metrics are those of all samples
whatever the batch size. F1, Matthews' and Pearson's correlation are those of GLUE
(Wang et al., 2019); where one is 0 / 0 it is 0.0, as scikit-learn has it.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from step_cli.data.batch import IGNORED

LARGEST_EXPONENT = 700.0  # exp of more overflows; the perplexity stays there


def sums_of(scores: Tensor, labels: Tensor, loss: Tensor) -> dict[str, float]:
    """What a batch adds to the sums.

    Args:
        scores: ``[n]`` of a regression, else ``[n, classes]`` or ``[n, tokens, V]``.
        labels: As in `Batch`, without the last axis of ``scores``.
        loss: Summed over the scored items.
    """
    if labels.is_floating_point():
        return _regression(scores.double(), labels.double(), loss)
    scored = labels != IGNORED
    guess = scores.argmax(-1)
    sums = {
        "items": scored.sum(),
        "loss": loss,
        "correct": ((guess == labels) & scored).sum(),
    }
    if labels.dim() > 1:
        sums["tokens"] = sums["items"]
    elif scores.shape[-1] == 2:
        sums |= {
            f"{truth}_as_{said}": ((labels == truth) & (guess == said)).sum()
            for truth in (0, 1)
            for said in (0, 1)
        }
    return {name: float(value) for name, value in sums.items()}


def _regression(guess: Tensor, target: Tensor, loss: Tensor) -> dict[str, float]:
    return {
        "items": float(len(target)),
        "loss": float(loss),
        "x": float(guess.sum()),
        "y": float(target.sum()),
        "xx": float(torch.dot(guess, guess)),
        "yy": float(torch.dot(target, target)),
        "xy": float(torch.dot(guess, target)),
    }


def metrics_of(sums: Mapping[str, float]) -> dict[str, float]:
    """The metrics of everything that was summed up; at least one item was scored."""
    items = sums["items"]
    loss = sums["loss"] / items
    metrics = {"eval_loss": loss}
    if "correct" in sums:
        metrics["eval_accuracy"] = sums["correct"] / items
    if "tokens" in sums:
        metrics["eval_perplexity"] = math.exp(min(loss, LARGEST_EXPONENT))
    if "1_as_1" in sums:
        metrics |= _two_classes(*(sums[f"{a}_as_{b}"] for a in (0, 1) for b in (0, 1)))
    if "xy" in sums:
        metrics["eval_pearson"] = _pearson(sums)
    return metrics


def _two_classes(tn: float, fp: float, fn: float, tp: float) -> dict[str, float]:
    """Matthews' correlation, and the F1 of class 1."""
    spread = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "eval_matthews": (tp * tn - fp * fn) / spread if spread else 0.0,
        "eval_f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0,
    }


def _pearson(sums: Mapping[str, float]) -> float:
    n, x, y = sums["items"], sums["x"], sums["y"]
    spread = (sums["xx"] - x * x / n) * (sums["yy"] - y * y / n)
    return (sums["xy"] - x * y / n) / math.sqrt(spread) if spread > 0 else 0.0
