"""A parallel text made by rule: numbers below a million, and their English words."""

import torch
from torch import Tensor

from step_cli.config.data import DataSection
from step_cli.data.batch import IGNORED, Dataset, TensorSplit

BELOW_TWENTY = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
    "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = (
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip
WORDS = [*"0123456789", *BELOW_TWENTY, *TENS, "hundred", "thousand"]
PAD, END, FIRST = 0, 1, 2  # tokens; those of `WORDS` start at FIRST
TOKENS = {word: FIRST + place for place, word in enumerate(WORDS)}
LARGEST = 999_999
DIGITS, TARGET = 7, 10  # longest number and longest translation, each with its end
TRAIN, HELD_OUT = 20_000, 1_000  # different numbers


def load(section: DataSection) -> Dataset:
    """Numbers drawn without repetition, so that none held out is trained on."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(LARGEST + 1, generator=generator)[: TRAIN + HELD_OUT]
    numbers = drawn.tolist()
    return Dataset(split_of(numbers[HELD_OUT:]), split_of(numbers[:HELD_OUT]))


def split_of(numbers: list[int]) -> TensorSplit:
    """Digits in, and at each place of the translation the word that comes next."""
    source = padded([tokens_of(list(str(number))) for number in numbers], DIGITS, PAD)
    target = [tokens_of(words_of(number)) for number in numbers]
    return TensorSplit(
        {
            "input_ids": source,
            "attention_mask": (source != PAD).long(),
            # The decoder sees what was said before, which begins with padding.
            "decoder_input_ids": padded([[PAD, *t[:-1]] for t in target], TARGET, PAD),
        },
        padded(target, TARGET, IGNORED),
    )


def words_of(number: int) -> list[str]:
    """English words, such as ``twelve thousand three hundred forty five``."""
    if number < 20:
        return [BELOW_TWENTY[number]]
    if number < 100:
        tens, rest = divmod(number, 10)
        return [TENS[tens - 2], *(words_of(rest) if rest else [])]
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    count, rest = divmod(number, size)
    return [*words_of(count), name, *(words_of(rest) if rest else [])]


def tokens_of(words: list[str]) -> list[int]:
    """Tokens, and the one that ends a text."""
    return [*(TOKENS[word] for word in words), END]


def padded(rows: list[list[int]], length: int, fill: int) -> Tensor:
    """``[rows, length]``, filled up at the end."""
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])
