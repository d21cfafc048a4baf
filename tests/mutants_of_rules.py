"""Faults to plant in the rules for labels."""

from __future__ import annotations

from mutant import FORMS, GROUPS, INDEXING, LAYER_NORM, NORMS, RECURRENT, SHRINK, TRANSPOSED, Mutant

RULES = (
    Mutant("rules/constants.py", "size > 1]", "size > 1][:0]", (GROUPS, "ones_follow")),
    Mutant("rules/contraction.py", 'if step.name != "linear" or', "if", (GROUPS, "only_a_linear")),
    Mutant(
        "rules/contraction.py",
        "            step.space.tie_any_(survivors, plane)\n            outer",
        "            outer",
        (GROUPS, "linear_attention or loses_heads"),
    ),
    Mutant("rules/contraction.py", "_record_read(step, (left, right), plane, survivors)", "pass", (SHRINK, "")),
    Mutant(
        "rules/contraction.py",
        "candidates.append((not step.is_parameter(operand.arg)",
        "candidates.append((step.is_parameter(operand.arg)",
        (GROUPS, "rather_than"),
    ),
    Mutant(
        "rules/contraction.py", "small.repeat_interleave(times, -3)", "small.repeat(times, 1, 1)", (GROUPS, "share")
    ),
    Mutant(
        "rules/contraction.py",
        "step.space.unite_(flattened(column), channels)",
        "pass",
        ("test_rules_contraction.py", "bilinear"),
    ),
    Mutant(
        "rules/convolution.py",
        "        space.unite_(outputs, outputs[:1])\n",
        "",
        (GROUPS, "grouped_convolution"),
    ),
    Mutant(
        "rules/convolution.py",
        "    space.tie_any_(alive.expand_as(inputs), inputs)\n    space.tie_any_(alive.expand_as(outputs), outputs)\n    if columns is not None:\n        space.tie_any_(columns.view(1, -1).expand_as(inputs), inputs)",
        "    if columns is not None:\n        space.tie_any_(columns.view(1, -1).expand_as(inputs), inputs)",
        (GROUPS, "grouped or depthwise"),
    ),
    Mutant(
        "rules/convolution.py",
        "        space.tie_any_(columns.view(1, -1).expand_as(inputs), inputs)\n    elif",
        "        pass\n    elif",
        (GROUPS, "grouped"),
    ),
    Mutant(
        "rules/convolution.py",
        "        space.tie_any_(columns.view(1, -1).expand_as(outputs), outputs)\n",
        "        pass\n",
        (TRANSPOSED, "grouped or depthwise"),
    ),
    Mutant("rules/convolution.py", "reading=0)", "reading=1)", (TRANSPOSED, "plain")),
    Mutant(
        "rules/convolution.py",
        "prod(x.shape) // x.shape[channel_dim])",
        "prod(step.shape) // step.shape[channel_dim])",
        (TRANSPOSED, "plain"),
    ),
    Mutant(
        "rules/elementwise.py",
        "return step.space.merge(halves, step.shape, step.node)",
        "return halves[0]",
        ("test_rules_spatial.py", "gated"),
    ),
    Mutant("rules/elementwise.py", "start=i * half", "start=0", ("test_rules_spatial.py", "gated")),
    Mutant(
        "rules/elementwise.py",
        "step.space.merge(step.tensors(), step.shape, step.node)",
        "step.tensors()[0]",
        (GROUPS, "residual or gate_written"),
    ),
    Mutant(
        "rules/embedding.py",
        'planes = step.passed(table, frozenset({0}), "its rows are chosen by index at run time")\n    return Value(',
        "planes = table.planes\n    return Value(",
        (GROUPS, "tied or embedding"),
    ),
    Mutant("rules/experts.py", "step.space.unite_(columns, channels)", "pass", ("test_experts.py", "hidden_units")),
    Mutant(
        "rules/indexing.py",
        "index_select(dim, known.reshape(-1))",
        "index_select(dim, known.reshape(-1).flip(0))",
        (INDEXING, "follow"),
    ),
    Mutant(
        "rules/indexing.py",
        "table.index_copy_(dim, written, ",
        "table.index_copy_(dim, written.flip(0), ",
        (INDEXING, "written_in_parts or positions_of_images"),
    ),
    Mutant(
        "rules/indexing.py",
        'planes = step.passed(value, frozenset({dim}), "it is gathered at run time")',
        "planes = value.planes",
        (INDEXING, "run_time or along_channels"),
    ),
    Mutant(
        "rules/joining.py",
        "torch.cat([before, small, after], dim)",
        "torch.cat([small, before, after], dim)",
        (FORMS, "padded"),
    ),
    Mutant(
        "rules/joining.py",
        "torch.cat([before, small, after], dim)",
        "torch.cat([after, small, before], dim)",
        (FORMS, "padded"),
    ),
    Mutant(
        "rules/joining.py",
        "small = torch.full(size, FROZEN) if plane is None",
        "small = torch.arange(1, 1 + len(pieces) * 0 + torch.Size(size).numel()).view(size) if plane is None",
        (FORMS, "linear"),
    ),
    Mutant(
        "rules/joining.py",
        "return compressed(torch.cat(pieces, dim)",
        "return compressed(torch.cat(pieces[::-1], dim)",
        (SHRINK, "concatenation"),
    ),
    Mutant("rules/movement.py", "        step.space.tie_any_(part, whole)\n", "        pass\n", (FORMS, "outer")),
    Mutant(
        "rules/movement.py",
        'if step.name in ("unfold", "diagonal") or',
        "if",
        (FORMS, "windows or pairs or diagonal or unfold"),
    ),
    Mutant(
        "rules/normalization.py",
        "        step.space.unite_(table, table[:, :1])\n    return table[:, 0]",
        "        pass\n    return table[:, 0]",
        (TRANSPOSED, "linear_layer_makes"),
    ),
    Mutant(
        "rules/normalization.py",
        "            step.space.unite_(table, table[:, :1])\n        result",
        "        result",
        (NORMS, "norm_group"),
    ),
    Mutant("rules/joining.py", "step.space.tie_any_(rows, plane)", "pass", (LAYER_NORM, "again")),
    Mutant(
        "rules/normalization.py",
        "            step.space.reads.append(ReadFact(step.node, 0, plane, survivors))\n",
        "",
        (LAYER_NORM, "tokens"),
    ),
    Mutant(
        "rules/normalization.py",
        "                step.space.tie_any_(survivors, plane)",
        "                pass",
        (LAYER_NORM, "needs_no_gate"),
    ),
    Mutant("rules/normalization.py", "plane, survivors))", "plane, None))", (LAYER_NORM, "needs_no_gate")),
    Mutant("rules/normalization.py", "range(1, len(value.shape))", "range(2, len(value.shape))", (LAYER_NORM, "group")),
    Mutant(
        "rules/normalization.py",
        "[value, *(vector for vector in vectors if vector is not None)]",
        "[value]",
        (LAYER_NORM, "tokens"),
    ),
    Mutant(
        "rules/normalization.py", "if any(step.is_dynamic(0, dim) for dim in inner):", "if False:", (LAYER_NORM, "free")
    ),
    Mutant(
        "rules/normalization.py",
        "planes = tuple(along(flattened(plane), dim, shape) for plane in vector.planes)",
        "planes = ()",
        (NORMS, ""),
    ),
    Mutant(
        "rules/recurrent.py",
        "        step.space.unite_(labels, labels[:, :1])\n    return labels[:, 0]",
        "        pass\n    return labels[:, 0]",
        (RECURRENT, "linear_layer_makes"),
    ),
    Mutant(
        "rules/recurrent.py",
        "        step.space.unite_(units[0].hidden, other.hidden)\n",
        "",
        (RECURRENT, "hidden_units_go"),
    ),
    Mutant(
        "rules/recurrent.py",
        "        step.space.unite_(block, units.expand_as(block))\n",
        "        pass\n",
        (RECURRENT, "hidden_units_go"),
    ),
    Mutant("rules/recurrent.py", "    _read(step, place.weight_hh, handed_on)\n", "", (RECURRENT, "hidden_units_go")),
    Mutant("rules/recurrent.py", "hidden[: len(handed_on) + 1]", "hidden[:0]", (RECURRENT, "projections")),
    Mutant(
        "rules/reduction.py",
        "        step.space.reads.append(ReadFact(step.node, 0, plane, survivors))\n",
        "",
        ("test_rules_reduction.py", "sums"),
    ),
    Mutant(
        "rules/reduction.py",
        "            step.space.tie_any_(survivors, plane)\n",
        "",
        ("test_rules_reduction.py", "width_of_heads"),
    ),
    Mutant(
        "rules/reduction.py",
        'planes = step.passed(value, dims, f"{step.name} is taken over it")\n    results = tuple(Value(shape, tuple(_cut',
        "planes = value.planes\n    results = tuple(Value(shape, tuple(_cut",
        ("test_rules_reduction.py", "sees_zeros"),
    ),
    Mutant("rules/registry.py", "if dims & mixed and dims <= mixed:", "if False:", (GROUPS, "mixes")),
    Mutant(
        "rules/registry.py",
        "                self.space.unite_(plane, first)\n",
        "",
        (GROUPS, "norm_over_the_width or table_of_positions"),
    ),
    Mutant(
        "rules/spatial.py",
        "channels.repeat_interleave(prod(kernel))",
        "channels.repeat(prod(kernel))",
        ("test_rules_spatial.py", ""),
    ),
    Mutant("rules/spatial.py", "    step.space.unite_(table, table[:, :1])\n", "", ("test_rules_spatial.py", "")),
)
