"""The N:M mask of `mask` where the groups lie side by side in memory.

A line of scores compared with itself, shifted by d, compares every weight with the one
d places behind it. A comparison is a byte, so those of a group of M are one word, and
how often each weight is beaten is counted in all bytes of the word at once.
"""

from typing import Any

import numpy as np

from step_cli.nm.dtypes import Codes
from step_cli.nm.groups import Mask, Scratch

WORDS: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}  # by M


def keep_side_by_side(scores: Codes, n: int, m: int, scratch: Scratch) -> Mask:
    """Mark the ``n`` highest of each group; of equal ones the first.

    Args:
        scores: ``[groups * M]``, unsigned.
        n: How many to keep.
        m: One of `WORDS`.
        scratch: Holds the result.
    """
    word, count = WORDS[m], len(scores)
    wins: Mask = scratch.take("wins", np.bool_, (count,))
    beaten = scratch.take("beaten", word, (count // m,))
    part = scratch.take("part", word, (count // m,))
    # Byte i starts at M - 1 - i: the rivals behind it, until it is seen to beat them.
    beaten[...] = sum((m - 1 - i) << 8 * i for i in range(m))
    for distance in range(1, m):
        np.greater_equal(
            scores[:-distance], scores[distance:], out=wins[: count - distance]
        )
        own = sum(1 << 8 * i for i in range(m - distance))  # not the next group's
        words = wins.view(word)
        np.bitwise_and(words, word(own), out=words)
        # One of each two is beaten: the one behind, or else the one in front.
        np.multiply(words, word((1 << 8 * distance) - 1), out=part)
        np.add(beaten, part, out=beaten)
    keep: Mask = scratch.take("keep", np.bool_, (count,))
    np.less(beaten.view(np.uint8), np.uint8(n), out=keep)
    return keep
