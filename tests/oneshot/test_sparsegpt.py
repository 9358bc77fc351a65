"""SparseGPT against the worked row and a slow optimal brain surgeon."""

import pytest
import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.oneshot.sparsegpt import (
    InputHessian,
    damped,
    inverse_factor,
    sparsegpt_prune,
)
from step_cli.optim.mask import count_violations, nm_mask

PAIR = torch.tensor([[2.0, 1], [1, 2]], dtype=torch.float64)
HESSIAN = torch.block_diag(PAIR, PAIR)
ROW = torch.tensor([[0.5, 1, 0.4, 0.9]], dtype=torch.float64)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def correlated(width: int, seed: int = 0) -> Tensor:
    """The Hessian of inputs that are mixtures of one another."""
    inputs = seeded(4 * width, width, seed=seed) @ seeded(width, width, seed=seed + 1)
    return 2 * inputs.t() @ inputs / len(inputs)


def slowly_pruned(
    row: Tensor, hessian: Tensor, pattern: NMPattern
) -> tuple[Tensor, float]:
    """One row, an inverse for each column; also the sum of the costs e^2."""
    row, total = row.clone(), 0.0
    for i in range(len(row)):
        if i % pattern.m == 0:
            costs = []
            for j in range(i, i + pattern.m):
                inverse = torch.linalg.inv(hessian[j:, j:])
                costs.append((float(row[j] ** 2 / inverse[0, 0]), j))
            pruned = {j for _, j in sorted(costs)[: pattern.m - pattern.n]}
        if i in pruned:
            inverse = torch.linalg.inv(hessian[i:, i:])
            total += float(row[i] ** 2 / inverse[0, 0])
            row[i:] -= row[i] / inverse[0, 0] * inverse[0]
            row[i] = 0
    return row, total


def output_error(change: Tensor, hessian: Tensor) -> Tensor:
    """Twice the mean over tokens of the squared change of each output."""
    return ((change @ hessian) * change).sum(1)


def magnitude_pruned(weight: Tensor, pattern: str) -> Tensor:
    return torch.where(nm_mask(weight.abs(), pattern, 1), weight, 0)


def test_the_worked_row() -> None:
    out = sparsegpt_prune(ROW, HESSIAN, "2:4", damp=0)
    expected = torch.tensor([[0, 1.25, 0, 1.1]], dtype=torch.float64)
    torch.testing.assert_close(out, expected)
    plain = torch.where(out == 0, 0, ROW)
    assert output_error(out - ROW, HESSIAN).item() == pytest.approx(0.615)
    assert output_error(plain - ROW, HESSIAN).item() == pytest.approx(0.82)


def test_the_factor_of_the_worked_row() -> None:
    factor = inverse_factor(HESSIAN)
    expected = torch.tensor([[0.816497, -0.408248], [0, 0.707107]]).double()
    torch.testing.assert_close(factor[:2, :2], expected, atol=1e-6, rtol=0)
    assert factor[:2, 2:].count_nonzero() == 0


def test_the_factor_is_the_cholesky_factor_of_the_inverse() -> None:
    hessian = correlated(24)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    torch.testing.assert_close(inverse_factor(hessian), upper)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "2:8", "4:8", "4:4"])
def test_it_equals_the_slow_surgeon_and_its_error_is_the_sum_of_the_costs(
    pattern: str,
) -> None:
    parsed, weight, hessian = NMPattern.parse(pattern), seeded(6, 16), correlated(16)
    out = sparsegpt_prune(weight, hessian, parsed, damp=0)
    rows, costs = zip(*(slowly_pruned(w, hessian, parsed) for w in weight), strict=True)
    torch.testing.assert_close(out, torch.stack(rows))
    errors = output_error(out - weight, hessian)
    torch.testing.assert_close(errors, torch.tensor(costs).double())
    assert out.eq(0).sum() == round(weight.numel() * (1 - parsed.density))
    assert count_violations(out, parsed, 1) == 0


@pytest.mark.parametrize("block", [4, 8, 12, 128])
def test_blocks_do_not_change_the_result(block: int) -> None:
    weight, hessian = seeded(6, 24), correlated(24)
    whole = sparsegpt_prune(weight, hessian, "2:4", block=24)
    parts = sparsegpt_prune(weight, hessian, "2:4", block=block)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("scale", [1.0, 3.7])
def test_independent_inputs_make_it_magnitude_without_an_update(scale: float) -> None:
    weight = seeded(8, 32)
    out = sparsegpt_prune(weight, scale * torch.eye(32), "2:4", block=8)
    assert torch.equal(out, magnitude_pruned(weight, "2:4"))


def test_kept_columns_left_of_a_pruned_one_never_change() -> None:
    weight, hessian = seeded(32, 16), correlated(16)
    out = sparsegpt_prune(weight, hessian, "2:4", block=8)
    untouched = out.eq(0).cumsum(1) == 0  # nothing is pruned up to here
    assert int(untouched.sum()) > 8
    assert torch.equal(out[untouched], weight[untouched])
    changed = weight.clone()
    changed[:, 12:] += 1
    other = sparsegpt_prune(changed, hessian, "2:4", block=8)
    assert torch.equal(other[:, :12], out[:, :12])
    assert not torch.equal(other[:, 12:], out[:, 12:])


