"""Faults in repair: what is solved, on which rows, and what holds a solution back."""

from __future__ import annotations

from mutant import Mutant

_TESTS, _LAYERS, _AT = "../test_repair.py", "../test_repair_layers.py", "../training/repair/"
_RECURRENT = "../test_repair_recurrent.py"

REPAIR = (
    Mutant(f"{_AT}layerwise.py", "free=int(bias is not None)", "free=0", (_LAYERS, "penalty")),
    Mutant(f"{_AT}least_squares.py", "for way in (-1, 1):", "for way in (-1,):", (_LAYERS, "penalty")),
    Mutant(f"{_AT}layerwise.py", "if before <= least or after >= before:", "if before <= least:", (_LAYERS, "held_out")),
    Mutant(f"{_AT}contractions.py", " and self._uses[id(tensor)] == 1", "", (_TESTS, "several_layers")),
    Mutant(f"{_AT}contractions.py", "outputs_first, weight = not outputs_first", "outputs_first, weight = outputs_first", (_LAYERS, "products")),
    Mutant(f"{_AT}tasks.py", " or not self._masked.isdisjoint((layer.weight, str(layer.bias)))", "", (_TESTS, "single_weights")),
    Mutant(f"{_AT}forms.py", "parts = parts.flip(*range(3, parts.dim())).movedim(2, 1)", "parts = parts.movedim(2, 1)", (_LAYERS, "convolutions")),
    Mutant(f"{_AT}beside.py", "pulled / squares", "pulled", (_LAYERS, "sum_lacks")),
    Mutant(f"{_AT}padding.py", "if filled[0] != filled[1]:", "if False:", (_TESTS, "padding")),
    Mutant(f"{_AT}rows.py", "mask.flatten().nonzero().flatten() if", "None if", (_TESTS, "padding")),
    Mutant(f"{_AT}pre_activations.py", "if self.number else torch.cat([initial, outputs[:, :-1]], 1)", "if not self.number else torch.cat([initial, outputs[:, :-1]], 1)", (_RECURRENT, "numpy")),
    Mutant(f"{_AT}pre_activations.py", "    if after < before:\n        return before, after", "    if True:\n        return before, after", (_RECURRENT, "keeps_its_bits")),
    Mutant(f"{_AT}pre_activations.py", "    if len(names) != len(params):\n        return None", "    names = [str(param.target) for param in params]", (_RECURRENT, "run_twice")),
    Mutant(f"{_AT}pre_activations.py", "[self.number].unsqueeze(1)", "[self.number].unsqueeze(1) + 1", (_RECURRENT, "numpy")),
    Mutant(f"{_AT}pre_activations.py", "_Part(2, 3, reads_state=False), _Part(2, 3, reads_input=False)", "_Part(2, 3)", (_RECURRENT, "numpy")),
)  # fmt: skip
