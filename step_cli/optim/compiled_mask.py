"""Masks and projections, compiled; bit-identical to `mask.py` for finite weights.

Magnitudes compare as their bits do, and the sign bit of a difference tells which is the
larger: no comparison whose result would have to be widened or narrowed again.

The forms were chosen by measuring on a CPU. Where many weights lie between the members
of a group, each member is ranked against the others and written by itself. Where few or
none do, a line of weights is compared with itself, shifted, in one pass over memory.
"""

import functools
import math

import torch
from torch import Tensor

from step_cli.nm.pattern import NMPattern
from step_cli.optim.compiled import compiled
from step_cli.optim.mask import BITS, magnitude_mask, to_groups

PAIRS_UP_TO = 8  # M; the graph grows with its square, and takes 40 s to compile at 16
LINES_UP_TO = 16  # M; the graph of lines grows with it
LANES = 16  # weights of a vector register; a line is a multiple
APART = 64  # weights between the members of a group, from which these go by themselves


def compiled_keep_mask(weight: Tensor, pattern: NMPattern, axis: int) -> Tensor:
    """``mask.magnitude_mask`` of fp32 or fp64 weights."""
    groups, n = to_groups(weight, pattern.m, axis), _count(pattern, weight)
    together = groups.shape[2] == 1
    if pattern.n == 1 and pattern.m >= LANES and pattern.m % 4 == 0 and together:
        kept: Tensor = compiled(_highest_words)(groups)
    elif _in_lines(groups):
        kept = torch.empty(groups.shape, dtype=torch.int8, device=weight.device)
        _mask_lines(kept.view(-1), groups, n)
    elif pattern.m <= PAIRS_UP_TO:
        kept = torch.empty(groups.shape, dtype=torch.int8, device=weight.device)
        compiled(_mask_pairs)(kept.unbind(1), groups, n)
    elif not together and weight.device.type == "cpu":
        return magnitude_mask(weight, pattern, axis)
    else:
        kept = compiled(_loop_bytes)(groups, n)
    return kept.view(torch.bool).view(weight.shape)


def compiled_project(p: Tensor, dense: Tensor, pattern: NMPattern, axis: int) -> None:
    """Write ``dense`` into ``p`` where it is among the N largest of its group, else 0.

    Args:
        p: Parameter of any floating dtype, to which kept weights are rounded;
            contiguous.
        dense: fp32 or fp64, finite, contiguous.
        pattern: The N:M pattern.
        axis: The group axis.
    """
    groups, n = to_groups(dense, pattern.m, axis), _count(pattern, dense)
    if _in_lines(groups):
        _project_lines(p.view(-1), groups, n)
    elif pattern.m <= PAIRS_UP_TO:
        members = to_groups(p, pattern.m, axis).unbind(1)
        compiled(_project_pairs)(members, groups, n)
    else:
        codes = compiled_keep_mask(dense, pattern, axis).view(torch.int8)
        out = _as_bits(p.view(-1), dense.dtype)
        compiled(_apply)(out, dense.view(-1), codes.view(-1))


def _count(pattern: NMPattern, weight: Tensor) -> Tensor:
    """N as a tensor, so that every N shares one compiled function."""
    bits = BITS[weight.element_size()]
    return torch.tensor(pattern.n, dtype=bits, device=weight.device)


def _ranks(groups: Tensor) -> list[Tensor]:
    """How many of its group beat each member of ``[X, M, B]``, M times ``[X, B]``."""
    dtype = BITS[groups.element_size()]
    info = torch.iinfo(dtype)
    members = (groups.view(dtype) & info.max).unbind(1)
    # As if every earlier one beat it, until shown to be lower.
    ranks = [torch.full_like(own, i) for i, own in enumerate(members)]
    for i, own in enumerate(members):
        for j in range(i + 1, len(members)):
            lower = (own - members[j]) >> (info.bits - 1)  # -1, or 0 if not lower
            ranks[i] = ranks[i] - lower
            ranks[j] = ranks[j] + lower
    return ranks


def _mask_pairs(out: tuple[Tensor, ...], groups: Tensor, n: Tensor) -> None:
    # Each member is written by itself: into one tensor, all would be computed M times.
    for member, rank in zip(out, _ranks(groups), strict=True):
        member.copy_(_below(rank, n) & 1)


def _project_pairs(out: tuple[Tensor, ...], groups: Tensor, n: Tensor) -> None:
    for i, rank in enumerate(_ranks(groups)):
        out[i].copy_(torch.where(rank < n, groups[:, i], 0.0))


def _in_lines(groups: Tensor) -> bool:
    """Whether to compare the weights of these groups in lines."""
    _, m, behind = groups.shape
    if m > LINES_UP_TO or behind >= APART or groups.device.type != "cpu":
        return False
    return groups.numel() >= 4 * _line_length(m, behind)


def _line_length(m: int, behind: int) -> int:
    return math.lcm(m * behind, LANES)


