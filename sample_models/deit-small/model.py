"""DeiT-small without distillation (Touvron et al., 2021): 22,050,664 weights.

It is ViT-S/16 in transformers' terms: 12 layers, 6 heads, width 384, 224x224 pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

SIZES = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "image_size": 224,
    "patch_size": 16,
}


def build(num_labels: int = 1000, **sizes: Any) -> nn.Module:
    """The untrained model.

    Args:
        num_labels: Classes.
        sizes: Other values of transformers' ViTConfig than those of the paper.
    """
    return ViTForImageClassification(
        ViTConfig(num_labels=num_labels, **{**SIZES, **sizes})
    )


def example_inputs() -> dict[str, Tensor]:
    """Inputs of ``forward`` by name, for export."""
    return {"pixel_values": torch.randn(1, 3, 224, 224)}
