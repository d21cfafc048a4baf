"""Faults in what decides: the score, the steps down, where gates start, and which decision goes on."""

from __future__ import annotations

from mutant import Mutant

_TESTS, _AT = "../test_methods.py", "../training/"

METHODS = (
    Mutant(f"{_AT}curvature.py", "return signed - p * signed.sum(-1, keepdim=True)", "return signed", (_TESTS, "Probe")),
    Mutant(f"{_AT}curvature.py", "math.sqrt(2 / (max(elements, 1) * scale))", "math.sqrt(2 / scale)", (_TESTS, "Probe")),
    Mutant(f"{_AT}curvature.py", "direction = direction * counted.unsqueeze(-1)", "pass", (_TESTS, "Probe")),
    Mutant(f"{_AT}methods/fisher.py", "count += len(batch)", "count += 1", (_TESTS, "Fisher")),
    Mutant(f"{_AT}methods/fisher.py", "groups.expected_cost(open_, unit), open_", 'groups.expected_cost(open_, "params"), open_', (_TESTS, "Fisher")),
    Mutant(f"{_AT}methods/start.py", "STEEPNESS * (logs - border)", "STEEPNESS * logs", (_TESTS, "OrderedStart")),
    Mutant(f"{_AT}descent.py", "for number, limit in enumerate(limits[:-1]):", "for number, limit in enumerate(()):", (_TESTS, "told")),
    Mutant(f"{_AT}descent.py", "held[moves[best]] += len(scores)", "pass", (_TESTS, "leaves_half")),
    Mutant(f"{_AT}narrowing.py", "keep[dropped[dropped >= 0]] = False", "pass", (_TESTS, "Descent")),
    Mutant(f"{_AT}narrowing.py", "self.moves[found.clamp(min=0)])", "found)", (_TESTS, "Descent")),
    Mutant(f"{_AT}samples.py", "with undisturbed(course.data.train):", "if True:", (_TESTS, "Samples")),
    Mutant(f"{_AT}methods/learned.py", "best = max(found", "best = min(found", (_TESTS, "goes_on")),
    Mutant(f"{_AT}teaching.py", "_SURE * math.sqrt", "math.sqrt", ("../test_training_parts.py", "Teaching")),
    Mutant(f"{_AT}teaching.py", "not (reading.labelled and reading.counts_hits)", "False", ("../test_training_parts.py", "Teaching")),
)  # fmt: skip
