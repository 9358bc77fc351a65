"""Bitmask files of old compressed-tensors releases, as those releases wrote them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import step_cli
from step_cli.commands.export import run as export
from step_cli.commands.prune import run as prune
from step_cli.commands.verify import run as verify_nm
from step_cli.config.commands import ExportConfig, PruneConfig, VerifyConfig
from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.open import open_checkpoint
from step_cli.formats.safetensors.header import read_header
from step_cli.formats.safetensors.reader import open_safetensors
from step_cli.formats.safetensors.writer import save_safetensors
from step_cli.nm.pattern import NMPattern, NMSpec

Array = np.ndarray[Any, Any]
RECORDED = Path(__file__).parent / "recorded"
TWO_FOUR = RECORDED / "sparse_24_bitmask.safetensors"
ANY_SPARSITY = RECORDED / "sparse_bitmask.safetensors"
PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def weight(rows: int, columns: int, start: int) -> Array:
    """Eighths that rise from ``start``, another pair of each group kept in turn."""
    values = (np.arange(rows * columns, dtype=np.float32) + start).reshape(-1, 4) / 8
    for group, row in enumerate(values):
        for column in range(4):
            if column not in PAIRS[group % 6]:
                row[column] = 0
    values[0] = 0
    return values.reshape(rows, columns)


def dense() -> dict[str, Array]:
    return {
        "model.fc1.weight": weight(6, 16, 1).astype(np.float16),
        "model.fc2.weight": weight(4, 12, -20).astype(ml_dtypes.bfloat16),
        "model.fc1.bias": np.arange(6, dtype=np.float16),
    }


def parts(path: Path = TWO_FOUR) -> dict[str, Array]:
    return {t.name: t.read() for t in open_safetensors(map_file(path)).tensors}


def saved(path: Path, tensors: dict[str, Array]) -> Path:
    save_safetensors(path, tensors, {"format": "pt"})
    return path


def same_bits(path: Path, expected: dict[str, Array]) -> None:
    read = {tensor.name: tensor.read() for tensor in open_checkpoint(path).tensors}
    assert sorted(read) == sorted(expected)
    for name, array in expected.items():
        assert read[name].dtype == array.dtype, name
        assert read[name].shape == array.shape, name
        assert read[name].tobytes() == array.tobytes(), name
        assert not read[name].flags.writeable


@pytest.mark.parametrize("path", [TWO_FOUR, ANY_SPARSITY], ids=["2:4", "any"])
def test_recorded_files_read_as_the_dense_weights_they_were_made_from(
    path: Path,
) -> None:
    same_bits(path, dense())
    assert open_checkpoint(path).format == "compressed"


def test_what_is_stored_as_two_of_four_has_that_plan() -> None:
    layer = NMSpec(NMPattern(2, 4), 1)
    plan = open_checkpoint(TWO_FOUR).plan
    assert plan == {"model.fc1.weight": layer, "model.fc2.weight": layer}
    assert open_checkpoint(ANY_SPARSITY).plan is None


def test_names_of_the_first_releases_keep_their_last_word(tmp_path: Path) -> None:
    renamed = {
        name.replace("fc1.", "fc1.weight.") if "bias" not in name else name: array
        for name, array in parts().items()
    }
    same_bits(saved(tmp_path / "m.safetensors", renamed), dense())


def test_parts_in_several_shards_are_put_together(tmp_path: Path) -> None:
    weight_map = {}
    for number, (name, array) in enumerate(parts().items()):
        shard = f"model-{number}.safetensors"
        saved(tmp_path / shard, {name: array})
        weight_map[name] = shard
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same_bits(tmp_path, dense())
    found = open_checkpoint(tmp_path)
    assert (found.format, found.compressed) == ("huggingface", True)


def test_verify_nm_judges_the_weights_behind_a_bitmask(tmp_path: Path) -> None:
    report = verify_nm.run(VerifyConfig(checkpoint=[TWO_FOUR]))
    assert report.ok
    assert [layer.name for layer in report.checkpoints[0].layers] == [
        "model.fc1.weight",
        "model.fc2.weight",
    ]
    broken = parts()
    mask = broken["model.fc1.bitmask"] = broken["model.fc1.bitmask"].copy()
    mask[1, 0] = 0b0111_0001  # the same number of values, three of them in one group
    values = broken["model.fc1.compressed"]
    assert int(np.bitwise_count(mask).sum()) == values.size
    report = verify_nm.run(
        VerifyConfig(checkpoint=[saved(tmp_path / "m.safetensors", broken)])
    )
    assert not report.ok
    assert report.checkpoints[0].totals.violations == 1


def test_export_to_dense_and_to_our_own_format(tmp_path: Path) -> None:
    back, ours = tmp_path / "dense.safetensors", tmp_path / "ours.safetensors"
    report = export.run(ExportConfig(checkpoint=TWO_FOUR, out=back, to="dense"))
    assert report.ok
    assert report.negative_zeros is None  # not recorded in the file
    same_bits(back, dense())
    assert export.run(ExportConfig(checkpoint=TWO_FOUR, out=ours, to="compressed")).ok
    same_bits(ours, dense())


def test_any_sparsity_comes_back_without_a_plan(tmp_path: Path) -> None:
    back = tmp_path / "dense.safetensors"
    step_cli.export(ANY_SPARSITY, back, to="dense")
    same_bits(back, dense())
    header = read_header(map_file(back))
    assert header.metadata == {"format": "pt"}
    assert open_checkpoint(back).plan is None
    assert len(step_cli.verify(back).checkpoints[0].layers) == 2
    step_cli.export(TWO_FOUR, back, to="dense", force=True)
    assert set(open_checkpoint(back).plan or ()) == {
        "model.fc1.weight",
        "model.fc2.weight",
    }


def test_load_compressed_takes_them(tmp_path: Path) -> None:
    state = step_cli.load_compressed(TWO_FOUR)
    assert sorted(state) == sorted(dense())
    fc1 = state["model.fc1.weight"]
    assert fc1.numpy().tobytes() == dense()["model.fc1.weight"].tobytes()
    with pytest.raises(InputError, match="not written by"):
        plain = saved(tmp_path / "plain.safetensors", dense())
        step_cli.load_compressed(plain)


def test_prune_says_to_turn_it_back_first(tmp_path: Path) -> None:
    config = PruneConfig(checkpoint=TWO_FOUR, out=tmp_path / "out.safetensors")
    with pytest.raises(InputError, match="--to dense"):
        prune.run(config)


def test_a_plain_tensor_named_like_a_part_stays_what_it_is(tmp_path: Path) -> None:
    tensors = {
        "a.bitmask": np.zeros((2, 2), np.uint8),
        "b.compressed": np.zeros((2, 2), np.float32),
    }
    same_bits(saved(tmp_path / "m.safetensors", tensors), tensors)


Change = Callable[[dict[str, Array]], None]


def without(name: str) -> Change:
    def change(tensors: dict[str, Array]) -> None:
        del tensors[name]

    return change


def with_part(name: str, array: Array) -> Change:
    return lambda tensors: tensors.update({name: array})


FC2 = np.array([4, 12], np.int64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("model.fc2.shape"), "'.shape' is missing; name the whole directory"),
        (without("model.fc2.compressed"), "'.compressed' is missing"),
        (with_part("model.fc2.shape", FC2.astype(np.int32)), "not a shape of two"),
        (with_part("model.fc2.shape", np.array([4, 3, 4])), "not a shape of two"),
        (with_part("model.fc2.shape", FC2 * 2**40), "not one of shape"),
        (with_part("model.fc2.shape", -FC2), "not one of shape"),
        (with_part("model.fc2.shape", np.array([4, 13])), "not half of shape"),
        (with_part("model.fc2.compressed", np.ones((4, 5))), "not half of shape"),
        (with_part("model.fc2.weight", np.ones((4, 12))), "both dense and as a bit"),
    ],
)
def test_parts_that_disagree_are_refused_when_opened(
    tmp_path: Path, change: Change, words: str
) -> None:
    tensors = parts()
    change(tensors)
    with pytest.raises(InputError, match=words) as caught:
        open_checkpoint(saved(tmp_path / "m.safetensors", tensors))
    assert caught.value.tensor is not None


@pytest.mark.parametrize(
    ("last_byte", "words"),
    [(0b0000_0111, "keeps 25 values, the file has 24"), (0b0011_0000, "beyond")],
)
def test_a_damaged_bitmask_is_refused_when_read(
    tmp_path: Path, last_byte: int, words: str
) -> None:
    tensors = parts()
    mask = tensors["model.fc2.bitmask"] = tensors["model.fc2.bitmask"].copy()
    assert int(mask[0, 1]).bit_count() == 2
    mask[0, 1] = last_byte
    checkpoint = open_checkpoint(saved(tmp_path / "m.safetensors", tensors))
    fc2 = next(t for t in checkpoint.tensors if t.name == "model.fc2.weight")
    with pytest.raises(InputError, match=words):
        fc2.read()
