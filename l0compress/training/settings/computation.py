"""What a run computes in, and what the small model will be computed in."""

from __future__ import annotations

from dataclasses import dataclass, field

from l0compress.training.schema import setting
from l0compress.training.settings.choices import LATENCY_DTYPES, PANEL, PRECISIONS

_LATENCY_PANEL = "Latency"


@dataclass(frozen=True)
class ComputationSettings:
    """Fields of :class:`~l0compress.training.settings.FinetuneSettings`, which documents them."""

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
    bf16: bool = field(default=False, metadata=setting(panel=PANEL, help="The same as --precision bfloat16."))
    precision: str = field(
        default=PRECISIONS[0],
        metadata=setting(
            names=PRECISIONS,
            panel=PANEL,
            help="What forward passes compute in; weights stay float32. float16 scales the loss.",
        ),
    )
    accumulate: int = field(
        default=1,
        metadata=setting(
            least=1,
            panel=PANEL,
            help="Parts in which a batch is computed, one after another, where all of it takes too much memory.",
        ),
    )
    shard: bool = field(
        default=False,
        metadata=setting(
            panel=PANEL,
            help="Divide weights, gradients and moments among the processes of torchrun or accelerate launch (FSDP2), "
            "for what does not fit.",
        ),
    )
    quantization_aware: bool = field(
        default=False,
        metadata=setting(
            panel=PANEL,
            help="In the last phase round what export --quantize will round, so that weights adapt to it.",
        ),
    )
