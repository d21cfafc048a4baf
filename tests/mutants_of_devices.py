"""Faults in where tensors are: something stays behind when a network moves, or a constant is asked for twice."""

from __future__ import annotations

from mutant import Mutant

_TESTS = "../test_devices.py"

DEVICES = (
    Mutant("network.py", "if device is not None and place_(self.graph, device):", "if False:", (_TESTS, "literal")),
    Mutant("network.py", "            self.recompile()\n        return self\n\n    def __deep", "            pass\n        return self\n\n    def __deep", (_TESTS, "literal")),
    Mutant("cost.py", "lines = constant_on(self.lines, counts.device)", "lines = self.lines", (_TESTS, "MLP and removal")),
    Mutant("groups.py", "moves = constant_on(self.moves_of_component, padded.device)", "moves = self.moves_of_component", (_TESTS, "MLP and removal")),
    Mutant("../devices.py", "_COPIES[tensor] = copies", "pass", (_TESTS, "once")),
    Mutant("../devices.py", "with torch.inference_mode(False), torch.no_grad():", "if True:", (_TESTS, "gradients")),
    Mutant("../devices.py", "            return copy\n        copies", "            pass\n        copies", (_TESTS, "fake_is_not_kept")),
    Mutant("../loading/exported.py", "json.dumps(on_cpu(config))", "json.dumps(config)", (_TESTS, "archive")),
    Mutant("../loading/exported.py", "json.dumps(on_cpu(program))", "json.dumps(program)", (_TESTS, "archive")),
)  # fmt: skip
