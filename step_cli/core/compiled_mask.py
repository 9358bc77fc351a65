"""Masks and projections, compiled; bit-identical to `mask.py` for finite weights.

The forms were chosen by measuring on a CPU. Where groups lie apart in memory, ranks are
counted in 32-bit integers and each member of the groups is written by itself; masks are
left to `mask.py` there, as storing single bytes is slow. Where groups lie together, a
line of weights is compared with itself, shifted, in one pass over memory.
"""

import functools

import torch
from torch import Tensor

from step_cli.core.compiled import compiled
from step_cli.core.mask import magnitude_mask, to_groups
from step_cli.core.pattern import NMPattern

PAIRS_UP_TO = 8  # M; the graph of pairs grows with its square, that of a loop with it
LANES = 16  # weights of one line, a vector register's of fp32


def compiled_keep_mask(weight: Tensor, pattern: NMPattern, axis: int) -> Tensor:
    """``mask.magnitude_mask`` of fp32 or fp64 weights."""
    groups, n = to_groups(weight, pattern.m, axis), _count(pattern, weight.device)
    if groups.shape[2] > 1 and weight.device.type == "cpu":
        return magnitude_mask(weight, pattern, axis)
    if pattern.m <= PAIRS_UP_TO:
        kept: Tensor = compiled(_pair_mask)(groups, n)
    elif pattern.n == 1 and pattern.m % 4 == 0 and groups.shape[2] == 1:
        kept = compiled(_highest_words)(groups).view(torch.bool)
    else:
        kept = compiled(_loop_bytes)(groups, n).view(torch.bool)
    return kept.view(weight.shape)


def compiled_project(p: Tensor, dense: Tensor, pattern: NMPattern, axis: int) -> None:
    """Write ``dense`` into ``p`` where it is among the N largest of its group, else 0.

    Args:
        p: Parameter of any floating dtype, to which kept weights are rounded;
            contiguous.
        dense: fp32 or fp64, finite, contiguous.
        pattern: The N:M pattern.
        axis: The group axis.
    """
    groups, n = to_groups(dense, pattern.m, axis), _count(pattern, dense.device)
    together = groups.shape[2] == 1 and dense.device.type == "cpu"
    if pattern.m <= PAIRS_UP_TO and not together:
        members = to_groups(p, pattern.m, axis).unbind(1)
        compiled(_project_pairs)(members, groups, n)
    elif together and LANES % pattern.m == 0 and dense.numel() >= 4 * LANES:
        _project_lanes(p.view(-1), dense.view(-1), pattern, n)
    else:
        codes = compiled_keep_mask(dense, pattern, axis).view(torch.int8)
        out = _as_bits(p.view(-1), dense.dtype)
        compiled(_apply)(out, dense.view(-1), codes.view(-1))


def _project_lanes(out: Tensor, weight: Tensor, pattern: NMPattern, n: Tensor) -> None:
    """:func:`compiled_project` of groups that lie together in memory.

    All but the first and the last lanes' weights have M - 1 others on both sides.
    """
    last = weight.numel() // LANES * LANES - LANES
    ends = torch.cat([weight[:LANES], weight[last:]]).view(-1, pattern.m)
    first, rest = _projected(ends, pattern).view(-1).tensor_split([LANES])
    out[:LANES], out[last:] = first, rest
    bits = torch.int32 if weight.dtype == torch.float32 else torch.int64
    middle = _as_bits(out[LANES:last], weight.dtype).view(-1, LANES)
    same = _same_group(pattern.m, bits, weight.device)
    compiled(_lanes)(middle, weight.view(bits), same, n)


def _count(pattern: NMPattern, device: torch.device) -> Tensor:
    """N as a tensor, so that every N shares one compiled function."""
    return torch.tensor(pattern.n, dtype=torch.int32, device=device)


def _ranks(groups: Tensor) -> list[Tensor]:
    """How many of its group beat each member of ``[X, M, B]``, M times ``[X, B]``."""
    members = groups.abs().unbind(1)
    ranks = []
    for i, own in enumerate(members):
        rank = torch.zeros((), dtype=torch.int32, device=groups.device)
        for j, other in enumerate(members):
            if i != j:
                beats = other >= own if j < i else other > own
                rank = rank + beats.to(torch.int32)
        ranks.append(rank)
    return ranks


