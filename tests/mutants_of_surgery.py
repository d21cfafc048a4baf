"""Faults to plant in surgery."""

from __future__ import annotations

from mutant import FORMS, INDEXING, LAYER_NORM, NORMS, REDUCTION, SHRINK, VANISH, Mutant

SURGERY = (
    Mutant(
        "surgery/indexing.py",
        "wanted = wanted.index_select(offset, cut.result.along(dim + offset))",
        "pass",
        (INDEXING, "follow"),
    ),
    Mutant(
        "surgery/indexing.py",
        "order[written] = size + torch.arange(len(written))",
        "pass",
        (INDEXING, "parts or images"),
    ),
    Mutant(
        "surgery/indexing.py", "if not bool(torch.isin(wanted, keep).all()):", "if False:", (INDEXING, "another_plan")
    ),
    Mutant(
        "surgery/keeps.py",
        "if not torch.equal(rectangle.expand(alive.shape), alive):",
        "if False:",
        (FORMS, "shuffled"),
    ),
    Mutant(
        "surgery/layers.py",
        "live = len(torch.unique(weight.along(0) // width))",
        "live = conv_groups",
        (SHRINK, "grouped"),
    ),
    Mutant("surgery/layers.py", "if share != 1:", "if False:", ("test_rules_reduction.py", "")),
    Mutant("surgery/layers.py", '{**kwargs, "scale": 1 / math.sqrt(query.dense[-1])}', "kwargs", (SHRINK, "scale")),
    Mutant("surgery/layers.py", "wanted = positions[wanted]", "pass", (SHRINK, "cut_twice")),
    Mutant(
        "surgery/counting.py", "source.shape[1] * num_groups // source.dense[1]", "num_groups", (NORMS, "norm_group")
    ),
    Mutant("surgery/counting.py", "eps * share", "eps", (NORMS, "squares")),
    Mutant("surgery/counting.py", "math.sqrt(share)", "1", (NORMS, "squares")),
    Mutant("surgery/counting.py", "source.dense[dim] - source.shape[dim]", "0", (LAYER_NORM, "tokens")),
    Mutant("surgery/counting.py", "width + more for", "width for", (LAYER_NORM, "two_cuts")),
    Mutant("surgery/counting.py", "if _pads_zeros(node) and", "if False and", (LAYER_NORM, "two_cuts")),
    Mutant("surgery/counting.py", "bool(value == 0)", "True", (LAYER_NORM, "filled_up_with_ones")),
    Mutant(
        "surgery/counting.py", "cut.node.update_arg(0, _filled_operand(cut, missing))", "pass", (REDUCTION, "features")
    ),
    Mutant("surgery/counting.py", "if dim in chosen", "", (REDUCTION, "heads")),
    Mutant("surgery/counting.py", "behind.get(dim, 0)", "0", (LAYER_NORM, "tokens")),
    Mutant("surgery/counting.py", "if user.args[1] == 0]", "]", (LAYER_NORM, "statistics")),
    Mutant(
        "surgery/positions.py",
        "begin, stop = int((keep < first).sum()), int((keep < last).sum())",
        "begin, stop = first, last",
        (FORMS, "linear"),
    ),
    Mutant(
        "surgery/positions.py",
        "taken, begin, stop = whole, begin + start,",
        "taken, begin, stop = whole, begin,",
        (FORMS, "linear"),
    ),
    Mutant("surgery/positions.py", "if start < 0 else start", "if start > 0 else start", (FORMS, "linear")),
    Mutant("surgery/positions.py", "int((keep < wanted).sum()))", "wanted)", (FORMS, "linear or convolutions")),
    Mutant(
        "surgery/positions.py",
        "order = torch.arange(count).view(cut.arguments[1], -1).t().reshape(-1)",
        "order = torch.arange(count)",
        (FORMS, "shuffled"),
    ),
    Mutant(
        "surgery/positions.py",
        "torch.arange(source.dense[dim]).roll(shift)",
        "torch.arange(source.dense[dim])",
        (FORMS, "roll"),
    ),
    Mutant("surgery/positions.py", "widths[position] = int((keep < before).sum())", "pass", (FORMS, "padded")),
    Mutant(
        "surgery/positions.py", "widths[position + 1] = int((keep >= before + inner).sum())", "pass", (FORMS, "padded")
    ),
    Mutant("surgery/sizes.py", "            kept[dim] = small\n", "            kept[dim] = dense\n", (SHRINK, "")),
    Mutant(
        "surgery/sizes.py",
        "cut.node.update_arg(2, _sizes(cut, list(cut.argument(2)), first=dim))",
        "pass",
        (FORMS, "linear and unflattened"),
    ),
    Mutant("surgery/sizes.py", "cut.become(aten.squeeze.dims, cut.node.args[0], dims)", "pass", (FORMS, "")),
    Mutant("surgery/vanished.py", "if op_name(node) in DROPOUTS:", "if False:", (VANISH, "dropout_of")),
    Mutant("surgery/vanished.py", "while name in self.fate.passed:", "if True:", (VANISH, "in_a_row")),
    Mutant("../export/norms.py", "> MANY * over", "> 1e9", ("../test_export_norms.py", "as_close")),
    Mutant(
        "rules/indexing.py",
        "    if not prod(part.shape):\n        return value\n    dim = int(step.get(2",
        "    dim = int(step.get(2",
        (INDEXING, "shifted"),
    ),
    Mutant(
        "surgery/vanished.py",
        "            self._normalize_(node, copy)\n",
        "            pass\n",
        (VANISH, ""),
    ),
    Mutant(
        "surgery/vanished.py",
        "copy.replace_input_with(self.copies[source.name], self._expanded(source, copy))",
        "pass",
        (VANISH, ""),
    ),
    Mutant("surgery/vanished.py", "self._become_(copy, aten.alias.default, *_parts(copy))", "pass", (VANISH, "")),
    Mutant(
        "surgery/vanished.py",
        "self._become_functional_(node, copy)\n            return",
        "pass\n            return",
        (VANISH, "inplace or residual_block"),
    ),
)
