"""Faults to plant: in which file, what is replaced by what, and which tests have to notice."""

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
INDEXING, NORMS, COST, PLAN = "test_rules_indexing.py", "test_rules_normalization.py", "test_cost.py", "test_plan.py"
RECURRENT, TRANSPOSED = "test_recurrent.py", "test_rules_convolution.py"

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
        "torch.cat([before, core(plane).reshape(-1), after])",
        "torch.cat([core(plane).reshape(-1), before, after])",
        (FORMS, "padded"),
    ),
    Mutant(
        "rules/joining.py",
        "torch.cat([before, core(plane).reshape(-1), after])",
        "torch.cat([after, core(plane).reshape(-1), before])",
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
        "        table = channels.view(count, -1)\n        step.space.unite_(table, table[:, :1])\n",
        "        pass\n",
        (NORMS, "norm_group"),
    ),
    Mutant(
        "rules/normalization.py",
        'planes = step.passed(value, inner, f"{step.name} mixes all of it")',
        "planes = value.planes",
        (GROUPS, "mixes or norm"),
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

WHOLE = (
    Mutant("components.py", "if self.reasons[component] >= 0:", "if False:", (GROUPS, "residual or output or mixes")),
    Mutant(
        "components.py",
        "            if part == component:\n                found.extend(wholes)\n            el",
        "            ",
        (FORMS, "inside_attention or outer"),
    ),
    Mutant(
        "components.py",
        "all(whole in gone for whole in wholes)",
        "any(whole in gone for whole in wholes)",
        (GROUPS, "heads or grouped"),
    ),
    Mutant("islands.py", "torch.equal(positions.index_select(dim, order), moved)", "True", (GROUPS, "shuffle")),
    Mutant("islands.py", "        inside -= leaking\n", "        return set()\n", (GROUPS, "shuffle")),
    Mutant("islands.py", "not is_flat(value) and _rearranges(nodes[name])", "False", (GROUPS, "shuffle")),
    Mutant("moves.py", "if count >= self.sizes[line])", "if count > self.sizes[line])", (VANISH, "")),
    Mutant("moves.py", '("blocks", grid), ("width", grid.T)', '("blocks", grid)', (GROUPS, "heads or grouped")),
    Mutant("reads.py", "moves = torch.where(ends, padding, moves)", "pass", (GROUPS, "needs_no_gate")),
    Mutant(
        "reads.py", "silent = (~alive[self.components] & needed)", "silent = (~alive[self.components])", (SHRINK, "")
    ),
    Mutant("cost.py", "self.coefficients * owned", "self.coefficients", (VANISH, "")),
    Mutant("cost.py", "(query[-1] + value[-1])", "(2 * query[-1])", (COST, "attention")),
    Mutant("space.py", "                self.unite_(mine[0], theirs[0])\n", "", (GROUPS, "residual or rotary")),
    Mutant(
        "space.py", "            self.grids.append(matrix if outer else matrix.T)", "            pass", (GROUPS, "")
    ),
    Mutant("vanish.py", "        if bias is None:\n            self.zeros.add(node.name)\n", "", (VANISH, "")),
    Mutant("vanish.py", "not moving and passes_constant(node)", "not moving", (VANISH, "")),
    Mutant("vanish.py", "if self._cut_off():", "if False:", (VANISH, "chain or two_ways")),
    Mutant(
        "vanish.py",
        'kept = right if op_name(node) == "add" and not node.kwargs else None',
        "kept = right",
        (VANISH, ""),
    ),
    Mutant(
        "shrink.py",
        'if node.op == "call_function" and needed and',
        'if node.op == "call_function" and',
        (VANISH, "by_means"),
    ),
    Mutant(
        "shrink.py", "torch.searchsorted(kept.along(way.dim), wanted)", "torch.arange(len(wanted))", (FORMS, "shuffled")
    ),
    Mutant(
        "plan.py",
        'whole[torch.meshgrid(*index, indexing="ij") if index else ()] = state[name].detach().to(whole)',
        "pass",
        (PLAN, "dense_places"),
    ),
)

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
        "surgery/layers.py",
        "source.shape[1] * cut.arguments[1] // source.dense[1]",
        "cut.arguments[1]",
        (NORMS, "norm_group"),
    ),
    Mutant(
        "surgery/positions.py",
        'begin, stop = int((keep < first).sum()), int((keep < last).sum())\n    cut.become(aten.slice.Tensor, cut.node.args[0], dim, begin, stop)\n\n\n@rewrites("narrow")',
        'begin, stop = first, last\n    cut.become(aten.slice.Tensor, cut.node.args[0], dim, begin, stop)\n\n\n@rewrites("narrow")',
        (FORMS, "linear"),
    ),
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
    Mutant(
        "surgery/vanished.py",
        "            self._normalize_(node, copy)\n",
        "            pass\n",
        (VANISH, "dropout_of"),
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
        "copy.target = _functional(node)\n            return",
        "pass\n            return",
        (VANISH, "inplace or residual_block"),
    ),
)

# Survivors so far: each wants a test or is a superfluous line. ``make mutants`` leaves them out.
OPEN = (
    Mutant(
        "rules/contraction.py",
        'scores = Value(scores_shape, step.passed(scores, positions, "softmax is taken over it"))',
        "pass",
        (FORMS, "linear and attention"),
    ),
    Mutant(
        "components.py",
        "return np.unique(grid[:, stray]).tolist() if stray.any() else []",
        "return []",
        (SHRINK, ""),
    ),
    Mutant(
        "moves.py",
        "    return components.close(frozenset().union(*parts))[0] == members",
        "    return True",
        (VANISH, ""),
    ),
    Mutant("reads.py", "refused.add(index)", "pass", (SHRINK, "folded")),
    Mutant("cost.py", "if id(tensor) in seen or", "if", (FORMS, "whole_networks")),
    Mutant(
        "space.py",
        "losers = [plane for plane in clashing if self.is_soft(plane)] if len(firm) == 1 else clashing",
        "losers = clashing",
        (GROUPS, ""),
    ),
)

MUTANTS = (*RULES, *WHOLE, *SURGERY)
