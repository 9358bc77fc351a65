"""Phoneme and word error rates of a run, by greedy decoding of the held-out words.

    python -m benchmarks.evidence.phonemes.score RUN_DIR OUT

OUT is what `data.py` was given. The rates are shares: 0.05 is 5 %.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

PAD, BEGIN, END = 256, 257, 258  # of the tokenizer "bytes"
BATCH = 500  # words decoded at a time
LONGEST = 30  # phonemes said of a word at most; the longest word has 28


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for name, value in score(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{name} {value:.4f}")


def score(run_dir: Path, data: Path) -> dict[str, float]:
    """`per` and `wer` of the weights in ``run_dir/model``: see `error_rates`.

    Args:
        run_dir: Of a finished run.
        data: What `data.py` was given.
    """
    text = (data / "phonemes" / "references.tsv").read_text(encoding="utf-8")
    words, references = [], []
    for line in text.splitlines():
        word, *pronunciations = line.split("\t")
        words.append(word)
        references.append(pronunciations)
    return error_rates(decoded(run_dir / "model", words), references)


def error_rates(
    said: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Rates against the nearest pronunciation of each word, the first of equals.

    Args:
        said: One pronunciation of each word, a character a phoneme.
        references: All that are listed of it.

    Returns:
        `per`: the sum of edit distances by the sum of the lengths of those references.
        `wer`: the share of words that equal none.
    """
    edits = length = wrong = 0
    for one, listed in zip(said, references, strict=True):
        nearest = min(listed, key=lambda each: distance(one, each))
        edits += distance(one, nearest)
        length += len(nearest)
        wrong += one != nearest
    return {"per": edits / length, "wer": wrong / len(said)}


def distance(one: str, other: str) -> int:
    """Levenshtein's: fewest insertions, deletions and substitutions."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            change = diagonal + (a != b)
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, change)
    return row[-1]


def decoded(model: Path, words: Sequence[str]) -> list[str]:
    """What the model says of each word, in the order of the words."""
    from transformers import PegasusForConditionalGeneration

    network = PegasusForConditionalGeneration.from_pretrained(model).eval()
    by_length = sorted(range(len(words)), key=lambda place: len(words[place]))
    said = [""] * len(words)
    with torch.inference_mode():
        for start in range(0, len(words), BATCH):
            places = by_length[start : start + BATCH]
            source = padded([words[place] for place in places])
            tokens = network.generate(
                input_ids=source,
                attention_mask=(source != PAD).long(),
                max_new_tokens=LONGEST,
                num_beams=1,
                do_sample=False,
            )
            for place, row in zip(places, tokens.tolist(), strict=True):
                said[place] = text_of(row)
    return said


def padded(words: Sequence[str]) -> Tensor:
    """The bytes of each word and the end mark, ``[words, longest + 1]``."""
    rows = [[*word.encode(), END] for word in words]
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def text_of(row: Sequence[int]) -> str:
    """The characters after the begin mark and before the end."""
    row = row[1:]
    row = row[: row.index(END)] if END in row else row
    return bytes(token for token in row if token < PAD).decode("latin-1")


if __name__ == "__main__":
    main()