def _projected(groups: Tensor, pattern: NMPattern) -> Tensor:
    """The projection of a few groups ``[X, M]``, in the fewest operations."""
    own, other = groups.abs().unsqueeze(2), groups.abs().unsqueeze(1)
    equal = (other == own).tril(-1)  # and from a lower index
    beaten_by = ((other > own) | equal).sum(2)
    return torch.where(beaten_by < pattern.n, groups, 0)


@functools.cache
def _same_group(m: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All bits set where the weight d behind, or before, is of the same group.

    Returns:
        ``[2, M, LANES]``, by side, d and place in a line of lanes.
    """
    place, d = torch.arange(LANES) % m, torch.arange(m).view(-1, 1)
    same = torch.stack([place + d < m, place - d >= 0])
    return -same.to(dtype).to(device)


def _lanes(out: Tensor, weight: Tensor, same: Tensor, n: Tensor) -> None:
    """Project the weights between the first and the last lanes; all as bits.

    Magnitudes compare as their bits do, and the sign bit of a difference tells which
    is the larger: no comparison whose result would have to be widened.
    """
    info, m = torch.iinfo(weight.dtype), same.shape[1]

    def shifted(d: int) -> Tensor:  # the shape of `out`, so that all is one loop
        return weight.narrow(0, LANES + d, out.numel()).view(out.shape)

    raw = shifted(0)
    own = raw & info.max
    beaten_by = torch.zeros((), dtype=weight.dtype, device=weight.device)
    for d in range(1, m):
        behind, before = shifted(d) & info.max, shifted(-d) & info.max
        higher = (own - behind) >> (info.bits - 1)  # all bits, which is -1, or none
        not_lower = ~((before - own) >> (info.bits - 1))
        beaten_by = beaten_by - (higher & same[0, d]) - (not_lower & same[1, d])
    _write(out, raw & ((beaten_by - n) >> (info.bits - 1)))


def _pair_mask(groups: Tensor, n: Tensor) -> Tensor:
    return torch.stack([rank < n for rank in _ranks(groups)], 1)


def _project_pairs(out: tuple[Tensor, ...], groups: Tensor, n: Tensor) -> None:
    # Each member is written by itself: into one tensor, all would be computed M times.
    for i, rank in enumerate(_ranks(groups)):
        out[i].copy_(torch.where(rank < n, groups[:, i], 0.0))


def _highest_words(groups: Tensor) -> Tensor:
    """The mask of 1:M groups ``[X, M, 1]``, its bytes four to a word."""
    members = groups.abs().squeeze(2).unbind(1)
    best = functools.reduce(torch.maximum, members)
    seen, hits = torch.zeros((), dtype=torch.int32, device=groups.device), []
    for own in members:
        hit = (own >= best).to(torch.int32) & (1 - seen)
        seen = seen | hit
        hits.append(hit)
    words = [
        hits[i] | hits[i + 1] << 8 | hits[i + 2] << 16 | hits[i + 3] << 24
        for i in range(0, len(hits), 4)
    ]
    return torch.stack(words, 1)


def _loop_bytes(groups: Tensor, n: Tensor) -> Tensor:
    """:func:`_pair_mask` for large M, whose graph of pairs would be large too."""
    groups = groups.abs()
    place = torch.arange(groups.shape[1], device=groups.device).view(1, -1, 1)
    rank = torch.zeros(groups.shape, dtype=torch.int32, device=groups.device)
    for j in range(groups.shape[1]):
        other = groups[:, j : j + 1]
        beats = torch.where(place > j, other >= groups, other > groups)
        rank = rank + beats.to(torch.int32)
    return (rank < n).to(torch.int8)


def _apply(out: Tensor, weight: Tensor, codes: Tensor) -> None:
    """``out`` = weight where the code is 1, else +0.0, bit by bit."""
    bits = torch.int32 if weight.dtype == torch.float32 else torch.int64
    _write(out, weight.view(bits) & -codes.to(bits))


def _as_bits(out: Tensor, dtype: torch.dtype) -> Tensor:
    """``out`` as integers, where weights of ``dtype`` are written without rounding."""
    if out.dtype != dtype:
        return out
    return out.view(torch.int32 if dtype == torch.float32 else torch.int64)


def _write(out: Tensor, bits: Tensor) -> None:
    """Write weights given as bits, rounded if ``out`` is of another dtype."""
    if out.dtype.is_floating_point:
        bits = bits.view(torch.float32 if bits.dtype == torch.int32 else torch.float64)
    out.copy_(bits)
