"""Kept weights by least squares, against a float64 solution row by row."""

import pytest
import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.oneshot import least_squares
from step_cli.oneshot.least_squares import as_stored, energies, refit_rows
from step_cli.optim.mask import nm_mask

TWO_FOUR = NMPattern(2, 4)
DAMP = 1e-3


def correlated(width: int, tokens: int, seed: int = 0) -> Tensor:
    """Inputs of which few directions have most of the energy, as those of layers do."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    mix *= torch.logspace(0, -1.5, width)[:, None]
    return torch.randn(tokens, width, generator=generator) @ mix + 0.3


def problem(out: int = 12, width: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """A dense weight, the same at 2:4, and X X^T."""
    x = correlated(width, 200)
    dense = torch.randn(out, width, generator=torch.Generator().manual_seed(1))
    return dense, dense * nm_mask(dense.abs(), TWO_FOUR, 1), x.T @ x


def row_by_row(dense: Tensor, pruned: Tensor, hessian: Tensor) -> Tensor:
    """The formula of the module, written down for one row at a time."""
    h, new = hessian.double(), pruned.double().clone()
    damping = DAMP * h.diagonal().mean()
    for i in range(len(dense)):
        s = pruned[i].nonzero()[:, 0]
        matrix = h[s][:, s] + damping * torch.eye(len(s), dtype=h.dtype)
        new[i, s] = torch.linalg.solve(matrix, (h @ dense[i].double())[s])
    return new


@pytest.fixture(params=["factors", "gradients"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(
        least_squares, "SHORT", 1 << 30 if request.param == "factors" else -1
    )
    return str(request.param)


def test_it_is_the_formula_row_by_row(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "TOLERANCE", 1e-8)
    dense, pruned, hessian = problem()
    found = refit_rows(dense, pruned, hessian, DAMP)
    expected = row_by_row(dense, pruned, hessian)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found != 0, pruned != 0)


def test_at_the_usual_tolerance_the_error_is_that_of_the_formula(way: str) -> None:
    dense, pruned, hessian = problem(width=64)
    found = refit_rows(dense, pruned, hessian, DAMP)
    best = row_by_row(dense, pruned, hessian)
    error = energies(found - dense, hessian).sum()
    least = energies(best - dense, hessian).sum()
    assert least < 0.2 * energies(pruned - dense, hessian).sum()
    assert float(error) == pytest.approx(float(least), rel=1e-3)


def test_rows_that_keep_more_or_fewer_weights_and_none(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "TOLERANCE", 1e-8)
    dense, pruned, hessian = problem()
    pruned[0] = 0
    pruned[1, :20] = 0
    pruned[2] = dense[2]
    found = refit_rows(dense, pruned, hessian, DAMP)
    expected = row_by_row(dense, pruned, hessian)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_few_rows_at_a_time_give_the_same(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "TOLERANCE", 1e-8)
    dense, pruned, hessian = problem()
    whole = refit_rows(dense, pruned, hessian)
    monkeypatch.setattr(least_squares, "MEMORY", 1 << 12)
    few = refit_rows(dense, pruned, hessian)
    torch.testing.assert_close(few, whole, rtol=1e-5, atol=1e-6)


def test_what_is_given_does_not_change(way: str) -> None:
    """Weights in fp64 may be those of a file, mapped to be read only."""
    given = [x.double() for x in problem()]
    before = [x.clone() for x in given]
    dense, pruned, hessian = given
    found = refit_rows(dense, pruned, hessian)
    assert not torch.equal(found, pruned)
    assert all(map(torch.equal, given, before))


def test_weights_of_inputs_never_seen_stay(way: str) -> None:
    dense, pruned, hessian = problem()
    hessian[:, 5] = hessian[5] = 0
    found = refit_rows(dense, pruned, hessian)
    assert torch.equal(found[:, 5], pruned[:, 5].double())
    assert torch.isfinite(found).all() and torch.equal(found != 0, pruned != 0)


def test_a_singular_hessian_without_damping_changes_nothing_for_the_worse() -> None:
    dense, pruned, _ = problem()
    x = correlated(32, 3)  # fewer tokens than weights
    hessian = x.T @ x
    found = refit_rows(dense, pruned, hessian, damp=0)
    before = energies(pruned - dense, hessian)
    assert torch.isfinite(found).all()
    assert (energies(found - dense, hessian) <= before * 1.001).all()


def test_energies_are_squares_of_outputs() -> None:
    x = correlated(16, 50)
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    expected = (x.double() @ rows.double().T).square().sum(0)
    found = energies(rows, (x.double().T @ x.double()).float())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_stored_keeps_the_mask(dtype: torch.dtype) -> None:
    pruned = torch.tensor([[1.0, 0.0, -2.0, 0.0]], dtype=dtype)
    fitted = torch.tensor([[1e-300, 3.0, -1e-300, 0.0]], dtype=torch.float64)
    found = as_stored(fitted, pruned, dtype)
    least = torch.finfo(dtype).smallest_normal
    assert found.dtype == dtype
    assert found.tolist() == [[least, 0.0, -least, 0.0]]


def test_what_does_not_fit_is_refused() -> None:
    dense, pruned, hessian = problem()
    with pytest.raises(UsageError, match="two matrices of one shape"):
        refit_rows(dense[:3], pruned, hessian)
    with pytest.raises(UsageError, match="need a Hessian of 32x32"):
        refit_rows(dense, pruned, hessian[:4, :4])
    with pytest.raises(UsageError, match="damp -1"):
        refit_rows(dense, pruned, hessian, -1)
    with pytest.raises(NonFiniteError, match="not finite"):
        refit_rows(dense, pruned, hessian * torch.inf)
