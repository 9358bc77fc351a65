"""Which tensors of which families of models are stored how: the table.

Collected from transformers 5.23 by reading what `forward` does with each parameter:
``x @ w`` and ``torch.bmm(x, w)`` mean ``[..., in, out]``, ``F.linear(x, w)`` means
``[..., out, in]``. What counts is how files are laid out: where transformers changes a
layout on loading (its `conversion_mapping.py`), both the one before and the one after.
`tests/formats/huggingface/test_transformers_families.py` holds it against the modules
of transformers, where that is installed.
"""

from typing import Literal, NamedTuple


class Family(NamedTuple):
    """Tensors that are stored the same way in some kinds of models.

    Attributes:
        model_types: The kinds.
        tensors: How their names end, in whole components.
        stored: What each axis counts; ``in`` is the group axis.
        module: The class of transformers that owns them.
        hidden: Which of ``in`` and ``out`` is the hidden size of the model, where that
            is to be looked at: then nothing is said of a shape that shows otherwise.
        turned_too: Such a shape has ``in`` and ``out`` in each other's place.
    """

    model_types: tuple[str, ...]
    tensors: tuple[str, ...]
    stored: tuple[str, ...]
    module: str
    hidden: Literal["in", "out"] | None = None
    turned_too: bool = False

    @property
    def axis(self) -> int:
        """The group axis; ``E*in`` counts the inputs of all experts."""
        return self._counting.index("in")

    @property
    def output_axis(self) -> int:
        """The axis of the outputs."""
        return self._counting.index("out")

    @property
    def _counting(self) -> list[str]:
        return [words.rpartition("*")[2] for words in self.stored]


