"""How the data at a path is read, and which file is for what, by the files' names.

Nothing is opened and torch is not imported, so mistakes are reported at once.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?$")  # train-00003-of-00007
# What systems and tools leave among the files of a user, besides names with a dot.
LITTER = frozenset(
    {
        "$recycle.bin", "@eadir", "__macosx", "__pycache__", "desktop.ini",
        "ehthumbs.db", "lost+found", "system volume information", "thumbs.db",
    }
)  # fmt: skip
NO_HELD_OUT = (
    "has no file named valid, validation, val or dev to measure metrics on; give "
    "data.held_out, a path or a share such as 0.1"
)


def kind_of(section: DataSection) -> Kind:
    """The kind of the data at the path of ``section``.

    Raises:
        UsageError: A key was given that does not apply to this kind.
        InputError: There is nothing, or nothing that shows its kind.
    """
    path = Path(section.source)
    directory = is_directory(path)
    if section.kind != "auto":
        return section.kind
    with os_error_as_input_error(path):
        kind = _of_directory(path, section) if directory else _of_file(path, section)
    if kind is None:
        raise InputError(
            f"its kind is not clear; give data.kind, or what is known: {EXPECTED}",
            file=path,
        )
    try:
        section.refuse_other_keys(
            KEYS_OF[kind], f"kind {kind!r}, as which {path} is read"
        )
    except ValueError as error:
        raise UsageError(f"data.{error}") from None
    return kind


@contextmanager
def os_error_as_input_error(path: Path) -> Iterator[None]:
    """Raise InputError where the system refuses something below ``path``."""
    try:
        yield
    except OSError as error:
        raise InputError(reason_of(error), file=error.filename or path) from None


def role_of(path: Path) -> str | None:
    """What a file is for: ``train``, ``held-out`` or ``test`` by its name."""
    words = set(re.split(r"[^a-z]+", path.name.lower()))
    if "train" in words:
        return "train"
    if words & HELD_OUT:
        return "held-out"
    return "test" if "test" in words else None


def entries_in(directory: Path) -> list[tuple[Path, bool]]:
    """What may be data in a directory, in the order of names; whether it is a folder.

    Not what begins with a dot or is a tool's own. The system tells folders from files
    as it lists them: there may be a million.
    """
    with os.scandir(directory) as found:
        names = sorted((entry.name, entry.is_dir()) for entry in found)
    return [(directory / name, folder) for name, folder in names if _is_data(name)]


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in LITTER


def files_in(directory: Path) -> list[Path]:
    """The files of a directory that may be data, in the order of their names."""
    return [p for p, folder in entries_in(directory) if not folder and p.is_file()]


def folders_in(directory: Path) -> list[Path]:
    """The folders of a directory that may hold data, in the order of their names."""
    return [path for path, folder in entries_in(directory) if folder]


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
    if train.is_dir() and folders_in(train):
        return "images"
    if section.languages:
        return "parallel"
    tables = [file for file in _with_data_folder(path) if file.suffix in TABLES]
    if any(role_of(file) == "train" for file in tables):
        return "table"
    if any(file.suffix in TEXTS for file in files):
        return "text"
    return "parallel" if len([n for n in names if n.startswith("train.")]) > 1 else None


@dataclass(frozen=True)
class SplitFiles:
    """What is read for each split; no ``held_out`` means a share of ``train``."""

    train: list[Path]
    held_out: list[Path]


def split_files(section: DataSection, suffixes: Sequence[str]) -> SplitFiles:
    """The files of tables or texts.

    Raises:
        InputError: There are none, or it is not clear which.
        UsageError: What is held out is trained on.
    """
    path = Path(section.source)
    if is_directory(path):
        files = [file for file in _with_data_folder(path) if file.suffix in suffixes]
        train = _of_role("train", files, path) or _unnamed(files, suffixes, path)
        held_out = [] if section.held_out else _of_role("held-out", files, path)
        if not held_out and section.held_out is None:
            raise InputError(NO_HELD_OUT, file=path)
    else:
        train, held_out = [path], []
        if section.held_out is None:
            raise InputError(
                "is one file; give data.held_out, a path or a share such as 0.1",
                file=path,
            )
    if isinstance(section.held_out, str):
        held_out = _given(Path(section.held_out), suffixes)
        if set(held_out) & set(train):
            raise UsageError(f"data.held_out: {held_out[0]} is trained on as well")
    return SplitFiles(train, held_out)


def _with_data_folder(directory: Path) -> list[Path]:
    inner = directory / "data"  # where the hub's tables are
    return [*files_in(directory), *(files_in(inner) if inner.is_dir() else [])]


def _of_role(role: str, files: list[Path], directory: Path) -> list[Path]:
    """The files of one role: one, or the shards of one."""
    chosen = [file for file in files if role_of(file) == role]
    kinds = {SHARD.sub("", file.stem) + file.suffix: file for file in chosen}
    if len(kinds) > 1:
        names = ", ".join(sorted(file.name for file in kinds.values())[:3])
        key = "data.source" if role == "train" else "data.held_out"
        raise InputError(
            f"{names} are different data; give {key}, which to read", file=directory
        )
    return chosen


def _unnamed(files: list[Path], suffixes: Sequence[str], path: Path) -> list[Path]:
    """Files whose names are no guide: then all of them are trained on."""
    chosen = [file for file in files if role_of(file) is None]
    if not chosen:
        raise InputError(f"has no {', '.join(suffixes)} file to train on", file=path)
    return chosen


def _given(path: Path, suffixes: Sequence[str]) -> list[Path]:
    if not is_directory(path):
        return [path]
    found = [file for file in files_in(path) if file.suffix in suffixes]
    if not found:
        raise InputError(f"has no {', '.join(suffixes)} file", file=path)
    return found
