"""Gradients clipped by their common norm: as torch does, alike in halves and whole."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from step_cli.training.distributed import Processes
from step_cli.training.wrapping import clip_gradients

ALONE = Processes(torch.device("cpu"))


def parameters(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for p in found:
        p.grad = torch.randn(p.shape, generator=random).to(dtype)
    return found


def grads(found: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in found if p.grad is not None]


@pytest.mark.parametrize("most", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_clips_as_torch_does(most: float, dtype: torch.dtype) -> None:
    found, expected = (parameters((300, 70), (5,), dtype=dtype) for _ in range(2))
    clip_gradients(found, most, ALONE)
    nn.utils.clip_grad_norm_(expected, most)
    torch.testing.assert_close(grads(found), grads(expected))


def test_a_norm_below_the_bound_changes_nothing() -> None:
    found, before = parameters((3, 4)), parameters((3, 4))
    clip_gradients(found, 1e6, ALONE)
    assert torch.equal(grads(found)[0], grads(before)[0])


def test_parameters_without_a_gradient_are_left_out() -> None:
    found = [*parameters((2, 2)), nn.Parameter(torch.ones(3))]
    clip_gradients(found, 0.5, ALONE)
    assert found[1].grad is None
    assert grads(found)[0].norm().item() == pytest.approx(0.5, rel=1e-5)
    clip_gradients(found[1:], 0.5, ALONE)


@dataclass(frozen=True)
class Share(Processes):
    """One of two processes, and what the other one adds."""

    other: float = 0.0

    def total(self, values: Tensor) -> Tensor:
        return values + self.other


def test_shares_get_the_bits_of_the_whole() -> None:
    whole = parameters((1000, 333), (77,))
    halves = [[nn.Parameter(p.data[: len(p) // 2]) for p in whole],
              [nn.Parameter(p.data[len(p) // 2 :]) for p in whole]]  # fmt: skip
    for one, other, p in zip(*halves, whole, strict=True):
        assert p.grad is not None
        one.grad, other.grad = (x.clone() for x in p.grad.tensor_split([len(one)]))
    sums = [sum(float(g.double().square().sum()) for g in grads(h)) for h in halves]
    clip_gradients(whole, 1.0, ALONE)
    for half, other in zip(halves, reversed(sums), strict=True):
        clip_gradients(half, 1.0, Share(ALONE.device, "fsdp", 0, 2, other))
    for p, one, other in zip(whole, *halves, strict=True):
        assert torch.equal(torch.cat(grads([one, other])), grads([p])[0])
