"""Faults to plant in how operators are cut, and in what vanishes."""

from __future__ import annotations

from mutant import FORMS, INDEXING, LAYER_NORM, NORMS, REDUCTION, SHRINK, VANISH, Fault

CUTS = (
    Fault(
        "l0compress.graph:_positions",
        "wanted = wanted.index_select(offset, cut.result.along(dim + offset))",
        "pass",
        (INDEXING, "follow"),
    ),
    Fault(
        "l0compress.graph:_join_",
        "order[written] = size + torch.arange(len(written))",
        "pass",
        (INDEXING, "parts or images"),
    ),
    Fault(
        "l0compress.graph:_positions", "not bool(torch.isin(wanted, keep).all())", "False", (INDEXING, "another_plan")
    ),
    Fault(
        "l0compress.graph:kept_of",
        "not torch.equal(rectangle.expand(alive.shape), alive)",
        "False",
        (FORMS, "shuffled"),
    ),
    Fault(
        "l0compress.graph:keep_live_groups",
        "len(torch.unique(weight.along(0) // width))",
        "conv_groups",
        (SHRINK, "grouped"),
    ),
    Fault("l0compress.graph:keep_dense_mean", "share != 1", "False", (REDUCTION, "")),
    Fault(
        "l0compress.graph:write_scale",
        "{**kwargs, 'scale': 1 / math.sqrt(query.dense[-1])}",
        "kwargs",
        (SHRINK, "scale"),
    ),
    Fault("l0compress.graph:drop_inputs", "wanted = positions[wanted]", "pass", (SHRINK, "cut_twice")),
    Fault(
        "l0compress.graph:fill_group_norm",
        "source.shape[1] * num_groups // source.dense[1]",
        "num_groups",
        (NORMS, "norm_group"),
    ),
    Fault("l0compress.graph:keep_dense_mean_square", "eps * share", "eps", (NORMS, "squares")),
    Fault("l0compress.graph:keep_dense_mean_square", "math.sqrt(share)", "1", (NORMS, "squares")),
    Fault("l0compress.graph:missing_from", "source.dense[dim] - source.shape[dim]", "0", (LAYER_NORM, "tokens")),
    Fault("l0compress.graph.operators:_filled", "width + more", "width", (LAYER_NORM, "two_cuts")),
    Fault("l0compress.graph.operators:_filled", "_pads_zeros(node)", "False", (LAYER_NORM, "two_cuts")),
    Fault(
        "l0compress.graph.operators.filling:_pads_zeros",
        "bool(value == 0)",
        "True",
        (LAYER_NORM, "filled_up_with_ones"),
    ),
    Fault(
        "l0compress.graph:fill_counted",
        "cut.node.update_arg(0, filled_operand(cut, missing))",
        "pass",
        (REDUCTION, "features"),
    ),
    Fault(
        "l0compress.graph:missing_along",
        "{dim: size for dim, size in missing_from(cut, 0).items() if dim in chosen}",
        "{dim: size for dim, size in missing_from(cut, 0).items()}",
        (REDUCTION, "heads"),
    ),
    Fault("l0compress.graph:filled_arguments", "behind.get(dim, 0)", "0", (LAYER_NORM, "tokens")),
    Fault(
        "l0compress.graph:fill_native_layer_norm",
        "[user for user in cut.node.users if user.args[1] == 0]",
        "[user for user in cut.node.users]",
        (LAYER_NORM, "statistics"),
    ),
    Fault(
        "l0compress.graph:_become_slice_",
        "(int((keep < first).sum()), int((keep < last).sum()))",
        "(first, last)",
        (FORMS, "linear"),
    ),
    Fault("l0compress.graph:_become_slice_", "begin + start", "begin", (FORMS, "linear")),
    Fault("l0compress.graph:narrow_kept", "start < 0", "start > 0", (FORMS, "linear")),
    Fault("l0compress.graph:select_kept", "int((keep < wanted).sum())", "wanted", (FORMS, "linear or convolutions")),
    Fault(
        "l0compress.graph:select_shuffled",
        "torch.arange(count).view(cut.arguments[1], -1).t().reshape(-1)",
        "torch.arange(count)",
        (FORMS, "shuffled"),
    ),
    Fault(
        "l0compress.graph:roll_kept",
        "torch.arange(source.dense[dim]).roll(shift)",
        "torch.arange(source.dense[dim])",
        (FORMS, "roll"),
    ),
    Fault("l0compress.graph:cut_padding", "widths[position] = int((keep < before).sum())", "pass", (FORMS, "padded")),
    Fault(
        "l0compress.graph:cut_padding",
        "widths[position + 1] = int((keep >= before + inner).sum())",
        "pass",
        (FORMS, "padded"),
    ),
    Fault("l0compress.graph:sizes_left", "kept[dim] = small", "kept[dim] = dense", (SHRINK, "")),
    Fault(
        "l0compress.graph:cut_unflattened",
        "cut.node.update_arg(2, sizes_left(cut, list(cut.argument(2)), first=dim))",
        "pass",
        (FORMS, "linear and unflattened"),
    ),
    Fault(
        "l0compress.graph:keep_dimensions", "cut.become(aten.squeeze.dims, cut.node.args[0], dims)", "pass", (FORMS, "")
    ),
    Fault(
        "l0compress.graph:drop_nothing",
        "cut.become(torch.ops.aten.alias.default, cut.node.args[0])",
        "pass",
        (VANISH, "dropout_of"),
    ),
    Fault(
        "l0compress.graph:_Surgeon._survivor",
        "while name in self.fate.passed:\n    name = self.fate.passed[name]",
        "if True:\n    name = self.fate.passed[name]",
        (VANISH, "in_a_row"),
    ),
    Fault(
        "l0compress.graph:_Surgeon._beside_constants_",
        "copy.replace_input_with(self.copies[source.name], self._expanded(source, copy))",
        "pass",
        (VANISH, ""),
    ),
    Fault(
        "l0compress.graph:_Surgeon._beside_constants_",
        "self._become_(copy, aten.alias.default, *_parts(copy))",
        "pass",
        (VANISH, ""),
    ),
    Fault(
        "l0compress.graph:_Surgeon._beside_constants_",
        "self._become_functional_(node, copy)",
        "pass",
        (VANISH, "inplace or residual_block"),
    ),
    Fault(
        "l0compress.graph:slice_scatter", "if not prod(part.shape):\n    return value", "pass", (INDEXING, "shifted")
    ),
    Fault("l0compress.graph:normalise_constant", "", "pass", (VANISH, "")),
    Fault("l0compress.export:split_norms_", "MANY * over", "1000000000.0", ("../test_export_norms.py", "as_close")),
)
