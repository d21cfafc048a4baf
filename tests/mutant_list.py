"""Faults to plant, of which some test has to notice every one: ``make mutants``."""

from __future__ import annotations

from mutant import COST, FORMS, GROUPS, PLAN, SHRINK, VANISH, Fault
from mutants_of_bundles import BUNDLES
from mutants_of_cuts import CUTS
from mutants_of_devices import DEVICES
from mutants_of_families import FAMILIES
from mutants_of_files import FILES
from mutants_of_labels import LABELS
from mutants_of_latency import LATENCY
from mutants_of_methods import METHODS
from mutants_of_repair import REPAIR

GRAPH = (
    Fault(
        "l0compress.graph:Components.close",
        "self.reasons[component] >= 0",
        "False",
        (GROUPS, "residual or output or mixes"),
    ),
    Fault(
        "l0compress.graph:Components._through_ties",
        "if part == component:\n    found.extend(wholes)\nelif part not in gone and all((whole in gone for whole in wholes)):\n    found.append(part)",
        "if part not in gone and all((whole in gone for whole in wholes)):\n    found.append(part)",
        (FORMS, "inside_attention or outer"),
    ),
    Fault("l0compress.graph:Components._through_ties", "all", "any", (GROUPS, "heads or grouped")),
    Fault(
        "l0compress.graph:crossing",
        "torch.equal(positions.index_select(dim, order), moved)",
        "True",
        (GROUPS, "shuffle"),
    ),
    Fault("l0compress.graph:islands", "inside -= leaking", "return set()", (GROUPS, "shuffle")),
    Fault(
        "l0compress.graph:islands",
        "isinstance(value, Value) and len(value.planes) == 1 and (not is_flat(value)) and _rearranges(nodes[name])",
        "isinstance(value, Value) and len(value.planes) == 1 and False",
        (GROUPS, "shuffle"),
    ),
    Fault("l0compress.graph:Lines.emptied", "count >= self.sizes[line]", "count > self.sizes[line]", (VANISH, "")),
    Fault(
        "l0compress.graph:_seeds",
        "(('blocks', grid), ('width', grid.T))",
        "('blocks', grid)",
        (GROUPS, "heads or grouped"),
    ),
    Fault(
        "l0compress.graph:find_reads", "moves = torch.where(ends, padding, moves)", "pass", (GROUPS, "needs_no_gate")
    ),
    Fault(
        "l0compress.graph:Read.silenced", "~alive[self.components] & needed", "~alive[self.components]", (SHRINK, "")
    ),
    Fault("l0compress.graph:Terms.weights", "self.coefficients * owned", "self.coefficients", (VANISH, "")),
    Fault("l0compress.graph:attention_macs", "query[-1] + value[-1]", "2 * query[-1]", (COST, "attention")),
    Fault(
        "l0compress.graph:LabelSpace._merge_pair",
        "if len(mine) == 1 and len(theirs) == 1 and (varying(mine[0]) == varying(theirs[0])):\n    self.unite_(mine[0], theirs[0])\n    kept.append(mine[0])\nelif len(mine) == 1 and self._covers(mine[0], theirs, b_free):\n    kept.append(mine[0])\nelif len(theirs) == 1 and self._covers(theirs[0], mine, a_free):\n    kept.append(theirs[0])\nelif len(mine) == 1 and len(theirs) == 1:\n    kept.append(self._collapsed(mine[0], theirs[0]))\nelse:\n    for plane in (*mine, *theirs):\n        self.freeze_(plane, node, 'its channels are laid out differently in the two operands')",
        "if len(mine) == 1 and len(theirs) == 1 and (varying(mine[0]) == varying(theirs[0])):\n    kept.append(mine[0])\nelif len(mine) == 1 and self._covers(mine[0], theirs, b_free):\n    kept.append(mine[0])\nelif len(theirs) == 1 and self._covers(theirs[0], mine, a_free):\n    kept.append(theirs[0])\nelif len(mine) == 1 and len(theirs) == 1:\n    kept.append(self._collapsed(mine[0], theirs[0]))\nelse:\n    for plane in (*mine, *theirs):\n        self.freeze_(plane, node, 'its channels are laid out differently in the two operands')",
        (GROUPS, "residual or rotary"),
    ),
    Fault(
        "l0compress.graph:LabelSpace.tie_any_", "self.grids.append(matrix if outer else matrix.T)", "pass", (GROUPS, "")
    ),
    Fault("l0compress.graph:_Walk._with_constant_", "not moving and passes_constant(node)", "not moving", (VANISH, "")),
    Fault("l0compress.graph:_loses_values", "values.name in hollow", "True", (VANISH, "one_head")),
    Fault("l0compress.graph:_Walk.outcome", "self._cut_off()", "False", (VANISH, "chain or two_ways")),
    Fault(
        "l0compress.graph:_kept_operand",
        "right if op_name(node) == 'add' and (not node.kwargs) else None",
        "right",
        (VANISH, ""),
    ),
    Fault(
        "l0compress.graph:shrink",
        "node.op == 'call_function' and node.name in kept and (node.name not in torn) and fate.goes_on(node.name)",
        "node.op == 'call_function' and node.name in kept and (node.name not in torn)",
        (VANISH, "by_means"),
    ),
    Fault(
        "l0compress.graph:_cross_",
        "torch.searchsorted(kept.along(way.dim), wanted)",
        "torch.arange(len(wanted))",
        (FORMS, "shuffled"),
    ),
    Fault(
        "l0compress.graph:unshrink_state",
        "whole[torch.meshgrid(*index, indexing='ij') if index else ()] = state[name].detach().to(whole)",
        "pass",
        (PLAN, "dense_places"),
    ),
    Fault("l0compress.graph.operators.joining:_pads_zeros", "bool([*node.args, 0][2] == 0)", "True", (VANISH, "")),
    Fault("l0compress.graph:_Walk._without_", "if bias is None:\n    self.zeros.add(node.name)", "pass", (VANISH, "")),
)

# Survivors so far: each wants a test or is a superfluous line. ``make mutants`` leaves them out.
OPEN = (
    Fault(
        "l0compress.graph:attention",
        "scores = Value(scores_shape, step.passed(scores, positions, 'softmax is taken over it'))",
        "pass",
        (FORMS, "linear and attention"),
    ),
    Fault("l0compress.graph:_ragged", "np.unique(grid[:, stray]).tolist() if stray.any() else []", "[]", (SHRINK, "")),
    Fault(
        "l0compress.graph:_follows", "components.close(frozenset().union(*parts))[0] == members", "True", (VANISH, "")
    ),
    Fault("l0compress.graph:ungateable", "refused.add(index)", "pass", (SHRINK, "folded")),
    Fault(
        "l0compress.graph:cost_model",
        "id(tensor) in seen or not tensor.is_floating_point()",
        "not tensor.is_floating_point()",
        (FORMS, "whole_networks"),
    ),
    Fault(
        "l0compress.graph:LabelSpace.disjoint",
        "[plane for plane in clashing if self.is_soft(plane)] if len(firm) == 1 else clashing",
        "clashing",
        (GROUPS, ""),
    ),
)

MUTANTS = (*LABELS, *GRAPH, *CUTS, *BUNDLES, *DEVICES, *FILES, *METHODS, *LATENCY, *REPAIR, *FAMILIES)
