"""What is called at each step or log of training, and under which names it tells it."""

from collections.abc import Mapping
from typing import Any

from step_cli.optim.optimizer import SparseOptimizer

# Held-out metrics make a section of their own, and so do those of the pruned twin.
SECTIONS = {"pruned_eval_": "pruned twin", "eval_": "held-out", "": "train"}


class Callback:
    """Sees what the loop does and changes nothing; a subclass overrides what it needs.

    It is called between steps, so it keeps what it is given and works later, or seldom.
    """

    def on_step(self, step: int, loss: float, lr: float) -> None:
        """``step`` was taken."""

    def on_log(self, values: Mapping[str, Any]) -> None:
        """A step was logged or evaluated: its line of ``metrics.jsonl``."""

    def close(self) -> None:
        """The loop has ended, or failed."""


def tag_of(key: str) -> str:
    """``eval_loss`` -> ``held-out/loss``: what is before the slash is a section."""
    prefix, section = next(
        (prefix, section)
        for prefix, section in SECTIONS.items()
        if key.startswith(prefix)
    )
    return f"{section}/{key.removeprefix(prefix)}"


def switch_numbers(optimizer: SparseOptimizer) -> dict[str, float]:
    """How near the switch is: nothing for recipes without one.

    ``switch/switched`` is 0 or 1; before the switch, where a criterion decides it and
    its window is full, its value stands under its name beside ``switch/threshold``.
    """
    if not optimizer.recipe.switches:
        return {}
    rule, switched = optimizer.rule, optimizer.switch_step is not None
    numbers = {"switch/switched": float(switched)}
    if rule is not None and rule.value is not None and not switched:
        numbers[f"switch/{rule.criterion.name}"] = rule.value
        numbers["switch/threshold"] = rule.criterion.threshold or 0.0
    return numbers
