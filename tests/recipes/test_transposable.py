"""Transposable masks against the worked block, all 90 patterns and a slow loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.optim.mask import nm_mask
from step_cli.recipes.transposable import (
    SEARCHED,
    _greedy,
    all_patterns,
    transposable_mask,
)

BLOCK = torch.tensor(
    [[9.0, 8, 1, 2], [7, 6, 3, 1], [5, 1, 2, 3], [1, 2, 4, 6]]
)  # fmt: skip
STRANDING = torch.tensor(
    [[13.0, 10, 9, 6], [16, 15, 8, 4], [2, 14, 12, 3], [7, 11, 1, 5]]
)


def greedy_block(block: Tensor) -> Tensor:
    return _greedy(block.reshape(1, -1), NMPattern(2, 4)).view(4, 4)


def slow_best(block: Tensor) -> tuple[int, ...]:
    """The best pattern in plain Python, sums taken from left to right."""
    best, winner = -1.0, all_patterns()[0]
    scores = block.double().flatten().tolist()
    for bits in all_patterns():
        total = 0.0
        for bit, score in zip(bits, scores, strict=True):
            total = total + score if bit else total
        if total > best:
            best, winner = total, bits
    return winner


@st.composite
def blocks(draw: st.DrawFn) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (4 * rows, 4 * columns)
    levels = draw(st.sampled_from([2, 4, 1000]))  # few levels: ties are common
    scores = torch.randint(0, levels, shape, generator=generator)
    return scores.to(draw(st.sampled_from([torch.float64, torch.float32])))


def test_there_are_90_patterns_and_each_entry_is_in_45() -> None:
    patterns = torch.tensor(all_patterns()).view(-1, 4, 4)
    assert len(patterns) == len(set(all_patterns())) == 90
    assert patterns.sum(1).eq(2).all() and patterns.sum(2).eq(2).all()
    assert patterns.sum(0).eq(45).all()
    assert list(all_patterns()) == sorted(all_patterns(), reverse=True)


def test_the_worked_block() -> None:
    mask = transposable_mask(BLOCK, "2:4")
    assert mask.int().tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2
    assert float(BLOCK[mask].sum()) == 45
    assert float(BLOCK[nm_mask(BLOCK, "2:4", 1)].sum()) == 48
    assert float(BLOCK[nm_mask(BLOCK, "2:4", 0)].sum()) == 46


def test_greedy_strands_where_the_search_does_not() -> None:
    greedy, best = greedy_block(STRANDING), transposable_mask(STRANDING, "2:4")
    assert int(greedy.sum()) == 7 and float(STRANDING[greedy].sum()) == 84
    assert int(best.sum()) == 8 and float(STRANDING[best].sum()) == 85


def test_equal_sums_take_the_first_bits_in_descending_order() -> None:
    mask = transposable_mask(torch.ones(4, 4), "2:4")
    assert mask.int().tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2


def test_sums_are_taken_in_fp64() -> None:
    # In fp32 the small one would be lost beside the large, and the tie rule decide.
    scores = torch.full((4, 4), 1e8)
    scores[0, 3] += 8
    assert transposable_mask(scores, "2:4")[0, 3]


@given(blocks())
@settings(max_examples=40)
def test_the_search_equals_a_slow_loop_and_keeps_its_bounds(scores: Tensor) -> None:
    mask = transposable_mask(scores, "2:4")
    for row in range(0, scores.shape[0], 4):
        for column in range(0, scores.shape[1], 4):
            block = scores[row : row + 4, column : column + 4]
            found = mask[row : row + 4, column : column + 4]
            assert tuple(found.int().flatten().tolist()) == slow_best(block)
    kept = (scores * mask).sum()
    assert kept >= scores.sum() / 2 - 1e-6
    assert kept <= (scores * nm_mask(scores, "2:4", 0)).sum()
    assert kept <= (scores * nm_mask(scores, "2:4", 1)).sum()
    greedy = _greedy(_blocks(scores), SEARCHED)
    assert (_blocks(scores) * greedy).sum() >= kept / 2


def _blocks(scores: Tensor) -> Tensor:
    rows, columns = scores.shape
    return scores.view(rows // 4, 4, columns // 4, 4).transpose(1, 2).reshape(-1, 16)


@pytest.mark.parametrize("pattern", ["1:4", "3:4", "2:8", "4:8", "1:2", "2:4"])
def test_no_row_and_no_column_holds_more_than_n(pattern: str) -> None:
    parsed = NMPattern.parse(pattern)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2 * parsed.m, 3 * parsed.m, generator=generator)
    mask = transposable_mask(scores, pattern)
    assert mask.view(-1, parsed.m).sum(1).le(parsed.n).all()
    assert mask.t().reshape(-1, parsed.m).sum(1).le(parsed.n).all()
    assert float((scores * mask).sum()) > 0.8 * parsed.density * float(scores.sum())


def test_greedy_takes_the_lower_index_of_equal_scores() -> None:
    mask = transposable_mask(torch.ones(4, 4), "1:4")
    assert torch.equal(mask, torch.eye(4, dtype=torch.bool))


def test_a_transposed_weight_has_the_transposed_mask() -> None:
    scores = torch.rand(8, 12, generator=torch.Generator().manual_seed(0))
    for pattern in ("2:4", "1:4"):
        mask = transposable_mask(scores, pattern, axis=1)
        flipped = transposable_mask(scores.t(), pattern, axis=0)
        assert torch.equal(flipped.t(), mask)


def test_convolutions_have_a_mask_for_each_tap() -> None:
    scores = torch.rand(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = transposable_mask(scores, "2:4")
    for row in range(3):
        for column in range(3):
            tap = transposable_mask(scores[:, :, row, column], "2:4")
            assert torch.equal(mask[:, :, row, column], tap)


def test_gaussian_weights_keep_what_the_literature_says() -> None:
    scores = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).abs()
    kept = scores[transposable_mask(scores, "2:4")].sum() / scores.sum()
    rows = scores[nm_mask(scores, "2:4", 1)].sum() / scores.sum()
    greedy = _blocks(scores)[_greedy(_blocks(scores), SEARCHED)].sum() / scores.sum()
    assert float(kept) == pytest.approx(0.704, abs=3e-3)
    assert float(rows) == pytest.approx(0.746, abs=3e-3)
    assert float(greedy) == pytest.approx(0.693, abs=3e-3)


def test_n_equal_to_m_keeps_everything() -> None:
    assert transposable_mask(torch.zeros(4, 4), "4:4").all()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4,)])
def test_a_shape_without_whole_blocks_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="blocks of 4x4"):
        transposable_mask(torch.zeros(shape), "2:4")


def test_nan_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="NaN"):
        transposable_mask(torch.full((4, 4), torch.nan), "2:4")
