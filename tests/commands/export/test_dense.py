"""`--to dense` of directories: old bitmask files, and a dead sparsity_config."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import step_cli as library
from step_cli.errors import InputError, StepError, UsageError
from step_cli.formats.huggingface.sparsity_config import remove_sparsity_config
from step_cli.formats.plan import read_plan

Array = np.ndarray[Any, Any]
UP, HEAD = "model.layers.0.mlp.up_proj.weight", "lm_head.weight"
SPARSITY = {
    "format": "sparse-24-bitmask",
    "sparsity_structure": "2:4",
    "targets": ["Linear"],
    "ignore": ["lm_head"],
}
GROUPS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}


def two_four(rows: int, columns: int) -> Array:
    """The second and the fourth of each four, another value each."""
    weight = np.zeros((rows, columns), np.float16)
    weight[:, 1::2] = np.arange(1, rows * columns // 2 + 1).reshape(rows, -1) / 8
    return weight


def parts(name: str, weight: Array) -> dict[str, Array]:
    """A weight as compressed-tensors stored it until 0.14."""
    base = name.removesuffix(".weight")
    bits = np.packbits(weight != 0, 1, bitorder="little")
    return {
        f"{base}.shape": np.array(weight.shape, np.int64),
        f"{base}.bitmask": bits,
        f"{base}.compressed": weight[weight != 0].reshape(len(weight), -1),
    }


def directory(folder: Path, config: dict[str, Any], *, packed: bool = True) -> Path:
    """A 2:4 layer, packed or not, beside a dense head and a tokenizer."""
    folder.mkdir()
    up = two_four(8, 16)
    tensors = parts(UP, up) if packed else {UP: up}
    tensors[HEAD] = np.ones((12, 8), np.float16)
    save_file(tensors, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "SHARD")}
    text = json.dumps(index).replace("SHARD", "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def old(**more: object) -> dict[str, Any]:
    held = {"quant_method": "compressed-tensors", "sparsity_config": SPARSITY, **more}
    return {"model_type": "llama", "quantization_config": held, "vocab_size": 12}


@pytest.mark.parametrize("packed", [True, False], ids=["bitmask", "dense"])
def test_the_directory_has_plain_weights_and_no_sparsity_config(
    tmp_path: Path, step_cli: Callable[..., Any], packed: bool
) -> None:
    source = directory(tmp_path / "old", old(), packed=packed)
    outcome = step_cli("export", source, tmp_path / "new/", "--to", "dense")
    assert outcome.code == 0, outcome.err
    assert (
        "config.json: left out quantization_config, with a sparsity_config of format "
        "sparse-24-bitmask"
    ) in " ".join(outcome.out.split())
    new = tmp_path / "new"
    assert sorted(path.name for path in new.iterdir()) == [
        "config.json", "model.safetensors", "nm_plan.json", "tokenizer.json",
    ]  # fmt: skip
    found = load_file(new / "model.safetensors")
    assert sorted(found) == [HEAD, UP]
    assert found[UP].tobytes() == two_four(8, 16).tobytes()
    config = json.loads((new / "config.json").read_text())
    assert config == {"model_type": "llama", "vocab_size": 12}
    # What the sparsity_config left dense is still left dense: the plan has it now.
    assert list(read_plan(new / "nm_plan.json")) == [UP]
    assert library.verify(new).ok
    with pytest.raises(InputError, match="not written by export --to compressed"):
        library.export(new, tmp_path / "again", to="dense")


def test_a_group_that_is_not_two_four_leaves_the_directory_without_a_plan(
    tmp_path: Path,
) -> None:
    source = directory(tmp_path / "old", old(), packed=False)
    shard = source / "model-00001-of-00001.safetensors"
    tensors = load_file(shard)
    tensors[UP][0, :3] = 1
    save_file(tensors, shard, {"format": "pt"})
    report = library.export(source, tmp_path / "new", to="dense")
    assert report.ok and report.output == str(tmp_path / "new")
    assert not (tmp_path / "new" / "nm_plan.json").exists()
    assert not library.verify(tmp_path / "new", exclude=["lm_head.*"]).ok


def test_a_quantization_beside_it_stays(tmp_path: Path) -> None:
    config = old(config_groups=GROUPS, format="int-quantized")
    source = directory(tmp_path / "old", config)
    report = library.export(source, tmp_path / "new", to="dense")
    assert report.notes == [
        "config.json: left out quantization_config.sparsity_config of format "
        "sparse-24-bitmask"
    ]
    kept = json.loads((tmp_path / "new" / "config.json").read_text())
    assert kept["quantization_config"] == {
        "quant_method": "compressed-tensors",
        "config_groups": GROUPS,
        "format": "int-quantized",
    }


def test_a_file_is_written_alone_and_the_report_says_what_that_leaves(
    tmp_path: Path,
) -> None:
    source = directory(tmp_path / "old", old())
    out = tmp_path / "dense.safetensors"
    (note,) = library.export(source, out, to="dense").notes
    assert note.startswith("config.json was not copied, and none with its quant")
    assert load_file(out)[UP].tobytes() == two_four(8, 16).tobytes()
    (source / "config.json").write_text('{"model_type": "llama"}')
    assert library.export(source, out, to="dense", force=True).notes == []


def test_a_packed_directory_without_sparsity_config_keeps_its_config_byte_for_byte(
    tmp_path: Path,
) -> None:
    source = directory(tmp_path / "old", {"model_type": "llama"})
    (source / "config.json").write_text('{"model_type":   "llama"}')
    assert library.export(source, tmp_path / "new", to="dense").notes == []
    assert (tmp_path / "new" / "config.json").read_text() == '{"model_type":   "llama"}'


@pytest.mark.parametrize(
    ("name", "out", "kind", "words"),
    [
        ("plain", "new", InputError, "not written by export --to compressed"),
        ("old", "old/new", UsageError, "inside the input"),
        ("file.safetensors", "new", UsageError, "ends in .safetensors"),
        ("old", "there", StepError, "exists, use --force"),
    ],
)
def test_refusals(
    tmp_path: Path, name: str, out: str, kind: type[StepError], words: str
) -> None:
    directory(tmp_path / "old", old())
    directory(tmp_path / "plain", {"model_type": "llama"}, packed=False)
    save_file(parts(UP, two_four(8, 16)), tmp_path / "file.safetensors")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind, match=words):
        library.export(tmp_path / name, tmp_path / out, to="dense")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_is_no_target_of_other_kinds(tmp_path: Path) -> None:
    source = directory(tmp_path / "old", {"model_type": "llama"}, packed=False)
    with pytest.raises(StepError, match="names a directory"):
        library.export(source, f"{tmp_path}/new/", to="compressed")


@pytest.mark.parametrize(
    ("config", "left", "rest"),
    [
        ({"a": 1}, [], {"a": 1}),
        ({"sparsity_config": SPARSITY}, ["sparsity_config of format sp"], {}),
        (
            {"compression_config": {"sparsity_config": {}}},
            ["compression_config, with a sparsity_config"],
            {},
        ),
        (
            {"text_config": {"quantization_config": {"sparsity_config": None}}},
            ["text_config.quantization_config, with a sparsity_config"],
            {"text_config": {}},
        ),
        (
            {"quantization_config": {"sparsity_config": 3, "quant_method": "gptq"}},
            ["quantization_config.sparsity_config"],
            {"quantization_config": {"quant_method": "gptq"}},
        ),
        (
            {"quantization_config": {"config_groups": GROUPS}},
            [],
            {"quantization_config": {"config_groups": GROUPS}},
        ),
        ({"quantization_config": [1]}, [], {"quantization_config": [1]}),
    ],
)
def test_what_is_taken_out_of_a_config(
    config: dict[str, Any], left: list[str], rest: dict[str, Any]
) -> None:
    found = remove_sparsity_config(config)
    assert len(found) == len(left)
    assert all(one.startswith(start) for one, start in zip(found, left, strict=True))
    assert config == rest


def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    """The numbers are those of the model that the old directory was made of."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.mul_(library.nm_mask(weight.abs(), "2:4", axis=1))
    source, new = tmp_path / "old", tmp_path / "new"
    model.save_pretrained(source)
    tensors: dict[str, Array] = {}
    for name, array in load_file(source / "model.safetensors").items():
        tensors |= parts(name, array) if "proj" in name else {name: array}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    noted = json.loads((source / "config.json").read_text())
    noted["quantization_config"] = old()["quantization_config"]
    (source / "config.json").write_text(json.dumps(noted))

    assert library.export(source, new, to="dense").ok
    loaded = transformers.AutoModelForCausalLM.from_pretrained(new).eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert library.verify(new).ok and len(read_plan(new / "nm_plan.json")) == 7
