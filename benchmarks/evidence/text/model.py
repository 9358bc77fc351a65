"""GPT-2 of transformers over bytes, in a size that a CPU trains in minutes."""

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT = 128  # bytes


def build(
    layers: int = 4, width: int = 128, heads: int = 4, deviation: float = 0.08
) -> nn.Module:
    """The untrained model; its linear layers are Conv1D, stored ``[in, out]``.

    Args:
        layers: Blocks.
        width: Of the embeddings.
        heads: Of the attention.
        deviation: Standard deviation of the weights at the start.
    """
    config = GPT2Config(
        vocab_size=256,
        n_positions=CONTEXT,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        initializer_range=deviation,
        # It sees less than one epoch, so it cannot overfit.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # The same function as GPT-2's "gelu_new", in one kernel.
        activation_function="gelu_pytorch_tanh",
        # Two thirds of the time of the fused attention, on a CPU in bf16.
        attn_implementation="eager",
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    return {"input_ids": torch.arange(CONTEXT).unsqueeze(0)}
