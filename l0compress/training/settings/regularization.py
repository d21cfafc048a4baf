"""What keeps weights small, ternary, like those of the dense model, or independent of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from l0compress.training.schema import setting
from l0compress.training.settings.choices import PANEL


@dataclass(frozen=True)
class RegularizationSettings:
    """Fields of :class:`~l0compress.training.settings.FinetuneSettings`, which documents them."""

    l2: float | None = field(
        default=None,
        metadata=setting(
            kind=float,
            least=0,
            metavar="STRENGTH",
            panel=PANEL,
            absent="none; 0.0001 with method hybrid",
            help="Beside learned gates, half the squares of the weights as far as their gates are open, times this.",
        ),
    )
    l1: float | None = field(
        default=None, metadata=setting(kind=float, least=0, absent="none; 0.00001 with method hybrid")
    )
    trials: int = field(
        default=32,
        metadata=setting(least=1, panel=PANEL, help="Densities that methods search and reinforce try."),
    )
    ternary: bool = field(
        default=False,
        metadata=setting(
            panel=PANEL,
            help="In the last phase train weights that are -1, 0 and 1 times one scale a row, which a bundle stores in "
            "two bits.",
        ),
    )
    keep_float: str | Sequence[str] | None = field(
        default=None,
        metadata=setting(
            kind=str,
            many=True,
            panel=PANEL,
            metavar="GLOB",
            absent="none: all layers become ternary, except tables of look-ups",
            help="Layers that --ternary leaves in float, by the names that inspect shows. May be given several times.",
        ),
    )
    weight_decay: float = field(default=0.05, metadata=setting(least=0))
    distill: bool = field(default=True, metadata=setting())
    distill_temperature: float = field(default=2.0, metadata=setting(above=0))
    final_temperature: float = field(default=1.0, metadata=setting(above=0))
    task_share: float = field(default=0.5, metadata=setting(least=0, most=1))
    input_dropout: float | None = field(
        default=None,
        metadata=setting(
            kind=float,
            least=0,
            below=1,
            metavar="SHARE",
            panel=PANEL,
            absent="0.1 for flat inputs with 64 features or more, otherwise none",
            help="Share of the elements of flat inputs (n, features) dropped in training; other inputs are not "
            "affected.",
        ),
    )
    dropout: float = field(
        default=0.0,
        metadata=setting(
            least=0,
            below=1,
            metavar="SHARE",
            panel=PANEL,
            help="Share of the elements of hidden activations dropped in training, before each layer that multiplies.",
        ),
    )
    drop_connect: float = field(
        default=0.0,
        metadata=setting(
            least=0,
            below=1,
            metavar="SHARE",
            panel=PANEL,
            help="Share of the elements of weights dropped in training (DropConnect).",
        ),
    )
    activation_l1: float = field(
        default=0.0,
        metadata=setting(
            least=0,
            metavar="STRENGTH",
            panel=PANEL,
            help="Beside the loss, the mean activation of each unit behind a ReLU, added up over units, times this; "
            "units that then never fire are removed after training.",
        ),
    )
