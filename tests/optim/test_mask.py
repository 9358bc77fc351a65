"""Masks against masks written by hand and a slow loop over groups."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.optim import mask as module
from step_cli.optim.mask import count_violations, magnitude_mask, masked, nm_mask

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def slow_mask(scores: torch.Tensor, n: int, m: int, axis: int) -> torch.Tensor:
    """Walk each group in plain Python; ties keep the lower index."""
    keep = torch.zeros(scores.shape, dtype=torch.bool)
    axis %= scores.dim()
    others = [range(s) if i != axis else [0] for i, s in enumerate(scores.shape)]
    for start in range(0, scores.shape[axis], m):
        for index in itertools.product(*others):
            members = []
            for k in range(m):
                place = list(index)
                place[axis] = start + k
                members.append(tuple(place))
            ranked = sorted(members, key=lambda p: (-float(scores[p]), p[axis]))
            for place in ranked[:n]:
                keep[place] = True
    return keep


@st.composite
def grouped_scores(draw: st.DrawFn) -> tuple[torch.Tensor, int, int, int]:
    m = draw(st.integers(1, 9))
    n = draw(st.integers(1, m))
    rank = draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank - 1))
    shape = [draw(st.integers(1, 4)) for _ in range(rank)]
    shape[axis] = m * draw(st.integers(1, 3))
    # Few distinct values, so that ties are common.
    levels = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randint(0, levels, shape, generator=generator)
    dtype = draw(st.sampled_from(DTYPES))
    return scores.to(dtype), n, m, axis


@given(grouped_scores())
@settings(max_examples=150)
def test_mask_equals_a_slow_loop_over_groups(
    case: tuple[torch.Tensor, int, int, int],
) -> None:
    scores, n, m, axis = case
    mask = nm_mask(scores, NMPattern(n, m), axis)
    assert torch.equal(mask, slow_mask(scores, n, m, axis))


@st.composite
def wide_weights(draw: st.DrawFn) -> tuple[torch.Tensor, int, int, int]:
    """Any M up to 40, rows short and long, axes from the front and the back."""
    m = draw(st.integers(1, 40))
    n = draw(st.integers(1, m))
    rows, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    behind = draw(
        st.sampled_from([1, 3, module.LONG - 1, module.LONG, module.LONG + 6])
    )
    shape, axis = (rows, m * groups, behind), 1
    if behind == 1:
        shape, axis = (rows, 2, m * groups), draw(st.sampled_from([2, -1]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    level = draw(st.integers(1, 9))  # few distinct values, so that ties are common
    weight = torch.randint(-level, level + 1, shape, generator=generator)
    return weight.to(draw(st.sampled_from(DTYPES))), n, m, axis


def sorted_mask(scores: torch.Tensor, n: int, m: int, axis: int) -> torch.Tensor:
    """By a stable sort of each group; ties keep the lower index."""
    lines = scores.movedim(axis, -1)
    groups = lines.reshape(-1, m)
    kept = groups.double().argsort(dim=1, descending=True, stable=True)[:, :n]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, kept, True)
    return mask.view(lines.shape).movedim(-1, axis)


@given(wide_weights())
@settings(max_examples=150)
def test_masks_of_wide_groups_and_long_rows_equal_a_stable_sort(
    case: tuple[torch.Tensor, int, int, int],
) -> None:
    weight, n, m, axis = case
    expected = sorted_mask(weight.abs(), n, m, axis)
    assert torch.equal(nm_mask(weight.abs(), NMPattern(n, m), axis), expected)
    assert torch.equal(magnitude_mask(weight, NMPattern(n, m), axis), expected)


@given(wide_weights(), st.integers(1, 400))
@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_masks_made_in_several_chunks_equal_a_stable_sort(
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[torch.Tensor, int, int, int],
    chunk: int,
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    weight, n, m, axis = case
    expected = sorted_mask(weight.abs(), n, m, axis)
    assert torch.equal(magnitude_mask(weight, NMPattern(n, m), axis), expected)


@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 999), st.booleans())
@settings(max_examples=60)
def test_convolutions_stored_channels_last_have_the_mask_of_the_plain_ones(
    m: int, kernel: int, seed: int, half: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 2 * m, kernel, kernel)
    weight = torch.randint(-3, 4, shape, generator=generator).float()
    weight = weight.bfloat16() if half else weight
    pattern = NMPattern(1 + seed % m, m)
    expected = sorted_mask(weight.abs(), pattern.n, m, 1)
    stored = weight.to(memory_format=torch.channels_last)
    assert torch.equal(magnitude_mask(stored, pattern, 1), expected)
    assert torch.equal(masked(stored, expected), torch.where(expected, weight, 0))


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((1, 1, 1, 1), (1, 1, 0, 0)),
        ((1, 2, 2, 2), (0, 1, 1, 0)),
        ((0.8, 0.5, 0.3, 0.1), (1, 1, 0, 0)),
        ((0, 0, 0, 0), (1, 1, 0, 0)),
        ((0.1, 0.4, 0.3, 0.9), (0, 1, 0, 1)),
    ],
)
def test_ties_keep_the_lower_index(
    scores: tuple[float, ...], kept: tuple[int, ...]
) -> None:
    mask = nm_mask(torch.tensor([scores]), "2:4", axis=1)
    assert mask.tolist() == [[bool(k) for k in kept]]


def test_groups_run_along_the_axis_and_no_other() -> None:
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)).abs()
    along_rows = nm_mask(weight, "2:4", axis=1)
    assert torch.equal(nm_mask(weight.T, "2:4", axis=0), along_rows.T)
    assert not torch.equal(nm_mask(weight, "2:4", axis=0), along_rows)
    assert along_rows.view(8, 3, 4).sum(-1).eq(2).all()


def test_convolution_groups_are_of_input_channels() -> None:
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0)).abs()
    mask = nm_mask(weight, "2:4", axis=1)
    by_channel = nm_mask(weight.permute(0, 2, 3, 1), "2:4", axis=3)
    assert torch.equal(mask.permute(0, 2, 3, 1), by_channel)


def test_a_1x1_convolution_has_the_mask_of_the_flat_weight() -> None:
    weight = torch.randn(6, 8, 1, 1, generator=torch.Generator().manual_seed(0)).abs()
    flat = nm_mask(weight.view(6, 8), "2:4", axis=1)
    assert torch.equal(nm_mask(weight, "2:4", axis=1).view(6, 8), flat)


def test_negative_zero_is_a_zero() -> None:
    mask = nm_mask(torch.tensor([[0.0, -0.0, -0.0, 0.0]]), "2:4", axis=1)
    assert mask.tolist() == [[True, True, False, False]]


def test_a_shard_without_rows_has_an_empty_mask() -> None:
    assert nm_mask(torch.zeros(0, 8), "2:4", axis=1).shape == (0, 8)
    assert nm_mask(torch.zeros(8, 0), "2:4", axis=0).shape == (8, 0)


@pytest.mark.parametrize("pattern", ["2:4", "1:16"])
def test_chunks_do_not_show(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).abs()
    whole = [nm_mask(weight, pattern, axis) for axis in (0, 1)]
    monkeypatch.setattr(module, "CHUNK", 40)
    for axis, expected in enumerate(whole):
        assert torch.equal(nm_mask(weight, pattern, axis), expected)


def test_scaling_and_sign_do_not_change_the_mask() -> None:
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(weight.abs(), "2:4", axis=1)
    assert torch.equal(nm_mask((-weight).abs(), "2:4", axis=1), mask)
    assert torch.equal(nm_mask((weight * 7).abs(), "2:4", axis=1), mask)


@pytest.mark.parametrize("pattern", ["1:16", "1:20", "3:16", "1:32", "5:64", "5:130"])
@pytest.mark.parametrize("behind", [1, 9, module.LONG])
def test_wide_groups_equal_the_slow_loop(pattern: str, behind: int) -> None:
    parsed = NMPattern.parse(pattern)
    generator = torch.Generator().manual_seed(parsed.m)
    scores = torch.randint(-3, 3, (3, 2 * parsed.m, behind), generator=generator)
    found = nm_mask(scores.float(), parsed, 1)
    assert torch.equal(found, slow_mask(scores.float(), parsed.n, parsed.m, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_mask_by_magnitude_is_that_of_the_absolute_weights(
    dtype: torch.dtype, axis: int
) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    for pattern in (NMPattern(2, 4), NMPattern(1, 16), NMPattern(4, 4)):
        found = magnitude_mask(weight, pattern, axis)
        assert torch.equal(found, nm_mask(weight.abs(), pattern, axis))


def test_a_mask_of_what_is_no_block_of_memory() -> None:
    weight = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    for view in (weight.T, weight[:, ::3], weight.T[::2]):
        assert torch.equal(
            nm_mask(view.abs(), "2:4", 0), slow_mask(view.abs(), 2, 4, 0)
        )


def test_large_groups_are_ranked_right() -> None:
    scores = torch.arange(300.0).view(1, 300)
    mask = nm_mask(scores, "7:300", axis=1)
    assert mask.nonzero()[:, 1].tolist() == list(range(293, 300))


def test_n_equal_to_m_keeps_everything() -> None:
    assert nm_mask(torch.zeros(2, 8), "4:4", axis=1).all()


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="6 elements, not a multiple of M=4"):
        nm_mask(torch.zeros(2, 6), "2:4", axis=1)


def test_an_axis_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="axis 2 does not exist"):
        nm_mask(torch.zeros(2, 4), "2:4", axis=2)


def test_nan_is_refused() -> None:
    scores = torch.zeros(2, 4)
    scores[1, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        nm_mask(scores, "2:4", axis=1)


def test_violations_are_groups_with_too_many_nonzeros() -> None:
    weight = torch.tensor([[1.0, 0, 2, 0, 3, 4, 5, 0], [0, 0, 0, 0, 1, 1, 1, 1]])
    assert count_violations(weight, NMPattern(2, 4), 1) == 2
    weight[0, 4] = weight[1, 5] = weight[1, 6] = -0.0
    assert count_violations(weight, NMPattern(2, 4), 1) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_is_the_weight_where_kept_and_plus_zero_elsewhere(
    dtype: torch.dtype,
) -> None:
    weight = torch.tensor([-1.5, -0.0, torch.inf, torch.nan, -torch.inf, 2]).to(dtype)
    keep = torch.tensor([True, True, True, False, False, False])
    found = masked(weight, keep)
    assert torch.equal(found, torch.where(keep, weight, 0))
    assert torch.signbit(found).tolist() == [True, True, *[False] * 4]


def test_scores_of_a_sparse_layout_are_refused() -> None:
    with pytest.raises(UsageError, match="to_dense"):
        nm_mask(torch.ones(4, 8).to_sparse(), "2:4", axis=1)
