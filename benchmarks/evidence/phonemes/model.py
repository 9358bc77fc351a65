"""The encoder-decoder of `translate-tiny` for bytes: wider, and less deep."""

from torch import nn
from transformers import PegasusConfig, PegasusForConditionalGeneration

TOKENS, PAD, BEGIN, END = 259, 256, 257, 258  # of the tokenizer "bytes"
POSITIONS = 32  # the longest word has 28 letters, and an end


def build(
    width: int = 128, encoder_layers: int = 3, decoder_layers: int = 2, heads: int = 4
) -> nn.Module:
    """The untrained model."""
    config = PegasusConfig(
        vocab_size=TOKENS,
        max_position_embeddings=POSITIONS,
        d_model=width,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        activation_function="relu",
        scale_embedding=True,
        dropout=0.0,
        attention_dropout=0.0,
        attn_implementation="eager",
        init_std=width**-0.5,  # the usual 0.02 is for layers far wider
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        decoder_start_token_id=BEGIN,
        eos_token_id=END,
        forced_eos_token_id=None,
    )
    return PegasusForConditionalGeneration(config)
