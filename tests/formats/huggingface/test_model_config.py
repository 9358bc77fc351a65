"""What is read of ``config.json``: the kinds and widths of a model and its parts."""

import json
from pathlib import Path
from typing import Any

import pytest

from step_cli.formats.huggingface.model_config import (
    longest_input_beside,
    model_config_of,
)
from step_cli.nm.families import ModelConfig


def test_the_whole_and_its_parts() -> None:
    found = model_config_of(
        {
            "model_type": "qwen3_vl_moe",
            "text_config": {"model_type": "qwen3_vl_moe_text", "hidden_size": 2048},
            "vision_config": {"model_type": "qwen3_vl_moe", "hidden_size": 1152},
            "others": [{"model_type": "gpt2", "n_embd": 768}],
            "a": {"b": {"c": {"model_type": "three"}}},
        }
    )
    assert set(found.model_types) == {
        *("qwen3_vl_moe", "qwen3_vl_moe_text", "gpt2", "three"),
    }
    assert len(found.model_types) == 4
    assert found.hidden_sizes == {2048, 1152, 768}


def test_what_lies_too_deep_says_nothing() -> None:
    assert (
        model_config_of({"a": {"b": {"c": {"d": {"model_type": "x"}}}}})
        == ModelConfig()
    )


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "gpt2",
        {"model_type": 7, "hidden_size": "16"},
        {"model_type": ["gpt2"], "hidden_size": True, "n_embd": -4, "d_model": 1.5},
    ],
)
def test_a_broken_configuration_says_nothing(broken: object) -> None:
    assert model_config_of(broken) == ModelConfig()


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 77}}, 77),
        ({"max_source_positions": 1500, "max_target_positions": 448}, 448),
        # The first two of RoBERTa's 514 positions are never used.
        (
            {
                "model_type": "roberta",
                "max_position_embeddings": 514,
                "pad_token_id": 1,
            },
            512,
        ),
        ({"model_type": "resnet"}, None),
        ({"model_type": ["roberta"], "n_positions": "8", "n_ctx": True}, None),
        ({"n_positions": -1}, None),
    ],
)
def test_the_longest_input_of_a_file_beside_a_config(
    tmp_path: Path, config: dict[str, Any], longest: int | None
) -> None:
    assert longest_input_beside(tmp_path / "model.onnx") is None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert longest_input_beside(tmp_path / "model.onnx") == longest
