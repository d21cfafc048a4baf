"""timm: one small model of every family (module) that builds without data, at the smallest image that it takes."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo.entry import Built, Entry, image

# Families that take any size: model and image size.
_FREE = {
    "byoanet/halonet_h1": 256,
    "byobnet/mobileone_s1": 64,
    "convmixer/convmixer_768_32": 64,
    "convnext/convnext_atto": 64,
    "cpubone/cpubone_nano": 64,
    "csatv2/csatv2": 256,
    "cspnet/cs3darknet_s": 64,
    "cspnext/cspnext_tiny": 64,
    "densenet/densenetblur121d": 64,
    "dla/dla46_c": 64,
    "dpn/dpn48b": 64,
    "efficientnet/efficientnet_lite0": 64,
    "efficientnet/test_efficientnet_gn": 64,
    "efficientvim/efficientvim_m1": 64,
    "efficientvit_mit/efficientvit_b0": 64,
    "fasternet/fasternet_t0": 64,
    "fastvit/fastvit_t8": 64,
    "ghostnet/ghostnet_050": 64,
    "hardcorenas/hardcorenas_a": 64,
    "hgnet/hgnetv2_b0": 64,
    "hieradet_sam2/sam2_hiera_tiny": 224,
    "hrnet/hrnet_w18_small": 64,
    "iformer/iformer_t": 64,
    "inception_next/inception_next_atto": 64,
    "inception_resnet_v2/inception_resnet_v2": 128,
    "inception_v3/inception_v3": 128,
    "inception_v4/inception_v4": 128,
    "lcnetv2/lcnetv2_small": 64,
    "lowformer/lowformer_b0": 64,
    "mambaout/mambaout_femto": 64,
    "metaformer/poolformer_s12": 64,
    "metaformer/caformer_s18": 64,
    "mobilenetv3/mobilenetv3_small_050": 64,
    "mobilenetv5/mobilenetv5_base": 64,
    "mobilevit/mobilevit_xxs": 64,
    "mobilevit/mobilevitv2_050": 64,
    "nasnet/nasnetalarge": 96,
    "nextvit/nextvit_small": 64,
    "nfnet/nf_regnet_b0": 64,
    "pnasnet/pnasnet5large": 96,
    "pvt_v2/pvt_v2_b0": 64,
    "rdnet/rdnet_tiny": 64,
    "regnet/regnety_002": 64,
    "repghost/repghostnet_050": 64,
    "repvit/repvit_m0_9": 64,
    "res2net/res2net50_14w_8s": 64,
    "resnest/resnest14d": 64,
    "resnet/resnet10t": 64,
    "resnetv2/resnetv2_18": 64,
    "rexnet/rexnet_100": 64,
    "selecsls/selecsls42": 64,
    "senet/legacy_seresnet18": 64,
    "shvit/shvit_s1": 64,
    "sknet/skresnet18": 64,
    "starnet/starnet_s050": 64,
    "tresnet/tresnet_m": 64,
    "vovnet/ese_vovnet19b_slim": 64,
    "xception/legacy_xception": 96,
    "xception_aligned/xception41p": 64,
}
# Families that are built for one size: model and the size to build it for, None for its own.
_FIXED: dict[str, int | None] = {
    "beit/beit_base_patch16_224": 64,
    "cait/cait_xxs24_224": 64,
    "coat/coat_tiny": 64,
    "convit/convit_tiny": 64,
    "crossvit/crossvit_tiny_240": None,
    "davit/davit_tiny": None,
    "deit/deit_tiny_distilled_patch16_224": 64,
    "edgenext/edgenext_xx_small": None,
    "efficientformer/efficientformer_l1": None,
    "efficientformer_v2/efficientformerv2_s0": None,
    "efficientvit_msra/efficientvit_m0": None,
    "eva/eva02_tiny_patch14_224": 56,
    "focalnet/focalnet_tiny_srf": None,
    "gcvit/gcvit_xxtiny": None,
    "hiera/hiera_tiny_224": None,
    "levit/levit_128s": None,
    "maxxvit/coatnet_pico_rw_224": None,
    "mlp_mixer/gmlp_ti16_224": 64,
    "mlp_mixer/gmixer_12_224": 64,
    "mlp_mixer/resmlp_12_224": 64,
    "mvitv2/mvitv2_tiny": None,
    "naflexvit/naflexvit_base_patch16_gap": None,
    "nest/nest_tiny": None,
    "pit/pit_ti_224": None,
    "sequencer/sequencer2d_s": None,
    "swiftformer/swiftformer_xs": None,
    "swin_transformer/swin_tiny_patch4_window7_224": None,
    "swin_transformer_v2/swinv2_tiny_window8_256": None,
    "swin_transformer_v2_cr/swinv2_cr_tiny_224": None,
    "tiny_vit/tiny_vit_5m_224": None,
    "tnt/tnt_s_patch16_224": 64,
    "twins/twins_svt_small": None,
    "twins/twins_pcpvt_small": None,
    "visformer/visformer_tiny": None,
    "vision_transformer/vit_tiny_patch16_224": 64,
    "vision_transformer_hybrid/vit_tiny_r_s16_p8_224": 64,
    "vision_transformer_relpos/vit_relpos_small_patch16_224": 64,
    "vision_transformer_sam/samvit_base_patch16_224": 64,
    "vitamin/vitamin_small_224": None,
    "volo/volo_d1_224": None,
    "xcit/xcit_nano_12_p8_224": 64,
}
_CONVOLUTIONAL = frozenset(
    [
        "byobnet",
        "convmixer",
        "convnext",
        "cpubone",
        "cspnet",
        "cspnext",
        "densenet",
        "dla",
        "dpn",
        "efficientnet",
        "fasternet",
        "ghostnet",
        "hardcorenas",
        "hgnet",
        "hrnet",
        "inception_next",
        "inception_resnet_v2",
        "inception_v3",
        "inception_v4",
        "lcnetv2",
        "mambaout",
        "mobilenetv3",
        "nasnet",
        "nfnet",
        "pnasnet",
        "rdnet",
        "regnet",
        "repghost",
        "repvit",
        "res2net",
        "resnest",
        "resnet",
        "resnetv2",
        "rexnet",
        "selecsls",
        "senet",
        "sknet",
        "starnet",
        "tresnet",
        "vovnet",
        "xception",
        "xception_aligned",
    ]
)


def _build(name: str, size: int, options: dict[str, Any]) -> Built:
    import torchvision_without_ops

    torchvision_without_ops.load()
    import timm

    return timm.create_model(name, pretrained=False, **options), (image(size),), {}


def _own_size(name: str) -> int:
    digits = [int(part) for part in name.split("_") if part.isdigit() and int(part) > 100]
    return digits[-1] if digits else {"edgenext_xx_small": 256, "swinv2_tiny_window8_256": 256}.get(name, 224)


def timm_entries() -> list[Entry]:
    found = []
    for key, size in {**_FREE, **_FIXED}.items():
        family, name = key.split("/")
        kind = "conv" if family in _CONVOLUTIONAL else "transformer"
        options = {"img_size": size} if key in _FIXED and size else {}
        found.append(Entry(f"timm/{family}/{name}", kind, partial(_build, name, size or _own_size(name), options)))
    return found
