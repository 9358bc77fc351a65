"""Held-out samples that are trained on as well.

Texts are compared as the tokens that the model sees, images by their files' bytes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from step_cli.data.batch import Dataset, Split, Subset
from step_cli.data.images import ImageSplit
from step_cli.data.parallel import PairSplit
from step_cli.data.table import TokenSplit
from step_cli.data.tokens import TokenRows

MOST = 1_000_000  # texts that are compared, a few seconds
MOST_FILES = 20_000  # images whose sizes are asked for
FIRST = 1 << 16  # bytes of a file that are compared


def seen_in_training(data: Dataset) -> int:
    """How many held-out samples are trained on; 0 also where they are not compared."""
    (train, own), (held_out, other) = _numbered(data.train), _numbered(data.held_out)
    if isinstance(train, ImageSplit) and isinstance(held_out, ImageSplit):
        if len(own) + len(other) > MOST_FILES:
            return 0
        return _shared_files(
            [train.paths[i] for i in own], [held_out.paths[i] for i in other]
        )
    rows, others = _rows(train), _rows(held_out)
    if not rows or not others or len(own) + len(other) > MOST:
        return 0
    known = set(_digests(rows, own))
    return sum(digest in known for digest in _digests(others, other))


def _numbered(split: Split) -> tuple[Split, list[int]]:
    """The whole split, and which of its samples are meant."""
    if isinstance(split, Subset):
        return split.split, split.index.tolist()
    return split, list(range(len(split)))


def _rows(split: Split) -> tuple[TokenRows, ...]:
    if isinstance(split, TokenSplit):
        return (split.tokens,)
    return (split.source, split.target) if isinstance(split, PairSplit) else ()


def _digests(rows: tuple[TokenRows, ...], numbers: Iterable[int]) -> Iterator[bytes]:
    for number in numbers:
        digest = hashlib.blake2b(digest_size=8)
        for part in rows:
            tokens = part.bytes_of(number)
            digest.update(len(tokens).to_bytes(8, "little") + tokens)
        yield digest.digest()


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