def _mask_lines(out: Tensor, groups: Tensor, n: Tensor) -> None:
    """Write 1 into ``out``, flat, for the ``n`` largest of each group, else 0."""
    line = _line_length(*groups.shape[1:])
    same = _same_group(*groups.shape[1:], n.dtype, groups.device)
    first, rest = _ends(groups, n, line)
    last = out.numel() - rest.numel()
    out[:line], out[last:] = first, rest
    middle, weight = out[line:last].view(-1, line), groups.view(-1).view(n.dtype)
    compiled(_line_masks)(middle, weight, same, n, groups.shape[2])


def _project_lines(out: Tensor, groups: Tensor, n: Tensor) -> None:
    """:func:`compiled_project` into ``out``, flat, of groups whose members are near."""
    line = _line_length(*groups.shape[1:])
    same = _same_group(*groups.shape[1:], n.dtype, groups.device)
    weight = groups.view(-1)
    first, rest = _ends(groups, n, line)
    last = out.numel() - rest.numel()
    out[:line] = torch.where(first, weight[:line], 0)
    out[last:] = torch.where(rest, weight[last:], 0)
    middle = _as_bits(out[line:last], weight.dtype).view(-1, line)
    compiled(_line_projections)(middle, weight.view(n.dtype), same, n, groups.shape[2])


def _ends(groups: Tensor, n: Tensor, line: int) -> tuple[Tensor, Tensor]:
    """What is kept in the first line, and in the last with what lies behind it.

    All other weights have the M - 1 others of their group on both sides. In the fewest
    operations, as these are few weights.
    """
    weight, (_, m, behind) = groups.view(-1), groups.shape
    last = weight.numel() // line * line - line
    ends = torch.cat([weight[:line], weight[last:]]).view(-1, m, behind)
    members = ends.abs().transpose(1, 2)
    own, other = members.unsqueeze(3), members.unsqueeze(2)
    equal = (other == own).tril(-1)  # and from a lower index
    kept = ((other > own) | equal).sum(3) < n
    first, rest = kept.transpose(1, 2).reshape(-1).tensor_split([line])
    return first, rest


@functools.cache
def _same_group(
    m: int, behind: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """All bits set where the weight d members behind, or before, is of the same group.

    Returns:
        ``[2, M, line]``, by side, d and place in a line.
    """
    place = torch.arange(_line_length(m, behind)) // behind % m
    d = torch.arange(m).view(-1, 1)
    same = torch.stack([place + d < m, place - d >= 0])
    return -same.to(dtype).to(device)


def _line_ranks(
    out: Tensor, weight: Tensor, same: Tensor, behind: int
) -> tuple[Tensor, Tensor]:
    """The weights between the first and the last line, and how many beat each."""
    info, (_, m, line) = torch.iinfo(weight.dtype), same.shape

    def shifted(d: int) -> Tensor:  # the shape of `out`, so that all is one loop
        return weight.narrow(0, line + d * behind, out.numel()).view(out.shape)

    raw = shifted(0)
    own = raw & info.max
    beaten_by = torch.zeros((), dtype=weight.dtype, device=weight.device)
    for d in range(1, m):
        after, before = shifted(d) & info.max, shifted(-d) & info.max
        higher = (own - after) >> (info.bits - 1)  # all bits, which is -1, or none
        not_lower = ~((before - own) >> (info.bits - 1))
        beaten_by = beaten_by - (higher & same[0, d]) - (not_lower & same[1, d])
    return raw, beaten_by


def _line_masks(
    out: Tensor, weight: Tensor, same: Tensor, n: Tensor, behind: int
) -> None:
    _, beaten_by = _line_ranks(out, weight, same, behind)
    out.copy_(_below(beaten_by, n) & 1)


def _line_projections(
    out: Tensor, weight: Tensor, same: Tensor, n: Tensor, behind: int
) -> None:
    raw, beaten_by = _line_ranks(out, weight, same, behind)
    _write(out, raw & _below(beaten_by, n))


def _below(rank: Tensor, n: Tensor) -> Tensor:
    """All bits set where the rank is below ``n``, else none."""
    return (rank - n) >> (torch.iinfo(rank.dtype).bits - 1)


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
    """The mask, 1 or 0, for large M, whose graph of pairs would be large too."""
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
    bits = BITS[weight.element_size()]
    _write(out, weight.view(bits) & -codes.to(bits))


def _as_bits(out: Tensor, dtype: torch.dtype) -> Tensor:
    """``out`` as integers, where weights of ``dtype`` are written without rounding."""
    if out.dtype != dtype:
        return out
    return out.view(BITS[dtype.itemsize])


def _write(out: Tensor, bits: Tensor) -> None:
    """Write weights given as bits, rounded if ``out`` is of another dtype."""
    if out.dtype.is_floating_point:
        bits = bits.view(torch.float32 if bits.dtype == torch.int32 else torch.float64)
    out.copy_(bits)
