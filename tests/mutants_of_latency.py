"""Faults in budgets of time: tables, the model made of them, and the closing of the gap to what is measured."""

from __future__ import annotations

from mutant import Fault

_TESTS = "../test_latency.py"

LATENCY = (
    Fault(
        "l0compress.latency:Table.measured",
        "times = np.maximum.accumulate(times, axis)",
        "pass",
        (_TESTS, "never_falls or never_takes"),
    ),
    Fault("l0compress.latency:Table.at", "-(-int(width) // step) * step", "int(width)", (_TESTS, "what_its_operators")),
    Fault("l0compress.latency:Table.smooth", "times[:, None]", "times.max()", (_TESTS, "bilinear or plateau")),
    Fault("l0compress.latency:axis_grid", "{*range(stride, width, stride), width}", "{*range(stride, width, stride)}",
          (_TESTS, "grid_ends")),
    Fault(
        "l0compress.latency:TimeModel.features",
        "live is None or placed.node in live",
        "placed.node not in live",
        (_TESTS, "what_its_operators"),
    ),
    Fault("l0compress.latency:_Finder.is_cut", "bool(self.can_go[self.groups.components.of(flattened(plane))].any())",
          "True", (_TESTS, "every_contraction")),
    Fault("l0compress.latency:Latency.counts", "self.model.work.lines.of(alive)",
          "self.dense_groups.costs.lines.of(alive)", (_TESTS, "certainty")),
    Fault("l0compress.training:closed", "scale / share", "scale * share", (_TESTS, "wrong_by_a_factor")),
    Fault("l0compress.training:_is_better", "fits != than_fits", "False", (_TESTS, "")),
    Fault("l0compress.training:parse_target", "unit == LATENCY and suffix", "False", (_TESTS, "nanoseconds")),
)  # fmt: skip
