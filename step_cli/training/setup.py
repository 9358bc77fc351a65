"""From a configuration to a trainer's parts; what cannot work is refused here."""

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from step_cli.autoswitch.autoswitch import Criterion, Fixed, SwitchRule, make_criterion
from step_cli.config.train import TrainConfig
from step_cli.config.types import to_step
from step_cli.data.batch import Batch, Dataset
from step_cli.data.load import load_data
from step_cli.data.model_fit import say_misfits
from step_cli.data.order import batch_at
from step_cli.errors import NothingSelectedError, UsageError
from step_cli.formats.plan import read_plan
from step_cli.models.spec import start_model
from step_cli.nm.pattern import Plan
from step_cli.nm.selection import Selection
from step_cli.optim.layers import (
    choose_layers,
    param_groups,
    plan_of,
    refuse_adapters,
)
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.recipe import Recipe
from step_cli.optim.stays_dense import FROZEN, Coverage, coverage_of, tell
from step_cli.recipes import make_recipe
from step_cli.recipes.domino_search import DominoSearch
from step_cli.recipes.domino_training import search
from step_cli.render.status_line import working_on
from step_cli.training.distributed import Processes
from step_cli.training.evaluate import loss_of, scores_of
from step_cli.training.process_state import seed_all
from step_cli.training.teacher import Teacher, load_teacher, refuse_misfit
from step_cli.training.weights_record import digest_of_start
from step_cli.training.wrapping import parallelize

OPTIMIZER_OPTIONS = {"eps_mode", "v_correction"}  # of [sparsity.options], not recipes'


@dataclass(frozen=True)
class Setup:
    """The parts of a run.

    Attributes:
        model: On its device, with its weights; under FSDP this process's share.
        forward: What a training step calls: the model, as it was wrapped.
        optimizer: Owns the dense weights.
        plan: What the chosen weights are to become, in the order of the model.
        coverage: What of the model's layers stays dense.
        data: What to train on.
        processes: The processes that train it.
        start: A digest of the weights it begins with.
        teacher: What it learns from beside the labels.
    """

    model: nn.Module
    forward: nn.Module
    optimizer: SparseOptimizer
    plan: Plan
    coverage: Coverage
    data: Dataset
    processes: Processes
    start: str
    teacher: Teacher | None = None

    @property
    def is_sparse(self) -> bool:
        """Whether the model holds the N:M weights by now, not the dense ones."""
        return self.optimizer.current_phase.sparse


