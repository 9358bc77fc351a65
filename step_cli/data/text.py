"""Running text, cut into samples of equal length: WikiText and its like."""

import codecs
import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from step_cli.config.data import BYTES, DataSection
from step_cli.data.batch import Batch, Dataset
from step_cli.data.files import TABLES, TEXTS, files_in, split_files
from step_cli.data.rows import lines_of, rows_of
from step_cli.data.tally import Tally
from step_cli.data.tokens import LENGTH, Tokenizer, make_tokenizer
from step_cli.errors import InputError, UsageError
from step_cli.formats.files.mapped_file import is_directory, map_file

logger = logging.getLogger(__name__)

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
CHUNK = 1000  # lines tokenized at a time
Tokens = npt.NDArray[Any]  # [tokens], of any integer type


@dataclass(frozen=True)
class TextSplit:
    """Token numbers in a row, in memory or mapped.

    Attributes:
        tokens: All of them.
        length: Of a sample; its labels are the same tokens from the second to the one
            that follows, which is also the first of the next sample.
    """

    tokens: Tokens
    length: int

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.length)

    def tokens_of(self, number: int) -> Tokens:
        """What the model reads of one sample."""
        begin = number * self.length
        return self.tokens[begin : begin + self.length]

    def __getitem__(self, index: Tensor) -> Batch:
        begins = index.numpy()[:, None] * self.length
        found = self.tokens[begins + np.arange(self.length + 1)].astype(np.int64)
        inputs, labels = (
            np.ascontiguousarray(x) for x in (found[:, :-1], found[:, 1:])
        )
        return Batch({"input_ids": torch.from_numpy(inputs)}, torch.from_numpy(labels))


def load_text(section: DataSection) -> Dataset:
    """Text files, files of 16-bit tokens (``.bin``), or one column of tables.

    Files of one split are joined in the order of their names. A single file of bytes or
    of tokens stays on disk; else four bytes a token are in memory.

    Raises:
        InputError: A file cannot be read, or holds less than a sample.
        UsageError: A key does not apply, or what is held out is trained on.
    """
    path, length = Path(section.source), section.length or LENGTH
    files = split_files(section, _suffixes(path))
    tokenizer = None  # of numbers in a file nothing more is known
    if not all(file.suffix == ".bin" for file in (*files.train, *files.held_out)):
        tokenizer = make_tokenizer(section.tokenizer)
    train = _tokens(files.train, section, tokenizer)
    if files.held_out:
        held_out = _tokens(files.held_out, section, tokenizer)
    else:
        assert isinstance(section.held_out, float)
        kept = len(train) - round(len(train) * section.held_out)
        train, held_out = train[:kept], train[kept:]
    for tokens, purpose in ((train, "train on"), (held_out, "measure on")):
        if len(tokens) <= length:
            raise InputError(
                f"has {len(tokens)} tokens to {purpose}, one sample needs {length + 1}",
                file=path,
            )
    splits = TextSplit(train, length), TextSplit(held_out, length)
    size = tokenizer.size if tokenizer else None
    return Dataset(*splits, tokens=size, longest=length)


def _suffixes(path: Path) -> tuple[str, ...]:
    if is_directory(path) and not any(f.suffix in TEXTS for f in files_in(path)):
        return TABLES
    return TEXTS


def _tokens(
    paths: list[Path], section: DataSection, tokenizer: Tokenizer | None
) -> Tokens:
    suffixes = {path.suffix for path in paths}
    if suffixes == {".bin"} or tokenizer is None:
        return _numbers(paths, section)
    if section.tokenizer in (None, BYTES) and not suffixes & {*TABLES}:
        mapped = [map_file(path).data for path in paths]
        for path, data in zip(paths, mapped, strict=True):
            if data[:2].tobytes() in UTF_16:
                logger.warning(
                    "%s: begins as UTF-16 does, and is read as single bytes; convert "
                    "it to UTF-8, for example with iconv", path,
                )  # fmt: skip
        return mapped[0] if len(mapped) == 1 else np.concatenate(mapped)
    found, tally = array("i"), Tally(tokenizer)
    for path in paths:
        texts = _texts(path, section)
        while chunk := list(islice(texts, CHUNK)):
            for tokens in tokenizer.encode(chunk):
                found.extend(tokens)
                tally.add(tokens)
    tally.say(paths[0], 0)
    return np.frombuffer(found, np.int32)


def _numbers(paths: list[Path], section: DataSection) -> Tokens:
    """A file of little-endian 16-bit numbers, as nanoGPT prepares them."""
    if section.tokenizer is not None:
        raise UsageError("data.tokenizer does not apply to .bin, which holds tokens")
    if len(paths) > 1:
        raise InputError("one .bin file a split, join them", file=paths[1])
    file = map_file(paths[0])
    if file.size % 2:
        raise InputError(
            f"{file.size} bytes are no whole number of 16-bit tokens", file=paths[0]
        )
    return file.data.view(np.uint16)


def _texts(path: Path, section: DataSection) -> Iterator[str]:
    """Lines or rows, each with its line end, so that no text is lost."""
    if path.suffix not in TABLES:
        for line in lines_of(path):
            yield line + "\n"
        return
    columns = section.text_columns or ("text",)
    if len(columns) > 1:
        raise UsageError("data.text_columns: running text is in one column")
    for row in rows_of(path):
        try:
            value = row.text(columns[0])
        except ValueError as error:
            raise InputError(f"{row.place}: {error}", file=path) from None
        yield value if value.endswith("\n") else value + "\n"
