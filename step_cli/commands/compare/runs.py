"""The runs of a comparison: their names, and what of the configuration each takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from step_cli.config.train import TrainConfig, refuse_high_seeds, with_seed
from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern

DENSE, STEP = "dense", "step"
PLANNED = "plan"  # instead of a pattern, where `sparsity.plan` gives each layer its own


@dataclass(frozen=True)
class Run:
    """One run of a comparison.

    Attributes:
        recipe: Its recipe.
        pattern: Its pattern, as results name it; None for a dense run.
        seed: Its seed.
        config: Its configuration.
    """

    recipe: str
    pattern: str | None
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """That of its directory."""
        pattern = "" if self.pattern is None else f"{self.pattern.replace(':', 'of')}-"
        return f"{self.recipe}-{pattern}seed{self.seed}"

    @property
    def kind(self) -> tuple[str, str | None]:
        """What it shares with the runs of other seeds."""
        return self.recipe, self.pattern


def runs_of(
    config: TrainConfig,
    recipes: Sequence[str],
    patterns: Sequence[NMPattern] | None,
    seeds: int,
) -> list[Run]:
    """Every run, seed by seed: what is done first can be compared first.

    Args:
        config: Of all runs.
        recipes: In the order in which they are shown; dense comes first.
        patterns: None: that of the configuration.
        seeds: How many, from ``train.seed`` on.

    Raises:
        UsageError: Patterns are given, and the configuration gives layers their own;
            or not all seeds are seeds.
    """
    refuse_high_seeds(config, seeds)
    if patterns is not None:
        _refuse_own_patterns(config)
    found: list[tuple[str, str | None, TrainConfig]] = []
    if DENSE in recipes:
        found.append((DENSE, None, config_for(config, DENSE, None)))
    for pattern in patterns or (None,):
        label = str(pattern or config.sparsity.pattern)
        label = PLANNED if config.sparsity.plan else label
        found += [
            (recipe, label, config_for(config, recipe, pattern))
            for recipe in recipes
            if recipe != DENSE
        ]
    return [
        Run(recipe, label, config.train.seed + number, with_seed(each, number))
        for number in range(seeds)
        for recipe, label, each in found
    ]


def _refuse_own_patterns(config: TrainConfig) -> None:
    sparsity = config.sparsity
    own = "sparsity.plan" if sparsity.plan else ""
    if any(layer.pattern is not None for layer in sparsity.layer):
        own = "sparsity.layer"
    if own:
        raise UsageError(
            f"--patterns: {own} gives layers patterns of their own; leave out one of "
            "the two"
        )


def config_for(
    config: TrainConfig, recipe: str, pattern: NMPattern | None
) -> TrainConfig:
    """The configuration of one recipe at one pattern, still with the first seed.

    Options are those of ``[compare.RECIPE]``; without that section the recipe of the
    configuration takes ``[sparsity.options]`` and others have their defaults. What is
    the optimizer's holds for all. ``switch.step`` is for the configuration's recipe,
    and for STEP where the criterion is `fixed`.
    """
    from step_cli.training.setup import OPTIMIZER_OPTIONS

    given = config.sparsity.options
    own = recipe == config.sparsity.recipe
    options: dict[str, Any] = {
        key: value for key, value in given.items() if own or key in OPTIMIZER_OPTIONS
    }
    section = (config.compare or {}).get(recipe)
    if section is not None:
        shared = {key: options[key] for key in options if key in OPTIMIZER_OPTIONS}
        options = shared | section
    sparsity: dict[str, Any] = {"recipe": recipe, "options": options}
    if pattern is not None:
        sparsity["pattern"] = pattern
    switch = config.switch
    if not own and not (recipe == STEP and switch.criterion == "fixed"):
        # A criterion of that name would need the step; no recipe but STEP has one.
        unfixed = "autoswitch" if switch.criterion == "fixed" else switch.criterion
        switch = switch.model_copy(update={"step": None, "criterion": unfixed})
    return config.model_copy(
        update={
            "sparsity": config.sparsity.model_copy(update=sparsity),
            "switch": switch,
            "compare": None,
        }
    )
