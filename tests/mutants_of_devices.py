"""Faults in where tensors are: something stays behind when a network moves, or a constant is asked for twice."""

from __future__ import annotations

from mutant import Fault

_TESTS = "../test_devices.py"

DEVICES = (
    Fault(
        "l0compress.graph:GraphNetwork._apply",
        "device is not None and place_(self.graph, device)",
        "False",
        (_TESTS, "literal"),
    ),
    Fault(
        "l0compress.graph:GraphNetwork",
        "if device is not None and place_(self.graph, device):\n    self.recompile()",
        "if device is not None and place_(self.graph, device):\n    pass",
        (_TESTS, "literal"),
    ),
    Fault(
        "l0compress.graph:Terms.products",
        "constant_on(self.lines, counts.device)",
        "self.lines",
        (_TESTS, "MLP and removal"),
    ),
    Fault(
        "l0compress.graph:Groups.alive_probabilities",
        "constant_on(self.moves_of_component, padded.device)",
        "self.moves_of_component",
        (_TESTS, "MLP and removal"),
    ),
    Fault("l0compress.devices:constant_on", "_COPIES[tensor] = copies", "pass", (_TESTS, "once")),
    Fault(
        "l0compress.devices:constant_on",
        "with torch.inference_mode(False), torch.no_grad():\n    copy = tensor.to(device=device, dtype=dtype)",
        "if True:\n    copy = tensor.to(device=device, dtype=dtype)",
        (_TESTS, "gradients"),
    ),
    Fault("l0compress.devices:constant_on", "return copy", "pass", (_TESTS, "fake_is_not_kept")),
    Fault("l0compress.loading.exported:_payloads", "on_cpu(config)", "config", (_TESTS, "archive")),
    Fault("l0compress.loading.exported:_vetted", "on_cpu(program)", "program", (_TESTS, "archive")),
)
