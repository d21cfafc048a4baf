"""Faults to plant, of which some test has to notice every one: ``make mutants``."""

from __future__ import annotations

from mutant import COST, FORMS, GROUPS, PLAN, SHRINK, VANISH, Mutant
from mutants_of_bundles import BUNDLES
from mutants_of_devices import DEVICES
from mutants_of_methods import METHODS
from mutants_of_repair import REPAIR
from mutants_of_rules import RULES
from mutants_of_surgery import SURGERY

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
    Mutant("vanish.py", 'if op_name(node) == "scaled_dot_product_attention":', "if False:", (VANISH, "one_head")),
    Mutant("vanish.py", "if self._cut_off():", "if False:", (VANISH, "chain or two_ways")),
    Mutant(
        "vanish.py",
        'kept = right if op_name(node) == "add" and not node.kwargs else None',
        "kept = right",
        (VANISH, ""),
    ),
    Mutant(
        "shrink.py",
        " and fate.goes_on(node.name):",
        ":",
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
    Mutant(
        "vanish.py",
        'not (op_name(node) == "constant_pad_nd" and [*node.args, 0][2] != 0)',
        "True",
        (VANISH, ""),
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

MUTANTS = (*RULES, *WHOLE, *SURGERY, *BUNDLES, *DEVICES, *METHODS, *REPAIR)
