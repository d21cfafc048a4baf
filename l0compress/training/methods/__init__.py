"""What decides what is removed, by name: learned gates, a score, training towards sparsity, or a search.

All have the same teacher, budget, rounding, repair and number of epochs. To add one, write a :class:`Method`, a score
for :class:`~l0compress.training.methods.one_shot.OneShot`, or a
:class:`~l0compress.training.methods.pressure.Pressure` for :class:`~l0compress.training.methods.trained.Trained`, and
put it here and into ``METHOD_NAMES``.
"""

from __future__ import annotations

from l0compress.training.methods.base import Method
from l0compress.training.methods.fisher import Fisher
from l0compress.training.methods.fisher_weights import FisherWeights
from l0compress.training.methods.gradual import GradualMagnitude, GradualWeightMagnitude
from l0compress.training.methods.group_lasso import GroupLasso
from l0compress.training.methods.hybrid import Hybrid
from l0compress.training.methods.l1 import L1, L1Weights
from l0compress.training.methods.learned import LearnedGates
from l0compress.training.methods.magnitude import Magnitude
from l0compress.training.methods.proximal import Proximal, ProximalWeights
from l0compress.training.methods.random_scores import Random, RandomWeights
from l0compress.training.methods.reinforce import Reinforce
from l0compress.training.methods.search import Search
from l0compress.training.methods.taylor import Taylor, TaylorWeights
from l0compress.training.methods.weight_magnitude import LayerMagnitude, WeightMagnitude
from l0compress.training.settings import FinetuneSettings

METHODS: dict[str, type[Method]] = {
    "l0": LearnedGates,
    "fisher": Fisher,
    "magnitude": Magnitude,
    "layer-magnitude": LayerMagnitude,
    "random": Random,
    "taylor": Taylor,
    "gradual-magnitude": GradualMagnitude,
    "group-lasso": GroupLasso,
    "l1": L1,
    "proximal": Proximal,
    "hybrid": Hybrid,
    "search": Search,
    "reinforce": Reinforce,
}
# Those that are another method where single weights become zero.
OF_WEIGHTS: dict[str, type[Method]] = {
    "fisher": FisherWeights,
    "magnitude": WeightMagnitude,
    "random": RandomWeights,
    "taylor": TaylorWeights,
    "gradual-magnitude": GradualWeightMagnitude,
    "l1": L1Weights,
    "proximal": ProximalWeights,
}


def method_of(settings: FinetuneSettings) -> type[Method]:
    """The method that the settings name; of channels and of single weights, one name may be two."""
    found = METHODS[settings.method]
    return found if settings.granularity == "structured" else OF_WEIGHTS.get(settings.method, found)
