"""torchvision: all classifiers, segmentation and video models, and the detectors (which depend on their data)."""

from __future__ import annotations

from functools import partial

import torch

from zoo.entry import Built, Entry, image

CLASSIFIERS = [
    "alexnet",
    "convnext_base",
    "convnext_large",
    "convnext_small",
    "convnext_tiny",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_l",
    "efficientnet_v2_m",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_16gf",
    "regnet_x_1_6gf",
    "regnet_x_32gf",
    "regnet_x_3_2gf",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_x_8gf",
    "regnet_y_128gf",
    "regnet_y_16gf",
    "regnet_y_1_6gf",
    "regnet_y_32gf",
    "regnet_y_3_2gf",
    "regnet_y_400mf",
    "regnet_y_800mf",
    "regnet_y_8gf",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "swin_b",
    "swin_s",
    "swin_t",
    "swin_v2_b",
    "swin_v2_s",
    "swin_v2_t",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "vit_b_16",
    "vit_b_32",
    "vit_h_14",
    "vit_l_16",
    "vit_l_32",
    "wide_resnet101_2",
    "wide_resnet50_2",
]
SEGMENTATION = [
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet101",
    "deeplabv3_resnet50",
    "fcn_resnet101",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
]
VIDEO = ["mc3_18", "mvit_v1_b", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_b", "swin3d_s", "swin3d_t"]
DETECTION = [
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
]
# The smallest image that each accepts, where that is not 64 pixels.
_SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
_TRANSFORMERS = ("vit", "swin", "maxvit", "mvit")


def _classifier(name: str) -> Built:
    import torchvision_without_ops

    size = _SIZES.get(name, 64)
    options = {}
    if name.startswith("vit"):
        options["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model = torchvision_without_ops.load().models.get_model(name, weights=None, **options)
    return model, (image(size),), {}


def _segmentation(name: str) -> Built:
    import torchvision_without_ops

    models = torchvision_without_ops.load().models
    return models.get_model(name, weights=None, weights_backbone=None, aux_loss=None), (image(64),), {}


def _video(name: str) -> Built:
    import torchvision_without_ops

    model = torchvision_without_ops.load().models.get_model(name, weights=None)
    frames, size = (16, 224) if name.startswith(("mvit", "s3d")) else (16, 64)
    clip = torch.randn(2, 3, frames, size, size, generator=torch.Generator().manual_seed(1))
    return model, (clip,), {}


def _detector(name: str) -> Built:
    import torchvision_without_ops

    models = torchvision_without_ops.load().models
    model = models.get_model(name, weights=None, weights_backbone=None)
    return model, (list(image(64)),), {}


def torchvision_entries() -> list[Entry]:
    def kind(name: str) -> str:
        return "transformer" if name.startswith(_TRANSFORMERS) else "conv"

    classifiers = [
        Entry(f"torchvision/{name}", kind(name), partial(_classifier, name), rival=True) for name in CLASSIFIERS
    ]
    segmentation = [
        Entry(f"torchvision-segmentation/{name}", "conv", partial(_segmentation, name)) for name in SEGMENTATION
    ]
    video = [Entry(f"torchvision-video/{name}", kind(name), partial(_video, name)) for name in VIDEO]
    detection = [
        Entry(f"torchvision-detection/{name}", "conv", partial(_detector, name), dynamic=None) for name in DETECTION
    ]
    return [*classifiers, *segmentation, *video, *detection]
