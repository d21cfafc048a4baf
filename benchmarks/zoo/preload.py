"""What every worker needs, imported once in the process that workers are forked from."""

from __future__ import annotations

import importlib
import os
import warnings

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.simplefilter("ignore")
torch.set_num_threads(1)
importlib.import_module("torchvision_without_ops").load()
for name in ("timm", "transformers", "torch.export", "torch.onnx", "onnxscript", "onnxruntime", "zoo.worker"):
    importlib.import_module(name)
importlib.import_module("l0compress").capture(torch.nn.Linear(2, 2), (torch.zeros(2, 2),))
