"""Models of transformers on the meta device, from their type alone."""

import warnings
from types import ModuleType
from typing import Any

import torch

# What a configuration without arguments lacks, by model type.
NEEDED: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 4},
    "convbert": {"num_groups": 2},
    "dbrx": {"attn_config": {"rope_theta": 1e4}},
    "dots1": {"n_routed_experts": 4},
    "esm": {"vocab_size": 33},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_v1_moe": {"head_dim": 64},
    "informer": {"prediction_length": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 0},
    "ministral": {"head_dim": 64},
    "moshi": {"audio_vocab_size": 64},
    "nemotron": {"num_key_value_heads": 8},
    "time_series_transformer": {"prediction_length": 4},
}
# Models that no mapping of transformers names, or not with this head.
OTHERS = [
    ("esmfold2", "EsmFold2Model"),
    ("moshi", "MoshiForConditionalGeneration"),
]


def architectures() -> list[tuple[str, str]]:
    """Each model type with each class that the mappings of transformers name for it."""
    from transformers.models.auto import modeling_auto

    pairs: dict[tuple[str, str], None] = dict.fromkeys(OTHERS)
    for name, mapping in vars(modeling_auto).items():
        if name.startswith("MODEL") and name.endswith("_MAPPING_NAMES"):
            for kind, classes in mapping.items():
                each = (classes,) if isinstance(classes, str) else classes
                pairs |= dict.fromkeys((kind, own) for own in each if own)
    return sorted(pairs)


def build(transformers: ModuleType, kind: str, name: str) -> Any:
    """The model on the meta device; None where it needs more than its type."""
    for shorter in ({"num_hidden_layers": 2}, {}):
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                given = shorter | NEEDED.get(kind, {})
                config = transformers.CONFIG_MAPPING[kind](**given)
                return getattr(transformers, name)(config)
        except Exception:  # of every kind: missing libraries, defaults that do not fit
            continue
    return None
