"""Faults to plant in the bundle: its format, its guards, its cut and its choices."""

from __future__ import annotations

from mutant import Mutant

# What runs without torch stands beside the package, and files are named from its folder `graph`.
ALONE = "../../l0compress_runtime"
CODING, ARCHIVE, PARTS = f"{ALONE}/coding.py", f"{ALONE}/archive.py", f"{ALONE}/parts.py"
ARGUMENTS = f"{ALONE}/arguments.py"
CUT, PRODUCTS = "../export/partition/cut.py", "../export/partition/products.py"
FORMAT, HOSTILE = "../test_bundle_format.py", "../test_bundle_hostile.py"
RUNTIME, PARTITION = "../test_bundle_runtime.py", "../test_bundle_partition.py"
RECURRENT, LOOPS = "../test_bundle_recurrent.py", "../test_engines_recurrent.py"
RECURRENT_NODES, READING = "../export/partition/recurrent_nodes.py", f"{ALONE}/reading.py"
KERNELS, STEPS = f"{ALONE}/engines/numba_recurrent_kernels.py", f"{ALONE}/engines/scipy_recurrent.py"
NUMBA, NUMBA_LOOPS = f"{ALONE}/engines/numba_engine.py", "../test_engines_numba.py"
CONSTANTS, VIEWS = "../export/partition/initializers.py", "../export/partition/views.py"
FINDING, INPUTS = "../export/partition/finding.py", f"{ALONE}/engines/inputs.py"
ENGINES = "../test_engines.py"

