"""Modules of kinds of models whose names do not tell what they are: the table.

Collected as `family_table.py` is: from the modules of transformers 5.23, under their
own names and those that files have. The same test holds it against them. What
transformers builds only by other configurations than the default ones, or with
libraries beside it, is read from its code.
"""

from functools import partial
from typing import Literal, NamedTuple

Module = Literal[
    "Linear", "Embedding", "Positions", "ConvTranspose1d", "ConvTranspose2d"
]
_RANKS = {"ConvTranspose1d": 3, "ConvTranspose2d": 4, "Positions": 3}


class Misnamed(NamedTuple):
    """Modules of the same class in some kinds of models.

    Attributes:
        module: The class, of torch.nn; ``Positions`` is a parameter that is added.
        model_types: The kinds.
        names: How the names of the modules end, in whole components; ``*`` is a number.
        owner: The class of transformers that has them.
        even_window: Whether they are told from convolutions of the same name by the
            size of the window: twice the stride, so even; those of the others are odd.
    """

    module: Module
    model_types: tuple[str, ...]
    names: tuple[str, ...]
    owner: str
    even_window: bool = False

    @property
    def rank(self) -> int:
        """How many axes the weights have."""
        return _RANKS.get(self.module, 2)


def _row(
    module: Module, kinds: str, names: str, owner: str, *, even_window: bool = False
) -> Misnamed:
    return Misnamed(module, (*kinds.split(),), (*names.split(),), owner, even_window)


_linear, _table = partial(_row, "Linear"), partial(_row, "Embedding")
_up1d, _up2d = partial(_row, "ConvTranspose1d"), partial(_row, "ConvTranspose2d")

_BLT = "blt blt_local_encoder blt_local_decoder blt_global_transformer"
_CLASSES = "lw_detr rf_detr dab-detr oneformer pp_doclayout_v3"
_COL = "colmodernvbert colpali colqwen2"
_DPT = "chmv2 depth_anything dpt prompt_depth_anything tipsv2_dpt zoedepth"
_EOMT = "eomt eomt_dinov3 videomt"
_FORECASTS = "autoformer informer time_series_transformer"
_GEMMA = (
    "gemma3n gemma4 gemma4_unified diffusion_gemma"
    " embedding_gemma2 embedding_gemma2_text"
)
_HIFI_GAN = (
    "vits speecht5_hifigan seamless_m4t seamless_m4t_v2"
    " fastspeech2_conformer_hifigan fastspeech2_conformer_with_hifigan"
)
_INKLING = "inkling_mm_model inkling_text inkling2 inkling2_text"
_MIMI = (
    "mimi mimi_decoder moshi csm kyutai_speech_to_text"
    " pocket_tts_audio_tokenizer pocket_tts_audio_tokenizer_decoder"
)
_MUSICGEN = (
    "musicgen musicgen_decoder musicgen_melody musicgen_melody_decoder"
    " moshi moshi_depth"
)
_NEMOTRON = "nemo_speechlm nemotron3_5_transcribe_word_timestamp"
_OCR = "pp_ocrv5_mobile_det pp_ocrv5_server_det pp_ocrv6_small_det pp_ocrv6_medium_det"
_PATCHES = (
    "cosmos3_edge cosmos3_edge_vision inkling2 inkling2_vision molmo2 molmo2_vision"
    " muse_glimmer muse_glimmer_vision muse_spark muse_spark_vision"
    " siglip2 siglip2_vision_model"
)
_QWEN2_AUDIO = "qwen2_5_omni qwen2_5_omni_thinker qwen2_5_omni_audio_encoder"
_QWEN2_WAVE = "qwen2_5_omni qwen2_5_omni_token2wav qwen2_5_omni_bigvgan"
_QWEN3_CODES = "qwen3_omni_moe qwen3_omni_moe_talker_code_predictor"
_SAM2 = (
    "sam2 sam2_video sam3_tracker sam3_tracker_video sam3_video edgetam edgetam_video"
)
_SAM3 = (
    "sam3 sam3_lite_text sam3_tracker sam3_tracker_video sam3_video sam3_vision_model"
)
_SAM3_DETR = (
    "sam3 sam3_video sam3_detr_decoder sam3_lite_text sam3_lite_text_detr_decoder"
)
_VIBEVOICE = (
    "vibevoice vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder"
)
_XCODEC = "xcodec higgs_audio_v2_tokenizer"

