"""Held-out samples that are trained on as well.

Texts are compared as the tokens that the model sees, images by their files' bytes.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from step_cli.data.batch import Dataset, Split, Subset
from step_cli.data.images import ImageSplit
from step_cli.data.parallel import PairSplit
from step_cli.data.table import TokenSplit
from step_cli.data.text import TextSplit

MOST = 500_000  # texts that are compared, a few seconds
MOST_FILES = 20_000  # images whose sizes are asked for
FIRST = 1 << 16  # bytes of a file that are compared


class Alike(NamedTuple):
    """How many held-out samples are trained on, and whether all of those are one."""

    shared: int
    constant: bool


def alike_in(data: Dataset) -> Alike:
    """Compare samples; where there are too many, nothing is found."""
    (train, own), (held_out, other) = _numbered(data.train), _numbered(data.held_out)
    together = len(own) + len(other)
    if isinstance(train, ImageSplit) and isinstance(held_out, ImageSplit):
        if together > MOST_FILES:
            return Alike(0, constant=False)
        learned, measured = ([x.paths[i] for i in numbers] for x, numbers in
                             ((train, own), (held_out, other)))  # fmt: skip
        return Alike(_shared_files(learned, measured), constant=False)
    known, others = (_samples(x) for x in (train, held_out))
    if known is None or others is None or together > MOST:
        return Alike(0, constant=False)
    learned_digests = {_digest(known(number)) for number in own}
    shared = sum(_digest(others(number)) in learned_digests for number in other)
    return Alike(shared, len(own) > 1 and len(learned_digests) == 1)


def _numbered(split: Split) -> tuple[Split, list[int]]:
    """The whole split, and which of its samples are meant."""
    if isinstance(split, Subset):
        return split.split, split.index.tolist()
    return split, list(range(len(split)))


def _samples(split: Split) -> Callable[[int], Sequence[bytes]] | None:
    """Gives what is read of the sample of a number; None: not compared."""
    if isinstance(split, TokenSplit):
        return lambda number: [split.tokens.bytes_of(number)]
    if isinstance(split, PairSplit):
        return lambda number: [
            split.source.bytes_of(number),
            split.target.bytes_of(number),
        ]
    if isinstance(split, TextSplit):
        return lambda number: [split.tokens_of(number).tobytes()]
    return None


def _digest(parts: Sequence[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _shared_files(train: list[Path], held_out: list[Path]) -> int:
    by_size: dict[int, list[Path]] = {}
    for path in train:
        by_size.setdefault(path.stat().st_size, []).append(path)
    known: dict[int, set[bytes]] = {}
    shared = 0
    for path in held_out:
        size = path.stat().st_size
        if size in by_size:
            if size not in known:
                known[size] = {_digest_of(other) for other in by_size[size]}
            shared += _digest_of(path) in known[size]
    return shared


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.blake2b(file.read(FIRST), digest_size=16).digest()
