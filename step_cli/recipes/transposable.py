"""Masks that are N:M along two axes at once, so that w and w^T both are N:M.

A weight is cut into blocks of M x M: M consecutive inputs by M consecutive outputs.
For 2:4 the best of all 90 masks of a block is found; other patterns are filled
greedily.

Sources: Hubara et al. 2021 (arXiv 2102.08124); Hu et al., ICML 2024 (arXiv 2404.01847),
for the search over all 90.
"""

from functools import lru_cache
from itertools import combinations, product

import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMPattern

SEARCHED = NMPattern(2, 4)
CHUNK = 512  # blocks searched at a time, so that all their sums stay in the cache


def transposable_mask(
    scores: Tensor, pattern: NMPattern | str, axis: int = 1
) -> Tensor:
    """Mark high scores so that N of M are kept along both axes of the matrix.

    2:4 keeps the largest total of each block: scores are summed in fp64 in row-major
    order, and of equal sums the mask whose bits come first in descending binary order
    wins. Other patterns take scores in descending order, of equal ones the lower index,
    while row and column have room: at least half the optimum, and a block may end with
    fewer than N * M kept.

    Args:
        scores: Importance of each weight, ``[out, in, ...]`` or ``[in, out]``.
        pattern: The N:M pattern, or its text such as ``"2:4"``.
        axis: The input axis, 0 or 1; the output axis is the other one.

    Returns:
        Boolean mask, shape of ``scores``, True where the weight is kept.

    Raises:
        UsageError: One of the two sizes is not a multiple of M.
        NonFiniteError: A score is NaN, which cannot be ordered.
    """
    pattern = NMPattern.of(pattern)
    check_blocks(tuple(scores.shape), pattern)
    if bool(torch.isnan(scores).any()):
        raise NonFiniteError("a score is NaN, which cannot be ordered")
    if pattern.dense:
        return torch.ones_like(scores, dtype=torch.bool)
    # Rows are outputs, so that one matrix and its transpose agree.
    matrix = scores.transpose(0, 1) if axis == 0 else scores
    blocks = _to_blocks(matrix, pattern.m)
    fill = best_of_all if pattern == SEARCHED else _greedy
    keep = torch.cat([fill(part, pattern) for part in torch.split(blocks, CHUNK)])
    keep = _from_blocks(keep, matrix)
    return keep.transpose(0, 1).contiguous() if axis == 0 else keep


def check_blocks(shape: tuple[int, ...], pattern: NMPattern) -> None:
    """Refuse a shape that does not divide into M x M blocks of its first two axes.

    Raises:
        UsageError: It does not.
    """
    if len(shape) < 2 or shape[0] % pattern.m or shape[1] % pattern.m:
        raise UsageError(
            f"shape {shape} does not divide into blocks of {pattern.m}x{pattern.m}, "
            "which a transposable mask needs; exclude this layer or pad it"
        )


@lru_cache
def all_patterns() -> tuple[tuple[int, ...], ...]:
    """The 90 masks of a 4x4 block, each 16 bits in row-major order, descending."""
    rows = [
        tuple(int(i in kept) for i in range(4)) for kept in combinations(range(4), 2)
    ]
    found = [
        sum(block, ())
        for block in product(rows, repeat=4)
        if all(sum(column) == 2 for column in zip(*block, strict=True))
    ]
    return tuple(sorted(found, reverse=True))


def best_of_all(blocks: Tensor, pattern: NMPattern = SEARCHED) -> Tensor:
    """The best of all 90 masks for each block; ``blocks`` is ``[blocks, 16]``."""
    masks = torch.tensor(all_patterns(), dtype=torch.bool, device=blocks.device)
    kept = masks.nonzero()[:, 1].view(len(masks), 8)  # positions, in row-major order
    columns = blocks.double().t().contiguous()  # [16, blocks]
    total = columns[kept[:, 0]]  # [90, blocks]
    for position in range(1, 8):
        total += columns[kept[:, position]]
    return masks[total.argmax(0)]  # the first of equal ones


def _greedy(blocks: Tensor, pattern: NMPattern) -> Tensor:
    """Fill each block in descending order; ``blocks`` is ``[blocks, M * M]``."""
    m = pattern.m
    order = blocks.argsort(dim=1, descending=True, stable=True)
    every = torch.arange(len(blocks), device=blocks.device)
    keep = torch.zeros_like(blocks, dtype=torch.bool)
    in_row, in_column = (
        torch.zeros(len(blocks), m, dtype=torch.int32, device=blocks.device)
        for _ in range(2)
    )
    for place in order.unbind(1):
        row, column = place // m, place % m
        room = (in_row[every, row] < pattern.n) & (in_column[every, column] < pattern.n)
        keep[every, place] = room
        in_row[every, row] += room
        in_column[every, column] += room
    return keep


def _to_blocks(matrix: Tensor, m: int) -> Tensor:
    """From ``[out, in, ...]`` to ``[blocks, M * M]``, outputs first."""
    rows, columns = matrix.shape[:2]
    parts = matrix.reshape(rows // m, m, columns // m, m, matrix.shape[2:].numel())
    return parts.permute(0, 2, 4, 1, 3).reshape(matrix.numel() // m**2, m * m)


def _from_blocks(blocks: Tensor, matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape[:2]
    m = int(blocks.shape[1] ** 0.5)
    parts = blocks.view(rows // m, columns // m, matrix.shape[2:].numel(), m, m)
    return parts.permute(0, 3, 1, 4, 2).reshape(matrix.shape)
