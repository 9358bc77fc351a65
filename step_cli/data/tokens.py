"""Text as numbers: the bytes themselves, or a local Hugging Face tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from step_cli.config.data import BYTES
from step_cli.errors import InputError
from step_cli.formats.quiet import quiet

LENGTH = 128  # tokens of a sample, unless the configuration says otherwise


@dataclass(frozen=True)
class Encoded:
    """One sample of one or two texts.

    Attributes:
        tokens: With the marks that the model expects around the texts.
        parts: 0 for tokens of the first text, 1 for the second; None where models
            of this tokenizer are not told.
    """

    tokens: Sequence[int]
    parts: Sequence[int] | None


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
    def tells_parts(self) -> bool:
        """Whether models of this tokenizer take ``token_type_ids``."""
        ...

    def plain(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """The tokens of each text and nothing around them."""
        ...

    def marked(
        self, first: Sequence[str], second: Sequence[str] | None, length: int
    ) -> list[Encoded]:
        """Texts or pairs as a classifier wants them, cut to ``length`` tokens."""
        ...


def make_tokenizer(source: str | None) -> Tokenizer:
    """The tokenizer that ``[data] tokenizer`` names.

    Raises:
        InputError: There is none in the directory, or it lacks tokens we need.
    """
    return Utf8() if source in (None, BYTES) else HubTokenizer(Path(str(source)))


class Utf8:
    """The bytes of UTF-8 as tokens 0 to 255, and three of our own: 259 in all."""

    pad, begin, end = 256, 257, 258
    tells_parts = False

    def plain(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """See `Tokenizer`."""
        return [text.encode() for text in texts]

    def marked(
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
            samples.append(Encoded(tokens[:length], None))
        return samples


def _shares(texts: Sequence[bytes], room: int) -> list[int]:
    """How much of each text fits: of two, the longer is cut first."""
    if len(texts) == 1:
        return [min(len(texts[0]), room)]
    half = room // 2
    one, other = map(len, texts)
    size = min(one, max(half, room - other))
    return [size, min(other, room - size)]


class HubTokenizer:
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
        starts = (tokenizer.bos_token_id, tokenizer.cls_token_id, pad)
        self.end: int = end
        self.pad: int = pad
        self.begin: int = next(i for i in starts if i is not None)
        self.tells_parts = "token_type_ids" in tokenizer.model_input_names

    def plain(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """See `Tokenizer`."""
        encoded = self._tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        return list(encoded["input_ids"])

    def marked(
        self, first: Sequence[str], second: Sequence[str] | None, length: int
    ) -> list[Encoded]:
        """See `Tokenizer`."""
        texts = [list(first)] if second is None else [list(first), list(second)]
        encoded = self._tokenizer(
            *texts, truncation=True, max_length=length, return_attention_mask=False,
            return_token_type_ids=self.tells_parts, verbose=False,
        )  # fmt: skip
        tokens = encoded["input_ids"]
        parts = encoded["token_type_ids"] if self.tells_parts else [None] * len(tokens)
        return [Encoded(*pair) for pair in zip(tokens, parts, strict=True)]


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