MISNAMED = (
    # The last component of the name has "embed" in it.
    _linear("albert rembert", "embedding_hidden_mapping_in", "AlbertTransformer"),
    _linear(_BLT, "patch_embedding_projection", "BltLocalEncoder, BltLocalDecoder"),
    _linear(_BLT, "token_embedding_projection", "BltGlobalTransformer"),
    _linear(_CLASSES, "class_embed", "LwDetrForObjectDetection"),
    _linear(_COL, "embedding_proj_layer", "ColPaliForRetrieval"),
    _linear(
        "csm csm_depth_decoder_model", "inputs_embeds_projector", "CsmDepthDecoderModel"
    ),
    _linear("deberta deberta-v2", "embed_proj", "DebertaEmbeddings"),
    _linear(
        "decision_transformer",
        "embed_state embed_return embed_action",
        "DecisionTransformerModel",
    ),
    _linear("electra convbert roformer", "embeddings_project", "ElectraModel"),
    _linear("esmfold2", "rel_pos.embed", "EsmFold2RelativePositionEncoding"),
    _linear("esmfold2", "msa_encoder.embed", "EsmFold2MSAEncoder"),
    _linear("fuyu", "vision_embed_tokens", "FuyuModel"),
    _linear(_GEMMA, "embedding_projection", "Gemma4MultimodalEmbedder"),
    _linear("gpt_neox", "embed_out", "GPTNeoXForCausalLM, as stored"),
    _linear("gpt_neox_japanese", "embed_out", "GPTNeoXJapaneseForCausalLM"),
    _linear("gradium_phonon_tts", "flow_net.cond_embed", "its flow head, as stored"),
    _linear("hiera", "decoder_embeddings", "HieraDecoder"),
    _linear(_INKLING, "llm.unembed", "InklingForCausalLM, as stored"),
    _linear("lfm3_vl lfm3_vl_vision", "patch_embed", "Lfm3VlVisionModel"),
    _linear("lilt", "box_linear_embeddings", "LiltLayoutEmbeddings"),
    _linear("luke", "entity_embedding_dense", "LukeEntityEmbeddings"),
    _linear("markuplm", "xpath_unitseq2_embeddings", "XPathEmbeddings"),
    _linear("mobilebert", "embedding_transformation", "MobileBertEmbeddings"),
    _linear(
        "neomme", "embedding_projection unembedding_projection", "NeoMMEEmbeddings"
    ),
    _linear("patchtst", "input_embedding", "PatchTSTEmbedding"),
    _linear(_PATCHES, "patch_embedding", "Siglip2VisionEmbeddings"),
    _linear("prophetnet", "relative_pos_embeddings", "ProphetNetNgramSelfAttention"),
    _linear(
        "radio nemotron_h_omni",
        "patch_generator.embedder patch_generator.video_embedder",
        "RadioPatchEmbeddings, as stored",
    ),
    _linear("seggpt vit_mae", "decoder_embed", "SegGptDecoder, ViTMAEDecoder"),
    _linear("speecht5", "speaker_embeds_layer", "SpeechT5SpeechDecoderPrenet"),
    _linear("vjepa2", "predictor_embeddings", "VJEPA2PredictorEmbeddings"),
    # Nothing in the last component tells.
    _table(_FORECASTS, "embedders.*", "TimeSeriesFeatureEmbedder"),
    _table("bark fine_acoustics", "input_embeds_layers.*", "BarkFineModel"),
    _table("ctrl", "w", "CTRLModel"),
    _table("dab-detr", "patterns", "DabDetrModel"),
    _table("dac", "quantizers.*.codebook", "DacVectorQuantize"),
    _table(
        "deepseek_ocr2 deepseek_ocr2_vision",
        "query_768_resolution query_1024_resolution",
        "DeepseekOcr2VisionModel",
    ),
    _table(_EOMT, "query", "EomtForUniversalSegmentation"),
    _table("esm", "trunk.recycle_disto", "EsmFoldingTrunk"),
    _table("grounding-dino", "reference_points", "GroundingDinoModel"),
    _table(
        "inkling_mm_model",
        "audio_tower.encoder audio.encoder",
        "InklingAudioModel, as stored",
    ),
    _table(
        "longt5", "global_relative_attention_bias", "LongT5TransientGlobalAttention"
    ),
    _table("lw_detr rf_detr", "query_feat", "LwDetrModel"),
    _table(
        "markuplm",
        "xpath_tag_sub_embeddings.* xpath_subs_sub_embeddings.*",
        "XPathEmbeddings",
    ),
    _table("mask2former", "queries_features", "Mask2FormerTransformerModule"),
    _table(_MUSICGEN, "embed_tokens.*", "MusicgenDecoder"),
    _table("oneformer", "prompt_ctx", "OneFormerTextMapper"),
    _table(
        "phi4_multimodal phi4_multimodal_audio",
        "relative_attention_bias_layer.bias_values",
        "Phi4MultimodalAudioRelativeAttentionBias",
    ),
    _table(_QWEN2_AUDIO, "audio_bos_eos_token", "Qwen2_5OmniAudioEncoder"),
    _table(_QWEN3_CODES, "codec_embedding.*", "Qwen3OmniMoeTalkerCodePredictorModel"),
    _table(f"sam sam_hq {_SAM2}", "iou_token mask_tokens", "SamMaskDecoder"),
    _table("sam sam_hq", "point_embed.*", "SamPromptEncoder"),
    _table(_SAM2, "obj_score_token", "Sam2MaskDecoder"),
    _table("sam_hq", "hq_token", "SamHQMaskDecoder"),
    _table(_SAM3_DETR, "presence_token reference_points", "Sam3DetrDecoder"),
    _table("speecht5", "pe_k", "SpeechT5RelativePositionalEncoding"),
    _row(
        "Positions",
        "kimi_k25 kimi_k25_vision",
        "patch_embed.pos_emb",
        "Kimi_K25VisionPatchEmbed, as stored",
    ),
    # Of vocoders and codecs.
    _up1d(
        f"encodec {_MIMI}",
        "decoder_seanet.layers.*.conv decoder.layers.*.conv",
        "MimiConvTranspose1d",
        even_window=True,
    ),
    _up1d(_MIMI, "upsample.conv", "MimiConvTranspose1d"),
    _up1d(f"dac {_XCODEC}", "block.*.conv_t1", "DacDecoderBlock"),
    _up1d(
        _XCODEC,
        "decoder_semantic.conv_blocks.*.conv",
        "SemanticDecoderBlock",
        even_window=True,
    ),
    _up1d(_HIFI_GAN, "upsampler.*", "SpeechT5HifiGan"),
    _up1d(
        _NEMOTRON,
        "upsampler ctc_timestamp.decoder.upsample",
        "Nemotron3_5TranscribeWordTimestampModel",
    ),
    _up1d(_QWEN2_WAVE, "ups.*.*", "Qwen2_5OmniToken2WavBigVGANModel"),
    _up1d(
        "qwen3_omni_moe",
        "code2wav.upsample.*.0.conv code2wav.decoder.*.block.1.conv",
        "Qwen3OmniMoeCausalTransConvNet",
    ),
    _up1d("univnet", "resblocks.*.convt_pre", "UnivNetLvcBlock"),
    _up1d(
        _VIBEVOICE, "convtr.convtr", "VibeVoiceAcousticTokenizerCausalConvTranspose1d"
    ),
    # Of decoders of images and masks.
    _up2d(
        "beit data2vec-vision",
        "fpn1.0 fpn1.3 fpn1.conv_transpose1 fpn1.conv_transpose2 fpn2.0 fpn.fpn2",
        "BeitFPNNeck, Data2VecVisionForSemanticSegmentation",
    ),
    _up2d(
        "clipseg",
        "transposed_convolution transposed_convolution.2 transposed_convolution.4",
        "CLIPSegDecoder",
    ),
    _up2d(
        _DPT,
        "reassemble_stage.layers.*.resize reassemble.resize_layers.*",
        "DPTReassembleLayer",
        even_window=True,
    ),
    _up2d(
        "depth_pro",
        "image_block.layers.* scaled_images.*.layers.* intermediate.*.layers.*"
        " intermediate.*.deconv head.layers.*",
        "DepthProFeatureUpsampleBlock, DepthProDepthEstimationHead",
        even_window=True,
    ),
    _up2d(_EOMT, "upscale_block.block.*.conv1", "EomtScaleLayer"),
    _up2d("lw_detr", "sampling_layers.*.layers.*", "LwDetrSamplingLayer"),
    _up2d(_OCR, "conv_up.convolution conv_final", "PPOCRV5ServerDetSegmentationHead"),
    _up2d(f"sam sam_hq {_SAM2}", "upscale_conv1 upscale_conv2", "SamMaskDecoder"),
    _up2d(
        "sam_hq",
        "mask_decoder.encoder_conv1 mask_decoder.encoder_conv2"
        " mask_decoder.compress_vit_conv1 mask_decoder.compress_vit_conv2",
        "SamHQMaskDecoder",
    ),
    _up2d(_SAM3, "scale_layers.*", "Sam3FPNLayer"),
    _up2d(
        "sapiens2",
        "upsample_layers.*.convolution",
        "Sapiens2ConvLayer",
        even_window=True,
    ),
    _up2d("vitpose", "deconv1 deconv2", "VitPoseClassicDecoder"),
)
