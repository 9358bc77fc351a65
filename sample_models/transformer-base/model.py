"""Transformer-base (Vaswani et al., 2017) for translation, by transformers' Marian.

Six layers on each side, width 512, fixed sinusoidal positions, norms after the blocks,
and one embedding for both sides and the output: 63,082,496 weights with 37,000 tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MarianConfig, MarianMTModel

SIZES = {
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
}


def build(
    vocab_size: int = 37_000,
    pad: int = 0,
    eos: int = 1,
    begin: int = 0,
    **sizes: Any,
) -> nn.Module:
    """The untrained model.

    Args:
        vocab_size: Tokens of the shared vocabulary.
        pad: The token of padding.
        eos: The token that ends a translation.
        begin: What the decoder is given before the first token.
        sizes: Other values of transformers' MarianConfig than those of the paper.
    """
    config = MarianConfig(
        vocab_size=vocab_size,
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=pad,
        decoder_start_token_id=begin,
        eos_token_id=eos,
        forced_eos_token_id=eos,
        **{**SIZES, **sizes},
    )
    return MarianMTModel(config)


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    tokens = torch.arange(2, 18).unsqueeze(0)
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "decoder_input_ids": tokens[:, :12],
    }
