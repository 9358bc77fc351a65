"""The learning rate of a step."""

import math

from step_cli.train_config import TrainSection


def lr_at(step: int, train: TrainSection) -> float:
    """The learning rate of ``step``, counted from 1.

    It rises linearly over ``warmup_steps``, then stays (``constant``) or falls to 0
    after the last step, linearly or along a half cosine.
    """
    if step <= train.warmup_steps:
        return train.lr * step / train.warmup_steps
    done = (step - 1 - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    if train.schedule == "linear":
        return train.lr * (1 - done)
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * done))
    return train.lr
