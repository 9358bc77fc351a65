"""`stdlib-gpt`: its data, and its run as the CHECKPOINT of every other command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.nn import functional  # noqa: E402

from step_cli.config.data import DataSection  # noqa: E402
from step_cli.config.samples import load_sample, sample_directory  # noqa: E402
from step_cli.config.train import load_config  # noqa: E402
from step_cli.data.load import load_data  # noqa: E402
from step_cli.training.run import train  # noqa: E402

Run = Callable[..., Any]
CONFIG = sample_directory("stdlib-gpt") / "config.toml"
TINY = ("model.options.layers=2", "model.options.width=32", "model.options.heads=2",
        "train.steps=30", "train.batch_size=8", "train.warmup_steps=4",
        "train.betas=[0.9, 0.8]", "train.lr=1e-2",
        "train.eval_every=30")  # fmt: skip
WORDS = [word for item in TINY for word in ("--set", item)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short STEP run of a tiny model, made once."""
    run_dir = tmp_path_factory.mktemp("runs") / "gpt"
    assert train(load_config(CONFIG, TINY), run_dir).ok
    return run_dir


def metrics_of(run_dir: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run_dir / "report.json").read_text())[
        "metrics"
    ]
    return found


def test_the_label_of_each_byte_is_the_next_one() -> None:
    data = load_data(DataSection(source="stdlib"))
    batch = data.train[torch.tensor([0, 1])]
    tokens, labels = batch.inputs["input_ids"], batch.labels
    assert tokens.shape == labels.shape == (2, 128)
    assert torch.equal(tokens[0, 1:], labels[0, :-1])
    assert labels[0, -1] == tokens[1, 0]
    assert int(tokens.min()) >= 0 and int(tokens.max()) < 256


def test_files_are_held_out_as_a_whole() -> None:
    module = load_sample("stdlib-gpt", "data")
    files = module.text_files()
    held_out = files[:: module.HELD_OUT]
    data = load_data(DataSection(source="stdlib"))
    assert len(data.held_out) == 512
    assert len(data.train) == len(
        module.samples([file for file in files if file not in held_out])
    )
    text = b"".join(file.read_bytes() for file in held_out)
    for row in data.held_out[torch.tensor([0, 100, 511])].inputs["input_ids"]:
        assert bytes(row.tolist()) in text


def test_it_learns(finished: Path) -> None:
    # A model that knows how often each byte occurs has a loss of 3.3.
    assert metrics_of(finished)["eval_loss"] < 3.2


def test_from_pretrained_gives_the_reported_loss(finished: Path) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(finished / "model").eval()
    split = load_data(DataSection(source="stdlib")).held_out
    batch = split[torch.arange(len(split))]
    with torch.no_grad():
        scores = model(input_ids=batch.inputs["input_ids"]).logits
    loss = functional.cross_entropy(scores.flatten(0, 1), batch.labels.flatten())
    assert loss.item() == pytest.approx(metrics_of(finished)["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("part", [".", "model", "model/model.safetensors"])
def test_verify_nm_reads_the_axis_of_conv1d(
    step_cli: Run, finished: Path, part: str
) -> None:
    outcome = step_cli("verify-nm", finished / part, "--json", "--nm", "2:4",
                       "--exclude", "lm_head.*")  # fmt: skip
    assert outcome.code == 0
    (checkpoint,) = outcome.json["checkpoints"]
    assert {layer["axis"] for layer in checkpoint["layers"]} == {0}
    assert len(checkpoint["layers"]) == 8
    reasons = {item["name"]: item["reason"] for item in checkpoint["skipped"]}
    assert reasons["transformer.wte.weight"] == "embedding"
    assert reasons["transformer.wpe.weight"] == "embedding"
    wrong = step_cli("verify-nm", finished / part, "--nm", "2:4", "--axis", "*=1")
    assert wrong.code == 1


def test_evaluate_gives_the_metrics_of_the_run(step_cli: Run, finished: Path) -> None:
    for checkpoint in (finished, finished / "model"):
        outcome = step_cli("train", CONFIG, "--evaluate", checkpoint, "--json", *WORDS)
        assert outcome.code == 0
        assert outcome.json["metrics"] == metrics_of(finished)


def test_the_run_can_be_pruned_further(
    step_cli: Run, finished: Path, tmp_path: Path
) -> None:
    pruned = tmp_path / "pruned"
    assert step_cli("prune", finished, pruned, "--nm", "1:4").code == 0
    assert step_cli("verify-nm", pruned, "--nm", "1:4").code == 0
    assert step_cli("verify-nm", finished, "--nm", "1:4").code == 1
    outcome = step_cli("train", CONFIG, "--evaluate", pruned, "--json", *WORDS)
    assert outcome.json["density"] == 0.25
    assert outcome.json["metrics"]["eval_loss"] != metrics_of(finished)["eval_loss"]


@pytest.mark.parametrize("part", [".", "model"])
def test_training_can_start_from_it(
    step_cli: Run, finished: Path, tmp_path: Path, part: str
) -> None:
    outcome = step_cli(
        "train", CONFIG, "--run-dir", tmp_path / "more", "--json", *WORDS,
        "--set", f"model.weights={finished / part}", "--set", "train.lr=1e-9",
        "--set", "sparsity.recipe=asp",
    )  # fmt: skip
    assert outcome.code == 0
    loss = outcome.json["metrics"]["eval_loss"]
    assert loss == pytest.approx(metrics_of(finished)["eval_loss"], abs=1e-3)


def test_its_model_is_a_source(step_cli: Run, finished: Path, tmp_path: Path) -> None:
    settings = [f"model.source={finished / 'model'}", "train.steps=2",
                "train.batch_size=4", "train.lr=1e-9", "sparsity.recipe=asp",
                "train.warmup_steps=0"]  # fmt: skip
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.read_text())
    words = [word for item in settings for word in ("--set", item)]
    outcome = step_cli("train", config, "--run-dir", tmp_path / "r", "--json", *words)
    assert outcome.code == 0
    loss = outcome.json["metrics"]["eval_loss"]
    assert loss == pytest.approx(metrics_of(finished)["eval_loss"], abs=1e-3)


def test_it_exports_compressed_and_back(
    step_cli: Run, finished: Path, tmp_path: Path
) -> None:
    packed, dense = tmp_path / "m.nm.safetensors", tmp_path / "m.safetensors"
    assert step_cli("export", finished, packed, "--to", "compressed").code == 0
    assert step_cli("verify-nm", packed).code == 0
    assert step_cli("export", packed, dense, "--to", "dense").code == 0
    outcome = step_cli("train", CONFIG, "--evaluate", dense, "--json", *WORDS)
    assert outcome.json["metrics"] == metrics_of(finished)


def test_it_exports_to_onnx(step_cli: Run, finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    onnx = tmp_path / "m.onnx"
    outcome = step_cli("export", finished, onnx, "--to", "onnx", "--json")
    assert outcome.code == 0
    assert outcome.json["parity"]["ok"]
    assert len(outcome.json["layers"]) == 8
    assert step_cli("verify-nm", onnx).code == 0
