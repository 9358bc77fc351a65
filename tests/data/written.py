"""Small files in the real formats, made by rule."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = [
    "the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "good", "bad",
    "film", "was", "very", "not",
]  # fmt: skip


def cifar_records(count: int, label_bytes: int, classes: int, seed: int) -> bytes:
    """Records as ``data_batch_1.bin`` holds them: labels, then three planes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (count, label_bytes), np.uint8)
    labels[:, 0] %= 10  # coarse classes are fewer
    pixels = rng.integers(0, 256, (count, 3072), np.uint8)
    return np.hstack([labels, pixels]).tobytes()


def write_cifar10(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        records = cifar_records(count, 1, 10, number)
        (folder / f"data_batch_{number}.bin").write_bytes(records)
    (folder / "test_batch.bin").write_bytes(cifar_records(8, 1, 10, 9))
    (folder / "batches.meta.txt").write_text("airplane\n")
    return folder


def write_cifar100(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.bin").write_bytes(cifar_records(count, 2, 100, 1))
    (folder / "test.bin").write_bytes(cifar_records(8, 2, 100, 2))
    (folder / "fine_label_names.txt").write_text("apple\n")
    return folder


def write_images(
    folder: Path, classes: Sequence[str] = ("n01", "n02"), count: int = 3
) -> Path:
    """``train/CLASS`` and ``val/CLASS`` of JPEG files of several sizes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                shape = (40 + 8 * (number % 3), 64 - 8 * (number % 3), 3)
                pixels = rng.integers(0, 256, shape, np.uint8)
                path = folder / split / name / f"{name}_{number}.JPEG"
                Image.fromarray(pixels).save(path, "JPEG")
    return folder


def sentences(count: int, seed: int = 0, words: int = 6) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 1 + rng.integers(words))) for _ in range(count)]


def write_tsv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, row)) for row in ([header] if header else []) + [*rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def write_sst2(folder: Path, count: int = 20) -> Path:
    """As GLUE ships it: ``train.tsv``, ``dev.tsv``, and a ``test.tsv`` of no labels."""
    for name, seed, rows in (("train", 0, count), ("dev", 1, 8)):
        texts = sentences(rows, seed)
        write_tsv(
            folder / f"{name}.tsv",
            ("sentence", "label"),
            [(text, i % 2) for i, text in enumerate(texts)],
        )
    tested = list(enumerate(sentences(3, 2)))
    write_tsv(folder / "test.tsv", ("index", "sentence"), tested)
    return folder


def write_wikitext(folder: Path, lines: int = 60) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in (("train", 0), ("valid", 1), ("test", 2)):
        text = "".join(f" {line} \n" for line in sentences(lines, seed))
        (folder / f"wiki.{name}.tokens").write_text(f" \n = Title = \n \n{text}")
    return folder


def write_wmt(folder: Path, count: int = 20) -> Path:
    """``train.de``, ``train.en``, ``valid.de``, ``valid.en``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in (("train", 0), ("valid", 1)):
        english = sentences(count, seed)
        german = [line.replace("the", "der").replace("cat", "Käse") for line in english]
        for language, lines in (("de", german), ("en", english)):
            text = "".join(line + "\n" for line in lines)
            (folder / f"{name}.{language}").write_text(text, encoding="utf-8")
    return folder


def write_tokenizer(folder: Path, *, marks: Sequence[str] = ("[CLS]", "[SEP]")) -> Path:
    """A word tokenizer in the files that transformers writes; BERT's marks, or none."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    vocabulary = {word: number for number, word in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    more: dict[str, Any] = {}
    if marks:
        cls, sep = marks
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
        )
        more = {"cls_token": cls, "sep_token": sep,
                "model_input_names": ["input_ids", "token_type_ids",
                                      "attention_mask"]}  # fmt: skip
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **more
    ).save_pretrained(folder)
    return folder
