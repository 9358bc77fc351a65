"""`prune` on torch files as they are met: strided, old, nested, with metadata."""

import argparse
import collections
import datetime
import io
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks.torch_attacks import saved
from commands.prune.test_prune import best, names, run

from step_cli.commands.verify.run import verify
from step_cli.errors import InputError, UsageError
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.files import strided
from step_cli.formats.files.patched_copy import bytes_of
from step_cli.formats.open import open_checkpoint
from step_cli.nm.dtypes import numpy_dtype

FORMATS = {"zip": True, "before 1.6": False}


def dense(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    numbers = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))
    return (numbers + 0.5).to(dtype)


def strided_state() -> dict[str, torch.Tensor]:
    """Weights that do not lie row by row, with others' numbers between."""
    wide = dense(12, 40)
    return {
        "column_by_column.weight": dense(8, 12).t(),
        "columns.weight": wide[:, 4:20],
        "every_second.weight": dense(16, 24)[::2, ::3],
        "channels_last.weight": dense(4, 8, 3, 3).to(memory_format=torch.channels_last),
        "permuted.weight": dense(3, 8, 6, 3).permute(2, 1, 0, 3),
        "repeated_rows.weight": dense(1, 8).expand(6, 8),
        "half.weight": dense(9, 13, dtype=torch.float16)[1:, 1:],
        "brain.weight": dense(16, 9, dtype=torch.bfloat16)[:, 1:].t(),
        "byte.weight": torch.zeros(1, dtype=torch.uint8),  # what follows lies unaligned
        "f8.weight": dense(8, 9, dtype=torch.float32).to(torch.float8_e4m3fn)[:, 1:],
        "plain.weight": dense(8, 8),
        "bias": dense(8),
    }


