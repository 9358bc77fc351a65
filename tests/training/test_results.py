"""The ``model/`` directory of a run loads without step-cli."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from plans import plan_for  # noqa: E402
from torch import nn  # noqa: E402

from step_cli import verify  # noqa: E402
from step_cli.errors import InputError  # noqa: E402
from step_cli.formats.huggingface.load import load_hugging_face  # noqa: E402
from step_cli.formats.open import open_checkpoint  # noqa: E402
from step_cli.models.save import save_model  # noqa: E402
from step_cli.models.source import ModelSource, read_source  # noqa: E402
from step_cli.nm.pattern import NMPattern, Plan  # noqa: E402
from step_cli.nm.selection import Selection  # noqa: E402
from step_cli.optim.mask import nm_mask  # noqa: E402

SOURCE = ModelSource("net.py:build", {"width": 3})


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16
    )
    return transformers.GPT2LMHeadModel(config)


def mixtral() -> Any:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


def vit() -> Any:
    """A model whose tensors transformers saves under older names."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, image_size=8, patch_size=4, num_labels=4,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def prune(model: nn.Module) -> Plan:
    """Make a model 2:4 in place."""
    dense = ["lm_head.*", "classifier.*", "*patch_embeddings*"]
    plan = plan_for(model, Selection(exclude=dense, pattern=NMPattern(2, 4)))
    with torch.no_grad():
        for name, layer in plan.items():
            weight = model.get_parameter(name)
            weight.mul_(nm_mask(weight.abs(), layer.pattern, layer.axis))
    return plan


@pytest.mark.parametrize("make", [gpt2, mixtral, vit])
def test_from_pretrained_loads_it_and_verify_finds_the_pattern(
    tmp_path: Path, make: Any
) -> None:
    model = make()
    plan = prune(model)
    save_model(tmp_path / "model", model, plan, SOURCE)
    loaded = type(model).from_pretrained(tmp_path / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    report = verify(tmp_path / "model")
    assert report.ok
    assert report.checkpoints[0].totals.layers == len(plan)
    assert open_checkpoint(tmp_path / "model").integrity == "sha256"


@pytest.mark.parametrize("make", [gpt2, vit])
def test_it_has_the_files_and_names_that_save_pretrained_writes(
    tmp_path: Path, make: Any
) -> None:
    model = make()
    model.save_pretrained(tmp_path / "theirs")
    save_model(tmp_path / "ours", model, prune(model), SOURCE)
    theirs, ours = (
        {path.name for path in (tmp_path / name).iterdir()}
        for name in ("theirs", "ours")
    )
    assert ours == theirs | {"nm_plan.json"}
    names = [
        [tensor.name for tensor in open_checkpoint(tmp_path / name).tensors]
        for name in ("theirs", "ours")
    ]
    assert names[0] == names[1]
    assert "lm_head.weight" not in names[1]  # tied
    config = (tmp_path / "ours/config.json").read_text()
    assert config == (tmp_path / "theirs/config.json").read_text()


def test_the_plan_knows_the_axis_of_conv1d(tmp_path: Path) -> None:
    model = gpt2()
    save_model(tmp_path / "model", model, prune(model), SOURCE)
    plan = json.loads((tmp_path / "model/nm_plan.json").read_text())
    assert {layer["axis"] for layer in plan["layers"].values()} == {0}
    # Without the plan the names and the config say the same.
    (tmp_path / "model/nm_plan.json").unlink()
    report = verify(tmp_path / "model", nm="2:4")
    assert report.ok and len(report.checkpoints[0].layers) == 8
    assert not verify(tmp_path / "model", nm="2:4", axis=["*=1"]).ok


def test_older_names_are_those_of_the_plan_and_are_read_again(tmp_path: Path) -> None:
    model = vit()
    plan = prune(model)
    save_model(tmp_path / "model", model, plan, SOURCE)
    stored = open_checkpoint(tmp_path / "model").plan
    assert stored is not None and len(stored) == len(plan)
    assert not stored.keys() & plan.keys()
    # Also from the file alone, and with another head.
    file = open_checkpoint(tmp_path / "model" / "model.safetensors")
    again = vit()
    torch.nn.init.zeros_(again.vit.layers[1].mlp.fc1.weight)
    places = load_hugging_face(again, file)
    assert {places[name] for name in stored} == {*plan}
    assert all(
        torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items()
    )
    again.classifier = nn.Linear(16, 3)
    again.config.num_labels = 3
    load_hugging_face(again, file, new_head=True)
    with pytest.raises(InputError, match="classifier"):
        load_hugging_face(again, file)


def test_a_dense_model_has_no_plan(tmp_path: Path) -> None:
    save_model(tmp_path / "model", gpt2(), None, SOURCE)
    assert not (tmp_path / "model/nm_plan.json").exists()
    assert not verify(tmp_path / "model", nm="2:4").ok


def test_the_tokenizer_goes_with_it_and_code_does_not(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "merges.txt", "evil.py", "config.json"):
        (tokenizer / name).write_text("{}")
    save_model(tmp_path / "model", gpt2(), None, SOURCE, [tokenizer])
    found = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"tokenizer.json", "merges.txt"} < found
    assert "evil.py" not in found
    assert len((tmp_path / "model/config.json").read_text()) > 10


class Mine(transformers.GPT2LMHeadModel):
    """A class that transformers does not have."""


@pytest.mark.parametrize("kind", ["torch", "subclass"])
def test_any_other_model_says_where_it_came_from(tmp_path: Path, kind: str) -> None:
    model = nn.Linear(8, 8) if kind == "torch" else Mine(gpt2().config)
    save_model(tmp_path / "model", model, None, SOURCE)
    assert read_source(tmp_path / "model") == SOURCE
    assert not (tmp_path / "model/config.json").exists()
