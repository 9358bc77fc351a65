"""Which model a SPEC names, and what a Hugging Face directory may decide."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from step_cli.errors import InputError, UsageError  # noqa: E402
from step_cli.models.spec import build_model, start_model  # noqa: E402

NET = """
from torch import nn

def build(width=4, *, bias=True):
    return nn.Linear(width, 2, bias=bias)
"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory with weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16
    )
    path = tmp_path_factory.mktemp("hf") / "gpt2"
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


def without_weights(source: Path, target: Path, **changes: Any) -> Path:
    config = json.loads((source / "config.json").read_text()) | changes
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_directory_is_a_model_with_its_weights(gpt2: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(gpt2).eval()
    ours = start_model(str(gpt2)).eval()
    tokens = torch.arange(8).unsqueeze(0)
    output = ours(input_ids=tokens)
    assert torch.equal(output.logits, theirs(input_ids=tokens).logits)
    # A cache of keys and values serves generation alone, and who asks for it.
    assert output.past_key_values is None
    assert ours(input_ids=tokens, use_cache=True).past_key_values is not None
    assert ours.config.use_cache


def test_a_directory_without_weights_starts_from_random_ones(
    gpt2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = without_weights(gpt2, tmp_path / "bare")
    torch.manual_seed(0)
    one = start_model(str(bare)).state_dict()
    torch.manual_seed(0)
    again = start_model(str(bare)).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert "holds no weights: starting from random ones" in caplog.text


def test_weights_of_another_checkpoint_win(gpt2: Path, tmp_path: Path) -> None:
    bare = without_weights(gpt2, tmp_path / "bare")
    ours = start_model(str(bare), weights=str(gpt2 / "model.safetensors"))
    theirs = start_model(str(gpt2))
    name = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name))


def test_options_replace_values_of_the_config(gpt2: Path) -> None:
    model = build_model(str(gpt2), {"n_layer": 1, "resid_pdrop": 0.0}).model
    assert len(model.get_submodule("transformer.h")) == 1
    named = {"architectures": ["GPT2ForSequenceClassification"], "num_labels": 3}
    labelled = build_model(str(gpt2), named).model
    assert type(labelled).__name__ == "GPT2ForSequenceClassification"
    assert labelled.get_parameter("score.weight").shape == (3, 16)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_layers": 1}, UsageError, "no option n_layers; did you mean n_layer"),
        ({"architectures": ["Trainer"]}, InputError, "no model 'Trainer'"),
        ({"architectures": ["BertModel"]}, InputError, "which is no gpt2"),
        ({"vocab_size": "many"}, InputError, "cannot build"),
    ],
)
def test_options_that_cannot_work_are_told(
    gpt2: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        build_model(str(gpt2), options)


def test_code_of_a_directory_is_never_run(gpt2: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    for changes in (
        {"auto_map": auto, "model_type": "evil", "architectures": ["Evil"]},
        {"auto_map": auto, "architectures": ["Evil"]},
    ):
        path = without_weights(gpt2, tmp_path / str(len(changes)), **changes)
        (path / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
        with pytest.raises(InputError):
            build_model(str(path))
    assert not mark.exists()


def test_a_directory_of_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        build_model(str(tmp_path))


def test_a_function_takes_options(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    spec = f"{tmp_path / 'net.py'}:build"
    assert build_model(spec).model.get_parameter("weight").shape == (2, 4)
    model = build_model(spec, {"width": 8, "bias": False}).model
    assert model.get_parameter("weight").shape == (2, 8)
    with pytest.raises(UsageError, match="unexpected keyword argument 'widht'"):
        build_model(spec, {"widht": 8})
