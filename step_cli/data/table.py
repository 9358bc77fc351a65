"""Text to classify or to score, one sample a row: GLUE and its like."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from typing_extensions import override

from step_cli.config.data import DataSection
from step_cli.data.batch import Batch, Dataset
from step_cli.data.files import TABLES, split_files
from step_cli.data.held_out import set_aside
from step_cli.data.labels import Label, Labels, WrongKindError
from step_cli.data.rows import Row, rows_of
from step_cli.data.tally import Tally
from step_cli.data.tokens import (
    LENGTH,
    Tokenizer,
    TokenRows,
    make_tokenizer,
)
from step_cli.errors import InputError, nearest

logger = logging.getLogger(__name__)

CHUNK = 1000  # rows tokenized at a time
# The names that the tables of GLUE have, as it ships them and on the hub; the first
# that is there is taken.
TEXT_COLUMNS = (
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence1", "sentence2"),
    ("#1 String", "#2 String"),
    ("sentence",),
    ("text",),
)
LABEL_COLUMNS = ("label", "gold_label", "score", "is_duplicate", "Quality")


@dataclass(frozen=True)
class TokenSplit:
    """Token numbers in memory, four bytes each; a batch is as wide as its longest.

    Attributes:
        tokens: Of each sample.
        token_types: Which text each token is of, where models take it.
        labels: As in `Batch`.
        pad: What fills up shorter samples.
    """

    tokens: TokenRows
    token_types: TokenRows | None
    labels: Tensor
    pad: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Batch:
        tokens, mask = self.tokens.padded(index, self.pad)
        inputs = {"input_ids": tokens, "attention_mask": mask.long()}
        if self.token_types is not None:
            inputs["token_type_ids"], _ = self.token_types.padded(index, 0)
        return Batch(inputs, self.labels[index])


def load_table(section: DataSection) -> Dataset:
    """Rows of TSV, CSV, JSON lines or parquet, tokenized once, in memory.

    Raises:
        InputError: A file, row or column is not as it should be.
        UsageError: What is held out is trained on.
    """
    files = split_files(section, TABLES)
    reader = _Reader(section, make_tokenizer(section.tokenizer), files.train)
    train = reader.split(files.train)
    names, tokens = reader.labels.names, reader.tokenizer.size
    if files.held_out:
        held_out = reader.split(files.held_out)
        longest = max(train.tokens.longest, held_out.tokens.longest)
        return Dataset(train, held_out, names, tokens, longest)
    assert isinstance(section.held_out, float)
    found = set_aside(train, section.held_out, Path(section.source), names)
    return replace(found, tokens=tokens, longest=train.tokens.longest)


class _Columns(NamedTuple):
    """Which columns are read."""

    texts: tuple[str, ...]
    label: str

    @override
    def __str__(self) -> str:
        return f"text {' and '.join(map(repr, self.texts))}, label {self.label!r}"


class _Sample(NamedTuple):
    """The fields of a row that are read."""

    texts: tuple[str, ...]
    label: Label


@dataclass
class _Reader:
    """Reads the splits of one data set in the same way."""

    section: DataSection
    tokenizer: Tokenizer
    training: list[Path]
    labels: Labels = field(init=False)
    columns: "_Columns | None" = None  # of the first file

    def __post_init__(self) -> None:
        self.labels = Labels(self._labels_of_training)

    def _labels_of_training(self) -> Iterator[Any]:
        for path in self.training:
            label: str | None = None
            for row in rows_of(path):
                if row.error is None:
                    label = label or self._columns(row, path).label
                    yield row.values.get(label)

    def split(self, paths: list[Path]) -> TokenSplit:
        tokens, token_types, labels = TokenRows(), TokenRows(), list[Label]()
        has_types = self.tokenizer.has_token_types
        length = self.section.length or LENGTH
        samples = (sample for path in paths for sample in self._samples(path))
        tally, empty = Tally(self.tokenizer), 0
        while chunk := list(islice(samples, CHUNK)):
            texts = list(zip(*(sample.texts for sample in chunk), strict=True))
            second = texts[1] if len(texts) > 1 else None
            for encoded in self.tokenizer.encode_marked(texts[0], second, length):
                tokens.append(encoded.tokens)
                tally.add(encoded.tokens, cut=encoded.cut)
                if encoded.token_types is not None:
                    token_types.append(encoded.token_types)
            labels += [sample.label for sample in chunk]
            empty += sum(not "".join(sample.texts).strip() for sample in chunk)
        if not labels:
            raise InputError("has no rows", file=paths[0])
        tally.say(paths[0], length)
        if empty:
            logger.warning("%s: the text of %d of %d rows is empty", paths[0], empty,
                           len(labels))  # fmt: skip
        found = self.labels.tensor(labels)
        return TokenSplit(
            tokens, token_types if has_types else None, found, self.tokenizer.pad
        )

    def _samples(self, path: Path) -> Iterator[_Sample]:
        columns: _Columns | None = None
        bad, first_bad = 0, ""
        for row in rows_of(path):
            try:
                if row.error is not None:
                    raise ValueError(row.error)
                columns = columns or self._columns(row, path)
                sample = self._sample(row, columns)
            except ValueError as error:
                fault = f"{row.place}: {error}"
                if not self.section.skip_bad_rows:
                    mend = "; mend it, or set data.skip_bad_rows"
                    mend = "" if isinstance(error, WrongKindError) else mend
                    raise InputError(fault + mend, file=path) from None
                bad, first_bad = bad + 1, first_bad or fault
            else:
                yield sample
        if bad:
            logger.warning("%s: left out %d bad rows, first %s", path, bad, first_bad)

    def _sample(self, row: Row, columns: _Columns) -> _Sample:
        texts = tuple(row.text(column) for column in columns.texts)
        if columns.label not in row.values:
            raise ValueError(f"no column {columns.label!r}")
        return _Sample(texts, self.labels.read(row.values[columns.label]))

    def _columns(self, row: Row, path: Path) -> _Columns:
        there = list(row.values)
        texts, label = self.section.text_columns, self.section.label_column
        for column in (*(texts or ()), *([label] if label else [])):
            if column not in there:
                raise InputError(
                    f"no column {column!r}{nearest(column, there)}", file=path
                )
        texts = texts or next((x for x in TEXT_COLUMNS if {*x} <= {*there}), None)
        label = label or next((x for x in LABEL_COLUMNS if x in there), None)
        if texts is None or label is None:
            asked = {"data.text_columns": texts, "data.label_column": label}
            keys = " and ".join(key for key, found in asked.items() if found is None)
            shown = ", ".join(map(repr, there[:8]))
            fault = f"no column of a known name; give {keys}, there are {shown}"
            if texts is None and _numbers_only(row, label):
                fault = (
                    "its columns hold numbers, and a table is read as text; train on "
                    "numbers in your own loop (docs/python.md), or name a column of "
                    f"text with data.text_columns, there are {shown}"
                )
            raise InputError(fault, file=path)
        found = _Columns(texts, label)
        if self.columns is None:
            self.columns = found
            logger.info("%s: reads %s", path, found)
        elif found != self.columns:
            logger.warning("%s: reads %s, others are %s", path, found, self.columns)
        return found


def _numbers_only(row: Row, label: str | None) -> bool:
    """Whether a row is one of features: two or more columns of numbers, no text."""
    values = [value for name, value in row.values.items() if name != label]
    return len(values) > 1 and all(map(_is_number, values))


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
