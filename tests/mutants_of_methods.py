"""Faults in what decides: the score, the steps down, where gates start, and which decision goes on."""

from __future__ import annotations

from mutant import Fault

_TESTS, _PARTS = "../test_methods.py", "../test_training_parts.py"

METHODS = (
    Fault("l0compress.training:_direction", "signed - p * signed.sum(-1, keepdim=True)", "signed", (_TESTS, "Probe")),
    Fault("l0compress.training:_value_probe", "max(elements, 1) * scale", "scale", (_TESTS, "Probe")),
    Fault(
        "l0compress.training:_class_probe", "direction = direction * counted.unsqueeze(-1)", "pass", (_TESTS, "Probe")
    ),
    Fault("l0compress.training:fisher_information", "len(batch)", "1", (_TESTS, "Fisher")),
    Fault(
        "l0compress.training:marginal_costs",
        "groups.expected_cost(open_, unit)",
        "groups.expected_cost(open_, 'params')",
        (_TESTS, "Fisher"),
    ),
    Fault("l0compress.training:ordered_log_alpha", "logs - border", "logs", (_TESTS, "OrderedStart")),
    Fault("l0compress.training:descend", "limits[:-1]", "()", (_TESTS, "told")),
    Fault("l0compress.training:held_back", "held[moves[best]] += len(scores)", "pass", (_TESTS, "leaves_half")),
    Fault("l0compress.training:Narrowed.lifted", "keep[dropped[dropped >= 0]] = False", "pass", (_TESTS, "Descent")),
    Fault("l0compress.training:Narrowed.cut", "self.moves[found.clamp(min=0)]", "found", (_TESTS, "Descent")),
    Fault(
        "l0compress.training:take_samples", "undisturbed(problem.data.train)", "memoryview(b'')", (_TESTS, "Samples")
    ),
    Fault("l0compress.training:better", "max", "min", (_TESTS, "goes_on")),
    Fault(
        "l0compress.training:outgrown",
        "_STANDARD_ERRORS * math.sqrt(sum(variances))",
        "math.sqrt(sum(variances))",
        (_PARTS, "Teaching"),
    ),
    Fault(
        "l0compress.training:outgrown", "not (reading.labelled and reading.counts_hits)", "False", (_PARTS, "Teaching")
    ),
)
