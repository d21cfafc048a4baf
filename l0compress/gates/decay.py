"""Weight decay: which parameters an optimizer may decay, and how gates are protected from it.

Decay pulls ``log_alpha`` to 0, which is neither open nor shut, regardless of the budget. So no optimizer in
this process takes a step with gates in a decayed group: ``AdamW(gated.parameters())`` is refused.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from l0compress.errors import InputError

_LOCK = threading.Lock()
_GATES: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def weight_groups(parameters: Mapping[str, nn.Parameter], *, weight_decay: float) -> list[dict[str, Any]]:
    """Group named parameters for an optimizer; biases, norms and other vectors are not decayed.

    >>> layer = nn.Linear(4, 2)
    >>> [(len(group["params"]), group["weight_decay"]) for group in weight_groups(
    ...     dict(layer.named_parameters()), weight_decay=0.1)]
    [(1, 0.1), (1, 0.0)]
    """
    matrices = [p for p in parameters.values() if p.dim() > 1]
    vectors = [p for p in parameters.values() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def never_decay_(gates: nn.Module) -> None:
    """From now on, refuse every step that would decay a parameter of ``gates``."""
    _watch_optimizers_()
    with _LOCK:
        _GATES.add(gates)


@cache
def _watch_optimizers_() -> None:
    register_optimizer_step_pre_hook(_refuse_decay)


def _refuse_decay(optimizer: Optimizer, *_: Any) -> None:
    """Check a step; called before every step of every optimizer.

    Raises:
        InputError: the step would decay gates.
    """
    decayed = [group for group in optimizer.param_groups if group.get("weight_decay")]
    if not decayed:
        return
    with _LOCK:
        gates = {id(parameter) for module in _GATES for parameter in module.parameters()}
    for group in decayed:
        if any(id(parameter) in gates for parameter in group["params"]):
            raise InputError(
                f"{type(optimizer).__name__} decays gates (weight_decay={group['weight_decay']}), which pulls each of "
                "them half open, regardless of the budget.",
                fix="Make the optimizer from gated.param_groups(lr=...), which decays only weights.",
            )
