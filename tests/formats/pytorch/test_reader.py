import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks.torch_attacks import W, archives, pickles, saved

from step_cli.errors import InputError, MissingError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import digests
from step_cli.formats.pytorch import reader as torch_file


def opened(tmp_path: Path, data: bytes, name: str = "m.pt") -> Checkpoint:
    path = tmp_path / name
    path.write_bytes(data)
    return open_checkpoint(path)


@pytest.mark.parametrize("name", archives())
def test_an_archive_that_does_not_hold_is_refused(name: str, tmp_path: Path) -> None:
    data, words = archives()[name]
    with pytest.raises(InputError, match=words):
        opened(tmp_path, data)


@pytest.mark.parametrize("name", pickles(Path("marker")))
def test_a_pickle_is_refused_and_runs_nothing(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data, words = pickles(marker)[name]
    with pytest.raises(InputError, match=words) as caught:
        opened(tmp_path, data)
    assert not marker.exists()
    assert "weights_only" not in caught.value.message
    assert "\n" not in caught.value.message


def test_tensors_are_mapped_from_the_file(tmp_path: Path) -> None:
    state = {
        "a": W,
        "tied": W,
        "transposed": W.t(),
        "bf16": torch.nn.Parameter(W.bfloat16()),
        "fp8": (W % 8).to(torch.float8_e4m3fn),
        "e5m2": (W % 4).to(torch.float8_e5m2),
        "fnuz": (W % 4).t().to(torch.float8_e5m2fnuz),
        "empty": torch.zeros(0, 4),
        "expanded": torch.ones(1).expand(2, 3),
        "last": torch.arange(96.0)
        .reshape(2, 3, 4, 4)
        .to(memory_format=torch.channels_last),
        "complex": W.to(torch.complex64),
        "sparse": W.to_sparse(),
        "meta": torch.empty(3, 4, device="meta"),
        "count": 3,
    }
    found = opened(tmp_path, saved({"epoch": 1, "state_dict": state, "optimizer": {}}))
    tensors = {tensor.name: tensor for tensor in found.tensors}
    assert list(tensors) == list(state)[:-1]
    assert {name for name, t in tensors.items() if t.skip == "kind"} == {
        "complex",
        "sparse",
        "meta",
    }
    for name in ("a", "tied", "transposed", "empty", "expanded", "last"):
        expected = state[name].numpy()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(tensors[name].read(), expected)
        assert not tensors[name].read().flags.writeable or name == "empty"
    assert tensors["bf16"].read().dtype.name == tensors["bf16"].dtype == "bfloat16"
    np.testing.assert_array_equal(
        tensors["fp8"].read().astype(np.float32), (W % 8).numpy()
    )
    np.testing.assert_array_equal(
        tensors["e5m2"].read().astype(np.float32), (W % 4).numpy()
    )
    np.testing.assert_array_equal(
        tensors["fnuz"].read().astype(np.float32), (W % 4).t().numpy()
    )
    assert [t.tied_to for t in found.tensors[:3]] == [None, "a", None]
    place = tensors["last"].place
    assert place is not None and place.order == (0, 2, 3, 1)
    assert tensors["expanded"].place is None
    assert tensors["expanded"].among is not None
    assert found.notes == ("carried over unread: epoch, optimizer",)
    with pytest.raises(InputError, match="kind"):
        tensors["sparse"].read()


def test_files_of_before_torch_1_6_are_read(tmp_path: Path) -> None:
    data = saved({"a": W, "b": W.t()}, _use_new_zipfile_serialization=False)
    found = opened(tmp_path, data, "pytorch_model.bin")
    np.testing.assert_array_equal(found.tensors[0].read(), W.numpy())
    np.testing.assert_array_equal(found.tensors[1].read(), W.t().numpy())
    transposed = found.tensors[1].place
    assert transposed is not None and transposed.order == (1, 0)


def test_the_plan_beside_it_is_read_and_its_digest_compared(tmp_path: Path) -> None:
    path, beside = tmp_path / "m.pt", tmp_path / "m.pt.nm_plan.json"
    path.write_bytes(saved({"a": W}))
    layers = {"a": {"pattern": "2:4", "axis": 1}}
    plan = {"schema": "step-cli/plan/1", "layers": layers, "files": digests([path])}
    beside.write_text(json.dumps(plan))
    assert set(open_checkpoint(path).plan or ()) == {"a"}
    path.write_bytes(saved({"a": W + 1}))
    with pytest.raises(InputError, match="sha256 differs"):
        open_checkpoint(path)


def test_without_torch_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"step-cli\[train\]"):
        opened(tmp_path, saved({"a": W}))


@pytest.mark.new_process
def test_a_module_in_the_working_directory_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("open('marker', 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert len(opened(tmp_path, saved({"a": W})).tensors) == 1
    assert not (tmp_path / "marker").exists()


@pytest.mark.new_process
def test_a_child_that_takes_too_long_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "busy_child.py").write_text(
        "from step_cli.formats.child_process import answer\n"
        "def work(request):\n"
        "    while True: pass\n"
        "answer(work)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch_file, "CHILD", "busy_child")
    monkeypatch.setattr(torch_file, "LONGEST_S", 1)
    with pytest.raises(InputError, match="took more than 1 s of processor time"):
        opened(tmp_path, saved({"a": W}))


def test_a_limit_that_is_there_already_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(saved({"w": W}))
    limited = "import resource as r; r.setrlimit(r.RLIMIT_AS, (2 << 30, 2 << 30))\n"
    code = f"{limited}from step_cli.cli.app import main; main()"
    words = [sys.executable, "-c", code, "verify-nm", str(path), "--include", "w"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # a verdict: the tensor is dense
