"""How the data at a path is to be read, told by the names of its files.

Nothing is opened and torch is not imported, so mistakes are told at once.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from step_cli.config.data import KEYS_OF, DataSection, Kind
from step_cli.errors import InputError, UsageError
from step_cli.formats.files.mapped_file import is_directory, reason_of

TABLES = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
TEXTS = (".txt", ".tokens", ".raw", ".bin")
HELD_OUT = frozenset({"valid", "validation", "val", "dev"})
EXPECTED = (
    "data_batch_*.bin (cifar10), train.bin and test.bin (cifar100), folders "
    "train/CLASS and val/CLASS (images), train.tsv, .csv, .jsonl or .parquet (table), "
    ".txt, .tokens or .bin files (text), train.de and train.en (parallel)"
)


def kind_of(section: DataSection) -> Kind:
    """The kind of the data at the path of ``section``.

    Raises:
        UsageError: A key was given that this kind does not heed.
        InputError: There is nothing, or nothing that tells its kind.
    """
    path = Path(section.source)
    directory = is_directory(path)
    if section.kind != "auto":
        return section.kind
    with told_as_unreadable(path):
        kind = _of_directory(path, section) if directory else _of_file(path, section)
    if kind is None:
        raise InputError(
            f"cannot tell how to read it; give data.kind, or what is known: {EXPECTED}",
            file=path,
        )
    try:
        section.refuse_others(KEYS_OF[kind], f"kind {kind!r}, as which {path} is read")
    except ValueError as error:
        raise UsageError(f"data.{error}") from None
    return kind


@contextmanager
def told_as_unreadable(path: Path) -> Iterator[None]:
    """Tell what the system refuses below ``path`` in one line."""
    try:
        yield
    except OSError as error:
        raise InputError(reason_of(error), file=error.filename or path) from None


def role_of(path: Path) -> str | None:
    """What a file is for: ``train``, ``held-out`` or ``test`` if its name says so."""
    words = set(re.split(r"[^a-z]+", path.name.lower()))
    if "train" in words:
        return "train"
    if words & HELD_OUT:
        return "held-out"
    return "test" if "test" in words else None


def files_in(directory: Path) -> list[Path]:
    """The visible files of a directory, in the order of their names."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and not path.name.startswith(".")
    )


def _of_file(path: Path, section: DataSection) -> Kind | None:
    if path.suffix in TABLES:
        return "parallel" if section.languages else "table"
    return "text" if path.suffix in TEXTS else None


def _of_directory(path: Path, section: DataSection) -> Kind | None:
    files = files_in(path)
    names = {file.name for file in files}
    if any(re.fullmatch(r"(data_batch_\d|test_batch)\.bin", name) for name in names):
        return "cifar10"
    if {"train.bin", "test.bin"} <= names:
        return "cifar100"
    train = path / "train"
    if train.is_dir() and any(entry.is_dir() for entry in train.iterdir()):
        return "images"
    if section.languages:
        return "parallel"
    tables = [*files, *(files_in(path / "data") if (path / "data").is_dir() else [])]
    if any(role_of(file) == "train" and file.suffix in TABLES for file in tables):
        return "table"
    if any(file.suffix in TEXTS for file in files):
        return "text"
    return "parallel" if len([n for n in names if n.startswith("train.")]) > 1 else None
