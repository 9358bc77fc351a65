"""N:M training as a paper writes it: dense parameters, and masks in the forward pass.

The oracle of the wrapper matrix: nothing of it is in place, no parameter is anything
but dense, so whatever a wrapper does to an optimizer is done here to a plain one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from step_cli.nm.pattern import NMPattern
from step_cli.optim.reference import Pi

TWO_OF_FOUR = NMPattern.parse("2:4")


class StraightThrough(torch.autograd.Function):
    """The larger half of each four; its gradient is that of the whole."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return w * Pi(w.detach(), TWO_OF_FOUR)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Net(nn.Module):
    """Two layers of double precision; a loss of its own for each half of the labels.

    Args:
        slow: Prune in the forward pass once ``sparse`` is set.
    """

    def __init__(self, *, slow: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a, self.b = (nn.Linear(16, n, dtype=torch.float64) for n in (16, 8))
        with torch.no_grad():
            for p in self.parameters():
                drawn = torch.rand(p.shape, generator=generator, dtype=torch.float64)
                p.copy_(drawn - 0.5)
        self.slow = slow
        self.register_buffer("sparse", torch.tensor(False), persistent=slow)
        self.extra: dict[str, Tensor] = {}

    def held(self) -> list[Tensor]:
        """What the model multiplies by and adds."""
        both = [StraightThrough.apply(w) if self.slow and self.sparse else w
                for w in (self.a.weight, self.b.weight)]  # fmt: skip
        found = [both[0], self.a.bias, both[1], self.b.bias]
        return [w + self.extra.get(i, 0) for i, w in enumerate(found)]

    def forward(self, x: Tensor) -> Tensor:
        if not self.slow:
            return self.b(self.a(x).tanh())
        a, a_bias, b, b_bias = self.held()
        return functional.linear(functional.linear(x, a, a_bias).tanh(), b, b_bias)


def loss_of(
    net: Callable[[Tensor], Tensor], step: int, rows: slice = slice(None)
) -> Tensor:
    """The same batch of a step for everyone, or some rows of it."""
    generator = torch.Generator().manual_seed(step)
    x, y = (
        torch.randn(12, n, generator=generator, dtype=torch.float64) for n in (16, 8)
    )
    return functional.mse_loss(net(x[rows]), y[rows])


class Slow(Optimizer):
    """STEP's Algorithm 1 as a plain optimizer of the dense weights of a slow net."""

    def __init__(self, params: Any, net: Net, switch: int, **options: Any) -> None:
        super().__init__(params, {"betas": (0.9, 0.999), "eps": 1e-8, **options})
        self.sparse, self.switch, self.t = net.sparse, switch, 0

    def __getstate__(self) -> dict[str, Any]:
        mine = ("sparse", "switch", "t")
        return {**super().__getstate__(), **{key: getattr(self, key) for key in mine}}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        self.t += 1
        frozen = self.t > self.switch
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s.update(n=0, learned=0, m=0.0, v=0.0)
                s["n"] += 1
                s["m"] = beta1 * s["m"] + (1 - beta1) * p.grad
                if not frozen or not s["learned"]:
                    s["v"] = beta2 * s["v"] + (1 - beta2) * p.grad**2
                if not frozen:
                    s["learned"] += 1
                m = s["m"] / (1 - beta1 ** s["n"])
                v = s["v"] / (1 - beta2 ** (s["learned"] or s["n"]))
                p.sub_(group["lr"] * group["weight_decay"] * p)
                p.sub_(group["lr"] * m / (v.sqrt() + group["eps"]))
        if self.t == self.switch:
            self.sparse.fill_(True)
        return loss
