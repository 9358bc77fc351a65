"""GPT-2 in small: four layers of transformers' GPT-2 over bytes, 0.84 M weights."""

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT = 128  # bytes


def build(layers: int = 4, width: int = 128, heads: int = 4) -> nn.Module:
    """The untrained model; its linear layers are Conv1D, stored ``[in, out]``."""
    config = GPT2Config(
        vocab_size=256,
        n_positions=CONTEXT,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        # It sees less than one epoch, so it cannot overfit.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    return {"input_ids": torch.arange(CONTEXT).unsqueeze(0)}
