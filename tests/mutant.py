"""A fault to plant: in which file, what is replaced by what, and which tests have to notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One planted fault.

    Attributes:
        file: below ``l0compress/graph``.
        old: text that occurs exactly once in the file.
        new: what takes its place.
        tests: a file below ``tests/graph``, and which of its tests (pytest's ``-k``; empty: all).
    """

    file: str
    old: str
    new: str
    tests: tuple[str, str]


FORMS, GROUPS, VANISH, SHRINK = "test_forms.py", "test_groups.py", "test_vanish.py", "test_shrink.py"
INDEXING, COST, PLAN = "test_rules_indexing.py", "test_cost.py", "test_plan.py"
RECURRENT, TRANSPOSED = "test_recurrent.py", "test_rules_convolution.py"
NORMS, LAYER_NORM = "test_rules_normalization.py", "test_layer_norm.py"
REDUCTION = "test_rules_reduction.py"
