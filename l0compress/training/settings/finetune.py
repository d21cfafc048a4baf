"""Every constant of a fine-tuning run, in one frozen value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from l0compress.errors import InputError
from l0compress.gates.defaults import GRANULARITIES
from l0compress.training.schema import check_settings, setting
from l0compress.training.settings.choices import GATED_METHODS, OPTIMIZERS, TRAINED_METHODS
from l0compress.training.settings.computation import ComputationSettings
from l0compress.training.settings.gates import GateSettings
from l0compress.training.settings.regularization import RegularizationSettings
from l0compress.training.settings.steps import StepSettings

if TYPE_CHECKING:
    from l0compress.graph.capture import CapturedGraph

PLAIN_RATE = 1e-2
# The strengths of L2 and L1 that make a hybrid where none are given.
HYBRID_L2, HYBRID_L1 = 1e-4, 1e-5


@dataclass(frozen=True)
class FinetuneSettings(RegularizationSettings, ComputationSettings, StepSettings):
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
        activation_l1: strength of a penalty on activations behind rectifiers, in training; units that never fire are
            removed after it. See :mod:`~l0compress.training.activations.penalty`.
        latency_batch, latency_threads, latency_dtype: how the model will run, where a target is a latency.
        l2, l1: strengths of the weights' norms in expectation over their gates, while gates are learned; with either,
            they take the place of weight decay there. See :mod:`~l0compress.training.expected_norms`.
        trials: how many choices of densities methods "search" and "reinforce" try; the first is the score's own.
        bf16: an older spelling of ``precision="bfloat16"``.
        precision: what forward passes compute in: "float32", or under autocast "bfloat16" or "float16", the latter with
            losses scaled so that small gradients do not vanish. Weights, gates and optimizers stay in float32.
        shard: where a launcher started several processes, divide weights, gradients and what optimizers keep among them
            while training, see :mod:`~l0compress.training.shards`. The result is the same to rounding.
        accumulate: parts of a batch that are computed one after another, for less memory; a step still takes the whole
            batch, and its gates are drawn once.
        quantization_aware: round in the final phase what the int8 file will round, see
            :mod:`~l0compress.training.fake_quantization`. The best epoch is chosen by what is computed so.
        ternary: train weights in the final phase that are -1, 0 and 1 times one scale a row, see
            :mod:`~l0compress.training.ternary`; the small model has such weights.
        keep_float: globs of layers whose weights are not ternary, as for ``keep``.
    """

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
    gates: GateSettings = field(default_factory=GateSettings)

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
        if self.activation_l1 and self.epochs == 0:
            raise InputError(
                f"activation_l1={self.activation_l1} with epochs=0: activations are penalised in training, but there "
                "is none.",
                fix="Pass --epochs 1 or more, or omit --activation-l1.",
            )
        if self.bf16 and self.precision == "float16":
            raise InputError("bf16 and precision='float16' contradict each other.", fix="Omit one of them.")
        if self.shard:
            self._check_shard()

    def _check_shard(self) -> None:
        """Refuse what reads or writes whole weights in the midst of training."""
        if self.granularity != GRANULARITIES[0]:
            what, way = f"granularity={self.granularity!r}", f"Pass --granularity {GRANULARITIES[0]}"
        elif self.method in TRAINED_METHODS and self.method not in GATED_METHODS:
            what, way = f"method={self.method!r}", "Pass --method l0, or one that decides before training"
        elif any(self.norm_strengths):
            what, way = "a norm of the weights", "Pass --method l0 without --l2 and --l1"
        elif self.optimizer not in OPTIMIZERS:
            what, way = "an optimizer of your own", f"Pass --optimizer {' or '.join(OPTIMIZERS)}"
        else:
            return
        raise InputError(
            f"shard with {what}: it reads whole weights in every step, but each process has a part of them.",
            fix=f"{way}, or omit --shard.",
        )

    def _check_rounding(self) -> None:
        for name in ("quantization_aware", "ternary"):
            if getattr(self, name) and not self._trains_after_decision:
                raise InputError(
                    f"{name} with epochs={self.epochs}: weights adapt to rounding in the phase after the decision, but "
                    "there is none.",
                    fix=f"Pass --epochs {self.epochs + 1} or more, or omit --{name.replace('_', '-')}.",
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

    def gated_steps(self, steps_per_epoch: int) -> int:
        """Steps in which is learned what goes: whole epochs, or a part of a single one; 0 where a score decides.

        >>> FinetuneSettings(epochs=10).gated_steps(100), FinetuneSettings(epochs=1).gated_steps(100)
        (300, 33)
        >>> FinetuneSettings(epochs=0).gated_steps(100), FinetuneSettings(method="fisher").gated_steps(100)
        (0, 0)
        """
        if self.method not in TRAINED_METHODS or self.epochs == 0:
            return 0
        if self.epochs == 1:
            return min(max(1, round(steps_per_epoch * self.gates.share)), steps_per_epoch - 1)
        return max(1, round(self.epochs * self.gates.share)) * steps_per_epoch

    @property
    def _trains_after_decision(self) -> bool:
        return self.gated_steps(1) < self.epochs

    def batch_size_for(self, num_samples: int) -> int:
        """The batch size asked for, or the default for that many training samples.

        >>> FinetuneSettings().batch_size_for(60000), FinetuneSettings().batch_size_for(1000)
        (128, 31)
        """
        return self.batch_size or min(128, max(16, num_samples // 32))
