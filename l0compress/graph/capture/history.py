"""A graph computes the same for the same input; a module may compute what its earlier calls left behind.

:func:`without_history` lets a module be traced as it was before anything ran: values that ``forward`` keeps for later
calls (anchors for the last size, masks, counters) are put back to what ``__init__`` made of them, where that changes no
output. :func:`check_repeatable` refuses a module whose output depends on how often it was called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from l0compress.devices import CPU, device_of, forked_randomness
from l0compress.errors import CaptureError
from l0compress.graph.capture.instance_state import Snapshot, kept, snapshot_of
from l0compress.graph.capture.own_writes import OwnWrite, own_writes

# A model's own forward may raise anything.
USER_CODE_ERRORS = (Exception,)
_MOST_NAMED = 3


@contextmanager
def without_history(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Snapshot]:
    """Inside, ``model`` is in evaluation mode and holds what it held before its first call; afterwards what it held.

    Yields:
        What it holds inside, so that it can be told what changes.
    """
    with kept(model):
        model.eval()
        _reset_stale_(model, args, kwargs)
        with kept(model) as snapshot:
            yield snapshot


def _reset_stale_(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Reset what ``forward`` set in earlier calls, all of it or class by class, unless the output depends on it."""
    stale = [write for write in own_writes(model).found if write.stale]
    if not stale:
        return
    expected = outputs_of(model, args, kwargs)
    alike: dict[Any, list[OwnWrite]] = {}
    for write in stale:
        alike.setdefault((type(write.module), write.attribute), []).append(write)
    for chosen in (stale, *alike.values()):
        if _resets_(model, chosen, args, kwargs, expected) and chosen is stale:
            return


def _resets_(
    model: nn.Module,
    chosen: Iterable[OwnWrite],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    expected: list[Any] | None,
) -> bool:
    """Reset the chosen ones; back again, and False, if the model then computes something else."""
    before = snapshot_of(model)
    for write in chosen:
        write.reset_()
    found = outputs_of(model, args, kwargs)
    # Where the model cannot run as it is, say with traced values left in it, any state that it runs from is better.
    if found is None or (expected is not None and not same_outputs(found, expected)):
        before.restore_()
        return False
    return True


def outputs_of(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, calls: int = 1) -> list[Any] | None:
    """The leaves of what ``model`` returns at the last of some calls, None where it raises or returns no values.

    The model and the random state are left as they were.
    """
    try:
        with kept(model, values=True), forked_randomness(device_of(model) or CPU), torch.no_grad():
            leaves: list[Any] = []
            for _ in range(calls):
                torch.manual_seed(0)
                own_args, own_kwargs = pytree.tree_map_only(Tensor, torch.clone, (tuple(args), dict(kwargs)))
                leaves = pytree.tree_leaves(model(*own_args, **own_kwargs))
            leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    except USER_CODE_ERRORS:
        return None
    return leaves if all(type(leaf) is Tensor and not leaf.is_meta for leaf in leaves if _is_tensor(leaf)) else None


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def same_outputs(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether two calls returned the same values, up to the rounding of operators that add in any order."""
    if len(found) != len(expected):
        return False
    return all(
        a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-6, atol=1e-7, equal_nan=True)
        if _is_tensor(a) and _is_tensor(b)
        else type(a) is type(b) and (_is_tensor(a) or repr(a) == repr(b))
        for a, b in zip(found, expected, strict=True)
    )


def check_repeatable(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], written: Mapping[str, str]
) -> None:
    """Refuse a model whose second call returns something else than its first.

    Args:
        written: names of the buffers that its graph writes, and ``file.py:line`` that does. The model runs only if
            there are some, or if its source sets attributes or cannot be read.

    Raises:
        CaptureError: names what a call changes, with the line.
    """
    own = own_writes(model)
    lines = {**written, **{write.name: write.source for write in own.found}}
    if not lines and own.complete:
        return
    first, second = (outputs_of(model, args, kwargs, calls=calls) for calls in (1, 2))
    if first is None or second is None or same_outputs(first, second):
        return
    changed = changed_by_a_call(model, args, kwargs)
    subject = "The exported program" if isinstance(model, fx.GraphModule) else f"{type(model).__name__}.forward"
    raise _state_kept(subject, [_located(name, lines.get(name)) for name in changed])


def changed_by_a_call(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the attributes and buffers that one call changes; they are put back."""
    with kept(model, values=True) as before, forked_randomness(device_of(model) or CPU), torch.no_grad():
        model(*args, **kwargs)
        return before.changed()


def _located(name: str, line: str | None) -> str:
    return f"{name!r} ({line})" if line else repr(name)


def _state_kept(subject: str, named: Sequence[str]) -> CaptureError:
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return CaptureError(
        f"{subject} changes {', '.join(named[:_MOST_NAMED])}{more} and its result depends on that, so a second call "
        "returns something different. A graph returns the same for the same inputs.",
        fix="Take that state as an input and return the new one, or change it only in training mode.",
    )
