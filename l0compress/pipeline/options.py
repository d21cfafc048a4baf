"""Every setting of a run by its name in a configuration file: type, default, and what values it may have.

The keys are the flags of ``l0compress finetune`` with underscores. What no flag sets is a field of
:class:`~l0compress.training.settings.FinetuneSettings` or :class:`~l0compress.training.settings.GateSettings`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from l0compress.errors import InputError
from l0compress.gates.attach import GRANULARITIES
from l0compress.loading import parse_factory_args, parse_target
from l0compress.loading.images import parse_normalize
from l0compress.loading.splits import SHARES, parse_shares
from l0compress.training.losses import LOSSES
from l0compress.training.optim import OPTIMIZERS
from l0compress.training.settings import METHOD_NAMES, FinetuneSettings, GateSettings

TRAINING, GATES, READING = "training", "gates", "reading"
KIND_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
# What a run may be resumed with another value of, since training may have broken down over it.
CHANGEABLE = ("lr", "clip", "checkpoint_every")

Check = Callable[[Any], "str | None"]


def _anything(value: Any) -> str | None:
    del value
    return None


@dataclass(frozen=True)
class Option:
    """One setting.

    Attributes:
        key: its name, the same for the flag and in the file, one of a kind over all sections.
        kind: str, int, float or bool; a whole number is a float too.
        default: what holds where nothing is said; None where something is chosen, or nothing is.
        absent: what None means, for people.
        section: the table of the file that it is in; empty for the top.
        field: the field of the settings that it sets, where there is one.
        check: says what is expected instead of a value that will not do, and None of one that will; or it raises an
            InputError that says all.
    """

    key: str
    kind: type
    default: Any = None
    absent: str = ""
    section: str = ""
    field: str = ""
    check: Check = _anything

    @property
    def place(self) -> str:
        """Its name with its table."""
        return f"[{self.section}] {self.key}" if self.section else self.key

    def wrong(self, value: Any) -> str | None:
        """What is expected instead of ``value``; None if it will do. Some raise an InputError of their own.

        >>> OPTIONS["epochs"].wrong("many"), OPTIONS["epochs"].wrong(1), OPTIONS["epochs"].wrong(2)
        ('a whole number', '0, or at least 2', None)
        """
        fits = isinstance(value, int) if self.kind is float else isinstance(value, self.kind)
        if self.kind is float and isinstance(value, float):
            fits = True
        if not fits or (isinstance(value, bool) and self.kind is not bool):
            return KIND_NAMES[self.kind]
        return self.check(value)


def _at_least(least: float) -> Check:
    return lambda value: None if math.isfinite(value) and value >= least else f"at least {least:g}"


def _above(limit: float) -> Check:
    return lambda value: None if math.isfinite(value) and value > limit else f"a finite number above {limit:g}"


def _share(value: Any) -> str | None:
    return None if 0 <= value <= 1 else "between 0 and 1"


def _one_of(*names: str) -> Check:
    return lambda value: None if value in names else f"one of {', '.join(names)}"


def _loss(value: str) -> str | None:
    if value in LOSSES or ":" in value:
        return None
    raise InputError(
        f"Unknown loss {value!r}: expected one of {', '.join(LOSSES)}, or PACKAGE.MODULE:FUNCTION of (outputs, "
        "targets). Nothing was changed."
    )


def _finite(value: float) -> str | None:
    return None if math.isfinite(value) else "a finite number"


def _reads(parse: Callable[[str], Any]) -> Check:
    """What cannot be read is refused by its own reader, which says most about it."""

    def check(value: str) -> str | None:
        parse(value)
        return None

    return check


def _epochs(value: int) -> str | None:
    return None if value == 0 or value >= 2 else "0, or at least 2"


def _training(key: str, kind: type, check: Check, *, absent: str = "", field: str = "") -> Option:
    field = field or key
    return Option(key, kind, getattr(FinetuneSettings(), field), absent, TRAINING, field, check)


_GATE_CHECKS: dict[str, Check] = {
    "share": _share, "ramp_share": _share, "log_alpha": _finite, "magnitude_slope": _at_least(0),
}  # fmt: skip


def _gates() -> tuple[Option, ...]:
    return tuple(
        Option(
            field.name,
            type(field.default),
            field.default,
            "",
            GATES,
            field.name,
            _GATE_CHECKS.get(field.name, _above(0)),
        )
        for field in fields(GateSettings)
    )


_ALL = (
    Option("model", str, absent="needed: a model file"),
    Option("factory", str, absent="none: the model file says what it is"),
    Option("factory_args", str, absent="none: keyword arguments of the factory, as a JSON object",
           check=_reads(parse_factory_args)),
    Option("trust_pickle", bool, False),
    Option("fixed", bool, False),
    Option("data", str, absent="needed: what to train on"),
    Option("target", str, absent="needed: the budget, such as macs=0.5", check=_reads(parse_target)),
    Option("method", str, METHOD_NAMES[0], field="method", check=_one_of(*METHOD_NAMES)),
    Option("granularity", str, GRANULARITIES[0], field="granularity", check=_one_of(*GRANULARITIES)),
    Option("seed", int, 0, field="seed", check=_at_least(0)),
    Option("device", str, "cpu", field="device"),
    Option("threads", int, absent="chosen by PyTorch", check=_at_least(1)),
    Option("checkpoint_every", int, absent="by time: every half minute, or more rarely where writing takes long",
           check=_at_least(1)),
    _training("epochs", int, _epochs),
    _training("batch_size", int, _at_least(2), absent="chosen by the number of samples"),
    _training("lr", float, _above(0), absent="chosen by the network and the length of the run", field="learning_rate"),
    _training("optimizer", str, _one_of(*OPTIMIZERS)),
    _training("clip", float, _at_least(0)),
    _training("loss", str, _loss),
    _training("bf16", bool, _anything),
    _training("quantization_aware", bool, _anything),
    _training("weight_decay", float, _at_least(0)),
    _training("distill", bool, _anything),
    _training("distill_temperature", float, _above(0)),
    _training("final_temperature", float, _above(0)),
    _training("task_share", float, _share),
    _training("input_dropout", float, lambda value: None if 0 <= value < 1 else "0 or more and below 1",
              absent="0.1 of flat inputs of 64 features or more, and none of fewer"),
    *_gates(),
    Option("target_column", str, absent="none: tables have to name theirs", section=READING),
    Option("tokenizer", str, absent="the model's own folder", section=READING),
    Option("max_length", int, absent="the longest sentence, up to 128", section=READING, check=_at_least(2)),
    Option("image_size", int, absent="images have to be alike", section=READING, check=_at_least(1)),
    Option("normalize", str, absent="not at all", section=READING, check=_reads(parse_normalize)),
    Option("no_labels", bool, False, section=READING),
    Option("split", str, ",".join(map(str, SHARES)), section=READING, check=_reads(parse_shares)),
    Option("data_seed", int, 0, section=READING, check=_at_least(0)),
    Option("workers", int, 0, section=READING, check=_at_least(0)),
)  # fmt: skip

OPTIONS: dict[str, Option] = {option.key: option for option in _ALL}
