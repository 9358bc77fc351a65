"""Weights into Hugging Face models: names that differ, heads that are new."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from step_cli.errors import InputError  # noqa: E402
from step_cli.formats.huggingface.load import load_hugging_face  # noqa: E402
from step_cli.formats.open import open_checkpoint  # noqa: E402

BERT = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16,
}  # fmt: skip
GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
MARIAN = {
    "vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "decoder_start_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def bert(kind: str, **more: Any) -> Any:
    torch.manual_seed(1)
    return getattr(transformers, kind)(transformers.BertConfig(**BERT | more))


def gpt2(kind: str = "GPT2LMHeadModel", **more: Any) -> Any:
    torch.manual_seed(1)
    return getattr(transformers, kind)(transformers.GPT2Config(**GPT2 | more))


def marian() -> Any:
    torch.manual_seed(1)
    return transformers.MarianMTModel(transformers.MarianConfig(**MARIAN))


def scrambled(model: Any) -> Any:
    """Other trainable weights, so that loading has something to do."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    return model


def equal(ours: Any, theirs: Any) -> bool:
    return all(
        torch.equal(value, theirs.state_dict()[name])
        for name, value in ours.state_dict().items()
    )


@pytest.mark.parametrize("make", [gpt2, marian, lambda: bert("BertForMaskedLM")])
def test_what_save_pretrained_wrote_is_read(
    tmp_path: Path, make: Callable[[], Any]
) -> None:
    saved = make()
    saved.save_pretrained(tmp_path)
    model = scrambled(make())
    assert not equal(model, saved)
    load_hugging_face(model, open_checkpoint(tmp_path))
    assert equal(model, saved)


def test_a_bare_model_lacks_a_prefix(tmp_path: Path) -> None:
    saved = gpt2("GPT2Model")
    saved.save_pretrained(tmp_path)
    model = scrambled(gpt2())
    places = load_hugging_face(model, open_checkpoint(tmp_path))
    assert equal(model.transformer, saved)
    assert places["h.0.mlp.c_fc.weight"] == "transformer.h.0.mlp.c_fc.weight"


def test_old_names_of_norms_and_old_buffers_are_known(tmp_path: Path) -> None:
    saved = bert("BertForMaskedLM")
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value.clone()
        for name, value in saved.state_dict().items()
    }
    save_file(tensors, tmp_path / "old.safetensors")
    model = scrambled(bert("BertForMaskedLM"))
    load_hugging_face(model, open_checkpoint(tmp_path / "old.safetensors"))
    assert equal(model, saved)

    saved = gpt2("GPT2Model")
    tensors = {**saved.state_dict(), "h.0.attn.bias": torch.ones(1, 1, 16, 16)}
    save_file(tensors, tmp_path / "old.safetensors")
    model = scrambled(gpt2("GPT2Model"))
    load_hugging_face(model, open_checkpoint(tmp_path / "old.safetensors"))
    assert equal(model, saved)


def test_another_head_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = bert("BertForMaskedLM")
    saved.save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"has no cls\.predictions"):
        load_hugging_face(bert("BertForSequenceClassification"), opened)
    model = scrambled(bert("BertForSequenceClassification", num_labels=5))
    before = model.classifier.weight.clone()
    load_hugging_face(model, opened, new_head=True)
    assert equal(model.bert.encoder, saved.bert.encoder)
    assert torch.equal(model.classifier.weight, before)
    assert "new, with random weights: bert.pooler.dense.bias" in caplog.text
    assert "not used: cls.predictions.bias" in caplog.text


def test_a_head_of_another_size_is_new(tmp_path: Path) -> None:
    bert("BertForSequenceClassification", num_labels=2).save_pretrained(tmp_path)
    model = bert("BertForSequenceClassification", num_labels=3)
    with pytest.raises(InputError, match="has no classifier"):
        load_hugging_face(model, open_checkpoint(tmp_path))
    load_hugging_face(model, open_checkpoint(tmp_path), new_head=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 1}, "the model has no bert.encoder.layer.1"),
        ({"num_hidden_layers": 3}, "the file lacks bert.encoder.layer.2"),
        ({"hidden_size": 8}, "the model has no bert.embeddings"),
    ],
)
def test_another_body_is_refused_also_with_a_new_head(
    tmp_path: Path, change: dict[str, int], words: str
) -> None:
    bert("BertForMaskedLM").save_pretrained(tmp_path)
    model = bert("BertForSequenceClassification", **change)
    with pytest.raises(InputError, match=words):
        load_hugging_face(model, open_checkpoint(tmp_path), new_head=True)


def test_a_bare_checkpoint_with_more_layers_is_refused(tmp_path: Path) -> None:
    gpt2("GPT2Model", n_layer=3).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"the model has no h\.2"):
        load_hugging_face(gpt2(), open_checkpoint(tmp_path), new_head=True)


def test_a_missing_body_tensor_is_refused(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks transformer\.h\.1\.mlp\.c_fc"):
        load_hugging_face(gpt2(), open_checkpoint(tmp_path), new_head=True)
