"""How long a run trains, what decides in it, and by which steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from l0compress.gates.defaults import GRANULARITIES, Granularity
from l0compress.training.schema import setting
from l0compress.training.settings.choices import LOSSES, METHOD_NAMES, OPTIMIZERS, PANEL, SCHEDULERS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StepSettings:
    """The first fields of :class:`~l0compress.training.settings.FinetuneSettings`, which documents them."""

    epochs: int = field(
        default=48,
        metadata=setting(
            least=0,
            panel=PANEL,
            help="All epochs together; 0 decides and repairs without training, on a few hundred samples.",
        ),
    )
    method: str = field(
        default=METHOD_NAMES[0],
        metadata=setting(
            names=METHOD_NAMES,
            at_top=True,
            help="What decides: learned gates (l0; hybrid: with L2 and L1), a score before training (fisher, taylor, "
            "magnitude, random), the first part of the epochs (gradual-magnitude, group-lasso, l1, proximal), or a "
            "search for the densities of groups (search, reinforce); layer-magnitude of single weights. See "
            "docs/methods.md.",
        ),
    )
    granularity: Granularity = field(
        default=GRANULARITIES[0],
        metadata=setting(
            names=GRANULARITIES,
            at_top=True,
            help="What may be removed: channels, heads and units (structured), single weights, which become zero "
            "(weights), or both. With single weights the target counts what is not zero.",
        ),
    )
    batch_size: int | None = field(
        default=None,
        metadata=setting(
            kind=int, least=1, panel=PANEL, absent="chosen by the number of samples", help="Samples a step."
        ),
    )
    learning_rate: float | None = field(
        default=None,
        metadata=setting(
            kind=float,
            above=0,
            key="lr",
            panel=PANEL,
            absent="chosen by the network and the length of the run",
            help="Highest learning rate.",
        ),
    )
    optimizer: str | Callable[..., Any] = field(
        default=OPTIMIZERS[0],
        metadata=setting(
            names=OPTIMIZERS,
            or_reference=True,
            panel=PANEL,
            metavar="NAME",
            help="For the weights: adamw, sgd, or PKG.MOD:FN of (param_groups, lr), such as torch.optim:NAdam.",
        ),
    )
    scheduler: str | Callable[..., Any] = field(
        default=SCHEDULERS[0],
        metadata=setting(
            names=SCHEDULERS,
            or_reference=True,
            panel=PANEL,
            metavar="NAME",
            help="Of the rate in each phase: cosine, or PKG.MOD:FN of (optimizer, num_steps) that returns a scheduler.",
        ),
    )
    clip: float | None = field(
        default=1.0,
        metadata=setting(above=0, off=0, panel=PANEL, help="Largest norm of the gradient; 0 does not clip."),
    )
    loss: str | Callable[[Any, Tensor], Tensor] = field(
        default=LOSSES[0],
        metadata=setting(
            format="loss",
            panel=PANEL,
            help="auto (by the targets' type), cross-entropy, bce, mse, or PKG.MOD:FN of (outputs, targets).",
        ),
    )
