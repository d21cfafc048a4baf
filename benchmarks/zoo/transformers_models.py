"""transformers: architectures built from tiny configurations that are written down here."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from zoo.catalogue import Built, Entry, image, tokens

_TEXT = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_LM = {**_TEXT, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GQA = {**_LM, "num_key_value_heads": 2}
_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_SEQ2SEQ = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_AUDIO = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_STAGES = {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}

# Token models: (model class, configuration class, options).
_TOKENS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _TEXT),
    "bert-mlm": ("BertForMaskedLM", "BertConfig", _TEXT),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**_TEXT, "max_position_embeddings": 64}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
    ),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**_TEXT, "embedding_size": 16}),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", {**_TEXT, "embedding_size": 16}),
    "mobilebert": (
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        {**_TEXT, "embedding_size": 32, "intra_bottleneck_size": 16},
    ),
    "convbert": ("ConvBertForSequenceClassification", "ConvBertConfig", {**_TEXT, "embedding_size": 32}),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", _TEXT),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBertConfig", {**_TEXT, "pad_token_id": 0}),
    "deberta": ("DebertaForSequenceClassification", "DebertaConfig", {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_position_embeddings": 32}),
    "deberta-v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_position_embeddings": 32}),
    "xlm-roberta": ("XLMRobertaForSequenceClassification", "XLMRobertaConfig", {**_TEXT, "max_position_embeddings": 64}),
    "xlnet": ("XLNetModel", "XLNetConfig", {"vocab_size": 100, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "use_mems_eval": False}),
    "squeezebert": ("SqueezeBertForSequenceClassification", "SqueezeBertConfig", {**_TEXT, "embedding_size": 32}),
    "funnel": ("FunnelBaseModel", "FunnelConfig", {"vocab_size": 100, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1]}),
    "nystromformer": ("NystromformerForSequenceClassification", "NystromformerConfig", {**_TEXT, "segment_means_seq_len": 12, "num_landmarks": 12, "max_position_embeddings": 64}),
    "fnet": ("FNetForSequenceClassification", "FNetConfig", _TEXT),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}),
    "openai-gpt": ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "gpt-bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt-neo": ("GPTNeoForCausalLM", "GPTNeoConfig", {"vocab_size": 100, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 32, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _LM),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 32, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 32, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}),
    "opt": ("OPTForCausalLM", "OPTConfig", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "use_cache": False}),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}),
    "mpt": ("MptForCausalLM", "MptConfig", {"vocab_size": 100, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 32, "use_cache": False}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GQA),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GQA),
    "ministral": ("MinistralForCausalLM", "MinistralConfig", {**_GQA, "head_dim": 8}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GQA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_GQA, "head_dim": 8}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_GQA, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_GQA, "head_dim": 8, "sliding_window": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_GQA, "head_dim": 8, "sliding_window": 8}),
    "phi": ("PhiForCausalLM", "PhiConfig", _LM),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**_GQA, "max_position_embeddings": 64, "original_max_position_embeddings": 64}),
    "falcon": ("FalconForCausalLM", "FalconConfig", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", _GQA),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", _GQA),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", _GQA),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _GQA),
    "cohere": ("CohereForCausalLM", "CohereConfig", _GQA),
    "granite": ("GraniteForCausalLM", "GraniteConfig", _GQA),
    "glm": ("GlmForCausalLM", "GlmConfig", {**_GQA, "head_dim": 8}),
    "nemotron": ("NemotronForCausalLM", "NemotronConfig", _GQA),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", _GQA),
    "biogpt": ("BioGptForCausalLM", "BioGptConfig", {**_LM, "max_position_embeddings": 64}),
    "xglm": ("XGLMForCausalLM", "XGLMConfig", {"vocab_size": 100, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64, "use_cache": False}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GQA, "num_local_experts": 4}),
    "qwen2-moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {**_GQA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**_GQA, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", {**_GQA, "num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek-v2": ("DeepseekV2ForCausalLM", "DeepseekV2Config", {**_LM, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "moe_intermediate_size": 32, "topk_method": "greedy", "n_group": 1, "topk_group": 1}),
    "deepseek-v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", {**_LM, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}),
    "mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 100, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "use_cache": False}),
    "mamba2": ("Mamba2ForCausalLM", "Mamba2Config", {"vocab_size": 100, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8, "use_cache": False}),
    "rwkv": ("RwkvForCausalLM", "RwkvConfig", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "use_cache": False}),
    "recurrent-gemma": ("RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", {**_GQA, "lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3}),
    "jamba": ("JambaForCausalLM", "JambaConfig", {**_GQA, "num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}),
}
# Encoder-decoder models.
_PAIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", "T5Config", {"vocab_size": 100, "d_model": 32, "d_kv": 8, "num_layers": 2, "num_heads": 4, "d_ff": 64, "use_cache": False, "decoder_start_token_id": 0}),
    "t5-gated": ("T5ForConditionalGeneration", "T5Config", {"vocab_size": 100, "d_model": 32, "d_kv": 8, "num_layers": 2, "num_heads": 4, "d_ff": 64, "use_cache": False, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("BartForConditionalGeneration", "BartConfig", _SEQ2SEQ),
    "mbart": ("MBartForConditionalGeneration", "MBartConfig", _SEQ2SEQ),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", _SEQ2SEQ),
    "marian": ("MarianMTModel", "MarianConfig", _SEQ2SEQ),
    "m2m-100": ("M2M100ForConditionalGeneration", "M2M100Config", _SEQ2SEQ),
    "blenderbot": ("BlenderbotForConditionalGeneration", "BlenderbotConfig", _SEQ2SEQ),
}
# Image models.
_IMAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", _VISION),
    "deit": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", _VISION),
    "beit": ("BeitForImageClassification", "BeitConfig", {**_VISION, "use_relative_position_bias": True}),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {**_VISION, "mlp_ratio": 2}),
    "swin": ("SwinForImageClassification", "SwinConfig", {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2Config", {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", {**_STAGES, "image_size": 32}),
    "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Config", {**_STAGES, "image_size": 32}),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", {**_STAGES, "embedding_size": 16}),
    "regnet": ("RegNetForImageClassification", "RegNetConfig", {**_STAGES, "embedding_size": 16, "groups_width": 8}),
    "mobilenet-v2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.35, "image_size": 64}),
    "mobilevit": ("MobileViTForImageClassification", "MobileViTConfig", {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64]}),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", {**_STAGES, "decoder_hidden_size": 32, "num_attention_heads": [1, 2, 2, 4]}),
    "pvt": ("PvtForImageClassification", "PvtConfig", {"image_size": 64, **_STAGES, "num_attention_heads": [1, 2, 2, 4]}),
    "poolformer": ("PoolFormerForImageClassification", "PoolFormerConfig", _STAGES),
    "focalnet": ("FocalNetForImageClassification", "FocalNetConfig", {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "hidden_sizes": [16, 32], "focal_levels": [2, 2], "focal_windows": [3, 3]}),
    "levit": ("LevitForImageClassification", "LevitConfig", {"image_size": 64}),
    "efficientnet": ("EfficientNetForImageClassification", "EfficientNetConfig", {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}),
    "detr": ("DetrForObjectDetection", "DetrConfig", {"use_timm_backbone": False, "backbone_config": "resnet", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 8}),
    "yolos": ("YolosForObjectDetection", "YolosConfig", {**_VISION, "image_size": [32, 32], "num_detection_tokens": 8}),
    "dpt": ("DPTForSemanticSegmentation", "DPTConfig", {**_VISION, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 16, 16], "fusion_hidden_size": 16, "use_auxiliary_head": False}),
    "glpn": ("GLPNForDepthEstimation", "GLPNConfig", {**_STAGES, "decoder_hidden_size": 16, "num_attention_heads": [1, 2, 2, 4]}),
    "vit-mae": ("ViTModel", "ViTConfig", {**_VISION, "qkv_bias": False}),
    "upernet": ("UperNetForSemanticSegmentation", "UperNetConfig", {"backbone_config": "convnext", "hidden_size": 16, "auxiliary_in_channels": 32, "auxiliary_channels": 16}),
}
_IMAGE_SIZES = {"segformer": 64, "mobilenet-v2": 64, "mobilevit": 64, "pvt": 64, "levit": 64, "efficientnet": 64, "detr": 64, "glpn": 64, "upernet": 64, "poolformer": 64}


def _library() -> Any:
    import torchvision_without_ops

    torchvision_without_ops.load()
    import transformers

    return transformers


def _model(spec: tuple[str, str, dict[str, Any]]) -> Any:
    library = _library()
    model_name, config_name, options = spec
    if "backbone_config" in options:
        config = getattr(library, {"resnet": "ResNetConfig", "convnext": "ConvNextConfig"}[options["backbone_config"]])
        backbone = config(**_STAGES, out_features=["stage1", "stage2", "stage3", "stage4"])
        options = {**options, "backbone_config": backbone}
    config = getattr(library, config_name)(**options)
    config.return_dict = True
    return getattr(library, model_name)(config)


def _token_model(spec: tuple[str, str, dict[str, Any]]) -> Built:
    ids = tokens()
    return _model(spec), (), {"input_ids": ids}


def _masked_token_model(spec: tuple[str, str, dict[str, Any]]) -> Built:
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return _model(spec), (), {"input_ids": ids, "attention_mask": mask}


def _pair_model(spec: tuple[str, str, dict[str, Any]]) -> Built:
    return _model(spec), (), {"input_ids": tokens(), "decoder_input_ids": tokens(8)}


def _image_model(spec: tuple[str, str, dict[str, Any]], size: int) -> Built:
    return _model(spec), (), {"pixel_values": image(size)}


def _audio_model(model: str, config: str, options: dict[str, Any]) -> Built:
    wave = torch.randn(2, 800, generator=torch.Generator().manual_seed(1))
    return _model((model, config, options)), (), {"input_values": wave}


def _whisper() -> Built:
    options = {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
    options.pop("max_position_embeddings")
    model = _model(("WhisperForConditionalGeneration", "WhisperConfig", {**options, "suppress_tokens": None, "begin_suppress_tokens": None}))
    features = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    return model, (), {"input_features": features, "decoder_input_ids": tokens(8)}


def _ast() -> Built:
    options = {**_TEXT, "patch_size": 4, "max_length": 16, "num_mel_bins": 8, "frequency_stride": 4, "time_stride": 4}
    options.pop("vocab_size")
    spectrogram = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1))
    return _model(("ASTForAudioClassification", "ASTConfig", options)), (), {"input_values": spectrogram}


def _two_towers(model: str, config: str, extra: dict[str, Any]) -> Built:
    text = {**_TEXT, "max_position_embeddings": 16, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    options = {"text_config": text, "vision_config": dict(_VISION), **extra}
    ids = tokens()
    ids[:, -1] = 99
    return _model((model, config, options)), (), {"input_ids": ids, "pixel_values": image(32)}


def _blip() -> Built:
    model, args, kwargs = _two_towers("BlipForImageTextRetrieval", "BlipConfig", {"projection_dim": 16, "image_text_hidden_size": 16})
    return model, args, {**kwargs, "attention_mask": torch.ones_like(kwargs["input_ids"])}


def _vilt() -> Built:
    model = _model(("ViltForQuestionAnswering", "ViltConfig", {**_TEXT, "image_size": 32, "patch_size": 8, "num_labels": 5}))
    ids = tokens()
    return model, (), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "pixel_values": image(32),
        "pixel_mask": torch.ones(2, 32, 32, dtype=torch.long),
    }


def _llava() -> Built:
    options = {
        "text_config": {**_GQA, "model_type": "llama"},
        "vision_config": {**_VISION, "model_type": "clip_vision_model", "projection_dim": 16},
        "image_token_index": 99,
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -1,
    }
    ids = torch.cat([torch.full((2, 16), 99), tokens(8)], 1)
    return _model(("LlavaForConditionalGeneration", "LlavaConfig", options)), (), {"input_ids": ids, "pixel_values": image(32)}


def _time_series() -> Built:
    options = {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 32, "num_targets": 4}
    series = torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(1))
    return _model(("PatchTSTForClassification", "PatchTSTConfig", options)), (), {"past_values": series}


_OTHERS = {
    "wav2vec2": partial(_audio_model, "Wav2Vec2ForCTC", "Wav2Vec2Config", _AUDIO),
    "hubert": partial(_audio_model, "HubertForCTC", "HubertConfig", _AUDIO),
    "wavlm": partial(_audio_model, "WavLMForCTC", "WavLMConfig", _AUDIO),
    "data2vec-audio": partial(_audio_model, "Data2VecAudioForCTC", "Data2VecAudioConfig", {**_AUDIO, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}),
    "sew": partial(_audio_model, "SEWForCTC", "SEWConfig", {**_AUDIO, "squeeze_factor": 2}),
    "whisper": _whisper,
    "ast": _ast,
    "clip": partial(_two_towers, "CLIPModel", "CLIPConfig", {"projection_dim": 16}),
    "siglip": partial(_two_towers, "SiglipModel", "SiglipConfig", {}),
    "align-like-blip": _blip,
    "vilt": _vilt,
    "llava": _llava,
    "patchtst": _time_series,
}


def transformers_entries() -> list[Entry]:
    masked = ("bert", "distilbert", "deberta-v2", "deberta", "gpt2", "llama", "albert")
    found = []
    for name, spec in _TOKENS.items():
        build = _masked_token_model if name in masked else _token_model
        found.append(Entry(f"transformers/{name}", "transformer", partial(build, spec)))
    found += [Entry(f"transformers/{name}", "transformer", partial(_pair_model, spec)) for name, spec in _PAIRS.items()]
    for name, spec in _IMAGES.items():
        kind = "conv" if name in ("resnet", "regnet", "convnext", "convnextv2", "efficientnet", "mobilenet-v2") else "transformer"
        build = partial(_image_model, spec, _IMAGE_SIZES.get(name, 32))
        found.append(Entry(f"transformers/{name}", kind, build))
    found += [Entry(f"transformers/{name}", "transformer", build) for name, build in _OTHERS.items()]
    return found