def test_on_average_the_update_beats_the_same_mask_without_it() -> None:
    ratios = []
    for seed in range(0, 180, 3):
        weight, hessian = seeded(1, 8, seed=seed + 2), correlated(8, seed)
        out = sparsegpt_prune(weight, hessian, "2:4", damp=0)
        plain = torch.where(out == 0, 0, weight)
        with_update = output_error(out - weight, hessian)
        ratios.append(float(with_update / output_error(plain - weight, hessian)))
    found = torch.tensor(ratios)
    assert 0.3 < float(found.median()) < 0.7
    # A greedy order gives no promise for a single row.
    assert 0 < float(found.gt(1).float().mean()) < 0.25


def test_inputs_never_seen_have_their_weights_set_to_zero() -> None:
    weight, hessian = seeded(4, 8), correlated(8)
    hessian[2] = hessian[:, 2] = 0
    out = sparsegpt_prune(weight, hessian, "2:4")
    assert out[:, 2].eq(0).all() and out.isfinite().all()
    assert out.eq(0).sum() == 16  # it is one of the pruned, not one more
    diagonal = hessian.diagonal().clone()
    diagonal[2] = 1
    damping = 0.01 * diagonal.mean()
    raised = damped(hessian, 0.01)
    torch.testing.assert_close(raised.diagonal(), diagonal + damping)
    off = raised - torch.diag(raised.diagonal())
    assert torch.equal(off, hessian - torch.diag(hessian.diagonal()))
    assert hessian[2, 2] == 0  # what was given is not changed


def test_a_conv1d_weight_is_pruned_along_its_first_axis() -> None:
    weight, hessian = seeded(6, 16), correlated(16)
    out = sparsegpt_prune(weight, hessian, "2:4")
    flipped = sparsegpt_prune(weight.t(), hessian, "2:4", axis=0)
    assert torch.equal(flipped.t(), out) and flipped.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_weights_keep_their_dtype_and_stay_as_they_were(
    dtype: torch.dtype,
) -> None:
    weight, hessian = seeded(8, 16).to(dtype), correlated(16).float()
    before = weight.clone()
    out = sparsegpt_prune(weight, hessian, "2:4")
    assert out.dtype == dtype and torch.equal(weight, before)
    exact = sparsegpt_prune(weight.double(), hessian.double(), "2:4")
    torch.testing.assert_close(out, exact.to(dtype))


def test_the_hessian_is_a_mean_however_the_tokens_come() -> None:
    inputs = seeded(10, 3, 6)  # [sequences, tokens, in]
    hessian = InputHessian()
    for part in (inputs[:1], inputs[1:1], inputs[1:6], inputs[6:]):
        hessian.add(part.reshape(1, -1, 6))
    rows = inputs.view(-1, 6)
    assert hessian.tokens == 30
    torch.testing.assert_close(hessian.hessian[0], 2 * rows.t() @ rows / 30)


def test_the_scale_of_the_hessian_changes_nothing() -> None:
    weight, hessian = seeded(6, 16), correlated(16)
    out = sparsegpt_prune(weight, hessian, "2:4")
    torch.testing.assert_close(sparsegpt_prune(weight, 9 * hessian, "2:4"), out)


@pytest.mark.parametrize(
    ("pattern", "width", "options", "told"),
    [
        ("2:4", 6, {}, "not a multiple of M=4"),
        ("2:3", 6, {}, "block 128 is not a multiple of M=3"),
        ("2:4", 8, {"block": 6}, "block 6"),
        ("2:4", 8, {"block": 0}, "block 0"),
        ("2:4", 8, {"damp": -0.1}, "damp -0.1"),
        ("2:4", 8, {"damp": float("nan")}, "damp nan"),
        ("2:4", 8, {"axis": 2}, "matrix"),
    ],
)
def test_what_does_not_fit_is_refused(
    pattern: str, width: int, options: dict[str, float], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        sparsegpt_prune(torch.ones(4, width), torch.eye(width), pattern, **options)


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(UsageError, match="Hessian of 8x8, got shape"):
        sparsegpt_prune(torch.ones(4, 8), torch.eye(4), "2:4")
    with pytest.raises(UsageError, match="matrix"):
        sparsegpt_prune(torch.ones(4, 8, 3), torch.eye(8), "2:4")
    with pytest.raises(UsageError, match="8 inputs"):
        seen = InputHessian()
        seen.add(torch.ones(1, 2, 8))
        seen.add(torch.ones(1, 2, 4))


def test_too_few_tokens_without_damping_are_refused_with_a_remedy() -> None:
    hessian = torch.ones(4, 4)  # one token
    with pytest.raises(UsageError, match="raise damp"):
        sparsegpt_prune(torch.ones(2, 4), hessian, "2:4", damp=0)
    assert sparsegpt_prune(torch.ones(2, 4), hessian, "2:4").isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="Hessian"):
        sparsegpt_prune(torch.full((1, 4), bad), torch.eye(4), "2:4")
    with pytest.raises(NonFiniteError, match="Hessian"):
        sparsegpt_prune(torch.ones(1, 4), torch.full((4, 4), bad), "2:4")
