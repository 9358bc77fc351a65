"""Compiled kernels against their eager forms: masks bit for bit, updates closely."""

import pytest
import torch
from torch import nn

from step_cli.nm.pattern import NMPattern
from step_cli.optim import compiled, projection
from step_cli.optim import weights as module
from step_cli.optim.adam import adam_directions
from step_cli.optim.compiled import (
    can_compile,
    compiled_frozen_step,
    step_scalars,
)
from step_cli.optim.compiled_mask import compiled_keep_mask, compiled_project
from step_cli.optim.mask import keep_mask, magnitude_mask
from step_cli.optim.variance import SUMS, change_sums, chunked_sums, compiled_sums
from step_cli.recipes.sparse_adamw import sparse_adamw

needs_compiler = pytest.mark.usefixtures("compiler")
SHAPES = [
    *[((48, 96), 1), ((96, 48), 0), ((8, 48, 3, 3), 1), ((96, 1), 0)],
    *[((5, 48), 1), ((1, 48), 1), ((3, 16), 1)],  # few weights, and no whole lanes
]


def weights(shape: tuple[int, ...], kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    if kind == "ties":
        return torch.randint(-2, 3, shape, generator=generator).float()
    return torch.randn(shape, generator=generator)


def slowly(*names: str) -> list[object]:
    """Patterns of the slow tests: their graphs take up to half a minute to compile."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@needs_compiler
@pytest.mark.parametrize("kind", ["normal", "ties"])
@pytest.mark.parametrize("pattern", ["2:4", "3:8", *slowly("1:16")])
def test_masks_are_bit_identical(pattern: str, kind: str) -> None:
    for shape, axis in SHAPES:
        weight, parsed = weights(shape, kind), NMPattern.parse(pattern)
        expected = keep_mask(weight.abs(), parsed, axis)
        assert torch.equal(compiled_keep_mask(weight, parsed, axis), expected)
        out = torch.full_like(weight, 7.0)
        compiled_project(out, weight, parsed, axis)
        assert torch.equal(out, torch.where(expected, weight, 0))
        assert not torch.signbit(out[~expected]).any()  # +0.0, whatever was pruned


@needs_compiler
@pytest.mark.parametrize(("pattern", "kind"), [("1:16", "normal"), ("1:16", "ties"),
                                               ("3:32", "ties")])  # fmt: skip
def test_masks_of_wide_groups_that_lie_together(pattern: str, kind: str) -> None:
    parsed = NMPattern.parse(pattern)
    for rows in (1, 3, 48):
        weight = weights((rows, 96), kind)
        expected = keep_mask(weight.abs(), parsed, 1)
        assert torch.equal(compiled_keep_mask(weight, parsed, 1), expected)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", ["2:4", "2:3", *slowly("5:16", "3:32")])
def test_members_next_to_each_other_near_and_far_apart(
    pattern: str, dtype: torch.dtype
) -> None:
    parsed = NMPattern.parse(pattern)
    for shape, axis in (((20, 96), 1), ((96, 9), 0), ((96, 80), 0)):
        weight = weights(shape, "ties").to(dtype)
        expected = magnitude_mask(weight, parsed, axis)
        assert torch.equal(compiled_keep_mask(weight, parsed, axis), expected)
        out = torch.full_like(weight, 7.0)
        compiled_project(out, weight, parsed, axis)
        assert torch.equal(out, torch.where(expected, weight, 0))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", ["2:4", "4:8", *slowly("3:16")])
def test_part_of_a_larger_memory_is_projected(pattern: str, dtype: torch.dtype) -> None:
    whole = weights((7, 64), "ties").to(dtype)
    dense, out = whole[2:], torch.full_like(whole, 7.0)
    parsed = NMPattern.parse(pattern)
    compiled_project(out[1:6], dense, parsed, 1)
    expected = torch.where(magnitude_mask(dense, parsed, 1), dense, 0)
    assert torch.equal(out[1:6], expected)
    assert (out[0] == 7.0).all() and (out[6] == 7.0).all()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["2:4", *slowly("1:16")])
def test_parameters_of_fewer_bits_get_the_rounded_projection(
    pattern: str, dtype: torch.dtype
) -> None:
    parsed = NMPattern.parse(pattern)
    for shape, axis in SHAPES:
        if shape[axis] % parsed.m:
            continue
        for kind in ("normal", "ties"):
            dense = weights(shape, kind)
            out = torch.full_like(dense, 7.0, dtype=dtype)
            compiled_project(out, dense, parsed, axis)
            kept = magnitude_mask(dense, parsed, axis)
            assert torch.equal(out, torch.where(kept, dense, 0).to(dtype))


@needs_compiler
def test_bf16_parameters_are_projected_by_the_compiled_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    real = projection.compiled_project

    def spy(p: torch.Tensor, *rest: object) -> None:
        seen.append(p.dtype)
        real(p, *rest)

    monkeypatch.setattr(projection, "compiled_project", spy)
    monkeypatch.setattr(module, "SMALL", 0)
    p = nn.Parameter(weights((16, 32), "normal").bfloat16())
    group = {"params": [p], "pattern": "2:4", "axis": 1}
    optimizer = sparse_adamw([group], recipe="ste", lr=1e-2, compile=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    dense = optimizer.state[p]["dense"]
    kept = magnitude_mask(dense, NMPattern(2, 4), 1)
    assert seen == [torch.bfloat16, torch.bfloat16]  # when built, and after the step
    assert torch.equal(p, torch.where(kept, dense, 0).bfloat16())


@needs_compiler
@pytest.mark.parametrize("corrected", [True, False])
def test_the_frozen_update_is_close_to_the_eager_one(corrected: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    w, g, m = (torch.randn(64, 32, generator=generator) for _ in range(3))
    v = torch.rand(64, 32, generator=generator) * 1e-4
    v[::3] = 0.0  # coordinates that have never seen a gradient
    correction = 1 - 0.999**7 if corrected else 1.0
    expected_m, expected_w = m.clone(), w.clone()
    (direction,) = adam_directions(
        [g], [expected_m], [v], step=12, variance_step=7 if corrected else None,
        betas=(0.9, 0.999), eps=1e-8, learn_variance=False,
    )  # fmt: skip
    expected_w.mul_(1 - 1e-3 * 0.1).add_(direction, alpha=-1e-3)
    scalars = step_scalars(
        lr=1e-3, weight_decay=0.1, beta1=0.9, eps=1e-8, step=12,
        v_correction=correction, like=w,
    )  # fmt: skip
    variance = v.clone()
    compiled_frozen_step(w, g, m, v, scalars)
    torch.testing.assert_close(w, expected_w, atol=1e-6, rtol=0)
    torch.testing.assert_close(m, expected_m, atol=1e-6, rtol=0)
    assert torch.equal(v, variance)


@needs_compiler
def test_sizes_and_steps_share_one_compiled_function() -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    fresh = torch.compile(compiled._frozen_step, backend=counter, dynamic=True)
    for size, step in ((64, 1), (96, 2), (128, 3)):
        scalars = step_scalars(
            lr=1e-3 / step, weight_decay=0.1, beta1=0.9, eps=1e-8, step=step,
            v_correction=0.5, like=torch.ones(1),
        )  # fmt: skip
        fresh(*(torch.ones(size) for _ in range(4)), **scalars)
    assert counter.frame_count == 1


def test_without_a_compiler_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise RuntimeError("no C++ compiler")

    can_compile.cache_clear()
    monkeypatch.setattr(torch, "compile", missing)
    assert can_compile() is False
    can_compile.cache_clear()


@needs_compiler
@pytest.mark.parametrize("axis", [0, 1])
def test_a_compiled_optimizer_learns_what_an_eager_one_learns(
    axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(16, 32))
        group = {"params": [p], "pattern": "2:4", "axis": axis}
        optimizer = sparse_adamw([group], switch=3, lr=1e-2, compile=compile)
        generator = torch.Generator().manual_seed(1)
        for _ in range(10):
            p.grad = p.detach() - torch.randn(16, 32, generator=generator)
            optimizer.step()
        found.append((p.detach().clone(), optimizer.state[p]["dense"]))
    (shown, dense), (fast_shown, fast_dense) = found
    torch.testing.assert_close(fast_dense, dense, atol=1e-5, rtol=1e-5)
    assert torch.equal(fast_shown != 0, shown != 0)
    kept = keep_mask(fast_dense.abs(), NMPattern(2, 4), axis)
    assert torch.equal(fast_shown, torch.where(kept, fast_dense, 0))


def test_small_models_are_not_compiled_unless_asked() -> None:
    p = nn.Parameter(torch.randn(4, 4))
    group = {"params": [p], "pattern": "2:4", "axis": 1}
    assert sparse_adamw([group], recipe="ste")._compiled is False


@needs_compiler
@pytest.mark.parametrize("wanted", [SUMS, ("dv_l1",), ("dv_log",), ("v_l2",)])
def test_compiled_sums_of_the_variance_are_the_eager_ones(
    wanted: tuple[str, ...],
) -> None:
    """What they are to be stands in test_variance.py."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(40, 30, generator=generator)
    variance = torch.rand(40, 30, generator=generator)
    variance[0] = grad[0] = 0.0
    names = frozenset(wanted)
    slow = change_sums(grad.double(), variance.double(), 0.9, names)
    for take in (chunked_sums, compiled_sums):
        fast = take(grad, variance, 0.9, names)
        torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
