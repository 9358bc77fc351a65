"""Optimizers and wrappers as packages have them, reduced to what they do to weights."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Writing = Callable[[], AbstractContextManager[None]]


class OldStyle(Optimizer):
    """It rebinds ``.data``, and asks a parameter for more than its values."""

    def __init__(self, params: Any, lr: float = 1e-2):
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad and p.grad is not None:
                    rate = group["lr"] * getattr(p, "rate", 1.0)
                    p.data = p.data - rate * p.grad.data
        return loss


class Counting(Optimizer):
    """It keeps one count for all in its state, as MADGRAD does."""

    def __init__(self, params: Any, lr: float = 1e-2):
        super().__init__(params, {"lr": lr})
        self.state["early"] = torch.ones(1)
        self.total = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "total": self.total}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.total = state_dict["total"]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        if "k" not in self.state:
            self.state["k"] = torch.tensor([0])
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    total = self.state[p].setdefault("sum", torch.zeros_like(p))
                    total.add_(p.grad)
                    rate = group["lr"] / math.sqrt(int(self.state["k"]) + 1)
                    rate /= 1 + self.total
                    p.sub_(total * self.state["early"], alpha=rate)
        self.state["k"] += 1
        self.total += 1
        return loss


class Lion(Optimizer):
    """The sign of a momentum (Chen et al., 2023)."""

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.1):
        super().__init__(
            params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            slow, fast = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                direction = state["exp_avg"] * slow + p.grad * (1 - slow)
                p.add_(direction.sign_(), alpha=-group["lr"])
                state["exp_avg"].lerp_(p.grad, 1 - fast)
        return loss


class Adafactor(Optimizer):
    """A variance by rows and columns, and updates by the weights' own size."""

    def __init__(self, params: Any, lr: float = 1e-2):
        super().__init__(params, {"lr": lr, "decay": 0.8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, square = self.state[p], p.grad.square() + 1e-30
                if not state:
                    state.update(step=0, row=0.0, column=0.0)
                state["step"] += 1
                keep = 1 - state["step"] ** -group["decay"]
                for key, axis in (("row", -1), ("column", 0)):
                    state[key] = state[key] * keep + square.mean(axis) * (1 - keep)
                root = state["row"]
                if p.dim() > 1:
                    root = torch.outer(root / root.mean(), state["column"])
                update = p.grad / root.sqrt()
                update /= (update.square().mean().sqrt()).clamp_min(1.0)
                size = p.square().mean().sqrt().clamp_min(1e-3)
                p.sub_(update * size, alpha=group["lr"])
        return loss


class Muon(Optimizer):
    """A momentum made orthogonal by Newton-Schulz, for matrices; else plain."""

    def __init__(self, params: Any, lr: float = 1e-2, momentum: float = 0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": 5})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(p.grad)
                update = buffer
                if p.dim() == 2:
                    update = buffer / (buffer.norm() + 1e-7)
                    for _ in range(group["steps"]):
                        gram = update @ update.T
                        second = -4.7750 * gram + 2.0315 * gram @ gram
                        update = 3.4445 * update + second @ update
                p.add_(update, alpha=-group["lr"])
        return loss


class Prodigy(Optimizer):
    """A rate estimated over all parameters together, kept in the first group."""

    def __init__(self, params: Any, lr: float = 1.0):
        super().__init__(params, {"lr": lr, "d": 1e-3, "sums": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        ours = [(g, p) for g in self.param_groups for p in g["params"]]
        ours = [(g, p) for g, p in ours if p.grad is not None]
        d, sums = (self.param_groups[0][key] for key in ("d", "sums"))
        for _, p in ours:
            state = self.state[p]
            if not state:
                state.update(p0=p.clone(), s=torch.zeros_like(p))
            sums += d * float((p.grad * (state["p0"] - p)).sum())
            state["s"].add_(p.grad, alpha=d)
        weight = sum(float(self.state[p]["s"].abs().sum()) for _, p in ours)
        d = max(d, sums / max(weight, 1e-12))
        for group in self.param_groups:
            group.update(d=d, sums=sums)
        for group, p in ours:
            p.sub_(p.grad, alpha=d * group["lr"])
        return loss


class ScheduleFree(Optimizer):
    """AdamW without a schedule (Defazio et al., 2024), with its two modes.

    In training the model holds y, where gradients are taken; for evaluation x.
    """

    def __init__(self, params: Any, lr: float = 1e-2, beta1: float = 0.9):
        more = {"k": 0, "weight_sum": 0.0, "train_mode": False}
        super().__init__(params, {"lr": lr, "betas": (beta1, 0.99), **more})

    @torch.no_grad()
    def eval(self) -> None:
        self._go_to("eval")

    @torch.no_grad()
    def train(self) -> None:
        self._go_to("train")

    def _go_to(self, mode: str) -> None:
        for group in self.param_groups:
            if group["train_mode"] == (mode == "train"):
                continue
            beta1 = group["betas"][0]
            far = 1 - 1 / beta1 if mode == "eval" else 1 - beta1
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.lerp_(end=self.state[p]["z"], weight=far)
            group["train_mode"] = mode == "train"

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if not self.param_groups[0]["train_mode"]:
            raise RuntimeError("not in train mode: call optimizer.train()")
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            group["k"] += 1
            group["weight_sum"] += group["lr"] ** 2
            share = group["lr"] ** 2 / max(group["weight_sum"], 1e-30)
            root = (1 - beta2 ** group["k"]) ** 0.5
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "z" not in state:
                    state.update(z=p.clone(), exp_avg_sq=torch.zeros_like(p))
                v, z = state["exp_avg_sq"], state["z"]
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                update = p.grad / (v.sqrt() / root + 1e-8)
                p.lerp_(end=z, weight=share)
                p.add_(update, alpha=group["lr"] * (beta1 * (1 - share) - 1))
                z.sub_(update, alpha=group["lr"])
        return loss


# ------------------------------------------------------------------------- wrappers


class Lookahead(Optimizer):
    """Slow weights that follow the fast ones every few steps (Zhang et al., 2019).

    Args:
        inner: Updates the fast weights.
        writing: Entered where the fast weights are set back.
    """

    def __init__(self, inner: Optimizer, writing: Writing = nullcontext) -> None:
        self.optimizer, self.writing = inner, writing
        self.param_groups, self.defaults = inner.param_groups, inner.defaults
        self.state: Any = defaultdict(dict)
        self._optimizer_step_pre_hooks: Any = {}
        self._optimizer_step_post_hooks: Any = {}
        self.count = 0
        self.slow = [p.detach().clone() for p in self._params()]

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % 3 == 0:
            with self.writing():
                for p, slow in zip(self._params(), self.slow, strict=True):
                    slow.add_(p.data - slow, alpha=0.5)
                    p.data.copy_(slow)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


RHO = 0.05


def ascent(params: Iterable[Tensor]) -> list[Tensor]:
    """Where SAM (Foret et al., 2021) looks: up the gradient, by RHO in all."""
    grads = [p.grad for p in params if p.grad is not None]
    norm = math.sqrt(math.fsum(float(g.norm()) ** 2 for g in grads))  # in any order
    return [g * (RHO / (norm + 1e-12)) for g in grads]


class Sam(Optimizer):
    """The class that most projects copy: it makes its base, and writes to ``.data``."""

    def __init__(self, params: Any, base: Callable[[Any], Optimizer]) -> None:
        super().__init__(params, {"rho": RHO})
        self.base_optimizer = base(self.param_groups)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def first_step(self) -> None:
        params = self._params()
        for p, e in zip(params, ascent(params), strict=True):
            self.state[p]["old_p"] = p.data.clone()
            p.add_(e)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self._params():
            p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        self.zero_grad()
