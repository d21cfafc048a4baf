"""Faults to plant in how labels pass through operators."""

from __future__ import annotations

from mutant import FORMS, GROUPS, INDEXING, LAYER_NORM, NORMS, RECURRENT, REDUCTION, SHRINK, TRANSPOSED, Fault

LABELS = (
    Fault(
        "l0compress.graph:filled",
        "[d for d, size in enumerate(sizes) if isinstance(size, int) and size > 1]",
        "[d for d, size in enumerate(sizes) if isinstance(size, int) and size > 1][:0]",
        (GROUPS, "ones_follow"),
    ),
    Fault(
        "l0compress.graph:_selected_input",
        "step.name != 'linear' or a.plane_along(last) is not None or (not step.reads_input(source))",
        "a.plane_along(last) is not None or not step.reads_input(source)",
        (GROUPS, "only_a_linear"),
    ),
    Fault(
        "l0compress.graph:contract",
        "if dims - {last}:\n    survivors = step.space.fresh_plane(dims - {last}, joint_shape)\n    step.space.tie_any_(survivors, plane)\n    outer.append(narrowed(survivors, last))",
        "if dims - {last}:\n    survivors = step.space.fresh_plane(dims - {last}, joint_shape)\n    outer.append(narrowed(survivors, last))",
        (GROUPS, "linear_attention or loses_heads"),
    ),
    Fault("l0compress.graph:contract", "_record_read(step, (left, right), plane, survivors)", "pass", (SHRINK, "")),
    Fault(
        "l0compress.graph:_record_read",
        "not step.is_parameter(operand.arg)",
        "step.is_parameter(operand.arg)",
        (GROUPS, "rather_than"),
    ),
    Fault(
        "l0compress.graph:_repeated.repeat",
        "small.repeat_interleave(times, -3)",
        "small.repeat(times, 1, 1)",
        (GROUPS, "share"),
    ),
    Fault(
        "l0compress.graph:bilinear",
        "step.space.unite_(flattened(column), channels)",
        "pass",
        ("test_rules_contraction.py", "bilinear"),
    ),
    Fault(
        "l0compress.graph.operators:_grouped",
        "if channels is None and rows is not None and (len(rows) > conv_groups):\n    outputs = rows.view(conv_groups, -1)\n    space.unite_(outputs, outputs[:1])\n    rows = None",
        "if channels is None and rows is not None and (len(rows) > conv_groups):\n    outputs = rows.view(conv_groups, -1)\n    rows = None",
        (GROUPS, "grouped_convolution"),
    ),
    Fault(
        "l0compress.graph.operators:_grouped",
        "space.tie_any_(columns.view(1, -1).expand_as(inputs), inputs)",
        "pass",
        (GROUPS, "grouped"),
    ),
    Fault(
        "l0compress.graph:_grouped_transposed",
        "space.tie_any_(columns.view(1, -1).expand_as(outputs), outputs)",
        "pass",
        (TRANSPOSED, "grouped or depthwise"),
    ),
    Fault(
        "l0compress.graph:transposed_convolution",
        "_plain(step, channels, rows, weight, reading=0)",
        "_plain(step, channels, rows, weight, reading=1)",
        (TRANSPOSED, "plain"),
    ),
    Fault("l0compress.graph:transposed_macs", "node.args[0]", "node", (TRANSPOSED, "plain")),
    Fault(
        "l0compress.graph:glu",
        "step.space.merge(halves, step.shape, step.node)",
        "halves[0]",
        ("test_rules_spatial.py", "gated"),
    ),
    Fault("l0compress.graph:glu", "i * half", "0", ("test_rules_spatial.py", "gated")),
    Fault(
        "l0compress.graph:elementwise",
        "step.space.merge(step.tensors(), step.shape, step.node)",
        "step.tensors()[0]",
        (GROUPS, "residual or gate_written"),
    ),
    Fault(
        "l0compress.graph:embedding",
        "step.passed(table, frozenset({0}), 'its rows are chosen by index at run time')",
        "table.planes",
        (GROUPS, "tied or embedding"),
    ),
    Fault(
        "l0compress.graph:grouped_product",
        "step.space.unite_(columns, channels)",
        "pass",
        ("test_experts.py", "hidden_units"),
    ),
    Fault("l0compress.graph:_picked.pick", "known.reshape(-1)", "known.reshape(-1).flip(0)", (INDEXING, "follow")),
    Fault(
        "l0compress.graph:_placed", "written", "written.flip(0)", (INDEXING, "written_in_parts or positions_of_images")
    ),
    Fault(
        "l0compress.graph:gather",
        "step.passed(value, frozenset({dim}), 'it is gathered at run time')",
        "value.planes",
        (INDEXING, "run_time or along_channels"),
    ),
    Fault("l0compress.graph:_padded", "[before, small, after]", "[small, before, after]", (FORMS, "padded")),
    Fault("l0compress.graph:_padded", "[before, small, after]", "[after, small, before]", (FORMS, "padded")),
    Fault(
        "l0compress.graph:_concatenated",
        "torch.full(size, FROZEN)",
        "torch.arange(1, 1 + len(pieces) * 0 + torch.Size(size).numel()).view(size)",
        (FORMS, "linear"),
    ),
    Fault(
        "l0compress.graph:_concatenated",
        "torch.cat(pieces, dim)",
        "torch.cat(pieces[::-1], dim)",
        (SHRINK, "concatenation"),
    ),
    Fault("l0compress.graph.operators:_folded", "step.space.tie_any_(part, whole)", "pass", (FORMS, "outer")),
    Fault(
        "l0compress.graph:_is_bound",
        "step.name in ('unfold', 'diagonal') or (step.name == 'roll' and (not step.get(2, 'dims')))",
        "step.name == 'roll' and (not step.get(2, 'dims'))",
        (FORMS, "windows or pairs or diagonal or unfold"),
    ),
    Fault(
        "l0compress.graph:channels_along",
        "step.space.unite_(table, table[:, :1])",
        "pass",
        (TRANSPOSED, "linear_layer_makes"),
    ),
    Fault(
        "l0compress.graph:group_norm",
        "if channels is not None:\n    table = channels.view(count, -1)\n    step.space.unite_(table, table[:, :1])",
        "if channels is not None:\n    table = channels.view(count, -1)",
        (NORMS, "norm_group"),
    ),
    Fault("l0compress.graph:_padded", "step.space.tie_any_(rows, plane)", "pass", (LAYER_NORM, "again")),
    Fault(
        "l0compress.graph:read_over",
        "if counts and any((step.is_dynamic(0, dim) for dim in inner)):\n    pairs.extend(((kept, kept) for kept in step.passed(Value(value.shape, (plane,)), dims, reason)))\nelse:\n    survivors = step.space.fresh_plane(outer, value.shape) if outer else None\n    if survivors is not None:\n        step.space.tie_any_(survivors, plane)\n    step.space.reads.append(ReadFact(step.node, 0, plane, survivors))\n    pairs.append((plane, survivors))",
        "if counts and any((step.is_dynamic(0, dim) for dim in inner)):\n    pairs.extend(((kept, kept) for kept in step.passed(Value(value.shape, (plane,)), dims, reason)))\nelse:\n    survivors = step.space.fresh_plane(outer, value.shape) if outer else None\n    if survivors is not None:\n        step.space.tie_any_(survivors, plane)\n    pairs.append((plane, survivors))",
        (LAYER_NORM, "tokens"),
    ),
    Fault("l0compress.graph:read_over", "step.space.tie_any_(survivors, plane)", "pass", (LAYER_NORM, "needs_no_gate")),
    Fault(
        "l0compress.graph:read_over",
        "ReadFact(step.node, 0, plane, survivors)",
        "ReadFact(step.node, 0, plane, None)",
        (LAYER_NORM, "needs_no_gate"),
    ),
    Fault("l0compress.graph:group_norm", "_read(step, 1)", "_read(step, 2)", (LAYER_NORM, "group")),
    Fault(
        "l0compress.graph:with_vectors",
        "[value, *(vector for vector in vectors if vector is not None)]",
        "[value]",
        (LAYER_NORM, "tokens"),
    ),
    Fault(
        "l0compress.graph:read_over", "any((step.is_dynamic(0, dim) for dim in inner))", "False", (LAYER_NORM, "free")
    ),
    Fault(
        "l0compress.graph:channel_vector",
        "tuple((along(flattened(plane), dim, shape) for plane in vector.planes))",
        "()",
        (NORMS, ""),
    ),
    Fault(
        "l0compress.graph:_channels",
        "step.space.unite_(labels, labels[:, :1])",
        "pass",
        (RECURRENT, "linear_layer_makes"),
    ),
    Fault(
        "l0compress.graph:recurrent",
        "for other in units[1:]:\n    step.space.unite_(units[0].hidden, other.hidden)\n    step.space.unite_(units[0].handed_on, other.handed_on)",
        "for other in units[1:]:\n    step.space.unite_(units[0].handed_on, other.handed_on)",
        (RECURRENT, "hidden_units_go"),
    ),
    Fault(
        "l0compress.graph:_units_of_rows",
        "step.space.unite_(block, units.expand_as(block))",
        "pass",
        (RECURRENT, "hidden_units_go"),
    ),
    Fault("l0compress.graph:_direction", "len(handed_on) + 1", "0", (RECURRENT, "projections")),
    Fault(
        "l0compress.graph:_reduced",
        "step.passed(value, dims, _reason(step))",
        "value.planes",
        (REDUCTION, "sees_zeros"),
    ),
    Fault("l0compress.graph:Step.passed", "dims & mixed and dims <= mixed", "False", (GROUPS, "mixes")),
    Fault(
        "l0compress.graph:Step.passed",
        "if dims & mixed:\n    first = plane\n    for dim in dims & mixed:\n        first = first.narrow(dim, 0, 1)\n    self.space.unite_(plane, first)\n    kept.append(first.expand(plane.shape))\nelse:\n    kept.append(plane)",
        "if dims & mixed:\n    first = plane\n    for dim in dims & mixed:\n        first = first.narrow(dim, 0, 1)\n    kept.append(first.expand(plane.shape))\nelse:\n    kept.append(plane)",
        (GROUPS, ""),
    ),
    Fault("l0compress.graph:im2col", "channels.repeat_interleave", "channels.repeat", ("test_rules_spatial.py", "")),
    Fault(
        "l0compress.graph.operators.convolution:_grouped",
        "space.tie_any_(alive.expand_as(inputs), inputs)\nspace.tie_any_(alive.expand_as(outputs), outputs)",
        "pass",
        (GROUPS, "grouped or depthwise"),
    ),
    Fault(
        "l0compress.graph.operators.recurrent:_direction",
        "_read(step, place.weight_hh, handed_on)",
        "pass",
        (RECURRENT, "hidden_units_go"),
    ),
    Fault("l0compress.graph:col2im", "step.space.unite_(table, table[:, :1])", "pass", ("test_rules_spatial.py", "")),
)
