"""The learning rate of a step."""

import math

from step_cli.config.train import TrainSection


def lr_at(step: int, train: TrainSection) -> float:
    """The learning rate of ``step``, counted from 1.

    It rises linearly over ``warmup_steps``, then stays (``constant``), falls to
    ``lr_end`` after the last step and stays there, linearly or along a half cosine,
    or falls with the square root of the step (``inverse-sqrt``, Vaswani et al., 2017).
    """
    warmup, span = train.warmup_steps, train.lr - train.lr_end
    if step <= warmup:
        return train.lr * step / warmup
    done = min(1.0, (step - 1 - warmup) / max(1, train.steps - warmup))
    if train.schedule == "linear":
        return train.lr_end + span * (1 - done)
    if train.schedule == "cosine":
        return train.lr_end + span * 0.5 * (1 + math.cos(math.pi * done))
    if train.schedule == "inverse-sqrt":
        return train.lr * math.sqrt(max(1, warmup) / step)
    return train.lr