def trainer(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What a training script saves."""
    moments = {0: {"step": torch.tensor(2.0), "exp_avg": dense(8, 8)}}
    return {
        "epoch": 3,
        "net": state,
        "optimizer": {"state": moments, "param_groups": [{"params": [0]}]},
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "best": np.float64(0.5),
        "seen": collections.defaultdict(int, a=1),
        "saved": datetime.datetime(2024, 5, 6),
    }


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy())


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_are_pruned_where_they_lie(kind: str, tmp_path: Path) -> None:
    source, out = tmp_path / "a.pth.tar", tmp_path / "b.pth.tar"
    given = trainer(strided_state())
    if not FORMATS[kind]:
        del given["net"]["f8.weight"]  # torch itself does not read it back
    source.write_bytes(saved(given, _use_new_zipfile_serialization=FORMATS[kind]))
    report = run(source, out)
    loaded = torch.load(out, weights_only=False)
    pruned = {layer.name for layer in report.layers}
    assert pruned == {name for name in given["net"] if "weight" in name} - {
        "byte.weight"
    }
    for name, old in given["net"].items():
        new = loaded["net"][name]
        assert new.stride() == old.stride() and new.dtype == old.dtype
        expected = best(old.float().numpy()) if name in pruned else old.float().numpy()
        np.testing.assert_array_equal(new.float().numpy(), expected, err_msg=name)
    state = loaded["optimizer"]["state"][0]
    assert torch.equal(state["exp_avg"], given["optimizer"]["state"][0]["exp_avg"])
    for name in ("epoch", "args", "best", "seen", "saved"):
        assert loaded[name] == given[name]
    assert out.stat().st_size == source.stat().st_size
    checked = verify(out)
    assert checked.ok, checked
    assert not verify(source).ok


def test_what_lies_between_the_elements_stays(tmp_path: Path) -> None:
    """The rest of a storage is no tensor of the file; its bytes stay as they are."""
    source, out = tmp_path / "a.pt", tmp_path / "b.pt"
    wide = dense(12, 40)
    source.write_bytes(saved({"a.weight": wide[2:9, 4:20]}))
    run(source, out)
    loaded = torch.load(out)["a.weight"]
    whole = loaded.as_strided(wide.shape, wide.stride(), 0)
    expected = wide.clone()
    expected[2:9, 4:20] = torch.from_numpy(best(wide[2:9, 4:20].numpy()))
    assert torch.equal(whole, expected)


@pytest.mark.parametrize("method", ["random", "transposable"])
def test_other_methods_write_between_others_too(method: str, tmp_path: Path) -> None:
    source, out = tmp_path / "a.pt", tmp_path / "b.pt"
    source.write_bytes(saved({"a.weight": dense(8, 16)[:, 4:12].t()}))
    options = {"transposable": True} if method == "transposable" else {"method": method}
    run(source, out, **options)
    weight = torch.load(out)["a.weight"]
    assert weight.stride() == (1, 16)
    assert int((weight != 0).sum()) == 32
    assert verify(out).ok


def test_one_number_for_several_elements_stays_one(tmp_path: Path) -> None:
    source = tmp_path / "a.pt"
    source.write_bytes(saved({"a.weight": dense(4, 1).expand(4, 8)}))
    with pytest.raises(InputError, match=r"expanded.*contiguous"):
        run(source, tmp_path / "b.pt")
    assert names(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("kind", FORMATS)
def test_tied_weights_stay_tied(kind: str, tmp_path: Path) -> None:
    source, out = tmp_path / "a.pt", tmp_path / "b.pt"
    weight = dense(8, 8).t()
    state = {"a.weight": weight, "b.weight": weight}
    source.write_bytes(saved(state, _use_new_zipfile_serialization=FORMATS[kind]))
    run(source, out)
    loaded = torch.load(out)
    assert loaded["a.weight"].data_ptr() == loaded["b.weight"].data_ptr()
    np.testing.assert_array_equal(loaded["b.weight"].numpy(), best(weight.numpy()))


def test_a_part_of_another_tensor_is_told(tmp_path: Path) -> None:
    whole = dense(8, 16)
    path = tmp_path / "a.pt"
    path.write_bytes(
        saved({"qkv": whole, "v.weight": whole[:, 8:], "o.weight": dense(4, 4)})
    )
    shared = {t.name: t.shared_with for t in open_checkpoint(path).tensors}
    assert shared == {
        "qkv": "the tensor 'v.weight'",
        "v.weight": "the tensor 'qkv'",
        "o.weight": None,
    }


def test_a_key_chooses_what_is_pruned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source, out = tmp_path / "a.th", tmp_path / "b.th"
    live, mean = {"fc.weight": dense(8, 8)}, {"fc.weight": dense(8, 8) + 1}
    source.write_bytes(saved({"live": live, "mean": mean}))
    with pytest.raises(InputError, match="both 'live' and 'mean'; choose one"):
        run(source, out)
    run(source, out, key="mean")
    loaded = torch.load(out)
    assert torch.equal(loaded["live"]["fc.weight"], live["fc.weight"])
    np.testing.assert_array_equal(
        loaded["mean"]["fc.weight"].numpy(), best(mean["fc.weight"].numpy())
    )
    assert verify(out, key="mean").ok and not verify(out, key="live").ok
    assert "reads the state dict under 'mean'" in caplog.text
    assert "tensors lie under 'live' too" in caplog.text


def test_a_key_is_for_torch_files(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "a.safetensors"
    save_file({"fc.weight": np.ones((4, 4), np.float32)}, path)
    with pytest.raises(UsageError, match="--key applies to torch files"):
        run(path, tmp_path / "b.safetensors", key="model")


@pytest.mark.parametrize("seed", range(30))
def test_any_view_is_written_as_numpy_writes_it(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strided, "CHUNK", 64)
    rng = random.Random(seed)
    base = np.arange(2400, dtype=rng.choice(["u1", "<u2", "<u4", "<u8"])).reshape(
        rng.choice([(40, 60), (8, 30, 10), (5, 6, 8, 10)])
    )
    view = base.transpose(rng.sample(range(base.ndim), base.ndim))
    view = view[tuple(_slice(rng, size) for size in view.shape)]
    path = tmp_path / "data"
    path.write_bytes(base.tobytes())
    tensor = _tensor_in(path, base, view)
    place = tensor.among
    assert place is not None and place.order is not None
    new = (view + 1).transpose(place.order).reshape(-1)
    blocks = np.array_split(new, rng.randint(1, 9))
    written = b"".join(map(bytes_of, strided.in_place(tensor, blocks)))
    view += 1
    assert written == base.tobytes()[place.begin : place.end]


def _slice(rng: random.Random, size: int) -> slice:
    first = rng.randrange(size)
    return slice(first, rng.randint(first + 1, size), rng.randint(1, 3))


def _tensor_in(path: Path, base: np.ndarray, view: np.ndarray) -> NamedTensor:
    from step_cli.formats.checkpoint import Place
    from step_cli.formats.files.mapped_file import map_file

    address = [array.__array_interface__["data"][0] for array in (base, view)]
    begin = address[1] - address[0]
    reach = sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    order = strided.order_of(view.shape, view.strides)
    end = begin + reach + view.itemsize
    place = Place(map_file(path), begin, end, order, view.strides)
    kind = numpy_dtype(view.dtype.name).name
    return NamedTensor("a", kind, view.shape, lambda: view, among=place)


def test_extra_state_beside_tensors_is_carried_over(tmp_path: Path) -> None:
    source, out = tmp_path / "a.bin", tmp_path / "b.bin"
    state = {
        "fc.weight": dense(8, 8),
        "fc._extra_state": io.BytesIO(b"amax"),
        "norm._extra_state": None,
        "up._extra_state": torch.ones(3),
        "down._extra_state": {"scale": torch.ones(2, 2)},
    }
    source.write_bytes(saved(state))
    report = run(source, out)
    assert [layer.name for layer in report.layers] == ["fc.weight"]
    loaded = torch.load(out, weights_only=False)
    assert loaded["fc._extra_state"].getvalue() == b"amax"
    assert verify(out).ok


def test_what_lies_elsewhere_in_the_file_is_told(tmp_path: Path) -> None:
    first, second = dense(8, 8), dense(8, 8)
    averaged = {"a.weight": first, "b.weight": second.clone()}
    path = tmp_path / "a.pt"
    path.write_bytes(
        saved({"model": {"a.weight": first, "b.weight": second}, "ema": [averaged]})
    )
    shared = {t.name: t.shared_with for t in open_checkpoint(path).tensors}
    assert shared == {"a.weight": "what lies under 'ema.0.a.weight'", "b.weight": None}


def test_a_key_is_for_exports_and_baselines_too(tmp_path: Path) -> None:
    from step_cli.commands.export.run import run as export
    from step_cli.config.commands import ExportConfig

    source, pruned = tmp_path / "a.pt", tmp_path / "b.pt"
    live, mean = {"fc.weight": dense(8, 8)}, {"fc.weight": dense(8, 8) + 1}
    source.write_bytes(saved({"live": live, "mean": mean}))
    run(source, pruned, key="mean")
    out = tmp_path / "c.safetensors"
    export(ExportConfig(checkpoint=pruned, out=out, to="compressed", key="mean"))
    (tensor,) = open_checkpoint(out).tensors
    expected = torch.load(pruned)["mean"]["fc.weight"]
    np.testing.assert_array_equal(tensor.read(), expected.numpy())
    assert verify(out, baseline=pruned, key=None, nm="2:4").error is not None
    same = verify(pruned, key="mean", baseline=pruned)
    assert same.ok and not verify(pruned, key="mean", baseline=source).ok


def test_a_tied_embedding_is_left_alone_unless_both_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, out = tmp_path / "a.pt", tmp_path / "b.pt"
    table = dense(8, 8)
    state = {"wte.weight": table, "lm_head.weight": table, "fc.weight": dense(8, 8) + 1}
    source.write_bytes(saved(state))
    report = run(source, out)
    assert [layer.name for layer in report.layers] == ["fc.weight"]
    assert {(s.name, s.reason) for s in report.skipped} == {
        ("wte.weight", "embedding"),
        ("lm_head.weight", "consumer"),
    }
    assert torch.equal(torch.load(out)["lm_head.weight"], table)
    words = "lm_head.weight is left alone, as it is tied to wte.weight"
    assert words in caplog.text
    with pytest.raises(UsageError, match="select both or neither"):
        run(source, out, include=["lm_head.weight"], force=True)
    both = ["lm_head.weight", "wte.weight"]
    report = run(source, out, include=both, force=True)
    assert [layer.name for layer in report.layers] == both
    np.testing.assert_array_equal(
        torch.load(out)["wte.weight"].numpy(), best(table.numpy())
    )


def test_what_other_keys_hold_too_is_left_alone_unless_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, out = tmp_path / "a.pt", tmp_path / "b.pt"
    first, second = dense(8, 8), dense(8, 8) + 1
    model = {"a.weight": first, "b.weight": second}
    source.write_bytes(saved({"model": model, "best": {"a.weight": first}}))
    report = run(source, out)
    assert [layer.name for layer in report.layers] == ["b.weight"]
    assert torch.equal(torch.load(out)["best"]["a.weight"], first)
    words = "a.weight is left alone, as its numbers are used by what lies under"
    assert words in caplog.text
    run(source, out, include=["a.weight"], force=True)
    np.testing.assert_array_equal(
        torch.load(out)["best"]["a.weight"].numpy(), best(first.numpy())
    )


def test_a_key_is_for_torch_files_of_a_directory_too(tmp_path: Path) -> None:
    source, out = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "bert"}')
    live, mean = {"fc.weight": dense(8, 8)}, {"fc.weight": dense(8, 8) + 1}
    data = saved({"live": live, "mean": mean}, _use_new_zipfile_serialization=False)
    (source / "pytorch_model.bin").write_bytes(data)
    run(source, out, key="mean")
    assert verify(out, key="mean").ok and not verify(out, key="live").ok
    loaded = torch.load(out / "pytorch_model.bin")
    assert torch.equal(loaded["live"]["fc.weight"], live["fc.weight"])
