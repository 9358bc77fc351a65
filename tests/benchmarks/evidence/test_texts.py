"""The texts of `text` and `retext`: how they are split, and the model of both."""

import runpy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

EVIDENCE = Path(__file__).parents[3] / "benchmarks" / "evidence"
text = runpy.run_path(str(EVIDENCE / "text" / "data.py"))
retext = runpy.run_path(str(EVIDENCE / "retext" / "data.py"))
model = runpy.run_path(str(EVIDENCE / "text" / "model.py"))

DATA_NOUN = """\
  1 This software and database is being provided to you, the LICENSEE
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived  
00002684 03 n 02 object 0 physical_object 0 000 | visible; "a | b"  
00002685 03 n 01 thing 0 000 | That which is perceived  
"""


def test_pieces_are_whole_lines_from_all_over_the_text() -> None:
    lines = [b"%04d\n" % number for number in range(1000)]
    pieces = text["pieces_of"](b"".join(lines), 4, 20)
    found = [int(line) for line in pieces.split()]
    assert pieces.endswith(b"\n")
    assert found[:2] == [1, 2]
    assert {number // 250 for number in found} == {0, 1, 2, 3}
    assert 4 * 20 <= len(pieces) <= 4 * 30


def test_a_library_without_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not the source"):
        text["modules"](tmp_path)


def test_a_synset_is_a_line_and_each_gloss_stands_once(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(DATA_NOUN)
    for part in ("verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("")
    (tmp_path / "data.adj").write_text("00001 00 s 01 able(p) 0 000 | having power\n")
    assert retext["entries"](tmp_path) == [
        "entity: that which is perceived\n",
        'object, physical object: visible; "a | b"\n',
        "able: having power\n",
    ]


def test_without_wordnet_its_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="wordnet-base"):
        retext["entries"](tmp_path)


def test_texts_are_written_as_numbers_that_train_reads(tmp_path: Path) -> None:
    import numpy as np

    retext["write"](tmp_path, {"train.bin": b"a\xff\n"})
    assert np.fromfile(tmp_path / "train.bin", "<u2").tolist() == [97, 255, 10]


def test_the_activation_is_that_of_gpt2() -> None:
    net = model["build"](layers=1, width=32, heads=2)
    values = torch.linspace(-4, 4, 101)
    from transformers.activations import NewGELUActivation

    ours = net.transformer.h[0].mlp.act(values)
    torch.testing.assert_close(ours, NewGELUActivation()(values))
