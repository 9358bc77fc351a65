"""Calibration files: what is read from them, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from step_cli.errors import InputError, NonFiniteError, UsageError
from step_cli.models.runnable import RunnableModel
from step_cli.oneshot.samples import divided, evened, read_batches


class Bytes(nn.Module):
    """Takes byte numbers, as its configuration says."""

    class config:
        vocab_size = 256
        n_positions = 8

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        return input_ids


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


TEXT = RunnableModel(Bytes(), {}, None)
PLAIN = RunnableModel(Plain(), {}, None)


def read(
    path: Path, runnable: RunnableModel = TEXT, most: int = 128
) -> list[dict[str, Tensor]]:
    return read_batches(path, runnable, most=most, tokenizer=None)


def test_text_is_cut_into_samples_as_long_as_the_model_takes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789\nabcdefghij\n")
    (batch,) = read(path)
    assert batch["input_ids"].tolist() == [list(b"01234567"), list(b"89\nabcde")]
    (first,) = read(path, most=1)
    assert first["input_ids"].tolist() == [list(b"01234567")]
    path.write_bytes(b"abc")
    (short,) = read(path)
    assert short["input_ids"].tolist() == [list(b"abc\n")]


def test_rows_are_texts_or_the_inputs_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "0123456789"}) + "\n")
    assert read(path)[0]["input_ids"].tolist() == [list(b"01234567")]
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}, {"input_ids": [7]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [batch["input_ids"].tolist() for batch in read(path)]
    assert found == [[[1, 2, 3], [4, 5, 6]], [[7]]]


def test_arrays_are_inputs_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    x = np.arange(24, dtype=np.float16).reshape(4, 3, 2)
    np.savez(path, x=x)
    (batch,) = read(path, PLAIN)
    assert batch["x"].dtype == torch.float32 and batch["x"].shape == (4, 3, 2)
    (some,) = read(path, PLAIN, most=2)
    assert some["x"][:, 0, 0].tolist() == [0, 18]  # the first and the last


def test_large_samples_come_in_several_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones((5, 500_000), np.float32))
    assert [len(batch["x"]) for batch in read(path, PLAIN)] == [2, 2, 1]


def write(folder: Path, name: str, content: bytes | dict[str, np.ndarray]) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "file is empty"),
        ("a.jsonl", b"\n\n", "no calibration sample"),
        ("a.jsonl", b'{"input_ids": [1, [2]]}\n', "line 1: neither"),
        ("a.jsonl", b'{"input_ids": "abc"}\n', "line 1: neither"),
        ("a.jsonl", b'{"input_ids": [1]}\nnot json\n', "line 2: not JSON"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.npz", b"PK\x03\x04 nothing", "no archive of arrays"),
        ("a.npz", {"wrong": np.zeros((2, 3))}, "sample 0: the model takes no 'wrong'"),
        ("a.npz", {"input_ids": np.zeros((0, 3), int)}, "no calibration sample"),
        ("a.npz", {"input_ids": np.zeros((2, 3), "c8")}, "sample 0: .* not numbers"),
        (
            "a.npz",
            {"input_ids": np.ones((2, 3), int), "attention_mask": np.ones((3, 3), int)},
            "numbers of samples differ",
        ),
        ("a.npz", {"input_ids": np.array([object()])}, "no archive of arrays"),
    ],
)
def test_what_is_no_sample_is_refused(
    name: str, content: bytes | dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read(write(tmp_path, name, content))
    assert caught.value.file == str(tmp_path / name)


def test_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs the model's tokenizer"):
        read(write(tmp_path, "a.txt", b"some text"), PLAIN)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.npz"):
        with pytest.raises(InputError, match="no such file"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.nan, r"sample 2: x\[1\] is nan"),
        (np.inf, "is inf"),
        (-np.inf, "is -inf"),
        (1e300, "is 1e\\+300 is too large for fp32"),
    ],
)
def test_what_is_not_finite_is_refused_with_its_place(
    bad: float, words: str, tmp_path: Path
) -> None:
    arrays = np.ones((4, 3))
    arrays[2, 1] = bad
    np.savez(tmp_path / "a.npz", x=arrays)
    for most in (128, 1):  # also where the sample is not chosen
        with pytest.raises(NonFiniteError, match=words):
            read(tmp_path / "a.npz", PLAIN, most)
    rows = [json.dumps({"x": row}) for row in arrays.tolist()]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(NonFiniteError, match=words):
        read(tmp_path / "a.jsonl", PLAIN)


def test_all_zero_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    words = "every number of all 4 samples is zero.*give samples of real data"
    for dtype in (np.float32, np.float16, np.int64):
        np.savez(path, x=np.zeros((4, 3), dtype))
        with pytest.raises(InputError, match=words):
            read(path, PLAIN)
    ids = np.zeros((4, 3), np.int64)
    np.savez(path, input_ids=ids, attention_mask=ids + 1)
    with pytest.raises(InputError, match=words):
        read(path)
    np.savez(path, input_ids=ids + 1, attention_mask=ids)
    assert len(read(path)) == 1
    arrays = np.zeros((4, 3), np.float32)
    arrays[3, 2] = 1e-30
    np.savez(path, x=arrays)
    assert len(read(path, PLAIN)) == 1


def test_batches_are_cut_and_evened_without_losing_a_sample() -> None:
    batches = [
        {"x": torch.arange(10)[:, None], "y": torch.arange(10)},
        {"x": torch.arange(10, 13)[:, None], "y": torch.arange(10, 13)},
        {"x": torch.arange(13, 15)[:, None, None], "y": torch.arange(13, 15)},
    ]
    small = divided(batches, 5)  # 15 samples: 3 in each
    assert [len(batch["y"]) for batch in small] == [3, 3, 3, 1, 3, 2]
    assert torch.cat([batch["y"] for batch in small]).tolist() == list(range(15))
    assert all(torch.equal(b["x"].flatten(), b["y"]) for b in small)
    assert [len(batch["y"]) for batch in divided(batches, 100)] == [1] * 15
    even = evened(batches)  # the third has other shapes
    assert [len(batch["y"]) for batch in even] == [7, 6, 2]
    assert torch.cat([batch["y"] for batch in even]).tolist() == list(range(15))
    assert all(torch.equal(b["x"].flatten(), b["y"]) for b in even)
