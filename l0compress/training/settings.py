"""Every constant of a fine-tuning run, in one frozen value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from l0compress.errors import InputError
from l0compress.gates.defaults import GRANULARITIES, OPEN_LOG_ALPHA, TEMPERATURE, Granularity
from l0compress.training.schema import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor

    from l0compress.graph.capture import CapturedGraph

PLAIN_RATE = 1e-2
# Those that take part of the epochs to decide.
TRAINED_METHODS = ("l0", "gradual-magnitude", "group-lasso", "l1", "proximal", "hybrid")
# Those of them that learn gates.
GATED_METHODS = ("l0", "hybrid")
# The strengths of L2 and L1 that make a hybrid where none are given.
HYBRID_L2, HYBRID_L1 = 1e-4, 1e-5
_SCORES, _SEARCHES = ("fisher", "magnitude", "layer-magnitude", "random", "taylor"), ("search", "reinforce")
METHOD_NAMES = ("l0", *_SCORES, *TRAINED_METHODS[1:], *_SEARCHES)
OPTIMIZERS, SCHEDULERS = ("adamw", "sgd"), ("cosine",)
LOSSES = ("auto", "cross-entropy", "bce", "mse")
_PANEL = "Training"
_LATENCY_PANEL = "Latency"
LATENCY_DTYPES = ("float32", "int8")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class GateSettings:
    """Constants of the gated phase.

    Attributes:
        share: the phase's part of the epochs, from the first on.
        log_alpha: where gates start; 2.94 is open with a probability of 98 %.
        temperature: beta of the hard concrete distribution.
        learning_rate: Adam's rate for log_alpha in a phase of ``full_steps`` steps or more, see :meth:`rate_for`.
        multiplier_rate: Adam's rate for the multiplier in a phase of ``full_multiplier_steps`` steps or more.
        ramp_share: the part of the phase in which the target falls to the budget.
        weight_rate_share: the weights' rate at the start, as a share of the run's learning rate.
        weight_rate_floor: the weights' rate at the end, as a share of that start.
        compact_below: moves that are open with a lower probability count as surely shut, and are removed in training.
        compact_every: steps from one look for such moves to the next; there is one after every epoch, too.
        compact_gain: how many times what the removal costs it has to save in the steps that are left, see
            :mod:`~l0compress.training.compaction`; 0 removes whatever is shut.
        highest_rate, highest_multiplier_rate: how far the two rates are raised in a short phase. Faster gates close at
            random; where they are too slow to arrive, hardening still has their order.
        magnitude_slope: how much of their order gates on single weights get from the magnitudes of the weights, in a
            phase of ``full_steps`` steps or fewer, see :meth:`slope_for`.
        many_steps: in a phase of so many steps or more, gates of moves start open and all alike, in a shorter one near
            the budget and in the order of a score.
    """

    share: float = field(default=1 / 3, metadata=setting(least=0, most=1))
    log_alpha: float = field(default=OPEN_LOG_ALPHA, metadata=setting(least=-math.inf))
    temperature: float = field(default=TEMPERATURE, metadata=setting(above=0))
    learning_rate: float = field(default=0.015, metadata=setting(above=0))
    multiplier_rate: float = field(default=0.05, metadata=setting(above=0))
    ramp_share: float = field(default=0.6, metadata=setting(least=0, most=1))
    weight_rate_share: float = field(default=2 / 3, metadata=setting(above=0))
    weight_rate_floor: float = field(default=0.3, metadata=setting(above=0))
    compact_below: float = field(default=0.01, metadata=setting(above=0))
    compact_every: int = field(default=10, metadata=setting(least=1))
    compact_gain: float = field(default=4.0, metadata=setting(least=0))
    full_steps: int = field(default=2000, metadata=setting(above=0))
    full_multiplier_steps: int = field(default=1000, metadata=setting(above=0))
    highest_rate: float = field(default=0.1, metadata=setting(above=0))
    highest_multiplier_rate: float = field(default=0.5, metadata=setting(above=0))
    magnitude_slope: float = field(default=1.0, metadata=setting(least=0))
    many_steps: int = field(default=1000, metadata=setting(least=0))

    def __post_init__(self) -> None:
        check_settings(self)

    def are_many(self, num_steps: int) -> bool:
        """Whether gates can find their order by themselves in so many steps.

        >>> GateSettings().are_many(200), GateSettings().are_many(2000)
        (False, True)
        """
        return num_steps >= self.many_steps

    def rate_for(self, num_steps: int) -> float:
        """The gates' rate in a phase of ``num_steps`` steps: in a short one they travel as far as in a long one.

        >>> GateSettings().rate_for(6000), GateSettings().rate_for(1000)
        (0.015, 0.03)
        """
        raised = min(self.learning_rate * self.full_steps / num_steps, self.highest_rate)
        return max(self.learning_rate, raised)

    def slope_for(self, num_steps: int) -> float:
        """The slope that gates on weights start with: the less time they have to find an order, the more it is given.

        >>> GateSettings().slope_for(1000), GateSettings().slope_for(8000)
        (1.0, 0.25)
        """
        return self.magnitude_slope * min(1.0, self.full_steps / num_steps)

    def multiplier_rate_for(self, num_steps: int) -> float:
        """The multiplier's rate in a phase of ``num_steps`` steps.

        >>> GateSettings().multiplier_rate_for(6000), GateSettings().multiplier_rate_for(500)
        (0.05, 0.1)
        """
        raised = min(self.multiplier_rate * self.full_multiplier_steps / num_steps, self.highest_multiplier_rate)
        return max(self.multiplier_rate, raised)


@dataclass(frozen=True)
class FinetuneSettings:
    """How a run trains; the defaults are what the command line uses.

    Attributes:
        epochs: epochs of all phases together; 0 decides and repairs without training.
        method: what decides: "l0" (learned gates), "fisher" or "magnitude" (scores), or for single weights
            "layer-magnitude"; see
            :data:`~l0compress.training.methods.METHODS`.
        granularity: what may go: "structured" (what can be cut out physically), "weights" (single weights become zero)
            or "both".
        keep, min_density: what may not be removed, as for
            :meth:`~l0compress.graph.capture.captured.CapturedGraph.protected`; None leaves the graph's own limits.
        batch_size: samples a step; None chooses 128, or less where an epoch would have under 32 steps.
        learning_rate: the highest rate of the weights, reached at the start of the phase after hardening; None chooses
            by the network and the length of the run, see :meth:`settled`.
        optimizer: "adamw", "sgd", or a function of (param_groups, lr) that returns an optimizer, as the classes of
            ``torch.optim`` are: ``torch.optim.NAdam``, or "torch.optim:NAdam". It is called once for each phase,
            and again where channels are removed under way; gates have an optimizer of their own.
        scheduler: "cosine", or a function of (optimizer, num_steps) that returns one of torch's schedulers, called once
            for each phase. Only its rates are used. Or the name of one, "package.module:function".
        clip: largest norm of the weights' gradient; None does not clip.
        loss: "auto", "cross-entropy", "bce", "mse", or a function of (outputs, targets) that returns a scalar.
        distill: learn from the dense model's outputs beside the labels.
        input_dropout: share of the elements of a flat floating input ``(n, features)`` that is dropped in training;
            images, sequences and token ids are left alone. None chooses a tenth from 64 features on, and none of fewer.
        dropout: share of the elements of hidden activations that layers do not see in training, see
            :mod:`~l0compress.training.dropout`.
        drop_connect: the same of the elements of weights.
        latency_batch, latency_threads, latency_dtype: how the model will run, where a target is a latency.
        l2, l1: strengths of the weights' norms in expectation over their gates, while gates are learned; with either,
            they take the place of weight decay there. See :mod:`~l0compress.training.expected_norms`.
        trials: how many choices of densities methods "search" and "reinforce" try; the first is the score's own.
        bf16: an older spelling of ``precision="bfloat16"``.
        precision: what forward passes compute in: "float32", or under autocast "bfloat16" or "float16", the latter with
            losses scaled so that small gradients do not vanish. Weights, gates and optimizers stay in float32.
        accumulate: parts of a batch that are computed one after another, for less memory; a step still takes the whole
            batch, and its gates are drawn once.
        quantization_aware: round in the final phase what the int8 file will round, see
            :mod:`~l0compress.training.fake_quantization`. The best epoch is chosen by what is computed so.
        ternary: train weights in the final phase that are -1, 0 and 1 times one scale a row, see
            :mod:`~l0compress.training.ternary`; the small model has such weights.
        keep_float: globs of layers whose weights are not ternary, as for ``keep``.
    """

    epochs: int = field(
        default=48,
        metadata=setting(
            least=0,
            panel=_PANEL,
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
            kind=int, least=1, panel=_PANEL, absent="chosen by the number of samples", help="Samples a step."
        ),
    )
    learning_rate: float | None = field(
        default=None,
        metadata=setting(
            kind=float,
            above=0,
            key="lr",
            panel=_PANEL,
            absent="chosen by the network and the length of the run",
            help="Highest learning rate.",
        ),
    )
    optimizer: str | Callable[..., Any] = field(
        default=OPTIMIZERS[0],
        metadata=setting(
            names=OPTIMIZERS,
            or_reference=True,
            panel=_PANEL,
            metavar="NAME",
            help="For the weights: adamw, sgd, or PKG.MOD:FN of (param_groups, lr), such as torch.optim:NAdam.",
        ),
    )
    scheduler: str | Callable[..., Any] = field(
        default=SCHEDULERS[0],
        metadata=setting(
            names=SCHEDULERS,
            or_reference=True,
            panel=_PANEL,
            metavar="NAME",
            help="Of the rate in each phase: cosine, or PKG.MOD:FN of (optimizer, num_steps) that returns a scheduler.",
        ),
    )
    clip: float | None = field(
        default=1.0,
        metadata=setting(above=0, off=0, panel=_PANEL, help="Largest norm of the gradient; 0 does not clip."),
    )
    loss: str | Callable[[Any, Tensor], Tensor] = field(
        default=LOSSES[0],
        metadata=setting(
            format="loss",
            panel=_PANEL,
            help="auto (by the targets' type), cross-entropy, bce, mse, or PKG.MOD:FN of (outputs, targets).",
        ),
    )
    latency_batch: int = field(
        default=1,
        metadata=setting(least=1, panel=_LATENCY_PANEL, help="Samples a call for which a latency target is meant."),
    )
    latency_threads: int = field(
        default=2, metadata=setting(least=1, panel=_LATENCY_PANEL, help="Threads of ONNX Runtime that it is meant for.")
    )
    latency_dtype: str = field(
        default=LATENCY_DTYPES[0],
        metadata=setting(
            names=LATENCY_DTYPES,
            panel=_LATENCY_PANEL,
            help="float32, or int8 for the file that export --quantize int8 writes.",
        ),
    )
    bf16: bool = field(default=False, metadata=setting(panel=_PANEL, help="The same as --precision bfloat16."))
    precision: str = field(
        default=PRECISIONS[0],
        metadata=setting(
            names=PRECISIONS,
            panel=_PANEL,
            help="What forward passes compute in; weights stay float32. float16 scales the loss.",
        ),
    )
    accumulate: int = field(
        default=1,
        metadata=setting(
            least=1,
            panel=_PANEL,
            help="Parts in which a batch is computed, one after another, where all of it takes too much memory.",
        ),
    )
    quantization_aware: bool = field(
        default=False,
        metadata=setting(
            panel=_PANEL,
            help="In the last phase round what export --quantize will round, so that weights adapt to it.",
        ),
    )
    l2: float | None = field(
        default=None,
        metadata=setting(
            kind=float,
            least=0,
            metavar="STRENGTH",
            panel=_PANEL,
            absent="none; 0.0001 with method hybrid",
            help="Beside learned gates, half the squares of the weights as far as their gates are open, times this.",
        ),
    )
    l1: float | None = field(
        default=None, metadata=setting(kind=float, least=0, absent="none; 0.00001 with method hybrid")
    )
    trials: int = field(
        default=32,
        metadata=setting(least=1, panel=_PANEL, help="Densities that methods search and reinforce try."),
    )
    ternary: bool = field(
        default=False,
        metadata=setting(
            panel=_PANEL,
            help="In the last phase train weights that are -1, 0 and 1 times one scale a row, which a bundle stores in "
            "two bits.",
        ),
    )
    keep_float: str | Sequence[str] | None = field(
        default=None,
        metadata=setting(
            kind=str,
            many=True,
            panel=_PANEL,
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
            panel=_PANEL,
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
            panel=_PANEL,
            help="Share of the elements of hidden activations dropped in training, before each layer that multiplies.",
        ),
    )
    drop_connect: float = field(
        default=0.0,
        metadata=setting(
            least=0,
            below=1,
            metavar="SHARE",
            panel=_PANEL,
            help="Share of the elements of weights dropped in training (DropConnect).",
        ),
    )
    keep: str | Sequence[str] | None = field(
        default=None,
        metadata=setting(
            kind=str,
            many=True,
            at_top=True,
            metavar="GLOB",
            absent="none: anything may be cut",
            help="Layers of which nothing is removed, by the names that inspect shows, such as 'stem.*'. May be given "
            "several times.",
        ),
    )
    min_density: float | str | Sequence[float | str] | None = field(
        default=None,
        metadata=setting(
            kind=str,
            or_number=True,
            many=True,
            at_top=True,
            format="min_density",
            metavar="[GLOB=]SHARE",
            absent="none: one channel may be left, or none",
            help="The least share of its channels that every group keeps (0.1), or those of some layers "
            "('layer1.*=0.5'); of single weights, that every layer keeps. May be given several times; the last that "
            "matches counts.",
        ),
    )
    seed: int = field(
        default=0, metadata=setting(least=0, at_top=True, help="Seed of everything random except the data split.")
    )
    device: str = field(default="cpu", metadata=setting(at_top=True, help="cpu, cuda, cuda:1, ..."))
    gates: GateSettings = GateSettings()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.min_density is not None:
            from l0compress.graph.nodes.protection import Protection  # needs torch, as the rest of the graph does

            Protection.of(min_density=self.min_density)
        self._check_rounding()
        if self.method not in GATED_METHODS and (self.l2 or self.l1):
            raise InputError(
                f"{'l2' if self.l2 else 'l1'}={self.l2 or self.l1} with method={self.method!r}: the norm is weighted "
                "by how far gates are open, but no gates are learned.",
                fix="Pass --method l0 or hybrid, or omit it; for plain weight decay set weight_decay.",
            )
        if self.bf16 and self.precision == "float16":
            raise InputError("bf16 and precision='float16' contradict each other.", fix="Omit one of them.")
        if self.epochs == 1 and self.method in TRAINED_METHODS:
            gates = self.method in GATED_METHODS
            raise InputError(
                f"epochs=1 with method={self.method!r}: {'gates take' if gates else 'the decision takes'} that epoch, "
                f"and none is left to train the model that {'they leave' if gates else 'it leaves'}.",
                fix="Pass --epochs 2 or more, or --epochs 0, where a score decides without training."
                if gates
                else "Pass --epochs 2 or more.",
            )

    def _check_rounding(self) -> None:
        for name in ("quantization_aware", "ternary"):
            if getattr(self, name) and self.final_epochs < 1:
                raise InputError(
                    f"{name} with epochs={self.epochs}: weights adapt to rounding in the phase after the decision, but "
                    "there is none.",
                    fix=f"Pass --epochs 2 or more, or omit --{name.replace('_', '-')}.",
                )
        if self.keep_float is not None and not self.ternary:
            raise InputError(
                "keep_float names layers that do not become ternary, but without ternary none does.",
                fix="Pass --ternary, or omit --keep-float.",
            )

    @property
    def rounds_weights(self) -> bool:
        """Whether weights are rounded in the final phase, so that there has to be one."""
        return self.quantization_aware or self.ternary

    def settled(self, graph: CapturedGraph, num_steps: int) -> FinetuneSettings:
        """The same settings with a learning rate, where none was chosen.

        It is that of :func:`~l0compress.training.rates.learning_rate_for`.

        >>> from torch import nn, zeros
        >>> from l0compress.graph.capture import capture
        >>> graph = capture(nn.Linear(4, 4), (zeros(2, 4),))
        >>> FinetuneSettings().settled(graph, 20_000).learning_rate
        0.01
        >>> FinetuneSettings(learning_rate=0.002).settled(graph, 20_000).learning_rate
        0.002
        """
        if self.learning_rate is not None:
            return self
        from l0compress.training.rates import learning_rate_for  # needs torch, without which settings can be shown

        return replace(self, learning_rate=learning_rate_for(graph, num_steps))

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return PLAIN_RATE if self.learning_rate is None else self.learning_rate

    @property
    def norm_strengths(self) -> tuple[float, float]:
        """The strengths of L2 and L1 in the loss of the gated phase.

        >>> FinetuneSettings().norm_strengths, FinetuneSettings(method="hybrid", l2=0.01).norm_strengths
        ((0.0, 0.0), (0.01, 1e-05))
        """
        defaults = (HYBRID_L2, HYBRID_L1) if self.method == "hybrid" else (0.0, 0.0)
        l2, l1 = (default if own is None else own for own, default in zip((self.l2, self.l1), defaults, strict=True))
        return l2, l1

    @property
    def computed_in(self) -> str:
        """What forward passes compute in, one of ``PRECISIONS``.

        >>> FinetuneSettings(bf16=True).computed_in, FinetuneSettings().computed_in
        ('bfloat16', 'float32')
        """
        return "bfloat16" if self.bf16 else self.precision

    @property
    def gated_epochs(self) -> int:
        """Epochs in which is learned what goes: at least one of any, none where a method decides before training."""
        if self.method not in TRAINED_METHODS or self.epochs == 0:
            return 0
        return max(1, round(self.epochs * self.gates.share))

    @property
    def final_epochs(self) -> int:
        """Epochs after hardening."""
        return self.epochs - self.gated_epochs

    def batch_size_for(self, num_samples: int) -> int:
        """The batch size asked for, or the default for that many training samples.

        >>> FinetuneSettings().batch_size_for(60000), FinetuneSettings().batch_size_for(1000)
        (128, 31)
        """
        return self.batch_size or min(128, max(16, num_samples // 32))
