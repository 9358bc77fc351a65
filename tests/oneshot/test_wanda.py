"""Wanda scores against the worked row and against magnitude."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.errors import NonFiniteError, UsageError
from step_cli.oneshot.wanda import input_norms, wanda_scores
from step_cli.optim.mask import nm_mask

ROW = torch.tensor([[1.0, -2, 3, 0.5]])
NORMS = torch.tensor([10.0, 1, 1, 8])


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_worked_row_keeps_other_weights_than_magnitude_does() -> None:
    scores = wanda_scores(ROW, NORMS)
    assert scores.tolist() == [[10, 2, 3, 4]]
    assert nm_mask(scores, "2:4", 1).tolist() == [[True, False, False, True]]
    assert nm_mask(ROW.abs(), "2:4", 1).tolist() == [[False, True, True, False]]


def test_norms_are_taken_over_all_tokens_of_all_sequences() -> None:
    inputs = torch.tensor([[[3.0, 0], [4, 1]], [[0, 2], [0, 2]]])  # [2, 2 tokens, in]
    assert input_norms(inputs).tolist() == [5, 3]
    parts = [input_norms(part) for part in inputs]
    assert torch.hypot(*parts).tolist() == [5, 3]


def test_norms_of_fp16_inputs_do_not_overflow() -> None:
    norms = input_norms(torch.full((4, 1), 6e4, dtype=torch.float16))
    assert norms.dtype == torch.float32
    assert norms.item() == pytest.approx(1.2e5, rel=1e-3)


@given(st.integers(0, 2**31), st.floats(2**-20, 2**20, width=32))
@settings(max_examples=30)
def test_equal_norms_rank_as_magnitude_does(seed: int, norm: float) -> None:
    weight = seeded(8, 16, seed=seed)
    # Neighbours that one rounding of a product could make equal.
    weight[:, 1::2] = torch.nextafter(weight[:, ::2], torch.zeros(()))
    scores = wanda_scores(weight, torch.full((16,), norm))
    for pattern in ("2:4", "1:4", "2:8"):
        mask = nm_mask(weight.abs(), pattern, 1)
        assert torch.equal(nm_mask(scores, pattern, 1), mask)


def test_a_conv1d_weight_has_the_transposed_scores() -> None:
    weight, norms = seeded(8, 12), seeded(12).abs()
    scores = wanda_scores(weight, norms)
    assert torch.equal(wanda_scores(weight.t(), norms, axis=0), scores.t())
    mask = nm_mask(scores, "2:4", 1)
    assert torch.equal(nm_mask(scores.t(), "2:4", 0), mask.t())
    with pytest.raises(UsageError, match="needs 8 norms"):  # its outputs, by mistake
        wanda_scores(weight, norms, axis=0)


@pytest.mark.parametrize(("shape", "axis"), [((4,), 0), ((4, 4, 3), 1), ((4, 4), 2)])
def test_only_a_matrix_is_scored(shape: tuple[int, ...], axis: int) -> None:
    with pytest.raises(UsageError, match="matrix"):
        wanda_scores(torch.ones(shape), torch.ones(4), axis)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    weight, norms = ROW.clone(), NORMS.clone()
    weight[0, 1] = norms[2] = bad
    with pytest.raises(NonFiniteError, match="weight or an input norm"):
        wanda_scores(weight, NORMS)
    with pytest.raises(NonFiniteError, match="weight or an input norm"):
        wanda_scores(ROW, norms)
