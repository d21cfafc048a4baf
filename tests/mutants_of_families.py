"""Faults in families: who gets the epochs, where a leg begins, what is told, and what no other form beats."""

from __future__ import annotations

from mutant import Fault

_FAMILY, _RUN, _PARETO = "../test_family.py", "../test_family_run.py", "../test_pareto.py"

FAMILIES = (
    Fault("l0compress.training:epochs_of_members", "behind.index(max(behind))", "0", (_FAMILY, "Epochs")),
    Fault("l0compress.training:legs_of", "-goal.limit", "goal.limit", (_FAMILY, "Targets")),
    Fault("l0compress.training:_beginning", "bool((start.moves >= 0).all())", "True", (_FAMILY, "projections")),
    Fault("l0compress.training:_rescaled_event", "event.density * share", "event.density", (_FAMILY, "densities")),
    Fault("l0compress.training:_on_dense", "result.small", "result.last", (_FAMILY, "budget")),
    Fault(
        "l0compress.training:finetune_family",
        "before, dense, start = Decision(result.plan.decision(), result.small), result.dense_evaluation, None",
        "before, dense = Decision(result.plan.decision(), result.small), result.dense_evaluation",
        (_RUN, "same_bytes"),
    ),
    Fault("l0compress.pipeline:_write_member", "row[MEMBER] == name", "True", (_RUN, "metrics")),
    Fault("l0compress.pipeline:_make_members", "run.keep_(f'{name}/{MANIFEST}')", "pass", (_RUN, "covers")),
    Fault(
        "l0compress.measure:Tradeoff._beats", "gain > 0 or saving > 0", "gain > 0 and saving > 0", (_PARETO, "front")
    ),
)
