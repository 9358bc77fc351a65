"""The plan of a model by the types of its modules; what stays dense is logged."""

from torch import nn

from step_cli.nm.pattern import Plan
from step_cli.nm.selection import Selection
from step_cli.optim.layers import choose_layers, plan_of
from step_cli.optim.stays_dense import coverage_of, tell


def plan_for(model: nn.Module, selection: Selection) -> Plan:
    """Choose and log as `sparse_adamw(model)` does, without an optimizer."""
    chosen = choose_layers(model, selection)
    plan = plan_of(chosen)
    tell(coverage_of(chosen, plan, {}))
    return plan
