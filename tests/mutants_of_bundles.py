"""Faults to plant in the bundle: its format, its guards, its cut and its choices."""

from __future__ import annotations

from mutant import Fault

FORMAT, HOSTILE = "../test_bundle_format.py", "../test_bundle_hostile.py"
RUNTIME = "../test_bundle_runtime.py"
TERNARY = "../test_bundle_ternary.py"
RECURRENT, LOOPS = "../test_bundle_recurrent.py", "../test_engines_recurrent.py"
PARTITION, GRAPHS = "../test_bundle_partition.py", "../test_onnx_partition.py"
ENGINES, NUMBA_LOOPS = "../test_engines.py", "../test_engines_numba.py"

BUNDLES = (
    Fault("l0compress_runtime.coding:_gaps", "steps // ESCAPE", "(steps + 1) // ESCAPE", (FORMAT, "gaps")),
    Fault(
        "l0compress_runtime.coding:_positions",
        "len(positions) and positions[-1] >= spec.size",
        "False",
        (FORMAT, "Damage"),
    ),
    Fault("l0compress_runtime.coding:_positions", "len(gaps) and gaps[-1] == ESCAPE", "False", (FORMAT, "Damage")),
    Fault("l0compress_runtime.planes:narrowed", "bits + 32767 + (bits >> 16 & 1)", "bits", (FORMAT, "bfloat16")),
    Fault(
        "l0compress_runtime.coding:Stored.csr",
        "self.scale is not None and self.spec.scale_axis == (1 if transposed else row_dims - 1)",
        "True",
        (FORMAT, "int8"),
    ),
    Fault(
        "l0compress_runtime.coding:decode",
        "values.dtype.kind == 'f' and (not np.isfinite(values).all()) and (spec.nonzeros is not None)",
        "values.dtype.kind == 'f' and False",
        (FORMAT, "finite"),
    ),
    Fault(
        "l0compress_runtime.ternary:signs_and_scale", "magnitudes == along", "magnitudes <= along", (TERNARY, "differs")
    ),
    Fault("l0compress_runtime.ternary:unpacked_codes", "(codes == 3).any()", "False", (HOSTILE, "Ternary")),
    Fault("l0compress_runtime.ternary:unpacked_signs", "bits[count:].any()", "False", (HOSTILE, "Ternary")),
    Fault("l0compress_runtime.coding:_ternary", "len(positions) != spec.nonzeros", "False", (HOSTILE, "Ternary")),
    Fault("l0compress_runtime.coding:encode_ternary", "min(written, key=len)", "written[0]", (TERNARY, "forms")),
    Fault(
        "l0compress_runtime.reading:_tensor",
        "spec.storage == TERNARY and spec.nonzeros is None",
        "False",
        (HOSTILE, "Ternary"),
    ),
    Fault(
        "l0compress_runtime.manifest:Manifest.to_json",
        "VERSION if self.ternary else WITHOUT_TERNARY",
        "VERSION",
        (TERNARY, "earlier_readers"),
    ),
    Fault(
        "l0compress_runtime.archive:Archive.__init__",
        "len({member.filename for member in members}) != len(members)",
        "False",
        (HOSTILE, "two_members"),
    ),
    Fault("l0compress_runtime.archive:_check_member", "not _NAME.fullmatch(name)", "False", (HOSTILE, "names_that")),
    Fault("l0compress_runtime.archive:Archive.__init__", "total > limit_bytes", "False", (HOSTILE, "limit")),
    Fault(
        "l0compress_runtime.arguments:checks_of.checked",
        "array.dtype != dtype",
        "array.dtype.kind != dtype.kind",
        (RUNTIME, "do_not_fit"),
    ),
    Fault("l0compress_runtime.arguments:whole_number", "not isinstance(value, bool)", "True", (RUNTIME, "Arguments")),
    Fault(
        "l0compress_runtime.parts:Parts._compiled",
        "self._kernel(name, DEFAULT_ENGINE)",
        "(engine_name, self._kernel(name, DEFAULT_ENGINE)[1])",
        (RUNTIME, "default_one"),
    ),
    Fault("l0compress_runtime.bundle:_forced", "manifest.plans.get(SPLIT, plan)", "plan", (RUNTIME, "asked_for")),
    Fault("l0compress_runtime.archive:_check_member", "member.flag_bits & 1", "False", (HOSTILE, "encryption")),
    Fault(
        "l0compress_runtime.archive:_files_below",
        "not _NAME.fullmatch(name) or not stat.S_ISREG(file.lstat().st_mode)",
        "not _NAME.fullmatch(name)",
        (HOSTILE, "folder_with_a_link"),
    ),
    Fault(
        "l0compress_runtime.archive:_is_folder",
        "member.file_size == 0 and _FOLDER.fullmatch(member.filename) is not None",
        "_FOLDER.fullmatch(member.filename) is not None",
        (HOSTILE, "content_of_its_own"),
    ),
    Fault(
        "l0compress_runtime.archive:_files_below",
        "any(Path(parent, name).is_symlink() for name in inner)",
        "False",
        (HOSTILE, "that_is_a_link"),
    ),
    Fault(
        "l0compress_runtime.parts:Parts._member",
        "hashlib.sha256(data).hexdigest() != self.manifest.hashes.get(name)",
        "hashlib.sha256(data).hexdigest() is None",
        (HOSTILE, "wrong_hash"),
    ),
    Fault("l0compress_runtime.parts:Parts._spend", "total > self.limit_bytes", "False", (HOSTILE, "more_rows")),
    Fault(
        "l0compress_runtime.protobuf:_check",
        "number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)",
        "number == _DATA_LOCATION and value != 0",
        (FORMAT, "hides"),
    ),
    Fault(
        "l0compress_runtime.protobuf:_BELOW",
        "{5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph', 22: 'sparse', 23: 'sparse'}",
        "{5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph'}",
        (FORMAT, "hides"),
    ),
    Fault(
        "l0compress_runtime.protobuf:_check",
        "bytes(_message(wire, value)).decode('utf-8', 'replace') not in DOMAINS",
        "bytes(_message(wire, value)).decode('utf-8', 'replace') is None",
        (FORMAT, "not_onnx"),
    ),
    Fault("l0compress_runtime.reading:_check_plan", "not made.issuperset(part.inputs)", "False", (HOSTILE, "wrong")),
    Fault("l0compress_runtime.stages:stages_of", "kept.update(frees)", "pass", (RUNTIME, "TestRuns")),
    Fault("l0compress_runtime.bundle:Bundle._way_for", "batch_size * batch_size", "batch_size", (RUNTIME, "nearest")),
    Fault(
        "l0compress.export.partition.cut:_stages",
        "stages[maker] + (maker in owner)",
        "stages[maker]",
        (GRAPHS, "random"),
    ),
    Fault(
        "l0compress.export.partition.cut:_ends",
        "name in flow.outputs or any(reader not in inside for reader in flow.readers.get(name, ()))",
        "any(reader not in inside for reader in flow.readers.get(name, ()))",
        (PARTITION, "float64"),
    ),
    Fault("l0compress.export.partition.products:_gemm", "not given.get('transB', 0)", "False", (PARTITION, "columns")),
    Fault(
        "l0compress.export.partition.products:_is_vector",
        "prod(tensor.dims) == size == tensor.dims[-1]",
        "True",
        (PARTITION, "positions"),
    ),
    Fault("l0compress.export.partition.products:_conv", "given.get('group', 1)", "1", (PARTITION, "convolutions")),
    Fault(
        "l0compress.export.partition.flow:Flow.only_reader",
        "len(readers) == 1 and name not in self.outputs",
        "readers",
        (PARTITION, "outputs"),
    ),
    Fault(
        "l0compress.export.partition.recurrent_nodes:_is_zero",
        "value is None or not np.any(numpy_helper.to_array(value))",
        "np.any(numpy_helper.to_array(value))",
        (GRAPHS, "not_made"),
    ),
    Fault(
        "l0compress.export.partition.recurrent_nodes:_is_zero",
        "if maker is None:\n    return False",
        "if maker is None:\n    return True",
        (GRAPHS, "counts_as_zeros"),
    ),
    Fault(
        "l0compress.export.partition.recurrent_nodes:recurrence_of",
        "(inputs.index(name) if name else 0 for name in states)",
        "range(1, 1 + len(states))",
        (RECURRENT, "states"),
    ),
    Fault(
        "l0compress.export.partition.recurrent_nodes:why_dense",
        "_input(node, _LENGTHS)",
        "False",
        (GRAPHS, "stays_dense"),
    ),
    Fault(
        "l0compress.export.partition.recurrent_nodes:why_dense",
        "_input(node, _PEEPHOLES)",
        "False",
        (GRAPHS, "stays_dense"),
    ),
    Fault(
        "l0compress.export.partition.recurrent_nodes:_cell",
        "given.get('linear_before_reset', 0)",
        "False",
        (GRAPHS, "becomes_a_layer"),
    ),
    Fault(
        "l0compress.export.partition.candidates:Candidate.scale_axes",
        "{self.weight: 1, self.recurrence.weight: 1}",
        "{self.weight: 0, self.recurrence.weight: 0}",
        (RECURRENT, "storage"),
    ),
    Fault(
        "l0compress_runtime.reading:_check_ends",
        "{0, *recurrence.states} != set(range(len(step.inputs)))",
        "False",
        (RECURRENT, "Strangers"),
    ),
    Fault(
        "l0compress_runtime.reading:_check_ends",
        "not made <= set(range(1 + states))",
        "False",
        (RECURRENT, "Strangers"),
    ),
    Fault(
        "l0compress_runtime.parts:_fits",
        "shape[0] == 1 + (step.recurrence.direction == 'bidirectional')",
        "True",
        (RECURRENT, "Strangers"),
    ),
    Fault(
        "l0compress_runtime.engines.numba_engine:_planned",
        "samples == most <= width",
        "most <= width",
        (NUMBA_LOOPS, "one_thread"),
    ),
    Fault(
        "l0compress_runtime.engines.numba_engine:_planned",
        "samples == most <= width",
        "samples == most",
        (NUMBA_LOOPS, "one_thread"),
    ),
    Fault(
        "l0compress_runtime.engines.numba_engine:_Linear.__init__",
        "lru_cache(maxsize=KEPT_PLANS)(partial(_planned, layer, kernels, threads))",
        "lambda samples: _planned(self._layer, kernels, threads, samples)",
        (ENGINES, "let_go"),
    ),
    Fault(
        "l0compress_runtime.engines.inputs:_plain",
        "x.flags.carray",
        "x.flags.c_contiguous",
        (NUMBA_LOOPS, "compile_anew"),
    ),
    Fault(
        "l0compress_runtime.engines.torch_engine:_linear", "min(samples.strides) < 0", "False", (ENGINES, "every_kind")
    ),
    Fault(
        "l0compress.export.partition.views:flattened_from",
        "given.get('allowzero', 0) and 0 in sizes",
        "False",
        (GRAPHS, "allowzero"),
    ),
    Fault(
        "l0compress.export.partition.views:_last_dimensions",
        "prod(rest) if len(rest) == len(before) - kept else None",
        "prod(rest)",
        (GRAPHS, "make_no_width"),
    ),
    Fault(
        "l0compress.export.partition.views:_last_dimensions",
        "[target[dim] for dim in unknown] in ([], [-1])",
        "True",
        (GRAPHS, "make_no_width"),
    ),
    Fault(
        "l0compress.export.partition.finding:_flattening",
        "candidate.kind != 'linear' or maker is None or flow.only_reader(candidate.inputs[0]) is None",
        "candidate.kind != 'linear' or maker is None",
        (PARTITION, "something_else_reads"),
    ),
    Fault(
        "l0compress_runtime.parts:_run_flattened",
        "columns if 0 in kept else prod(rest)",
        "prod(rest)",
        (PARTITION, "no_sample_after"),
    ),
    Fault(
        "l0compress_runtime.tuning:best_plan",
        "medians[fastest] <= WORTH * medians[WHOLE]",
        "True",
        (RUNTIME, "clearly"),
    ),
    Fault(
        "l0compress_runtime.reading:_check_ends",
        "step.flat_from is not None and step.kind != 'linear'",
        "False",
        (HOSTILE, "only_a_linear"),
    ),
    Fault(
        "l0compress.graph:_is_free",
        "size is not None and (not isinstance(size, int)) and (size != Dim.STATIC)",
        "True",
        ("test_capture.py", "one_input_alone"),
    ),
    Fault(
        "l0compress.loading.onnx.tracked:stays_on_host",
        "all((v.fits_host for v in known)) and all((v.perhaps_host for v in flows)) and (not (free and known))",
        "all((v.fits_host for v in known)) and all((v.perhaps_host for v in flows))",
        ("../test_onnx_models.py", "cut_to_a_free_length"),
    ),
    Fault("l0compress.loading.onnx.rnn:_ORDER", "(1, 0, 2)", "(0, 1, 2)", ("../test_onnx_operators.py", "GRU")),
    Fault(
        "l0compress.loading.onnx.build:_Builder._prepared",
        "isinstance(value, Flow) and value.zeros",
        "False",
        ("../test_onnx_models.py", "start_from_shared_zeros"),
    ),
    Fault(
        "l0compress.export.partition.initializers:_evaluated",
        "(-_size(flow.constants[source]), source)",
        "source",
        (RECURRENT, "named"),
    ),
    Fault(
        "l0compress_runtime.recurrence:_direction",
        "layer.direction == 'reverse' or side == 1",
        "side == 1",
        (LOOPS, "direction"),
    ),
    Fault("l0compress_runtime.recurrence:_biases", "layer.cell != 'gru_reset_after'", "True", (LOOPS, "direction")),
    Fault(
        "l0compress_runtime.engines.numba_recurrent_kernels:update_",
        "new[k] + update[k] * (hidden[k] - new[k])",
        "hidden[k] + update[k] * (new[k] - hidden[k])",
        (LOOPS, "direction"),
    ),
    Fault(
        "l0compress_runtime.engines.scipy_recurrent:_Loop._lstm",
        "carried *= f\nnew *= i",
        "carried *= i\nnew *= f",
        (LOOPS, "direction"),
    ),
)
