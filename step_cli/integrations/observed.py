"""What a callback tells of an optimizer: numbers of a step, and the plan of a model."""

from torch import Tensor, nn

from step_cli.errors import UsageError
from step_cli.nm.pattern import Plan
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.training.callbacks import switch_numbers


def numbers_of(optimizer: SparseOptimizer) -> dict[str, float]:
    """What is known of the last step, under the names that loggers show.

    ``sparsity/flip_rate`` and ``sparsity/pruned_update_share`` are shares of 1 and
    need ``watch_masks``, as does ``sparsity/variance_ratio``, which is there after the
    switch of STEP; ``switch/...`` as `switch_numbers` has it. What is not known is left
    out. Waits for the device.
    """
    measured = {
        "flip_rate": optimizer.flip_rate(),
        "pruned_update_share": optimizer.pruned_update_share(),
        "variance_ratio": optimizer.variance_ratio(),
    }
    found = {f"sparsity/{k}": v for k, v in measured.items() if v is not None}
    return found | switch_numbers(optimizer)


def has_just_switched(optimizer: SparseOptimizer) -> bool:
    """Whether the last step was the switch point."""
    return optimizer.switch_step == optimizer.steps_taken


def switch_said(optimizer: SparseOptimizer) -> str:
    """The switch point in words."""
    phase, reason = optimizer.phase, optimizer.switch_reason
    return f"step {optimizer.switch_step}: switched to {phase} ({reason})"


def plan_in(model: nn.Module, optimizer: SparseOptimizer) -> Plan:
    """What each sparse weight is to hold, under its name in a model.

    Raises:
        UsageError: The model lacks one of them.
    """
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    plan = {}
    for parameter, spec in optimizer.sparse_parameters():
        if parameter not in names:
            raise UsageError(
                "no plan can be written: the optimizer trains weights that are not in "
                "the model"
            )
        plan[names[parameter]] = spec
    return plan
