"""GPT-2 of 124 M weights: 12 layers, 12 heads, width 768, context 1024."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel


def build(trainable_bias: bool = True, **sizes: Any) -> nn.Module:
    """The model with random weights; ``[model] weights`` brings the trained ones.

    Args:
        trainable_bias: If not, every bias stays at the 0 it starts from, as in a model
            that has none.
        sizes: Other values of transformers' GPT2Config than those of ``gpt2``.
    """
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.requires_grad_(trainable_bias)
    return model


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    return {"input_ids": torch.arange(64).unsqueeze(0)}
