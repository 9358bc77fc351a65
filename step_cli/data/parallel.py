"""Parallel text: each line and its translation, for encoder-decoder models."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path

from torch import Tensor

from step_cli.config.data import DataSection
from step_cli.data.batch import IGNORED, Batch, Dataset
from step_cli.data.files import (
    NO_HELD_OUT,
    TABLES,
    files_in,
    role_of,
    split_files,
)
from step_cli.data.held_out import set_aside
from step_cli.data.rows import Row, lines_of, rows_of
from step_cli.data.tally import Tally
from step_cli.data.tokens import (
    LENGTH,
    Tokenizer,
    TokenRows,
    make_tokenizer,
)
from step_cli.errors import InputError, UsageError
from step_cli.formats.files.mapped_file import is_directory

logger = logging.getLogger(__name__)

CHUNK = 1000  # pairs tokenized at a time
Pairs = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class PairSplit:
    """Token numbers in memory, four bytes each; a batch is as wide as its longest.

    Attributes:
        source: What is translated, with the token that ends a text.
        target: Its translation, likewise.
        pad: What fills up shorter samples.
        begin: What the decoder sees before the first token.
    """

    source: TokenRows
    target: TokenRows
    pad: int
    begin: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Tensor) -> Batch:
        source, source_mask = self.source.padded(index, self.pad)
        labels, target_mask = self.target.padded(index, IGNORED)
        seen = labels.where(target_mask, self.pad).roll(1, dims=1)
        seen[:, 0] = self.begin
        inputs = {
            "input_ids": source,
            "attention_mask": source_mask.long(),
            "decoder_input_ids": seen,
        }
        return Batch(inputs, labels)


def load_parallel(section: DataSection) -> Dataset:
    """Two files of equally many lines, or two columns, tokenized once, in memory.

    Pairs of which one side is empty are left out, and how many is logged.

    Raises:
        InputError: A file is missing or damaged, or line counts differ.
        UsageError: The languages are not given, or what is held out is trained on.
    """
    path = Path(section.source)
    if section.languages is None:
        raise UsageError(
            'data.languages is missing: which into which, such as ["de", "en"]'
        )
    train, held_out = _sources(section, section.languages)
    tokenizer, length = make_tokenizer(section.tokenizer), section.length or LENGTH
    learned = _split(train, tokenizer, length)
    longest = max(learned.source.longest, learned.target.longest)
    if held_out is None:
        assert isinstance(section.held_out, float)
        found = set_aside(learned, section.held_out, path)
    else:
        found = Dataset(learned, _split(held_out, tokenizer, length))
    return replace(found, tokens=tokenizer.size, longest=longest)


@dataclass(frozen=True)
class _Source:
    """Where the pairs of a split are: two files of lines, or tables."""

    paths: list[Path]
    languages: tuple[str, str]

    def pairs(self) -> Pairs:
        if [path.suffix for path in self.paths] == [f".{x}" for x in self.languages]:
            return _of_two_files(self.paths[0], self.paths[1])
        return (pair for path in self.paths for pair in _of_table(path, self.languages))


def _sources(
    section: DataSection, languages: tuple[str, str]
) -> tuple[_Source, _Source | None]:
    """Where the pairs to train on are, and those held out unless they are a share."""
    path, held_out = Path(section.source), section.held_out
    if not is_directory(path) or not any(
        file.suffix == f".{languages[0]}" for file in files_in(path)
    ):
        files = split_files(section, TABLES)
        held = _Source(files.held_out, languages) if files.held_out else None
        return _Source(files.train, languages), held
    train = _two_files(path, "train", languages)
    if train is None:
        raise InputError(f"has no train.{languages[0]} to train on", file=path)
    if isinstance(held_out, float):
        return train, None
    if held_out is not None:
        given = [Path(f"{held_out}.{language}") for language in languages]
        return train, _Source(given, languages)
    named = _two_files(path, "held-out", languages)
    if named is None:
        raise InputError(NO_HELD_OUT, file=path)
    return train, named


def _two_files(
    directory: Path, role: str, languages: tuple[str, str]
) -> _Source | None:
    """The file of each language that is named for ``role``, if there are any."""
    files = [file for file in files_in(directory) if role_of(file) == role]
    found = [[f for f in files if f.suffix == f".{language}"] for language in languages]
    if not any(found):
        return None
    for of_one, language in zip(found, languages, strict=True):
        if len(of_one) != 1:
            names = ", ".join(file.name for file in of_one) or "none"
            raise InputError(
                f"one {role} file that ends in .{language} is needed, there is {names}",
                file=directory,
            )
    return _Source([found[0][0], found[1][0]], languages)


def _of_two_files(source: Path, target: Path) -> Pairs:
    counts = [0, 0]
    for one, other in zip_longest(lines_of(source), lines_of(target)):
        counts = [counts[0] + (one is not None), counts[1] + (other is not None)]
        if one is not None and other is not None:
            yield one, other
    if counts[0] != counts[1]:
        raise InputError(
            f"has {counts[0]} lines, {target.name} has {counts[1]}; lines that are not "
            "translations of each other teach nothing",
            file=source,
        )


def _of_table(path: Path, languages: tuple[str, str]) -> Pairs:
    """Columns named for the languages, the hub's ``translation``, or a bare TSV."""
    if path.suffix == ".tsv":
        first = next(lines_of(path), "").split("\t")
        if not {*languages} <= {*first}:
            yield from _of_bare_tsv(path)
            return
    for row in rows_of(path):
        nested = row.values.get("translation")
        if isinstance(nested, dict):
            row = Row(row.place, nested)
        try:
            yield row.text(languages[0]), row.text(languages[1])
        except ValueError as error:
            raise InputError(f"{row.place}: {error}", file=path) from None


def _of_bare_tsv(path: Path) -> Pairs:
    for number, line in enumerate(lines_of(path), 1):
        fields = line.split("\t")
        if len(fields) != 2:
            raise InputError(
                f"line {number}: {len(fields)} fields, a text and its translation are "
                "needed, or a header with the languages",
                file=path,
            )
        yield fields[0], fields[1]


def _split(where: _Source, tokenizer: Tokenizer, length: int) -> PairSplit:
    source, target = TokenRows(), TokenRows()
    pairs, tally, left_out, same = where.pairs(), Tally(tokenizer), 0, 0
    while chunk := list(islice(pairs, CHUNK)):
        whole = [pair for pair in chunk if all(text.strip() for text in pair)]
        left_out += len(chunk) - len(whole)
        same += sum(one.strip() == other.strip() for one, other in whole)
        for side, rows in enumerate((source, target)):
            for tokens in tokenizer.encode([pair[side] for pair in whole]):
                rows.append([*tokens[: length - 1], tokenizer.end])
                tally.add(tokens, cut=len(tokens) >= length)
    if not len(source):
        raise InputError("has no pair of texts", file=where.paths[0])
    tally.say(where.paths[0], length)
    if same > len(source) / 2:
        logger.warning(
            "%s: both sides are the same in %d of %d pairs: is that a translation?",
            where.paths[0], same, len(source),
        )  # fmt: skip
    if left_out:
        found = left_out + len(source)
        logger.warning(
            "%s: left out %d of %d pairs: a side is empty",
            where.paths[0], left_out, found,
        )  # fmt: skip
    return PairSplit(source, target, tokenizer.pad, tokenizer.begin)
