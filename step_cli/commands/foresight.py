"""What a run will do that its author may not expect, said before its first step."""

import logging
from pathlib import Path

from step_cli.config.train import TrainConfig
from step_cli.optim.recipe import Recipe
from step_cli.recipes.asp import ASP
from step_cli.training.setup import recipe_of, switch_rule

logger = logging.getLogger(__name__)


def foresee(config: TrainConfig) -> None:
    """Log what ``[switch]`` and ``[model]`` lead to without anybody having said so.

    Args:
        config: Of a run that can be trained.
    """
    recipe, _ = recipe_of(config)
    late = _no_threshold(config, recipe)
    if late is not None:
        logger.warning("%s: %s", config.sparsity.recipe, late)
    untrained = _mask_of_untrained(config, recipe)
    if untrained is not None:
        logger.info("%s: %s", config.sparsity.recipe, untrained)
    if recipe.switches and not recipe.ends_sparse:
        logger.info(
            "%s: its last steps train without masks: the model it ends with, and its "
            "metrics, are dense and not %s",
            config.sparsity.recipe,
            config.sparsity.pattern,
        )


def _no_threshold(config: TrainConfig, recipe: Recipe) -> str | None:
    """That the criterion cannot decide, because its window is not full in time."""
    rule = switch_rule(config, recipe)
    if rule is None or rule.t_max is None:
        return None
    first = rule.criterion.first_step
    if first <= rule.t_max:
        return None
    beta2 = config.train.betas[1]
    fitting = 1 - 1 / max(2, rule.t_max // 2)
    window = "switch.window" if config.switch.window else f"beta2 {beta2:g}"
    return (
        f"{config.switch.criterion} needs {first} steps ({window}), more than "
        f"switch.t_max, {rule.t_max}: it decides nothing, and the switch is after step "
        f"{rule.t_max + 1}; a second number of train.betas such as {fitting:.2g}, or a "
        "smaller switch.window, lets it decide"
    )


def _mask_of_untrained(config: TrainConfig, recipe: Recipe) -> str | None:
    """That the mask for the whole run is taken from weights that may be random."""
    model, rule = config.model, switch_rule(config, recipe)
    at_once = rule is not None and rule.last_step == 0
    if not (isinstance(recipe, ASP) and at_once) or model.weights:
        return None
    if Path(model.source).is_dir():
        return None
    return (
        "its mask is that of the weights at step 0, and model.weights names none: if "
        f"{model.source} starts from random weights, so does the mask; give trained "
        "ones, or a switch.step up to which it trains densely"
    )
