"""What a run is told: frozen settings with their bounds and their help, free of torch.

``finetune`` puts together what ``steps``, ``computation`` and ``regularization`` hold, and checks that it fits;
``gates`` has the constants of learned gates, ``choices`` the names to choose from.
"""

from __future__ import annotations

from l0compress.training.settings.choices import GATED_METHODS, LOSSES, METHOD_NAMES, SCHEDULERS, TRAINED_METHODS
from l0compress.training.settings.finetune import PLAIN_RATE, FinetuneSettings
from l0compress.training.settings.gates import GateSettings

__all__ = [
    "GATED_METHODS",
    "LOSSES",
    "METHOD_NAMES",
    "PLAIN_RATE",
    "SCHEDULERS",
    "TRAINED_METHODS",
    "FinetuneSettings",
    "GateSettings",
]
