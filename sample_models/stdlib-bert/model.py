"""A small BERT that says which module a snippet is of: two layers, hashed words."""

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

VOCABULARY = 4096  # hashes of words; 0 is padding, 1 begins a snippet
LENGTH = 64  # tokens of a snippet
CLASSES = 16  # modules


def build(layers: int = 2, width: int = 128) -> nn.Module:
    """The untrained model."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=LENGTH,
        type_vocab_size=1,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config)


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    return {"input_ids": torch.arange(1, LENGTH + 1).unsqueeze(0)}
