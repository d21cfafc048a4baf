"""transformers: architectures built from tiny configurations that are written down here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoo.entry import Built, Entry, image, tokens

_TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
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
_STAGES = {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}

Spec = Mapping[str, Any]

# ``tokens``, ``pairs`` (encoder and decoder), ``images`` and ``waves``: model class, configuration class, its options.
_SPECS: dict[str, dict[str, Spec]] = json.loads((Path(__file__).parent / "transformers_configs.json").read_text())


def _library() -> Any:
    import torchvision_without_ops

    torchvision_without_ops.load()
    import transformers

    return transformers


def _model(spec: Spec) -> Any:
    library, options = _library(), dict(spec["options"])
    if "backbone_config" in options:
        config = getattr(library, {"resnet": "ResNetConfig", "convnext": "ConvNextConfig"}[options["backbone_config"]])
        options["backbone_config"] = config(**_STAGES, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = getattr(library, spec["config"])(**options)
    config.return_dict = True
    return getattr(library, spec["model"])(config)


def _made(model: str, config: str, options: dict[str, Any]) -> Any:
    return _model({"model": model, "config": config, "options": options})


def _token_model(spec: Spec, *, padded: bool) -> Built:
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return _model(spec), (), {"input_ids": ids, **({"attention_mask": mask} if padded else {})}


def _pair_model(spec: Spec) -> Built:
    return _model(spec), (), {"input_ids": tokens(), "decoder_input_ids": tokens(8)}


def _image_model(spec: Spec) -> Built:
    return _model(spec), (), {"pixel_values": image(spec.get("size", 32))}


def _wave_model(spec: Spec) -> Built:
    return _model(spec), (), {"input_values": torch.randn(2, 800, generator=torch.Generator().manual_seed(1))}


def _whisper() -> Built:
    options = {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
    options.pop("max_position_embeddings")
    model = _made(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**options, "suppress_tokens": None, "begin_suppress_tokens": None},
    )
    features = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    return model, (), {"input_features": features, "decoder_input_ids": tokens(8)}


def _ast() -> Built:
    options = {**_TEXT, "patch_size": 4, "max_length": 16, "num_mel_bins": 8, "frequency_stride": 4, "time_stride": 4}
    options.pop("vocab_size")
    spectrogram = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1))
    return _made("ASTForAudioClassification", "ASTConfig", options), (), {"input_values": spectrogram}


def _two_towers(model: str, config: str, extra: dict[str, Any]) -> Built:
    text = {
        **_TEXT,
        "max_position_embeddings": 16,
        "projection_dim": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    options = {"text_config": text, "vision_config": dict(_VISION), **extra}
    ids = tokens()
    ids[:, -1] = 99
    return _made(model, config, options), (), {"input_ids": ids, "pixel_values": image(32)}


def _blip() -> Built:
    model, args, kwargs = _two_towers(
        "BlipForImageTextRetrieval", "BlipConfig", {"projection_dim": 16, "image_text_hidden_size": 16}
    )
    return model, args, {**kwargs, "attention_mask": torch.ones_like(kwargs["input_ids"])}


def _vilt() -> Built:
    model = _made(
        "ViltForQuestionAnswering", "ViltConfig", {**_TEXT, "image_size": 32, "patch_size": 8, "num_labels": 5}
    )
    ids = tokens()
    return (
        model,
        (),
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
            "pixel_values": image(32),
            "pixel_mask": torch.ones(2, 32, 32, dtype=torch.long),
        },
    )


def _llava() -> Built:
    options = {
        "text_config": {**_GQA, "model_type": "llama"},
        "vision_config": {**_VISION, "model_type": "clip_vision_model", "projection_dim": 16},
        "image_token_index": 99,
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -1,
    }
    ids = torch.cat([torch.full((2, 16), 99), tokens(8)], 1)
    return (
        _made("LlavaForConditionalGeneration", "LlavaConfig", options),
        (),
        {"input_ids": ids, "pixel_values": image(32)},
    )


def _time_series() -> Built:
    options = {
        "num_input_channels": 3,
        "context_length": 32,
        "patch_length": 8,
        "patch_stride": 8,
        "d_model": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 32,
        "num_targets": 4,
    }
    series = torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(1))
    return _made("PatchTSTForClassification", "PatchTSTConfig", options), (), {"past_values": series}


_OTHERS = {
    "whisper": _whisper,
    "ast": _ast,
    "clip": partial(_two_towers, "CLIPModel", "CLIPConfig", {"projection_dim": 16}),
    "siglip": partial(_two_towers, "SiglipModel", "SiglipConfig", {}),
    "blip": _blip,
    "vilt": _vilt,
    "llava": _llava,
    "patchtst": _time_series,
}
_PADDED = ("bert", "distilbert", "deberta-v2", "deberta", "gpt2", "llama", "albert")
_CONVOLUTIONAL = ("resnet", "regnet", "convnext", "convnextv2", "efficientnet", "mobilenet-v2")


def transformers_entries() -> list[Entry]:
    builders = {name: partial(_token_model, spec, padded=name in _PADDED) for name, spec in _SPECS["tokens"].items()}
    for part, build in (("pairs", _pair_model), ("images", _image_model), ("waves", _wave_model)):
        builders |= {name: partial(build, spec) for name, spec in _SPECS[part].items()}
    return [
        Entry(f"transformers/{name}", "conv" if name in _CONVOLUTIONAL else "transformer", build)
        for name, build in {**builders, **_OTHERS}.items()
    ]
