"""A training run that is asked to stop while it takes a step."""

import os
from collections.abc import Callable
from typing import Any

from step_cli.training.trainer import Trainer

ORIGINAL = Trainer.run


def stopping_at(step: int, number: int) -> Callable[..., Any]:
    """The real loop, with signal ``number`` arriving during ``step``."""

    def run(self: Trainer, stop: Any) -> None:
        real = self._step

        def with_signal(now: int, *rest: Any, **more: Any) -> float:
            if now == step:
                os.kill(os.getpid(), number)
            return real(now, *rest, **more)

        self._step = with_signal  # type: ignore[method-assign]
        ORIGINAL(self, stop)

    return run
