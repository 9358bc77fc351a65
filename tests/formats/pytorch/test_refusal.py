import io
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from attacks.opcodes import as_archive
from attacks.torch_attacks import saved
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.pytorch.reader import open_torch
from step_cli.formats.pytorch.refusal import MOST, in_words

ADVICE = {
    "torch.distributed._shard.sharded_tensor.api.ShardedTensor": "full_state_dict=True",
    "torch.distributed.tensor._dtensor_spec.Unknown": "full_tensor()",
    "torchao.dtypes.affine_quantized_tensor.AffineQuantizedTensor": "dequantize()",
    "__torch__.Net": "TorchScript, a program",
    "sklearn.linear_model._base.LinearRegression": "is no torch checkpoint",
    "ultralytics.nn.tasks.DetectionModel": "save model.state_dict() instead",
}


def unsupported(name: str) -> Exception:
    """What torch raises of a name that is not in its table."""
    module, _, last = name.rpartition(".")
    pickled = b"\x80\x02c" + f"{module}\n{last}\n".encode() + b"."
    return caught(as_archive(pickled))


def caught(data: bytes) -> Exception:
    raised = pytest.raises((pickle.UnpicklingError, RuntimeError))
    with raised as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(io.BytesIO(data), weights_only=True)
    return error.value


@pytest.mark.parametrize("name", ADVICE)
def test_the_advice_fits_what_was_found(name: str) -> None:
    said = in_words(unsupported(name))
    assert said.startswith((name, f"wants to call {name}, refused"))
    assert ADVICE[name] in said


def test_a_semi_structured_tensor_is_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = SparseSemiStructuredTensorCUTLASS(
            torch.Size([32, 64]), torch.zeros(32, 34).half(), None, None, None, None
        )
    said = in_words(caught(saved({"w": tensor})))
    assert "is a semi-structured tensor; call .to_dense() on each before saving" in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("numpy 1.26.4 wrote a.b.npy of [2.5, 3]. Try again. Or not", "[2.5, 3])"),
        ("first line of 2.13.0\nsecond line", "first line of 2.13.0)"),
        ("no end", "no end)"),
        ("x" * 999, "x" * MOST + "...)"),
    ],
)
def test_a_foreign_sentence_is_shown_whole(text: str, shown: str) -> None:
    said = in_words(ValueError(text))
    assert shown in said and "Try again" not in said and "second" not in said
    assert len(said) < MOST + 100


def test_another_protocol_is_told() -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer, pickle_protocol=4)
    assert "default pickle_protocol; save model.state_dict()" in in_words(
        caught(buffer.getvalue())
    )


def test_another_pickle_is_told() -> None:
    assert "torch.save did not write" in in_words(caught(pickle.dumps({"w": 1}, 2)))


@pytest.mark.parametrize("cut", [1, 1000, 3000])
def test_an_old_file_that_is_cut_short_is_told(cut: int, tmp_path: Path) -> None:
    data = saved({"w": torch.ones(30, 30)}, _use_new_zipfile_serialization=False)
    path = tmp_path / "m.pt"
    path.write_bytes(data[:-cut])
    words = f"truncated: needs {len(data)} bytes, file has {len(data) - cut}"
    with pytest.raises(InputError, match=words):
        open_torch(map_file(path))
