"""`translate-tiny`: the rule, and how its text becomes tokens."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from step_cli.config.data import DataSection  # noqa: E402
from step_cli.config.samples import load_sample  # noqa: E402
from step_cli.data.batch import IGNORED  # noqa: E402
from step_cli.data.load import load_data  # noqa: E402

SECTION = DataSection(source="numbers")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (45, "forty five"),
        (100, "one hundred"),
        (907, "nine hundred seven"),
        (1000, "one thousand"),
        (12_345, "twelve thousand three hundred forty five"),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)
def test_numbers_have_their_english_words(number: int, words: str) -> None:
    assert " ".join(load_sample("translate-tiny", "data").words_of(number)) == words


def test_the_decoder_sees_what_comes_before_each_label() -> None:
    model, data = load_sample("translate-tiny", "model"), load_data(SECTION)
    batch = data.held_out[torch.arange(len(data.held_out))]
    seen, labels = batch.inputs["decoder_input_ids"], batch.labels
    assert set(seen[:, 0].tolist()) == {model.PAD}
    scored = labels[:, :-1] != IGNORED
    following = (labels[:, 1:] != IGNORED) & scored
    assert torch.equal(seen[:, 1:][following], labels[:, :-1][following])
    assert bool(((labels == model.END).sum(1) == 1).all())
    assert int(labels.max()) < model.VOCABULARY
    mask = batch.inputs["attention_mask"]
    assert torch.equal(mask == 0, batch.inputs["input_ids"] == model.PAD)


def test_no_number_held_out_is_trained_on() -> None:
    data = load_data(SECTION)
    train = data.train[torch.arange(len(data.train))].inputs["input_ids"].tolist()
    held_out = data.held_out[torch.arange(len(data.held_out))]
    seen = {tuple(row) for row in train}
    assert len(seen) == len(train) == 20_000
    assert not any(tuple(r) in seen for r in held_out.inputs["input_ids"].tolist())
