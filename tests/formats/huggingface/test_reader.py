import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import step_cli
from step_cli.errors import InputError
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import digests

ONES = np.ones((4, 8), np.float32)
PLAN = {
    "schema": "step-cli/plan/1",
    "layers": {"w.weight": {"pattern": "2:4", "axis": 1}},
}


def sharded(folder: Path, weight_map: dict[str, str]) -> Path:
    """A directory whose shards hold what the index says."""
    folder.mkdir(exist_ok=True)
    for shard in set(weight_map.values()):
        names = [name for name, file in weight_map.items() if file == shard]
        save_file({name: ONES for name in names}, folder / shard)
    index(folder, weight_map)
    return folder


def index(folder: Path, weight_map: object) -> None:
    document = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def single(folder: Path, model_type: str | None = None, name: str = "w.weight") -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: ONES}, folder / "model.safetensors")
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def refused(path: Path, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_checkpoint(path)


def test_shards_are_read_as_one_checkpoint(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", {"a": "s-1.safetensors", "b": "s-2.safetensors"})
    found = open_checkpoint(folder)
    assert found.format == "huggingface"
    assert [tensor.name for tensor in found.tensors] == ["a", "b"]
    assert len(found.files) == 2


NOT_PLAIN = (
    "../x.safetensors",
    "/x.safetensors",
    "a/b.safetensors",
    "a\\b.safetensors",
    "c:x.safetensors",
    "a\0.safetensors",
    "..",
    "",
    "x.txt",
    3,
    None,
)


@pytest.mark.parametrize("shard", NOT_PLAIN)
def test_a_shard_name_must_be_plain(shard: object, tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    index(folder, {"a": shard})
    refused(folder, "plain file name")


def test_an_index_and_its_shards_must_agree(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", {"a": "s-1.safetensors", "b": "s-2.safetensors"})
    index(folder, {"a": "s-1.safetensors", "c": "s-1.safetensors"})
    refused(folder, r"promises 'c', absent")
    index(folder, {c: "s-3.safetensors" for c in "abcde"})
    refused(folder, r"'a', 'b', 'c' and 2 more")
    index(folder, {})
    refused(folder, "weight_map")
    (folder / "model.safetensors.index.json").write_text("{")
    refused(folder, "not JSON")
    save_file({"a": ONES}, folder / "s-2.safetensors")
    index(folder, {"a": "s-1.safetensors", "x": "s-2.safetensors"})
    save_file({"a": ONES, "x": ONES}, folder / "s-2.safetensors")
    refused(folder, "stands in two shards")


def test_files_beside_the_index_are_noted(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", {"a": "s-1.safetensors"})
    save_file({"z": ONES}, folder / "extra.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    notes = " ".join(open_checkpoint(folder).notes)
    assert "extra.safetensors is not in the index" in notes
    assert "not pytorch_model.bin" in notes
    single(folder)
    found = open_checkpoint(folder)
    assert [tensor.name for tensor in found.tensors] == ["w.weight"]
    assert "reads model.safetensors, not model.safetensors.index.json" in found.notes


def test_what_holds_no_weights_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "no weights in it; looked for model.safetensors")
    (tmp_path / "config.toml").touch()
    (tmp_path / "metrics.jsonl").touch()
    refused(tmp_path, "use --resume")


def test_a_distributed_checkpoint_is_refused_with_advice(tmp_path: Path) -> None:
    single(tmp_path)
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    refused(tmp_path, "metadata is a pickle.*dcp_to_torch")
    (tmp_path / "__0_0.distcp").unlink()
    (tmp_path / ".metadata").write_bytes(b"x")
    refused(tmp_path, "metadata is a pickle")


def test_a_run_is_read_from_its_model(tmp_path: Path) -> None:
    single(tmp_path / "model")
    found = open_checkpoint(tmp_path)
    assert (found.format, found.path) == ("run", tmp_path)


def test_links_into_the_blobs_of_the_cache_work_and_others_do_not(
    tmp_path: Path,
) -> None:
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0f1e"
    snapshot.mkdir(parents=True)
    single(blobs, "gpt2")
    for name in ("model.safetensors", "config.json"):
        (snapshot / name).symlink_to(Path("..", "..", "blobs", name))
    assert len(open_checkpoint(snapshot).tensors) == 1
    outside = single(tmp_path / "elsewhere")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(outside / "model.safetensors")
    refused(snapshot, "link leaves the checkpoint")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("gone")
    refused(snapshot, "no such file")


CONV1D = "transformer.h.0.attn.c_attn.weight"


def axis_of(path: Path) -> tuple[int, str]:
    (layer,) = step_cli.verify(path).checkpoints[0].layers
    return layer.axis, layer.axis_from


@pytest.mark.parametrize(
    ("model_type", "axis"),
    [
        ("gpt2", (0, "config")),
        ("openai-gpt", (0, "config")),
        ("gpt_bigcode", (1, "config")),
        (None, (0, "name")),
    ],
)
def test_the_config_decides_whether_gpt2_names_mean_conv1d(
    model_type: str | None, axis: tuple[int, str], tmp_path: Path
) -> None:
    folder = single(tmp_path / "m", model_type, CONV1D)
    for path in (folder, folder / "model.safetensors"):
        assert axis_of(path) == axis


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": {"auto_map": 1}}', "\xff"])
def test_a_hostile_config_decides_nothing_and_stops_nothing(
    text: str, tmp_path: Path
) -> None:
    folder = single(tmp_path / "m", None, CONV1D)
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert len(open_checkpoint(folder).tensors) == 1


def test_a_composed_model_may_have_a_gpt2_part(tmp_path: Path) -> None:
    folder = single(tmp_path / "m", None, CONV1D)
    config = {"model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert axis_of(folder) == (0, "config")


def test_the_plan_file_is_read_and_its_digests_are_compared(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    weights = folder / "model.safetensors"
    plan = folder / "nm_plan.json"
    plan.write_text(json.dumps(PLAN))
    assert set(open_checkpoint(folder).plan or ()) == {"w.weight"}
    plan.write_text(json.dumps({**PLAN, "files": digests([weights])}))
    assert open_checkpoint(folder).plan is not None
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused(folder, "sha256 differs")
