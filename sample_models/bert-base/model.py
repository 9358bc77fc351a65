"""BERT-Base with a head for one GLUE task: 109,483,778 weights for two classes."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification


def build(num_labels: int = 2, **sizes: Any) -> nn.Module:
    """The model with random weights; ``[model] weights`` brings the trained ones.

    Args:
        num_labels: Classes, or 1 for a regression.
        sizes: Other values of transformers' BertConfig than those of bert-base-uncased.
    """
    return BertForSequenceClassification(BertConfig(num_labels=num_labels, **sizes))


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    return {
        "input_ids": torch.arange(128).unsqueeze(0),
        "attention_mask": torch.ones(1, 128, dtype=torch.int64),
        "token_type_ids": torch.zeros(1, 128, dtype=torch.int64),
    }
