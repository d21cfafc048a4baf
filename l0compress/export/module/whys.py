"""Why somebody's module cannot follow a plan: where its code stopped, and which groups it cannot follow."""

from __future__ import annotations

import linecache
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from l0compress.errors import NOTHING_CHANGED, SurgeryError

_MOST_NAMED = 3
_NOT_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))


@dataclass(frozen=True)
class Refusal:
    """Why one attempt failed, as the end of a sentence, and whether the module ran at all."""

    reason: str
    ran: bool = False


def reason_of(error: Exception, root: nn.Module) -> Refusal:
    """What the module's code raised, with the line of the user's and the name of the module that it is in."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    names = {id(module): name for name, module in root.named_modules()}
    owner, where = "", ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frame: Any = trace.tb_frame
        own = names.get(id(frame.f_locals.get("self")))
        owner = own if own is not None else owner
        file, line = frame.f_code.co_filename, trace.tb_lineno
        if not file.startswith(_NOT_THEIRS):
            code = linecache.getline(file, line).strip()
            where = f"{Path(file).name}:{line}" + (f", {code}" if code else "")
        trace = trace.tb_next
    place = " at ".join(part for part in (repr(owner) if owner else type(root).__name__, where) if part)
    return Refusal(f"{place}: {said.rstrip('.')}")


def refused(root: nn.Module, refusal: Refusal, alone: Mapping[str, Refusal], cut: Sequence[str]) -> SurgeryError:
    """The error for a plan that a module cannot follow.

    Args:
        refusal: what happened when all of the plan was tried.
        alone: by name, the groups that it cannot even follow by themselves.
        cut: the names of all groups that are cut.
    """
    kind = type(root).__name__
    more = f"; and {len(alone) - _MOST_NAMED} more" if len(alone) > _MOST_NAMED else ""
    named = "; ".join(f"{name!r} ({why.reason})" for name, why in list(alone.items())[:_MOST_NAMED])
    what = f"in {named}{more}" if alone else f"({refusal.reason})"
    advice = (
        f"pass whole={_globs(list(alone) or list(cut), cut)}, so that they stay whole, with zeros for what is dropped"
    )
    return SurgeryError(
        f"the code of {kind} cannot follow the plan {what}.",
        fix=(
            "Write sizes in forward so that they follow from weights, inputs or attributes of the same module; "
            f"{advice}; or use the small graph's own module, small.module()."
        ),
        assurance=NOTHING_CHANGED,
    )


def _globs(names: Sequence[str], cut: Sequence[str]) -> list[str]:
    """The groups as globs: one for a kind of which all are meant."""
    found: dict[str, None] = {}
    for name in names:
        kind = name.rpartition(" ")[2]
        alike = [other for other in cut if other.endswith(f" {kind}")]
        found[f"* {kind}" if len(alike) > 1 and set(alike) <= set(names) else name] = None
    return list(found)
