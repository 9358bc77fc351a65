"""DominoSearch's loop: a short training that shrinks weights until N can fall.

Source: Sun et al., NeurIPS 2021, and the authors' code. It starts from trained weights
and works on a copy: what it finds are patterns, and training begins from the weights as
they were.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from step_cli.errors import UsageError
from step_cli.nm import allocation
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.optim.mask import magnitude_mask, masked
from step_cli.recipes import domino_search as domino

logger = logging.getLogger(__name__)

CHECK_EVERY = 100  # steps between votes
PENALTY_EVERY = 5  # steps between shrinkings
PENALTY = 0.1  # doubled at 30 000 steps and every 10 000 after, up to 80 000

Loss = Callable[[nn.Module], Tensor]


@dataclass
class _Searched:
    """One layer during the search.

    Attributes:
        weight: The model's parameter, which holds the masked weights.
        plan: Its axis and M.
        dense: The weights that are shrunk.
        limits: The thresholds of its groups, frozen.
        trial: N_inter, which falls by one at a time.
        n: The committed N.
        factor: phi.
    """

    weight: Tensor
    spec: NMSpec
    dense: Tensor = field(init=False)
    limits: Tensor = field(init=False)
    trial: int = field(init=False)
    n: int = field(init=False)
    factor: float = 0.0

    def __post_init__(self) -> None:
        self.dense = self.weight.detach().clone()
        self.limits = domino.thresholds(self.dense, self.spec)
        self.trial = self.n = self.spec.pattern.m

    def write_to_model(self) -> None:
        """Write the weights under the trial mask into the model."""
        self.weight.copy_(masked(self.dense, self._keep()))

    def update(self, lr: float, penalty: float) -> None:
        """Move the survivors; a penalty shrinks them, or lets them grow."""
        if self.weight.grad is None:
            return
        grad = self.weight.grad + penalty * self.factor * self.dense
        self.dense -= lr * masked(grad, self._keep())

    def vote(self) -> bool:
        """Lower the trial N if enough groups vote for it; whether N was committed."""
        if self.trial > 1:
            shown = masked(self.dense, self._keep())
            share = domino.vote(shown, self.limits, self.trial, self.spec)
            self.trial -= share >= domino.VOTES_NEEDED
        commits = self.trial != self.n and self.trial in allocation.allowed(self.m)
        self.n = self.trial if commits else self.n
        return commits

    @property
    def m(self) -> int:
        return self.spec.pattern.m

    def _keep(self) -> Tensor:
        pattern = NMPattern(self.trial, self.m)
        return magnitude_mask(self.dense, pattern, self.spec.axis)


def search(
    model: nn.Module,
    plan: Plan,
    loss: Loss,
    density: float,
    *,
    steps: int,
    lr: float = 0.01,
) -> Plan:
    """Find an N for each layer, so that at most ``density`` of all weights is kept.

    Args:
        model: Trained; it is not changed.
        plan: The layers; M stays, N is what is searched.
        loss: The loss of a model on the next batch.
        density: The target, 1 - sparsity.
        steps: Longest search; N falls by one in 100 steps at most, and usually slower:
            weights must shrink by half where penalties take 0.1 % of them.
        lr: Of plain SGD without momentum.

    Raises:
        UsageError: The target was not reached in ``steps``.
    """
    model = copy.deepcopy(model).train()
    named = dict(model.named_parameters())
    layers = {name: _Searched(named[name], layer) for name, layer in plan.items()}
    counts = {name: layer.weight.numel() for name, layer in layers.items()}
    operations = count_operations(model, plan, loss)
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    erk = allocation.erk_sparsities(shapes, 1 - density)
    others = [p for name, p in named.items() if name not in plan]
    found = _committed(layers)
    for step in range(1, steps + 1):
        if domino.reached(found, counts, 1 - density):
            break
        if step == 1:
            _set_factors(layers, erk, operations)
        _train_step(model, loss, layers, others, step, lr)
        if step % CHECK_EVERY == 0 and any([s.vote() for s in layers.values()]):
            found = _committed(layers)
            _set_factors(layers, erk, operations)
            kept = 1 - domino.overall_sparsity(found, counts)
            logger.info("search step %d: density %.4f", step, kept)
    if not domino.reached(found, counts, 1 - density):
        raise UsageError(
            f"the search did not come down to density {density:g} in {steps} steps; "
            "raise search_steps or search_lr, or leave them to choose N without data"
        )
    return allocation.with_n(plan, {name: pattern.n for name, pattern in found.items()})


def penalty_at(step: int) -> float:
    """lambda_s at a step, from 1; 0 where none is added."""
    if step % PENALTY_EVERY:
        return 0.0
    doublings = min(max(step // 10_000 - 2, 0), 6)
    return float(PENALTY * 2**doublings)


def count_operations(model: nn.Module, plan: Plan, loss: Loss) -> dict[str, float]:
    """Multiplications of each layer in one forward pass, up to a common factor."""
    seen = {name: float(dict(model.named_parameters())[name].numel()) for name in plan}
    hooks = []

    def watch(name: str, outputs: int) -> None:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                seen[name] = weight.numel() * output.numel() / outputs

        module = model.get_submodule(name.rpartition(".")[0])
        weight = model.get_parameter(name)
        hooks.append(module.register_forward_hook(hook))

    for name, layer in plan.items():
        weight = model.get_parameter(name)
        watch(name, weight.shape[1 if layer.axis == 0 else 0])
    with torch.no_grad():
        loss(model)
    for handle in hooks:
        handle.remove()
    return seen


def _train_step(
    model: nn.Module,
    loss: Loss,
    layers: dict[str, _Searched],
    others: list[nn.Parameter],
    step: int,
    lr: float,
) -> None:
    with torch.no_grad():
        for layer in layers.values():
            layer.write_to_model()
    model.zero_grad()
    torch.autograd.backward(loss(model))
    with torch.no_grad():
        for layer in layers.values():
            layer.update(lr, penalty_at(step))
        for p in others:
            if p.grad is not None:
                p.sub_(p.grad, alpha=lr)


def _committed(layers: dict[str, _Searched]) -> dict[str, NMPattern]:
    return {name: NMPattern(layer.n, layer.m) for name, layer in layers.items()}


def _set_factors(
    layers: dict[str, _Searched], erk: dict[str, float], operations: dict[str, float]
) -> None:
    densities = {name: layer.n / layer.m for name, layer in layers.items()}
    for name, phi in domino.factors(densities, erk, operations).items():
        layers[name].factor = phi
