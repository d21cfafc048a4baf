"""What reads the texts that are settings, by the names of their formats; each says itself what it cannot read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from l0compress.errors import InputError
from l0compress.graph.nodes.protection import Protection
from l0compress.loading import parse_factory_args
from l0compress.loading.augmentation import check_reference
from l0compress.loading.images import parse_normalize
from l0compress.loading.splits import parse_shares
from l0compress.training.family_targets import parse_targets
from l0compress.training.goals import parse_penalty
from l0compress.training.losses import LOSSES


def check_loss_name(value: str) -> None:
    """Raises:
    InputError: it is neither the name of a loss nor that of a function.
    """
    if value not in LOSSES and ":" not in value:
        raise InputError(
            f"Unknown loss {value!r}: expected one of {', '.join(LOSSES)}, or PACKAGE.MODULE:FUNCTION of (outputs, "
            "targets).",
            fix="",
        )


READERS: Mapping[str, Callable[[str], Any]] = {
    "augment": check_reference,
    "factory_args": parse_factory_args,
    "loss": check_loss_name,
    "min_density": lambda value: Protection.of(min_density=value),
    "normalize": parse_normalize,
    "penalty": parse_penalty,
    "split": parse_shares,
    "target": parse_targets,
}
