"""`stdlib-bert`: snippets of modules, and a short run."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from step_cli.config.data import DataSection  # noqa: E402
from step_cli.config.samples import load_sample  # noqa: E402
from step_cli.data.load import load_data  # noqa: E402

SECTION = DataSection(source="stdlib-modules")


def test_snippets_begin_alike_and_stay_in_the_vocabulary() -> None:
    model, data = load_sample("stdlib-bert", "model"), load_data(SECTION)
    batch = data.train[torch.arange(len(data.train))]
    tokens = batch.inputs["input_ids"]
    assert tokens.shape == (len(data.train), model.LENGTH)
    assert set(tokens[:, 0].tolist()) == {1}
    assert int(tokens[:, 1:].min()) > 1 and int(tokens.max()) < model.VOCABULARY
    assert set(batch.labels.tolist()) == set(range(model.CLASSES))


def test_every_fifth_snippet_of_a_module_is_held_out() -> None:
    module, data = load_sample("stdlib-bert", "data"), load_data(SECTION)
    assert len(data.train) / len(data.held_out) == pytest.approx(4, rel=0.02)
    train = data.train[torch.arange(len(data.train))]
    held_out = data.held_out[torch.arange(len(data.held_out))]
    for label in range(len(module.MODULES)):
        ours = int((train.labels == label).sum())
        theirs = int((held_out.labels == label).sum())
        assert ours / theirs == pytest.approx(4, rel=0.1)
    both = {tuple(row) for row in train.inputs["input_ids"].tolist()}
    shared = sum(tuple(r) in both for r in held_out.inputs["input_ids"].tolist())
    assert shared < 5  # of a thousand: licence texts repeat


def test_an_identifier_is_its_words() -> None:
    module = load_sample("stdlib-bert", "data")
    assert module.WORD.findall("x2 = read_file(Größe)") == [
        "x", "2", "=", "read", "_", "file", "(", "Gr", "ö", "ß", "e", ")",
    ]  # fmt: skip
