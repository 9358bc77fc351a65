"""Directories whose weights have other names: read, or named with what to do."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import step_cli
from step_cli.errors import InputError
from step_cli.formats.huggingface.directory import has_weights
from step_cli.formats.huggingface.weight_names import weights_name
from step_cli.formats.open import open_checkpoint

GOOD = np.tile(np.array([1, 0, 2, 0], np.float32), (8, 4))
DENSE = np.arange(1, 129, dtype=np.float32).reshape(8, 16)


def made(folder: Path, *names: str, weight: np.ndarray = GOOD) -> Path:
    """A directory with these files, of which those of safetensors hold a weight."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file({"fc.weight": weight}, path)
        else:
            path.write_text("{}")
    return folder


READ = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "model.non_ema.safetensors",
)


@pytest.mark.parametrize("name", READ)
def test_parts_of_pipelines_and_a_lone_variant_are_read(
    name: str, tmp_path: Path
) -> None:
    folder = made(tmp_path / "m", name, "config.json")
    assert has_weights(folder)
    assert step_cli.verify(folder).exit_code == 0
    made(folder, name, weight=DENSE)
    assert step_cli.verify(folder).exit_code == 1
    out = tmp_path / "out"
    step_cli.prune(folder, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [name, "config.json", "nm_plan.json"]
    )
    assert step_cli.verify(out).exit_code == 0


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"),
        (
            "diffusion_pytorch_model.safetensors.index.json",
            "diffusion_pytorch_model-00001-of-00001.safetensors",
        ),
        (
            "diffusion_pytorch_model.fp16.safetensors.index.json",
            "diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
        ),
    ],
)
def test_so_are_their_shards_and_the_index_stays_right(
    index: str, shard: str, tmp_path: Path
) -> None:
    folder = made(tmp_path / "m", shard, weight=DENSE)
    document = {"metadata": {}, "weight_map": {"fc.weight": shard}}
    (folder / index).write_text(json.dumps(document))
    out = tmp_path / "out"
    assert step_cli.verify(folder).exit_code == 1
    step_cli.prune(folder, out)
    assert (out / index).read_bytes() == (folder / index).read_bytes()
    assert np.count_nonzero(load_file(out / shard)["fc.weight"]) == DENSE.size // 2
    assert step_cli.verify(out).exit_code == 0


def test_weights_of_torch_have_variants_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = made(tmp_path / "m", "config.json")
    for name in ("pytorch_model.fp16.bin", "diffusion_pytorch_model.bin"):
        torch.save({"fc.weight": torch.from_numpy(GOOD)}, folder / name)
        assert step_cli.verify(folder).exit_code == 0
        (folder / name).unlink()


def test_plain_weights_win_over_variants_and_several_variants_are_refused(
    tmp_path: Path,
) -> None:
    folder = made(tmp_path, "model.bf16.safetensors", "model.fp16.safetensors")
    with pytest.raises(
        InputError, match=r"several variants.*model\.bf16\.safetensors, model\.fp16"
    ):
        open_checkpoint(folder)
    found = open_checkpoint(made(folder, "pytorch_model.fp16.bin", "model.safetensors"))
    assert [path.name for path in found.files] == ["model.safetensors"]
    assert "reads model.safetensors, not model.fp16.safetensors" in found.notes


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00002.safetensors",
        "model.fp16-00001-of-00002.safetensors",
        "model.a.b.safetensors",
        "model.bin",
        "my_model.safetensors",
        "model.safetensors.index.json.bak",
        "tokenizer.json",
    ],
)
def test_other_names_are_none_of_these(name: str) -> None:
    assert weights_name(name) is None


