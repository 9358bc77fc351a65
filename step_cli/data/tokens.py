"""Text as numbers: its bytes, or the tokens of a local Hugging Face tokenizer."""

import logging
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from step_cli.config.data import BYTES
from step_cli.errors import InputError
from step_cli.formats.quiet import quiet

logger = logging.getLogger(__name__)

LENGTH = 128  # tokens of a sample, unless configured otherwise


@dataclass(frozen=True)
class Encoded:
    """One sample of one or two texts.

    Attributes:
        tokens: With the marks that the model expects around the texts.
        token_types: 0 for tokens of the first text, 1 for the second; None where
            models of this tokenizer take no ``token_type_ids``.
        cut: Whether the texts were longer.
    """

    tokens: Sequence[int]
    token_types: Sequence[int] | None
    cut: bool


class Tokenizer(Protocol):
    """What turns text into token numbers."""

    @property
    def pad(self) -> int:
        """Fills up shorter samples."""
        ...

    @property
    def begin(self) -> int:
        """What a decoder is given before the first token."""
        ...

    @property
    def end(self) -> int:
        """Ends a text."""
        ...

    @property
    def size(self) -> int:
        """How many tokens there are."""
        ...

    @property
    def unknown(self) -> int | None:
        """Stands for what the tokenizer has no token for, if there is such a one."""
        ...

    @property
    def has_token_types(self) -> bool:
        """Whether models of this tokenizer take ``token_type_ids``."""
        ...

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """The tokens of each text and nothing around them."""
        ...

    def encode_marked(
        self, first: Sequence[str], second: Sequence[str] | None, length: int
    ) -> list[Encoded]:
        """Texts or pairs as a classifier takes them, cut to ``length`` tokens."""
        ...


def make_tokenizer(source: str | None) -> Tokenizer:
    """The tokenizer that ``[data] tokenizer`` names.

    Raises:
        InputError: There is none in the directory, or it lacks tokens we need.
    """
    if source is None or source == BYTES:
        return ByteTokenizer()
    return HuggingFaceTokenizer(Path(source))


class ByteTokenizer:
    """The bytes of UTF-8 as tokens 0 to 255, and three of our own: 259 in all."""

    pad, begin, end = 256, 257, 258
    has_token_types = False
    unknown, size = None, 259

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """See `Tokenizer`."""
        return [text.encode() for text in texts]

    def encode_marked(
        self, first: Sequence[str], second: Sequence[str] | None, length: int
    ) -> list[Encoded]:
        """See `Tokenizer`; ``begin`` first, and ``end`` after each text."""
        samples = []
        for place, text in enumerate(first):
            texts = [text.encode(), *([second[place].encode()] if second else [])]
            room = max(0, length - 1 - len(texts))
            tokens = [self.begin]
            for part, size in zip(texts, _shares(texts, room), strict=True):
                tokens += [*part[:size], self.end]
            cut = sum(map(len, texts)) > room
            samples.append(Encoded(tokens[:length], None, cut))
        return samples


def _shares(texts: Sequence[bytes], room: int) -> list[int]:
    """How much of each text fits: of two, the longer is cut first."""
    if len(texts) == 1:
        return [min(len(texts[0]), room)]
    half = room // 2
    one, other = map(len, texts)
    size = min(one, max(half, room - other))
    return [size, min(other, room - size)]


