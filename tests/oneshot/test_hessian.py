"""The Hessian in one matrix: its factor above the diagonal, itself below."""

import pytest
import torch
from torch import Tensor

from step_cli.oneshot import hessian as hessians
from step_cli.oneshot.hessian import InputHessian, SingularError, inverse_factor

WIDTH = 28  # three tiles of 8 and one of 4


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessians, "TILE", 8)
    monkeypatch.setattr(hessians, "COUNTED", 12)


def inputs(tokens: int = 80) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, tokens, WIDTH, generator=generator, dtype=torch.float64)


def seen_of(rows: Tensor) -> InputHessian:
    seen = InputHessian()
    for part in rows.split(30, dim=1):
        seen.add(part)
    return seen


def test_the_hessian_is_whole_whichever_part_of_it_was_counted() -> None:
    rows = inputs()
    expected = 2 * rows[0].t() @ rows[0] / 80
    torch.testing.assert_close(seen_of(rows).hessian[0], expected)


def test_a_factor_in_tiles_is_the_cholesky_factor_of_the_inverse() -> None:
    whole = seen_of(inputs()).hessian[0]
    expected = torch.linalg.cholesky(torch.linalg.inv(whole), upper=True)
    torch.testing.assert_close(inverse_factor(whole), expected)


def test_the_hessian_comes_back_after_its_factor_and_takes_more_rows() -> None:
    rows = inputs()
    seen, other = seen_of(rows), seen_of(rows)
    before = other.hessian.clone()
    (inverse,) = seen.inverses()
    assert seen.inverses()[0] is inverse  # of the layers that share it
    assert not torch.equal(inverse.upper.triu(), before[0].triu())
    assert seen.unused == 0
    assert torch.equal(seen.hessian, before)
    seen.inverses()
    for one in (seen, other):
        one.add(rows[:, :5])
    assert torch.equal(seen.hessian, other.hessian)


def test_more_damping_starts_from_the_same_hessian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = inputs()
    expected = inverse_factor(hessians.damped(seen_of(rows).hessian[0], 1.0))
    real, tried = hessians.invert_in_place, []

    def fails_twice(matrix: Tensor) -> None:
        tried.append(matrix.diagonal().clone())
        real(matrix)  # which spoils it
        if len(tried) < 3:
            raise SingularError("singular")

    monkeypatch.setattr(hessians, "invert_in_place", fails_twice)
    (inverse,) = seen_of(rows).inverses()
    assert len(tried) == 3
    torch.testing.assert_close(inverse.upper.triu(), expected)


def test_inputs_that_were_never_seen_are_known() -> None:
    rows = inputs()
    rows[..., 5] = rows[..., 20] = 0
    seen = seen_of(rows)
    assert seen.unused == 2
    (inverse,) = seen.inverses()
    assert inverse.unused.nonzero().flatten().tolist() == [5, 20]
    assert inverse.upper.triu().isfinite().all()


def test_a_hessian_that_is_not_definite_is_refused() -> None:
    with pytest.raises(SingularError, match="raise damp"):
        inverse_factor(-torch.eye(WIDTH))


def test_one_that_no_damping_helps_is_told_with_what_to_do() -> None:
    seen = seen_of(inputs())
    seen.hessian.neg_()
    with pytest.raises(SingularError, match=r"damping of 1; .*--method wanda"):
        seen.inverses()
