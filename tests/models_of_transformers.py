"""Models of transformers on the meta device, from their type alone."""

import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn

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
# Configurations with which a model has modules that it has not by default.
RESNET = {
    "use_timm_backbone": False,
    "backbone": None,
    "backbone_config": {
        "model_type": "resnet",
        "out_features": ["stage2", "stage3", "stage4"],
    },
}
CATEGORIES = {
    "cardinality": [4, 5],
    "embedding_dimension": [4, 4],
    "num_static_categorical_features": 2,
}
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("autoformer", "AutoformerModel", CATEGORIES),
    ("beit", "BeitForSemanticSegmentation", {"out_indices": [2, 3, 4, 6]}),
    (
        "clipseg",
        "CLIPSegForImageSegmentation",
        {"use_complex_transposed_convolution": True},
    ),
    ("convbert", "ConvBertModel", {"embedding_size": 64, "num_groups": 2}),
    ("dab-detr", "DabDetrForObjectDetection", RESNET | {"num_patterns": 3}),
    ("deberta", "DebertaModel", {"embedding_size": 64}),
    ("deberta-v2", "DebertaV2Model", {"embedding_size": 64}),
    ("deformable_detr", "DeformableDetrForObjectDetection", RESNET),
    ("detr", "DetrForObjectDetection", RESNET),
    ("encodec", "EncodecModel", {"norm_type": "time_group_norm"}),
    ("esm", "EsmForProteinFolding", {"is_folding_model": True, "vocab_size": 33}),
    (
        "gemma4",
        "Gemma4ForConditionalGeneration",
        {"vision_config": {}, "audio_config": {}},
    ),
    (
        "grounding-dino",
        "GroundingDinoModel",
        {"two_stage": False, "embedding_init_target": False},
    ),
    ("longt5", "LongT5Model", {"encoder_attention_type": "transient-global"}),
    ("lw_detr", "LwDetrForObjectDetection", {"projector_scale_factors": [2.0, 0.5]}),
    ("oneformer", "OneFormerForUniversalSegmentation", {"is_training": True}),
    ("roformer", "RoFormerModel", {"embedding_size": 64}),
    (
        "vitpose",
        "VitPoseForPoseEstimation",
        {
            "use_simple_decoder": False,
            "backbone_config": {"model_type": "vitpose_backbone"},
        },
    ),
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


def build(
    transformers: ModuleType, kind: str, name: str, given: dict[str, Any] | None = None
) -> Any:
    """The model on the meta device; None where it needs more than its type."""
    return _built(
        transformers.CONFIG_MAPPING[kind], getattr(transformers, name, None), given
    )


def parts(transformers: ModuleType) -> Iterator[Any]:
    """Models of each class in the code of transformers that no mapping names."""
    named = {name for _, name in architectures()}
    for folder in pkgutil.iter_modules(transformers.models.__path__):
        name = f"transformers.models.{folder.name}.modeling_{folder.name}"
        try:
            module = importlib.import_module(name)
        except ImportError:  # no such file, or libraries are missing
            continue
        for own in vars(module).values():
            if (
                isinstance(own, type)
                and issubclass(own, transformers.PreTrainedModel)
                and own.__module__ == name
                and own.__name__ not in named
            ):
                kind: Any = own
                model = _built(kind.config_class, kind)
                # A part without a type of its own cannot be saved on its own.
                if model is not None and model.config.model_type:
                    yield model


def _built(config: Any, model: Any, given: dict[str, Any] | None = None) -> Any:
    for shorter in ({"num_hidden_layers": 2}, {}):
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                needed = NEEDED.get(config.model_type, {}) | (given or {})
                # All of it: some freeze their backbone.
                return model(config(**shorter | needed)).requires_grad_(True)
        except Exception:  # of every kind: missing libraries, defaults that do not fit
            continue
    return None


def is_table(module: nn.Module) -> bool:
    """Whether a module looks its weight up."""
    return isinstance(module, nn.Embedding) or type(module).__name__ == "QuantEmbedding"


def names_in_files(model: Any) -> dict[str, nn.Parameter]:
    """The parameters under the names that `save_pretrained` gives them.

    Without those that are joined or split on saving, and without the heads that are
    tied to a table: files have the table.
    """
    from transformers.core_model_loading import revert_weight_conversion

    modules = dict(model.named_modules())
    tables = {id(m.weight) for m in modules.values() if is_table(m)}
    kept = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if id(value) not in tables or is_table(modules[name.rpartition(".")[0]])
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = revert_weight_conversion(model, dict(kept))
    known = {id(value) for value in kept.values()}
    return {name: value for name, value in saved.items() if id(value) in known}