def set_up(
    config: TrainConfig,
    processes: Processes,
    *,
    record: bool,
    plan: Plan | None = None,
    data: Dataset | None = None,
    trial: bool = False,
    quiet: bool = False,
) -> Setup:
    """Build model, data and optimizer.

    Args:
        config: The configuration.
        processes: The processes that train together.
        record: Measure the variance at every step in which it is updated.
        plan: What an earlier part of the run has settled; None: it is to be found.
        data: Those of ``[data]``, where they were read before.
        trial: Only whether it can be is to be found out: no patterns are searched.
        quiet: What stays dense, what does not fit, and that no teacher is asked, was
            told before.

    Raises:
        StepError: Something the user can mend.
    """
    seed_all(config.train.seed)
    recipe, for_optimizer = recipe_of(config)
    switch = switch_rule(config, recipe)
    with working_on("building the model"):
        model = load_model(config)
        start = digest_of_start(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise NothingSelectedError("no parameter of the model requires gradients")
    wanted, coverage = _choose(config, model, plan)
    if recipe.ends_sparse and not quiet:
        tell(coverage)
    if not wanted:
        raise NothingSelectedError(
            f"no layer of the model can hold {config.sparsity.pattern}; "
            "look at sparsity.include, exclude and pattern"
        )
    data = load_data(config.data) if data is None else data
    if not quiet:
        say_misfits(data, config.data.source, getattr(model, "config", None))
    if plan is None and trial:
        plan = wanted
    elif plan is None:
        if processes.kind != "fsdp":  # its device need not hold the whole model
            model.to(processes.device)
        plan = processes.from_first(find_patterns(config, recipe, model, wanted, data))
    plan = {name: plan[name] for name, _ in model.named_parameters() if name in plan}
    forward = parallelize(model, plan, processes, compile=config.train.compile)
    optimizer = SparseOptimizer(
        _base(config, param_groups(model, plan)),
        recipe,
        switch,
        record=record and config.train.optimizer != "sgd",
        total_steps=config.train.steps,
        compile=config.train.compile or None,
        **for_optimizer,
    )
    optimizer.rewire(model)
    teacher = load_teacher(config, recipe, model, processes, quiet=quiet)
    if teacher is not None:
        batch = training_batch(config, data, processes, 0)
        refuse_misfit(teacher, model, data, batch, processes)
    seed_all(config.train.seed, processes.rank)
    return Setup(
        model, forward, optimizer, plan, coverage, data, processes, start, teacher
    )


def training_batch(
    config: TrainConfig, data: Dataset, processes: Processes, index: int
) -> Batch:
    """This process's share of the ``index``-th batch, from 0."""
    return batch_at(
        data.train,
        index=index,
        size=config.train.batch_size,
        seed=config.train.seed,
        share=(processes.rank, processes.size),
    )


def _choose(
    config: TrainConfig, model: nn.Module, plan: Plan | None
) -> tuple[Plan, Coverage]:
    """What is to become N:M, and what stays dense.

    Args:
        config: The configuration.
        model: A weight that it holds fast stays dense.
        plan: What an earlier part of the run has settled.
    """
    weights = dict(model.named_parameters())
    chosen = choose_layers(model, selection(config))
    found = plan_of(chosen)
    fast = {name: FROZEN for name in found if not weights[name].requires_grad}
    wanted = plan or {name: spec for name, spec in found.items() if name not in fast}
    refuse_adapters(weights, wanted)
    return wanted, coverage_of(chosen, wanted, fast)


def load_model(config: TrainConfig) -> nn.Module:
    """The model of ``[model]``, with the weights it starts from."""
    start = config.model
    return start_model(start.source, start.options, start.weights)


@working_on("building the model")
def start_of(config: TrainConfig) -> str:
    """A digest of the weights with which a run begins."""
    seed_all(config.train.seed)
    return digest_of_start(load_model(config))


def selection(config: TrainConfig) -> Selection:
    """Which weights ``[sparsity]`` selects."""
    sparsity = config.sparsity
    plan = read_plan(Path(sparsity.plan)) if sparsity.plan else None
    return Selection(
        include=sparsity.include,
        exclude=sparsity.exclude,
        axes=[(layer.match, layer.axis) for layer in sparsity.layer[::-1]],
        patterns=[
            (layer.match, layer.pattern or sparsity.pattern) for layer in sparsity.layer
        ],
        pattern=None if plan else sparsity.pattern,
        plan=plan,
        prefix="sparsity.",
    )


def recipe_of(config: TrainConfig) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of ``[sparsity]``, and those of its options that are the optimizer's.

    Raises:
        UsageError: An option is unknown or has a wrong value.
    """
    options = dict(config.sparsity.options)
    for_optimizer = {k: options.pop(k) for k in OPTIMIZER_OPTIONS if k in options}
    return make_recipe(config.sparsity.recipe, options), for_optimizer


def switch_rule(config: TrainConfig, recipe: Recipe) -> SwitchRule | None:
    """When ``[switch]`` changes the rules; None for recipes that never change them."""
    if not recipe.switches:
        return None
    switch, steps = config.switch, config.train.steps
    if recipe.switch_step is not None:
        given = recipe.switch_step if switch.step is None else switch.step
        return SwitchRule(Fixed(to_step(given, steps)))
    return SwitchRule(criterion_of(config, switch.criterion), *config.clip)


def criterion_of(config: TrainConfig, name: str) -> Criterion:
    """The criterion ``name`` with the settings of ``[switch]``."""
    switch, train = config.switch, config.train
    return make_criterion(
        name,
        beta2=train.betas[1],
        eps=switch.eps or criterion_eps(name, train.eps),
        window=switch.window,
        step=to_step(switch.step or 0, train.steps),
    )


def criterion_eps(criterion: str, adam_eps: float) -> float | None:
    """The default threshold: Adam's eps for the paper's rules, None: the rule's own."""
    return None if criterion == "autoswitch-relative" else adam_eps


def _base(config: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    train = config.train
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=train.lr,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
        )
    if train.optimizer == "adam" and train.weight_decay:
        raise UsageError(
            "train.weight_decay: Adam would add it to the gradient; use adamw"
        )
    return torch.optim.AdamW(
        groups,
        lr=train.lr,
        betas=train.betas,
        eps=train.eps,
        weight_decay=train.weight_decay,
    )


@working_on("searching patterns of layers")
def find_patterns(
    config: TrainConfig, recipe: Recipe, model: nn.Module, plan: Plan, data: Dataset
) -> Plan:
    """The plan with the patterns that the recipe gives, searched where it needs that.

    The search sees the batches of training in their order and leaves ``model`` as it
    is, so the same configuration finds the same patterns again.
    """
    inner, weights = recipe.inner_recipe, dict(model.named_parameters())
    if not isinstance(inner, DominoSearch) or not inner.search_steps:
        return inner.plan_layers(weights, plan)
    train, batches = config.train, count()
    device = next(model.parameters()).device

    def loss(trial: nn.Module) -> Tensor:
        batch = batch_at(
            data.train, index=next(batches), size=train.batch_size, seed=train.seed
        )
        scores, labels = scores_of(trial, batch, device)
        return loss_of(scores, labels)

    density = inner.target(weights, plan)
    steps, lr = inner.search_steps, inner.search_lr
    return search(model, plan, loss, density, steps=steps, lr=lr)
