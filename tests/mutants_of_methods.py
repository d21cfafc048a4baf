"""Faults in what decides: the score, the steps down, where gates start, and which decision goes on."""

from __future__ import annotations

from mutant import Fault

_TESTS, _PARTS = "../test_methods.py", "../test_training_parts.py"
_SCORES, _SPARSIFY = "../test_method_scores.py", "../test_sparsifying.py"
_DENSITIES, _PENALTIES = "../test_density_search.py", "../test_penalties.py"
_LIMITS, _KEEP = "../test_limits.py", "../test_protection.py"

_SILENT, _INTERVALS = "../test_activations.py", "test_intervals.py"
_TERNARY, _DROPOUT, _OF_WEIGHTS = "../test_ternary.py", "../test_dropout.py", "../test_fisher_weights.py"

METHODS = (
    Fault("l0compress.training:ternary", "values + (weight - known)", "weight", (_TERNARY, "TensorFunction")),
    Fault("l0compress.training:ternary_weights", "not weight.looked_up", "True", (_TERNARY, "Networks")),
    Fault(
        "l0compress.training:FinalPhase._graph_with",
        "ternarised(self._small.with_state(_on_cpu(state)), self._ternary)",
        "self._small.with_state(_on_cpu(state))",
        (_TERNARY, "Runs"),
    ),
    Fault("l0compress.training:_is_hidden", "node.op != 'placeholder'", "True", (_DROPOUT, "Places")),
    Fault(
        "l0compress.training:GatePhase._replace_network_",
        "regularise_(self.gated.network, self.gated.groups.graph, self.problem.settings)",
        "pass",
        (_DROPOUT, "removal"),
    ),
    Fault("l0compress.training:silent_moves", "read & ~fires", "read", (_SILENT, "Proofs")),
    Fault("l0compress.training:firing_on", "watch.fired", "None", (_SILENT, "reads_the_input")),
    Fault(
        "l0compress.training:_is_worse",
        "sign * (now.metric - before.metric) < -_ROUNDING * abs(before.metric)",
        "False",
        (_SILENT, "validation_part_needs"),
    ),
    Fault(
        "l0compress.training:Activations.forward",
        "units * size.mean(dtype=torch.promote_types(x.dtype, torch.float32))",
        "size.mean()",
        (_SILENT, "Penalty"),
    ),
    Fault(
        "l0compress.training:_differentiate_",
        "problem.settings.activation_l1 * share",
        "problem.settings.activation_l1",
        (_SILENT, "in_parts"),
    ),
    Fault("l0compress.graph.groups.intervals.products:convolution", "x.hull(ZERO)", "x", (_INTERVALS, "padded")),
    Fault("l0compress.graph.groups.intervals.rules:layer_norm", "math.prod(sizes) - 1", "1", (_INTERVALS, "root")),
    Fault(
        "l0compress.graph.groups.intervals.products:_highest",
        "(upward + downward).sum(-1) + shift + rounding",
        "(upward + downward).sum(-1) + shift",
        (_INTERVALS, "cancels"),
    ),
    Fault(
        "l0compress.training:OneShotWeights.decide",
        "Decision(plan, repair(plan, shrink(graph, plan)), repaired=True)",
        "Decision(plan, shrink(graph, plan), repaired=True)",
        (_OF_WEIGHTS, "repair"),
    ),
    Fault("l0compress.training:weight_information", "count += len(batch)", "count += 2", (_OF_WEIGHTS, "gauss")),
    Fault(
        "l0compress.training:relative_costs", "counted * macs / average", "counted", (_OF_WEIGHTS, "multiplications")
    ),
    Fault("l0compress.training:_direction", "signed - p * signed.sum(-1, keepdim=True)", "signed", (_TESTS, "Probe")),
    Fault("l0compress.training:_value_probe", "max(elements, 1) * scale", "scale", (_TESTS, "Probe")),
    Fault(
        "l0compress.training:_class_probe", "direction = direction * counted.unsqueeze(-1)", "pass", (_TESTS, "Probe")
    ),
    Fault("l0compress.training:fisher_information", "len(batch)", "1", (_TESTS, "Fisher")),
    Fault(
        "l0compress.training:marginal_cost",
        "resource.expected(open_)",
        "resource.groups.expected_cost(open_, 'params')",
        (_TESTS, "Fisher"),
    ),
    Fault("l0compress.training:ordered_log_alpha", "logs - border", "logs", (_TESTS, "OrderedStart")),
    Fault("l0compress.training.descent:_descended", "steps[:-1]", "()", (_TESTS, "told")),
    Fault("l0compress.training:held_back", "held[moves[best]] += len(scores)", "pass", (_TESTS, "leaves_half")),
    Fault("l0compress.training:Narrowed.lifted", "keep[dropped[dropped >= 0]] = False", "pass", (_TESTS, "Descent")),
    Fault("l0compress.training:Narrowed.cut", "self.moves[found.clamp(min=0)]", "found", (_TESTS, "Descent")),
    Fault(
        "l0compress.training:take_samples", "undisturbed(problem.data.train)", "memoryview(b'')", (_TESTS, "Samples")
    ),
    Fault("l0compress.training:better", "max", "min", (_TESTS, "goes_on")),
    Fault(
        "l0compress.training:outgrown",
        "_STANDARD_ERRORS * math.sqrt(sum(variances))",
        "math.sqrt(sum(variances))",
        (_PARTS, "Teaching"),
    ),
    Fault(
        "l0compress.training:outgrown", "not (reading.labelled and reading.counts_hits)", "False", (_PARTS, "Teaching")
    ),
    Fault("l0compress.training:joint_marginal_cost", "now - bound.most", "now", (_LIMITS, "MarginalCost")),
    Fault("l0compress.training:shadow_prices", "-found.ineqlin.marginals", "1.0", (_LIMITS, "MarginalCost")),
    Fault("l0compress.training:Limits.allow", "all", "any", (_LIMITS, "every_limit")),
    Fault("l0compress.training:Limits.is_used", "any", "all", (_LIMITS, "every_limit")),
    Fault("l0compress.training:steps_in_step", "max", "min", (_LIMITS, "in_step")),
    Fault("l0compress.training:Budget._amount", "sum(others, first)", "first", (_LIMITS, "the_sum")),
    Fault("l0compress.training:Budget._prefixed", "several", "False", (_LIMITS, "state_of_one")),
    Fault(
        "l0compress.training:Constraint.follow_", "keep[kept_moves] = True", "keep[:] = True", (_LIMITS, "compaction")
    ),
    Fault("l0compress.graph:Modelled.after", "self._dense(keep)", "self.kept", (_LIMITS, "Modelled")),
    Fault("l0compress.training:_within_bytes", "stored(middle) <= room", "True", (_LIMITS, "single_weights")),
    Fault("l0compress.graph:protected", "return refrozen(labelled, components)", "return components", (_KEEP, "")),
    Fault("l0compress.graph:Vanishing._with_kept", "gone is None", "True", (_KEEP, "as_a_whole")),
    Fault(
        "l0compress.graph:Floors.after",
        "replace(self, of_move=of_move, least=torch.minimum(self.least, left))",
        "replace(self, of_move=of_move, least=left * 0)",
        (_KEEP, ""),
    ),
    Fault("l0compress.graph:Groups.left", "missed is not None", "False", (_KEEP, "")),
    Fault(
        "l0compress.graph:prunable_weights",
        "not any(graph.protection.keeps(name) for name in w.names)",
        "True",
        (_KEEP, ""),
    ),
    Fault("l0compress.graph:least", "math.ceil(share * count - 1e-9)", "round(share * count - 0.49)", (_KEEP, "")),
    Fault(
        "l0compress.training:first_order",
        "(gradient * value.detach()).abs()",
        "gradient * value.detach()",
        (_SCORES, "cancel"),
    ),
    Fault("l0compress.training:task_loss", "targets is not None", "False", (_SCORES, "gradient_of")),
    Fault("l0compress.training:Pressed.most_at", "progress / self.ramp_share", "progress", (_SPARSIFY, "ramp_is_over")),
    Fault(
        "l0compress.training:ClosingMoves.step_",
        "self.pressed.limits.at(self.pressed.most_at(progress))",
        "self.pressed.limits",
        (_SPARSIFY, "half"),
    ),
    Fault(
        "l0compress.training:GroupLassoPressure.norm",
        "self._root_sizes * self._norms()",
        "self._norms()",
        (_SPARSIFY, "Norms"),
    ),
    Fault(
        "l0compress.training:FactorL1.step_",
        "factors_of(self.network).value.clamp_(min=0)",
        "pass",
        (_SPARSIFY, "never_become"),
    ),
    Fault("l0compress.training:NormPressure.step_", "self._violation()", "-self._violation()", (_SPARSIFY, "Norms")),
    Fault("l0compress.training:proximal_score", "curvature * x - gradient", "curvature * x", (_SPARSIFY, "Proximal")),
    Fault(
        "l0compress.training:HardThreshold.state_dict",
        "prefixed('means', self._means)",
        "{}",
        (_SPARSIFY, "part_of_its_state"),
    ),
    Fault("l0compress.training:density_scores", "density * len(moves)", "density", (_DENSITIES, "ratio")),
    Fault("l0compress.training:Policy.learned", "reward - self.baseline", "reward", (_DENSITIES, "Policy")),
    Fault(
        "l0compress.training:DensitySearch.decide",
        "stage.trials.losses.argmin()",
        "stage.trials.losses.argmax()",
        (_DENSITIES, "best_of"),
    ),
    Fault("l0compress.training:ExpectedNorms.of", "self.l2 / 2", "self.l2", (_PENALTIES, "Norms")),
    Fault("l0compress.training:_expected", "values * present", "values", (_PENALTIES, "Norms")),
)
