"""Faults to plant in the bundle: its format, its guards, its cut and its choices."""

from __future__ import annotations

from mutant import Mutant

CODING, ARCHIVE, PARTS = "../runtime/coding.py", "../runtime/archive.py", "../runtime/parts.py"
CUT, CANDIDATES = "../export/partition/cut.py", "../export/partition/candidates.py"
FORMAT, HOSTILE = "../test_bundle_format.py", "../test_bundle_hostile.py"
RUNTIME, PARTITION = "../test_bundle_runtime.py", "../test_bundle_partition.py"

BUNDLES = (
    Mutant(CODING, "escapes = steps // ESCAPE", "escapes = (steps + 1) // ESCAPE", (FORMAT, "gaps")),
    Mutant(CODING, "if len(positions) and positions[-1] >= spec.size:", "if False:", (FORMAT, "Damage")),
    Mutant(CODING, "(len(gaps) and gaps[-1] == ESCAPE)", "False", (FORMAT, "Damage")),
    Mutant(CODING, "bits + 0x7FFF + ((bits >> 16) & 1)", "bits", (FORMAT, "bfloat16")),
    Mutant(CODING, "self.scale is not None and self.spec.scale_axis == int(transposed)", "True", (FORMAT, "int8")),
    Mutant(CODING, "not np.isfinite(values).all() and spec.nonzeros is not None", "False", (FORMAT, "finite")),
    Mutant(ARCHIVE, "if len(self._members) != len(members):", "if False:", (HOSTILE, "two_members")),
    Mutant(ARCHIVE, "if not _NAME.fullmatch(name):", "if False:", (HOSTILE, "names_that")),
    Mutant(ARCHIVE, "total > limit_bytes or ", "", (HOSTILE, "limit")),
    Mutant(ARCHIVE, "if member.flag_bits & 0x1:", "if False:", (HOSTILE, "encryption")),
    Mutant(ARCHIVE, "or not stat.S_ISREG(file.lstat().st_mode)", "", (HOSTILE, "folder_with_a_link")),
    Mutant(PARTS, "!= self.manifest.hashes.get(name)", "is None", (HOSTILE, "wrong_hash")),
    Mutant(PARTS, "if total > self.limit_bytes:", "if False:", (HOSTILE, "more_rows")),
    Mutant("../runtime/protobuf.py", "number == _EXTERNAL_DATA or ", "", (FORMAT, "hides")),
    Mutant("../runtime/protobuf.py", '22: "sparse", 23: "sparse"', "", (FORMAT, "hides")),
    Mutant(
        "../runtime/protobuf.py",
        "not in DOMAINS:\n            raise",
        "is None:\n            raise",
        (FORMAT, "not_onnx"),
    ),
    Mutant("../runtime/reading.py", "if not made.issuperset(reads):", "if False:", (HOSTILE, "wrong")),
    Mutant("../runtime/stages.py", "        kept.update(frees)\n", "", (RUNTIME, "TestRuns")),
    Mutant(
        "../runtime/bundle.py", "batch_size * batch_size <= size * larger", "batch_size <= larger", (RUNTIME, "nearest")
    ),
    Mutant(CUT, "stages[maker] + (maker in owner)", "stages[maker]", (PARTITION, "float64 or random")),
    Mutant(CUT, "name in flow.outputs or any(", "any(", (PARTITION, "float64")),
    Mutant(CANDIDATES, 'transposed = not given.get("transB", 0)', "transposed = False", (PARTITION, "columns")),
    Mutant(
        CANDIDATES,
        "return prod(tensor.dims) == size == tensor.dims[-1]",
        "return True",
        (PARTITION, "positions"),
    ),
    Mutant(CANDIDATES, 'given.get("group", 1),', "1,", (PARTITION, "convolutions")),
    Mutant(
        "../export/partition/flow.py",
        "len(readers) == 1 and name not in self.outputs",
        "readers",
        (PARTITION, "outputs"),
    ),
)
