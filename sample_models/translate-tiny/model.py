"""A small encoder-decoder that puts numbers into words: transformers' Pegasus.

Its six layers on each side are those of Transformer-base, an eighth as wide, but
normalized before each block and not after it: so deep a model learns in few steps then.
"""

import torch
from torch import Tensor, nn
from transformers import PegasusConfig, PegasusForConditionalGeneration

VOCABULARY = 48  # shared: padding, end, ten digits, 30 words
PAD, END = 0, 1


def build(layers: int = 6, width: int = 64) -> nn.Module:
    """The untrained model."""
    config = PegasusConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        activation_function="relu",
        scale_embedding=True,
        dropout=0.0,
        init_std=width**-0.5,  # the usual 0.02 is for layers far wider
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        eos_token_id=END,
        forced_eos_token_id=END,
    )
    return PegasusForConditionalGeneration(config)


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    digits = torch.tensor([[2, 3, 4, 5, 6, 7, END, PAD]])
    return {
        "input_ids": digits,
        "attention_mask": (digits != PAD).long(),
        "decoder_input_ids": torch.arange(10).unsqueeze(0),
    }
