"""What systems and tools leave among data is neither a class nor a sample."""

import logging
from pathlib import Path

import pytest
import torch
from data.written import sentences, write_images, write_jsonl, write_wikitext, write_wmt

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset
from step_cli.data.files import kind_of
from step_cli.data.load import load_data
from step_cli.errors import InputError, UsageError

FOLDERS = [".ipynb_checkpoints", "__MACOSX", "__pycache__", ".git", "@eaDir"]
FILES = [".DS_Store", "._n01_0.png", "Thumbs.db", "desktop.ini", ".hidden.jpg"]


def load(path: Path, **more: object) -> Dataset:
    section = {"source": str(path), **more}
    return load_data(DataSection.model_validate(section))


def litter(folder: Path) -> None:
    """Leave all of it in every folder below, with contents that could be read."""
    folders = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
    for place in folders:
        for name in FOLDERS:
            (place / name).mkdir()
            (place / name / "n01_0.png").write_bytes(b"x")
            (place / name / "train.jsonl").write_text("{")
        for name in FILES:
            (place / name).write_bytes(b"\0")


def test_folders_of_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "step_cli")
    clean = load(write_images(tmp_path), image_size=8)
    litter(tmp_path)
    dataset = load(tmp_path, image_size=8)
    assert dataset.classes == clean.classes == ("n01", "n02")
    for split, was in (
        (dataset.train, clean.train),
        (dataset.held_out, clean.held_out),
    ):
        index = torch.arange(len(was))
        assert len(split) == len(was)
        assert split[index].labels.tolist() == was[index].labels.tolist()
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


def test_a_folder_of_nothing_but_litter_is_no_folder_of_images(tmp_path: Path) -> None:
    rows = [{"text": s, "label": i % 2} for i, s in enumerate(sentences(8))]
    write_jsonl(tmp_path / "train.jsonl", rows)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir(parents=True)
    assert kind_of(DataSection(source=str(tmp_path), held_out=0.5)) == "table"


def test_files_of_text_and_tables(tmp_path: Path) -> None:
    wikitext = write_wikitext(tmp_path / "wikitext")
    (wikitext / "._wiki.train.tokens").write_bytes(b"\0" * 500)
    (wikitext / ".wiki.valid.tokens").write_bytes(b"\0" * 500)
    before = len(load(wikitext, length=32).train)
    litter(wikitext)
    assert len(load(wikitext, length=32).train) == before
    wmt = write_wmt(tmp_path / "wmt")
    (wmt / "._train.de").write_bytes(b"\0\n")
    assert len(load(wmt, languages=["de", "en"]).train) == 20


def test_what_is_left_out_by_its_name_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path)
    (tmp_path / "train" / "n01" / "scan.tiff").write_bytes(b"x")
    (tmp_path / "train" / "loose.jpg").write_bytes(b"x")
    (tmp_path / "train" / "n02" / "more").mkdir()
    load(tmp_path)
    assert "left out 3 entries that are no images" in caplog.text
    assert "loose.jpg, n01/scan.tiff, n02/more" in caplog.text


def test_an_empty_class_is_told(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "train" / "n00").mkdir()
    (tmp_path / "train" / "n00" / ".DS_Store").write_bytes(b"x")
    with pytest.raises(InputError, match="each folder is a class; add images, or"):
        load(tmp_path)


def test_what_is_trained_on_is_not_held_out(tmp_path: Path) -> None:
    write_images(tmp_path)
    with pytest.raises(UsageError, match="is trained on as well"):
        load(tmp_path, held_out=str(tmp_path / "train"))
    (tmp_path / "val" / "N01").mkdir()
    with pytest.raises(InputError, match="differs from 'n01' by case or blanks"):
        load(tmp_path)
