"""Other people's root-mean-square norms over some of the channels, the others being zero.

    weight * x / sqrt(mean(x**2) + eps)

A mean over ``n`` channels of which ``N`` were there, the others zero, is too large by ``N / n``. A weight that is
larger by ``sqrt(N / n)`` and an ``eps`` that is larger by ``N / n`` make up for it. Norms of another form are found out
when the module is compared.
"""

from __future__ import annotations

from torch import nn

from l0compress.export.module.transaction import Transaction
from l0compress.graph import CapturedGraph, KeepPlan
from l0compress.graph.cut.kept import kept_of
from l0compress.graph.cut.sizes import module_of
from l0compress.graph.labels.values import Value
from l0compress.graph.nodes.network import op_name


def rescale_means_(changes: Transaction, modules: dict[str, nn.Module], dense: CapturedGraph, plan: KeepPlan) -> None:
    """Rescale weight and ``eps`` of modules that take the mean of channels which are cut."""
    ratios = _ratios(modules, dense, plan)
    for path, ratio in ratios.items():
        module = modules[path]
        for parameter in module.parameters(recurse=False):
            changes.cut_(parameter, parameter.detach() * ratio**0.5)
        own = [node for node in dense.nodes() if module_of(node) == path]
        small = {value for node in own for value in node.args if isinstance(value, float)}
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and value in small:
                changes.put_(module, name, value * ratio)


def _ratios(modules: dict[str, nn.Module], dense: CapturedGraph, plan: KeepPlan) -> dict[str, float]:
    """By how much the mean that a module takes is too large."""
    found: dict[str, float] = {}
    for node in dense.nodes():
        path = module_of(node) or ""
        if op_name(node) != "mean" or not _is_rms(modules.get(path)):
            continue
        source = plan.groups.labelled.values.get(node.all_input_nodes[0].name)
        if isinstance(source, Value) and node.args[1:2] in (([-1],), ([len(source.shape) - 1],)):
            kept = kept_of(source, plan)
            if 0 < kept.shape[-1] < kept.dense[-1]:
                found[path] = kept.dense[-1] / kept.shape[-1]
    return found


def _is_rms(module: nn.Module | None) -> bool:
    """A leaf that is not PyTorch's own, with one vector for a parameter."""
    if module is None or type(module).__module__.startswith("torch.nn.") or list(module.children()):
        return False
    return [parameter.dim() for parameter in module.parameters(recurse=False)] == [1]
