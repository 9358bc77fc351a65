"""Which stored tensors of which models have their group axis elsewhere.

By the ``model_type`` of ``config.json``.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}
EXPERTS_IN_OUT = {
    "gpt_oss",
    "llama4",
    "llama4_text",
    "aria",
    "aria_text",
    "qwen3_vl_moe",
}
_GPT2 = re.compile(
    r"(.*\.)?(attn|crossattention|mlp)\.(c_attn|q_attn|c_proj|c_fc)\.weight"
)


class ModelConfig(NamedTuple):
    """What a ``config.json`` tells of how weights are stored.

    Attributes:
        model_types: Every ``model_type`` in it, those of nested parts too.
        hidden_sizes: Every ``hidden_size`` in it.
    """

    model_types: tuple[str, ...] = ()
    hidden_sizes: frozenset[int] = frozenset()


NOTHING_KNOWN = ModelConfig()


def axis_by_config(name: str, shape: Sequence[int], config: ModelConfig) -> int | None:
    """The group axis that the config tells of a tensor; None if it tells nothing.

    Args:
        name: Of the tensor, without the components of wrappers.
        shape: Of the tensor.
        config: What the config tells.
    """
    kinds = set(config.model_types)
    if len(shape) == 2 and _GPT2.fullmatch(name) and kinds & CONV1D:
        return 0
    if len(shape) == 3 and "experts" in name and kinds & EXPERTS_IN_OUT:
        return 1
    return None
