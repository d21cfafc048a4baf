"""Faults in repair: what is solved, on which rows, and what holds a solution back."""

from __future__ import annotations

from mutant import Fault

_TESTS, _LAYERS = "../test_repair.py", "../test_repair_layers.py"
_RECURRENT = "../test_repair_recurrent.py"

REPAIR = (
    Fault("l0compress.training.repair:_Walk._solve_", "int(bias is not None)", "0", (_LAYERS, "penalty")),
    Fault("l0compress.training.repair:best_step", "(-1, 1)", "(-1,)", (_LAYERS, "penalty")),
    Fault(
        "l0compress.training.repair:_Walk._solve_",
        "before <= least or after >= before",
        "before <= least",
        (_LAYERS, "held_out"),
    ),
    Fault(
        "l0compress.training.repair:Contractions.own",
        "isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and (self._uses[id(tensor)] == 1)",
        "isinstance(tensor, nn.Parameter) and tensor.is_floating_point()",
        (_TESTS, "several_layers"),
    ),
    Fault(
        "l0compress.training.repair:Contractions._product", "not outputs_first", "outputs_first", (_LAYERS, "products")
    ),
    Fault(
        "l0compress.training.repair:Tasks._task", "self._masks.get(layer.weight)", "None", (_TESTS, "single_weights")
    ),
    Fault(
        "l0compress.training.repair:_Walk._support",
        "F.pad(support, (0, 0, 0, int(with_bias)), value=True)",
        "F.pad(support, (0, 0, 0, int(with_bias)), value=False)",
        (_TESTS, "single_weights"),
    ),
    Fault(
        "l0compress.training.repair:_solved_on",
        "torch.where(real, moment[places, chosen.unsqueeze(1)], 0.0)",
        "moment[places, chosen.unsqueeze(1)]",
        (_LAYERS, "own_support"),
    ),
    Fault(
        "l0compress.training.repair:Convolution.matrices",
        "parts.flip(*range(3, parts.dim()))",
        "parts",
        (_LAYERS, "convolutions"),
    ),
    Fault("l0compress.training.repair:Beside.lacking", "pulled / squares", "pulled", (_LAYERS, "sum_lacks")),
    Fault("l0compress.training.repair:_value_that_counts", "filled[0] != filled[1]", "False", (_TESTS, "padding")),
    Fault("l0compress.training.repair:Rows.chosen", "mask.flatten().nonzero().flatten()", "None", (_TESTS, "padding")),
    Fault(
        "l0compress.training.repair:_Problem._states",
        "torch.cat([outputs[:, 1:], initial], 1) if self.number else torch.cat([initial, outputs[:, :-1]], 1)",
        "torch.cat([outputs[:, 1:], initial], 1) if not self.number else torch.cat([initial, outputs[:, :-1]], 1)",
        (_RECURRENT, "numpy"),
    ),
    Fault("l0compress.training.repair:solve_recurrent_", "after < before", "True", (_RECURRENT, "keeps_its_bits")),
    Fault(
        "l0compress.training.repair:recurrent_task",
        "if len(names) != len(params):\n    return None",
        "names = [str(param.target) for param in params]",
        (_RECURRENT, "run_twice"),
    ),
    Fault(
        "l0compress.training.repair:_Problem._states",
        "samples.states[number][self.number].unsqueeze(1)",
        "samples.states[number][self.number].unsqueeze(1) + 1",
        (_RECURRENT, "numpy"),
    ),
    Fault(
        "l0compress.training.repair.pre_activations:_PARTS",
        "(_Part(0, 2), _Part(2, 3, reads_state=False), _Part(2, 3, reads_input=False))",
        "(_Part(0, 2), _Part(2, 3))",
        (_RECURRENT, "numpy"),
    ),
)