NAMED = {
    "adapter_model.safetensors": "merge_and_unload",
    "adapter_model.bin": "merge_and_unload",
    "pytorch_lora_weights.safetensors": "an adapter",
    "consolidated.safetensors": "Mistral or Llama: name the file",
    "consolidated.00.pth": "Mistral or Llama: name the file",
    "original/consolidated.00.pth": "original/consolidated",
    "model-00001-of-00002.safetensors": r"model\.safetensors\.index\.json",
    "pytorch_model-00001-of-00002.bin": r"pytorch_model\.bin\.index\.json",
    "onnx/model.onnx": r"onnx/model\.onnx \(ONNX: name the file",
    "model_quantized.onnx": "ONNX",
    "llama.Q4_K_M.gguf": "GGUF",
    "tf_model.h5": "TensorFlow",
    "saved_model.pb": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "rank0.safetensors": "TensorRT-LLM",
    "rank0.engine": "TensorRT",
    "openvino_model.bin": "OpenVINO",
    "mp_rank_00_model_states.pt": "zero_to_fp32",
    "pytorch_model_fsdp_0/__0_0.distcp": "dcp_to_torch",
    "weights.npz": "another library",
    "megatron.nemo": "NeMo",
    "my_model.safetensors": "name the file itself",
    "checkpoint.pth": "name the file itself",
    "unet/diffusion_pytorch_model.safetensors": "folders with weights: .*unet",
    "checkpoint-500/model.safetensors": "training run: name one of checkpoint-500",
    "checkpoint-500/adapter_model.safetensors": "merge_and_unload",
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_not_read_is_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    folder = made(tmp_path, name, "config.json", "optimizer.bin", "training_args.bin")
    assert not has_weights(folder)
    report = step_cli.verify(folder)
    assert report.exit_code == 4
    with pytest.raises(InputError, match=NAMED[name]) as caught:
        open_checkpoint(folder)
    assert Path(name).parts[0] in caught.value.message
    assert "optimizer" not in caught.value.message


def test_folders_are_named_by_what_holds_them(tmp_path: Path) -> None:
    pipeline = made(
        tmp_path / "pipeline",
        "model_index.json",
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "scheduler/scheduler_config.json",
    )
    with pytest.raises(InputError, match=r"pipeline: name one of text_encoder, unet$"):
        open_checkpoint(pipeline)
    modules = made(
        tmp_path / "sentence", "modules.json", "0_Transformer/model.safetensors"
    )
    with pytest.raises(InputError, match=r"modules with weights.*0_Transformer"):
        open_checkpoint(modules)
    index, shard = "llama/model.safetensors.index.json", "model-00001-of-00001"
    mixed = made(tmp_path / "models", index, f"llama/{shard}.safetensors", "a.onnx")
    with pytest.raises(InputError, match=r"one of llama; a\.onnx \([^;]*\)$"):
        open_checkpoint(mixed)
    steps = [f"checkpoint-{n}/model.safetensors" for n in (500, 1000)]
    with pytest.raises(InputError, match="checkpoint-1000, checkpoint-500"):
        open_checkpoint(made(tmp_path / "steps", *steps))


def test_many_files_are_counted(tmp_path: Path) -> None:
    names = [f"model-{n:05d}-of-00009.safetensors" for n in range(1, 10)]
    with pytest.raises(InputError, match=r"00005-of-00009\.safetensors and 4 more"):
        open_checkpoint(made(tmp_path, *names))


def test_a_directory_with_weights_is_no_run_for_its_folder_called_model(
    tmp_path: Path,
) -> None:
    made(tmp_path, "model/model.safetensors")
    assert open_checkpoint(tmp_path).format == "run"
    made(tmp_path, "model.safetensors", weight=DENSE)
    assert open_checkpoint(tmp_path).format == "huggingface"


TWINS = (
    "consolidated.safetensors",
    "flax_model.msgpack",
    "model.fp16.safetensors",
    "onnx/model.onnx",
    "original/consolidated.00.pth",
    "pytorch_model.bin",
    "q/llama.gguf",
    "tf_model.h5",
)


@pytest.mark.parametrize("name", TWINS)
def test_prune_names_other_files_with_weights(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made(tmp_path / "m", "model.safetensors", name, weight=DENSE)
    for dry_run in (True, False):
        caplog.clear()
        step_cli.prune(folder, tmp_path / "out", dry_run=dry_run)
        (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
        assert f"copied as they are, not pruned: {name};" in record.getMessage()
    assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_all_of_them_in_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made(tmp_path / "m", "model.safetensors", *TWINS)
    step_cli.prune(folder, tmp_path / "out")
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert ", ".join(TWINS[:5]) + " and 3 more" in record.getMessage()


def test_no_warning_where_nothing_else_holds_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beside = ("config.json", "tokenizer.json", "tokenizer.model", "training_args.bin",
              "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "README.md",
              "adapter_model.safetensors")  # fmt: skip
    folder = made(tmp_path / "m", *beside, "s-1.safetensors")
    document = {"metadata": {}, "weight_map": {"fc.weight": "s-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    step_cli.prune(folder, tmp_path / "out")
    assert [r for r in caplog.records if r.levelno == logging.WARNING] == []


def test_checkpoints_of_a_run_are_named_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    step = "checkpoints/step-10/state.safetensors"
    folder = made(tmp_path / "run", "model/model.safetensors", step, "config.toml")
    step_cli.prune(folder, tmp_path / "out")
    assert f"not pruned: {step};" in caplog.text