_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CLVP = ("clvp", "clvp_decoder", "clvp_encoder")
_AM_SOFTMAX = (
    *("wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "wavlm", "unispeech-sat"),
    "data2vec-audio",
)
_LINEAR = ("gpt_bigcode", "gpt_neo", "starcoder2")
_LLAMA4, _ARIA = ("llama4", "llama4_text"), ("aria", "aria_text")
# Each has a class `...Experts` with F.linear over `gate_up_proj[e]`. Files that hold
# one matrix for each expert, as those of most, are not concerned.
_OUT_IN_EXPERTS = (
    *("afmoe", "axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe"),
    *("deepseek_ocr2", "deepseek_ocr2_text", "deepseek_v2", "deepseek_v3"),
    *("deepseek_v32", "deepseek_v4", "diffusion_gemma", "diffusion_gemma_text"),
    *("dots1", "dots3_note", "dots3_note_text", "dots3_note_vision_encoder"),
    *("ernie4_5_moe", "ernie4_5_vl_moe"),
    *("ernie4_5_vl_moe_text", "exaone_moe", "flex_olmo", "flint", "gemma4"),
    *("gemma4_text", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm4v_moe_text"),
    *("glm5_next", "glm5_next_text", "glm_moe_dsa", "granitemoe", "granitemoe_swa"),
    *("granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "hy_v4"),
    *("inkling2", "inkling2_text", "inkling_mm_model", "inkling_text", "jamba"),
    *("kimi_linear", "kolibri1", "laguna", "lfm2_moe", "longcat_flash", "mellum"),
    *("mimo_v2_flash", "minimax", "minimax_m2", "minimax_m3_vl"),
    *("minimax_m3_vl_text", "mistral4", "mistral_large4", "mistral_large4_text"),
    *("mixtral", "muse_spark", "muse_spark_text", "nemotron_h", "olmoe", "phimoe"),
    *("qwen2_moe", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next"),
    *("qwen3_omni_moe", "qwen3_omni_moe_talker_text", "qwen3_omni_moe_text"),
    *("qwen3_omni_moe_thinker", "qwen4_exp", "qwen4_exp_text", "solar_open"),
    *("step3p5", "step3p7", "unlimited_ocr", "unlimited_ocr_text", "zaya"),
)
_QWEN3_VL = ("qwen3_vl_moe", "qwen3_vl_moe_text")
_GRANITE = ("granitemoe", "granitemoeshared", "granitemoehybrid", "granitemoe_swa")
_INKLING = ("inkling_mm_model", "inkling_text", "inkling2", "inkling2_text")
_ERNIE = ("ernie4_5_vl_moe", "ernie4_5_vl_moe_text")
_STEP3 = ("step3p7", "step3p5")

_MATRIX, _TURNED = ("in", "out"), ("out", "in")
_STACK, _TURNED_STACK = ("E", "in", "out"), ("E", "out", "in")


def _of(*ends: str) -> tuple[str, ...]:
    return tuple(f"{end}.weight" for end in ends)


def _experts(*ends: str) -> tuple[str, ...]:
    return tuple(f"experts.{end}" for end in ends)


_PROJECTIONS = _experts("gate_up_proj", "gate_proj", "up_proj", "down_proj")

FAMILIES = (
    Family(_CONV1D, _of("c_attn", "q_attn", "c_fc"), _MATRIX, "Conv1D", "in"),
    Family(_CONV1D, _of("c_proj"), _MATRIX, "Conv1D", "out"),
    Family(_CLVP, _of("mlp.c_fc"), _MATRIX, "Conv1D", "in"),
    Family(_CLVP, _of("mlp.c_proj"), _MATRIX, "Conv1D", "out"),
    Family(
        ("jukebox", "jukebox_prior"),
        _of("c_attn", "c_enc_kv", "c_fc", "c_proj"),
        _MATRIX,
        "JukeboxConv1D, of transformers 4",
    ),
    Family(_LINEAR, _of("c_attn", "q_attn", "c_fc", "c_proj"), _TURNED, "nn.Linear"),
    Family(("gpt_oss",), _PROJECTIONS, _STACK, "GptOssExperts"),
    Family(
        ("openai_privacy_filter",), _PROJECTIONS, _STACK, "OpenAIPrivacyFilterExperts"
    ),
    Family(_LLAMA4, _PROJECTIONS, _STACK, "Llama4TextExperts"),
    Family(_ARIA, _PROJECTIONS, _STACK, "AriaExperts"),
    Family(
        _ARIA,
        _experts("fc1.weight", "fc2.weight"),
        _STACK,
        "AriaExperts, as stored before 5.0",
    ),
    # Transpose(1, 2, check_dims=True) on loading: either layout may be in a file.
    Family(
        _QWEN3_VL,
        _experts("gate_up_proj"),
        _STACK,
        "Qwen3VLMoeTextExperts, transposed on loading",
        "in",
        turned_too=True,
    ),
    Family(
        _QWEN3_VL,
        _experts("down_proj"),
        _STACK,
        "Qwen3VLMoeTextExperts, transposed on loading",
        "out",
        turned_too=True,
    ),
    Family(
        ("nemo_speechlm",),
        _experts("gate_and_up_projs", "down_projs"),
        _STACK,
        "NemotronHExperts, transposed on loading",
    ),
    Family(
        _OUT_IN_EXPERTS,
        _PROJECTIONS,
        _TURNED_STACK,
        "...Experts with F.linear",
    ),
    Family(
        _GRANITE,
        _of("input_linear", "output_linear"),
        _TURNED_STACK,
        "GraniteMoeExperts, as stored before 5.0",
    ),
    Family(
        ("jetmoe",),
        _of("input_linear", "output_linear"),
        _TURNED_STACK,
        "JetMoeParallelExperts",
    ),
    Family(
        _INKLING,
        (
            *_experts("w13_weight", "w2_weight"),
            *("shared_experts.shared_w13_weight", "shared_experts.shared_w2_weight"),
            *(f"shared_experts.{end}_proj" for end in ("gate", "up", "down")),
        ),
        _TURNED_STACK,
        "InklingExperts, InklingSharedExperts",
    ),
    Family(
        _STEP3,
        _of("moe.gate_proj", "moe.up_proj", "moe.down_proj"),
        _TURNED_STACK,
        "Step3p7Experts, as stored",
    ),
    Family(("dbrx",), ("mlp.w1", "mlp.v1"), ("E*out", "in"), "DbrxExpertGLU"),
    Family(("dbrx",), ("mlp.w2",), ("E*in", "out"), "DbrxExpertGLU"),
    Family(_ERNIE, _of("mlp.gate"), _MATRIX, "Ernie4_5_VLMoeMoeTopKRouter, as stored"),
    Family(
        ("moshi", "moshi_depth", "kyutai_speech_to_text"),
        _of("fc1", "fc2", "linear", "input_projections", "lm_heads"),
        _TURNED_STACK,
        "MoshiFlexibleLinear",
    ),
    Family(
        ("csm", "csm_depth_decoder_model"),
        _of("codebooks_head"),
        _STACK,
        "CsmCodebooksHead",
    ),
    Family(
        ("trajectory_transformer",),
        _of("head"),
        _TURNED_STACK,
        "EinLinear, of transformers 4",
    ),
    Family(("convbert",), _of("dense"), _STACK, "GroupedLinearLayer"),
    Family(
        ("recurrent_gemma",),
        ("rg_lru.input_gate_weight", "rg_lru.recurrent_gate_weight"),
        _STACK,
        "RecurrentGemmaRglru",
    ),
    Family(
        ("zamba",),
        ("mamba.x_proj_weight", "mamba.dt_proj_weight"),
        _TURNED_STACK,
        "ZambaMambaMixer",
    ),
    Family(
        ("esmfold2",),
        ("plddt_weight", "resolved_weight"),
        _STACK,
        "EsmFold2ConfidenceHead",
    ),
    Family(
        ("gemma3", "shieldgemma2", "t5gemma2"),
        ("mm_input_projection_weight",),
        _MATRIX,
        "Gemma3MultiModalProjector",
    ),
    Family(_AM_SOFTMAX, _of("objective"), _MATRIX, "AMSoftmaxLoss"),
    Family(
        ("inkling2", "inkling2_text"),
        ("static_weight", "static_w"),
        _MATRIX,
        "Inkling2DynamicShortConvolution",
    ),
    Family(
        ("inkling2", "inkling2_text"),
        ("k_sconv.weight_proj", "v_sconv.weight_proj"),
        _TURNED,
        "nn.Linear of Inkling2DynamicShortConvolution, as stored",
    ),
    Family(_INKLING, ("rel_logits_proj.proj",), _MATRIX, "InklingRelativeLogits"),
    Family(("xclip",), ("prompts_visual_projection",), _MATRIX, "XCLIPModel"),
    Family(
        ("omdet-turbo",),
        ("text_projection",),
        _MATRIX,
        "OmDetTurboLanguageBackbone",
    ),
    Family(
        ("xlnet",),
        tuple(f"rel_attn.{letter}" for letter in "qkvr"),
        ("in", "heads", "out"),
        "XLNetRelativeAttention",
    ),
    Family(
        ("xlnet",), ("rel_attn.o",), ("out", "heads", "in"), "XLNetRelativeAttention"
    ),
    Family(
        ("funnel",),
        ("attention.r_kernel",),
        ("in", "heads", "out"),
        "FunnelRelMultiheadAttention",
    ),
)
