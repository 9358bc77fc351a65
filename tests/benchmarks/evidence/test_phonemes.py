"""The phonemes of CMUdict: how words are coded, split and scored."""

import runpy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TASK = Path(__file__).parents[3] / "benchmarks" / "evidence" / "phonemes"
data = runpy.run_path(str(TASK / "data.py"))
score = runpy.run_path(str(TASK / "score.py"))
model = runpy.run_path(str(TASK / "model.py"))


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [
        ("", "", 0),
        ("ABC", "ABC", 0),
        ("", "AB", 2),
        ("AB", "", 2),
        ("ABC", "AXC", 1),
        ("ABC", "BC", 1),
        ("BC", "ABC", 1),
        ("KITTEN", "SITTING", 3),
        ("AB", "BA", 2),
    ],
)
def test_edit_distances_are_those_worked_by_hand(
    one: str, other: str, edits: int
) -> None:
    assert score["distance"](one, other) == edits


def test_each_word_is_compared_with_the_nearest_pronunciation() -> None:
    said = ["ABC", "AB", "AXYD", "Q"]
    references = [
        ["AB", "ABC"],  # the second exactly: 0 edits of 3
        ["AC"],  # 1 edit of 2
        ["ABCD", "ABCDE", "XY"],  # 2 edits of 4, and of 2: the first of them counts
        ["RST"],  # 3 edits of 3
    ]
    rates = score["error_rates"](said, references)
    assert rates == {"per": (0 + 1 + 2 + 3) / (3 + 2 + 4 + 3), "wer": 3 / 4}


def test_a_phoneme_is_one_byte_that_no_spelling_has() -> None:
    codes = data["CODES"]
    assert len(codes) == len(set(codes.values())) == 39
    assert all(len(code.encode()) == 1 for code in codes.values())
    assert not any(data["WORD"].fullmatch(code) for code in codes.values())
    assert data["coded"](["K", "AO1", "R", "S"]) == data["coded"](["K", "AO", "R", "S"])


def test_no_word_is_in_both_splits_and_alternatives_stay_together() -> None:
    words = {f"word{place}": ["A", "B"] for place in range(4_000)}
    train, held_out = data["split"](words)
    assert len(held_out) == data["HELD_OUT"]
    assert train | held_out == words and not train.keys() & held_out.keys()
    assert data["split"](words) == (train, held_out)


def test_weights_are_decoded_in_the_order_of_the_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = model["build"](width=16, encoder_layers=1, decoder_layers=1, heads=2)
    network.save_pretrained(tmp_path / "model")
    words = ["seven", "a", "don't", "three"]
    apart = [score["decoded"](tmp_path / "model", [word])[0] for word in words]
    assert score["decoded"](tmp_path / "model", words) == apart
    folder = tmp_path / "data" / "phonemes"
    folder.mkdir(parents=True)
    (folder / "references.tsv").write_text("".join(f"{word}\tA\tB\n" for word in words))
    expected = score["error_rates"](apart, [["A", "B"]] * 4)
    assert score["score"](tmp_path, tmp_path / "data") == expected


def test_what_follows_the_end_mark_is_not_said() -> None:
    begin, end, pad = score["BEGIN"], score["END"], score["PAD"]
    assert score["text_of"]([begin, 65, 66, end, pad, pad]) == "AB"
    assert score["text_of"]([begin, 65, 66]) == "AB"