BUNDLES = (
    Mutant(CODING, "escapes = steps // ESCAPE", "escapes = (steps + 1) // ESCAPE", (FORMAT, "gaps")),
    Mutant(CODING, "if len(positions) and positions[-1] >= spec.size:", "if False:", (FORMAT, "Damage")),
    Mutant(CODING, "(len(gaps) and gaps[-1] == ESCAPE)", "False", (FORMAT, "Damage")),
    Mutant(CODING, "bits + 0x7FFF + ((bits >> 16) & 1)", "bits", (FORMAT, "bfloat16")),
    Mutant(
        CODING,
        "self.scale is not None and self.spec.scale_axis == (1 if transposed else row_dims - 1)",
        "True",
        (FORMAT, "int8"),
    ),
    Mutant(CODING, "not np.isfinite(values).all() and spec.nonzeros is not None", "False", (FORMAT, "finite")),
    Mutant(
        ARCHIVE,
        "if len({member.filename for member in members}) != len(members):",
        "if False:",
        (HOSTILE, "two_members"),
    ),
    Mutant(ARCHIVE, "if not _NAME.fullmatch(name):", "if False:", (HOSTILE, "names_that")),
    Mutant(
        ARCHIVE,
        'total > limit_bytes:\n            raise LimitError(f"would',
        'False:\n            raise LimitError(f"would',
        (HOSTILE, "limit"),
    ),
    Mutant(ARGUMENTS, "array.dtype != dtype", "array.dtype.kind != dtype.kind", (RUNTIME, "do_not_fit")),
    Mutant(ARGUMENTS, "not isinstance(value, bool)", "True", (RUNTIME, "Arguments")),
    Mutant(
        PARTS,
        "return self._kernel(name, DEFAULT_ENGINE)",
        "return engine_name, self._kernel(name, DEFAULT_ENGINE)[1]",
        (RUNTIME, "default_one"),
    ),
    Mutant(f"{ALONE}/bundle.py", "manifest.plans.get(SPLIT, plan)", "plan", (RUNTIME, "asked_for")),
    Mutant(ARCHIVE, "if member.flag_bits & 0x1:", "if False:", (HOSTILE, "encryption")),
    Mutant(ARCHIVE, "or not stat.S_ISREG(file.lstat().st_mode)", "", (HOSTILE, "folder_with_a_link")),
    Mutant(ARCHIVE, "member.file_size == 0 and ", "", (HOSTILE, "content_of_its_own")),
    Mutant(
        ARCHIVE, "if any(Path(parent, name).is_symlink() for name in inner):", "if False:", (HOSTILE, "that_is_a_link")
    ),
    Mutant(PARTS, "!= self.manifest.hashes.get(name)", "is None", (HOSTILE, "wrong_hash")),
    Mutant(PARTS, "if total > self.limit_bytes:", "if False:", (HOSTILE, "more_rows")),
    Mutant(f"{ALONE}/protobuf.py", "number == _EXTERNAL_DATA or ", "", (FORMAT, "hides")),
    Mutant(f"{ALONE}/protobuf.py", '22: "sparse", 23: "sparse"', "", (FORMAT, "hides")),
    Mutant(
        f"{ALONE}/protobuf.py",
        "not in DOMAINS:\n            raise",
        "is None:\n            raise",
        (FORMAT, "not_onnx"),
    ),
    Mutant(f"{ALONE}/reading.py", "if not made.issuperset(part.inputs):", "if False:", (HOSTILE, "wrong")),
    Mutant(f"{ALONE}/stages.py", "        kept.update(frees)\n", "", (RUNTIME, "TestRuns")),
    Mutant(f"{ALONE}/bundle.py", "batch_size * batch_size <= bound", "batch_size <= bound", (RUNTIME, "nearest")),
    Mutant(CUT, "stages[maker] + (maker in owner)", "stages[maker]", (PARTITION, "float64 or random")),
    Mutant(CUT, "name in flow.outputs or any(", "any(", (PARTITION, "float64")),
    Mutant(PRODUCTS, 'transposed = not given.get("transB", 0)', "transposed = False", (PARTITION, "columns")),
    Mutant(
        PRODUCTS,
        "return prod(tensor.dims) == size == tensor.dims[-1]",
        "return True",
        (PARTITION, "positions"),
    ),
    Mutant(PRODUCTS, 'given.get("group", 1),', "1,", (PARTITION, "convolutions")),
    Mutant(
        "../export/partition/flow.py",
        "len(readers) == 1 and name not in self.outputs",
        "readers",
        (PARTITION, "outputs"),
    ),
    Mutant(RECURRENT_NODES, "return value is None or not np.any(", "return np.any(", (RECURRENT, "not_made")),
    Mutant(
        RECURRENT_NODES,
        "if maker is None:\n            return False",
        "if maker is None:\n            return True",
        (RECURRENT, "counts_as_zeros"),
    ),
    Mutant(
        RECURRENT_NODES,
        "places = tuple(inputs.index(name) if name else 0 for name in states)",
        "places = tuple(range(1, 1 + len(states)))",
        (RECURRENT, "states"),
    ),
    Mutant(RECURRENT_NODES, "if _input(node, _LENGTHS):", "if False:", (RECURRENT, "stays_dense")),
    Mutant(RECURRENT_NODES, "if _input(node, _PEEPHOLES):", "if False:", (RECURRENT, "stays_dense")),
    Mutant(RECURRENT_NODES, 'given.get("linear_before_reset", 0)', "False", (RECURRENT, "becomes_a_layer")),
    Mutant(
        "../export/partition/candidates.py",
        "return {self.weight: 1, self.recurrence.weight: 1}",
        "return {self.weight: 0, self.recurrence.weight: 0}",
        (RECURRENT, "storage"),
    ),
    Mutant(READING, "{0, *recurrence.states} != set(range(len(step.inputs)))", "False", (RECURRENT, "Strangers")),
    Mutant(READING, "not made <= set(range(1 + states))", "False", (RECURRENT, "Strangers")),
    Mutant(PARTS, 'shape[0] == 1 + (step.recurrence.direction == "bidirectional")', "True", (RECURRENT, "Strangers")),
    Mutant(NUMBA, "packs_all=samples == most <= width", "packs_all=most <= width", (NUMBA_LOOPS, "one_thread")),
    Mutant(NUMBA, "packs_all=samples == most <= width", "packs_all=samples == most", (NUMBA_LOOPS, "one_thread")),
    Mutant(
        NUMBA,
        "lru_cache(maxsize=KEPT_PLANS)(partial(_planned, layer, kernels, threads))",
        "lambda samples: _planned(self._layer, kernels, threads, samples)",
        (ENGINES, "let_go"),
    ),
    Mutant(INPUTS, "x if x.flags.carray else", "x if x.flags.c_contiguous else", (NUMBA_LOOPS, "compile_anew")),
    Mutant(f"{ALONE}/engines/torch_engine.py", "if min(samples.strides) < 0:", "if False:", (ENGINES, "every_kind")),
    Mutant(VIEWS, 'given.get("allowzero", 0) and 0 in sizes', "False", (PARTITION, "allowzero")),
    Mutant(VIEWS, "if len(rest) == len(before) - kept else None", "", (PARTITION, "make_no_width")),
    Mutant(
        VIEWS,
        "is_left = [target[dim] for dim in unknown] in ([], [-1])",
        "is_left = True",
        (PARTITION, "make_no_width"),
    ),
    Mutant(FINDING, "or flow.only_reader(candidate.inputs[0]) is None", "", (PARTITION, "something_else_reads")),
    Mutant(PARTS, "columns if 0 in kept else prod(rest)", "prod(rest)", (PARTITION, "no_sample_after")),
    Mutant(f"{ALONE}/tuning.py", "or medians[fastest] <= WORTH * medians[WHOLE]", "or True", (RUNTIME, "clearly")),
    Mutant(READING, 'step.flat_from is not None and step.kind != "linear"', "False", (HOSTILE, "only_a_linear")),
    Mutant(
        "dynamic.py",
        "size is not None and not isinstance(size, int) and size != Dim.STATIC",
        "True",
        ("test_capture.py", "one_input_alone"),
    ),
    Mutant(
        "../loading/onnx/tracked.py",
        " and not (free and known)",
        "",
        ("../test_onnx_models.py", "cut_to_a_free_length"),
    ),
    Mutant(
        "../loading/onnx/rnn.py",
        '"gru": (1, 0, 2)',
        '"gru": (0, 1, 2)',
        ("../test_onnx_operators.py", "GRU"),
    ),
    Mutant(
        "../loading/onnx/build.py",
        "isinstance(value, Flow) and value.zeros",
        "False",
        ("../test_onnx_models.py", "start_from_shared_zeros"),
    ),
    Mutant(CONSTANTS, "(-_size(flow.constants[source]), source)", "source", (RECURRENT, "named")),
    Mutant(f"{ALONE}/recurrence.py", 'layer.direction == "reverse" or side == 1', "side == 1", (LOOPS, "direction")),
    Mutant(f"{ALONE}/recurrence.py", 'if layer.cell != "gru_reset_after":', "if True:", (LOOPS, "direction")),
    Mutant(
        KERNELS,
        "hidden[k] = new[k] + update[k] * (hidden[k] - new[k])",
        "hidden[k] = hidden[k] + update[k] * (new[k] - hidden[k])",
        (LOOPS, "direction"),
    ),
    Mutant(
        STEPS, "        carried *= f\n        new *= i", "        carried *= i\n        new *= f", (LOOPS, "direction")
    ),
)
