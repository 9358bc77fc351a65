"""What a refit tells of layers and blocks, as the report of `prune` has it."""

from collections.abc import Mapping
from typing import Any

from step_cli.commands.prune.tensors import LayerToPrune
from step_cli.oneshot.output_errors import Errors
from step_cli.oneshot.refit import FittedBlock, Refit
from step_cli.reports import RefittedBlock


def layer_fields(
    refit: Refit, layers: Mapping[str, LayerToPrune], reasons: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Fields of `PrunedLayer`, by the name of the tensor.

    Args:
        refit: After all layers.
        layers: What is pruned, by the name of the weight in the model.
        reasons: Why tensors cannot be fitted, by name.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"not_refitted": reason} for name, reason in reasons.items()
    }
    for place, layer in layers.items():
        errors = refit.errors.get(place)
        if errors is not None:
            found[layer.tensor.name] = _error_fields(errors)
        elif place in refit.reasons:
            found[layer.tensor.name] = {"not_refitted": refit.reasons[place]}
    return found


def block_row(block: FittedBlock) -> RefittedBlock:
    """A row of the report."""
    return RefittedBlock(
        name=block.name, refitted=block.refitted, **_error_fields(block.errors)
    )


def _error_fields(errors: Errors) -> dict[str, Any]:
    return {
        "error_before": errors.before,
        "error_after": errors.after,
        "held_out_before": errors.held_out_before,
        "held_out_after": errors.held_out_after,
    }
