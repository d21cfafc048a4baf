"""Faults in what vets strangers' files, in files that are written, in comparing outputs, and in what a run logs."""

from __future__ import annotations

from mutant import COST, Fault

TRACKING = "../test_tracking.py"
TRUST, VERIFY = ("../test_loading_trust.py", "Needed"), "../test_verify.py"

FILES = (
    Fault("l0compress.loading.programs:_nested_faults", "'__enum__' in part", "False", TRUST),
    Fault(
        "l0compress.loading.programs:_nested_faults", "part.get('type') == 'collections.defaultdict'", "False", TRUST
    ),
    Fault(
        "l0compress.loading.programs:is_safe_operator",
        "f'{match[1]}.{match[2]}' in FORBIDDEN_OPERATORS",
        "False",
        TRUST,
    ),
    Fault("l0compress.loading.programs:_text_faults", "not is_arithmetic(text)", "False", TRUST),
    Fault(
        "l0compress.loading.programs:without_notes",
        "kept['guards_code'] = []",
        "kept['guards_code'] = program['guards_code']",
        TRUST,
    ),
    Fault(
        "l0compress.verification.comparison:_by_scale",
        "output.max_relative <= output.tolerance or not scale",
        "True",
        (VERIFY, "vanishes"),
    ),
    Fault(
        "l0compress.verification.comparison:judged",
        "output.max_relative > output.tolerance",
        "False",
        (VERIFY, "vanishes"),
    ),
    Fault(
        "l0compress.graph.groups.cost:_WhenAsked.__get__",
        "found = vars(instance)[self._KEPT] = found()",
        "found = found()",
        (COST, "once"),
    ),
    Fault(
        "l0compress.export.past:TokenByToken.__call__",
        "past = past_of(outputs)",
        "past = past or past_of(outputs)",
        ("../test_with_past.py", "wrong_cache"),
    ),
    Fault(
        "l0compress.export.flat_network:_reshapes_before",
        "_VIEWS if op_name(node) == 'view' else frozenset()",
        "frozenset()",
        ("../test_export_kernels.py", "width_one"),
    ),
    Fault(
        "l0compress.graph.groups.roots:_carries",
        "flattened(plane)",
        "plane",
        ("test_roots.py", "part_of_each_head"),
    ),
    Fault(
        "l0compress.pipeline.tracking:Trackers._start", "name not in self._known", "True", (TRACKING, "goes_on_adds")
    ),
    Fault(
        "l0compress.pipeline.tracking:Trackers._each", "self._leave_out(name, error)", "pass", (TRACKING, "left_out")
    ),
    Fault("l0compress.pipeline.curves:named_for", "member.replace('=', '-')", "member", (TRACKING, "member")),
)
