"""DominoSearch on the training data, before training begins."""

from itertools import count

from torch import Tensor, nn

from step_cli.config.train import TrainConfig
from step_cli.data.batch import Dataset
from step_cli.data.order import batch_at
from step_cli.nm.pattern import Plan
from step_cli.optim.recipe import Recipe
from step_cli.recipes.domino_search import DominoSearch
from step_cli.recipes.domino_training import search
from step_cli.training.evaluate import loss_of, scores_of


def find_patterns(
    config: TrainConfig, recipe: Recipe, model: nn.Module, plan: Plan, data: Dataset
) -> Plan:
    """The plan with the patterns that the recipe wants, searched where it says so.

    The search sees the batches of training in their order and leaves ``model`` as it
    is, so the same configuration finds the same patterns again.
    """
    learner, weights = recipe.learner, dict(model.named_parameters())
    if not isinstance(learner, DominoSearch) or not learner.search_steps:
        return learner.plan_layers(weights, plan)
    train, batches = config.train, count()
    device = next(model.parameters()).device

    def loss(trial: nn.Module) -> Tensor:
        batch = batch_at(
            data.train, index=next(batches), size=train.batch_size, seed=train.seed
        )
        scores, labels = scores_of(trial, batch, device)
        return loss_of(scores, labels)

    density = learner.target(weights, plan)
    steps, lr = learner.search_steps, learner.search_lr
    return search(model, plan, loss, density, steps=steps, lr=lr)