class HuggingFaceTokenizer:
    """A tokenizer of a local directory, as transformers saves them; no code of its own.

    Args:
        directory: With a ``tokenizer.json`` or what transformers makes one from.
    """

    def __init__(self, directory: Path) -> None:
        self._tokenizer = tokenizer = _open(directory)
        ids: list[Any] = [tokenizer.pad_token_id, tokenizer.eos_token_id,
                          tokenizer.sep_token_id]  # fmt: skip
        end = next((i for i in (ids[1], ids[2]) if i is not None), None)
        pad = ids[0] if ids[0] is not None else end
        if end is None or pad is None:
            raise InputError(
                "the tokenizer has no token that ends a text (eos or sep)",
                file=directory,
            )
        if ids[0] is None:
            logger.info(
                "%s: has no token to pad with: shorter texts are filled up with %r, "
                "which attention_mask leaves out", directory, tokenizer.decode([pad]),
            )  # fmt: skip
        starts = (tokenizer.bos_token_id, tokenizer.cls_token_id, pad)
        self.size = len(tokenizer)
        self.end: int = end
        self.pad: int = pad
        self.begin: int = next(i for i in starts if i is not None)
        unknown: int | None = tokenizer.unk_token_id
        self.unknown = None if unknown in (*ids, *starts) else unknown
        self.has_token_types = "token_type_ids" in tokenizer.model_input_names

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """See `Tokenizer`."""
        encoded = self._tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        return list(encoded["input_ids"])

    def encode_marked(
        self, first: Sequence[str], second: Sequence[str] | None, length: int
    ) -> list[Encoded]:
        """See `Tokenizer`."""
        texts = [list(first)] if second is None else [list(first), list(second)]
        encoded = self._tokenizer(
            *texts, truncation=True, max_length=length, return_attention_mask=False,
            return_token_type_ids=self.has_token_types, verbose=False,
        )  # fmt: skip
        tokens = encoded["input_ids"]
        types = encoded.get("token_type_ids") or [None] * len(tokens)
        # Tokenizers in Python do not say it: then what is full counts as cut.
        parts = encoded.encodings or [None] * len(tokens)
        cut = [
            len(row) >= length if part is None else bool(part.overflowing)
            for row, part in zip(tokens, parts, strict=True)
        ]
        return [Encoded(*each) for each in zip(tokens, types, cut, strict=True)]


def numbers_of(directory: Path) -> dict[str, int]:
    """Every token of a tokenizer of a local directory, and its number.

    Raises:
        InputError: There is none.
    """
    numbers: dict[str, int] = _open(directory).get_vocab()
    return numbers


def _open(directory: Path) -> Any:
    if not directory.is_dir():
        raise InputError("no such directory to read a tokenizer from", file=directory)
    with quiet():
        from transformers import AutoTokenizer
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # transformers raises of every kind
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"transformers finds no tokenizer here: {said[:200]}", file=directory
        ) from None


class TokenRows:
    """Rows of token numbers, four bytes each."""

    def __init__(self, rows: Iterable[Sequence[int]] = ()) -> None:
        self._values = array("i")
        self._ends = array("q", [0])
        for row in rows:
            self.append(row)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def longest(self) -> int:
        """The number of tokens of the longest row."""
        return int(np.diff(np.frombuffer(self._ends, np.int64)).max(initial=0))

    def append(self, row: Sequence[int]) -> None:
        """Add a row at the end."""
        self._values.extend(row)
        self._ends.append(len(self._values))

    def bytes_of(self, number: int) -> bytes:
        """The tokens of one row, to compare it with others."""
        return self._values[self._ends[number] : self._ends[number + 1]].tobytes()

    def padded(self, index: Tensor, fill: int) -> tuple[Tensor, Tensor]:
        """Rows as a rectangle as wide as the longest of them.

        Args:
            index: Row numbers, int64 ``[n]``.
            fill: What stands after the end of a shorter row.

        Returns:
            int64 ``[n, width]``, and a mask of that shape, True where a row is.
        """
        values = np.frombuffer(self._values, np.int32)
        ends = np.frombuffer(self._ends, np.int64)
        rows = index.numpy()
        parts = [values[ends[row] : ends[row + 1]] for row in rows]
        lengths = ends[rows + 1] - ends[rows]
        mask = np.arange(max(lengths, default=0)) < lengths[:, None]
        table = np.full(mask.shape, fill, np.int64)
        table[mask] = np.concatenate(parts)
        return torch.from_numpy(table), torch.from_numpy(mask)
