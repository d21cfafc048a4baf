"""What decides what is removed, by name: learned gates, or a score.

All have the same teacher, budget, rounding, repair and number of epochs. To add one, write a :class:`Method` or a score
for :class:`~l0compress.training.methods.one_shot.OneShot`, and put it here and into ``METHOD_NAMES``.
"""

from __future__ import annotations

from l0compress.training.methods.base import Method
from l0compress.training.methods.fisher import Fisher
from l0compress.training.methods.learned import LearnedGates
from l0compress.training.methods.magnitude import Magnitude
from l0compress.training.methods.weight_magnitude import LayerMagnitude, WeightMagnitude
from l0compress.training.settings import FinetuneSettings

METHODS: dict[str, type[Method]] = {
    "l0": LearnedGates,
    "fisher": Fisher,
    "magnitude": Magnitude,
    "layer-magnitude": LayerMagnitude,
}


def method_of(settings: FinetuneSettings) -> type[Method]:
    """The method that the settings name; magnitudes of channels and of single weights are two."""
    found = METHODS[settings.method]
    return WeightMagnitude if found is Magnitude and settings.granularity != "structured" else found
