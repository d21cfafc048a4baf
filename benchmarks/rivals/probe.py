"""Who finds the dead half of a network's channels, and what is left then? Prints a table, each cell from a run.

    make bench-rivals    # PYTHONPATH=.:benchmarks python -W ignore -m rivals.probe

Projects that are not installed are left out. Each gets networks in the form that it asks for: modules, for attention
with the number of heads, or the ONNX file of :func:`l0compress.export_onnx`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from l0compress.export.onnx import write_onnx
from l0compress.graph.capture import USER_CODE_ERRORS, capture
from l0compress.graph.cut.plan import KeepPlan
from l0compress.graph.cut.shrink import shrink
from l0compress.graph.groups import find_groups
from l0compress.graph.groups.cost import cost
from l0compress.measure.table import Table
from l0compress.training.methods.magnitude import magnitude_scores
from rivals.probe_networks import HEADS, NETWORKS, Network

TOLERANCE = 1e-5
# A function that is run on an input, and how many parameters less it has.
Small = tuple[Callable[[Tensor], Tensor], int]


def by_l0compress(network: Network) -> Small:
    groups = find_groups(capture(network.half_dead(), (network.example,)))
    small = shrink(groups.graph, KeepPlan.from_keep(groups, magnitude_scores(groups) > 0))
    return small.module(), cost(groups.graph).params - cost(small).params


def by_torch_pruning(network: Network) -> Small:
    import torch_pruning

    module = network.half_dead()
    before = _parameters(module)
    headed = {module.get_submodule(name): HEADS for name in network.heads}
    pruner = torch_pruning.pruner.BasePruner(
        module,
        network.example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[] if headed else [module.get_submodule("b")],
        num_heads=headed,
        prune_num_heads=bool(headed),
        prune_head_dims=False,
        head_pruning_ratio=0.5 if headed else 0.0,
    )
    pruner.step()
    return module, before - _parameters(module)


def by_onnxsim(network: Network) -> Small:
    import onnx
    import onnxruntime
    import onnxsim

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(capture(network.half_dead(), (network.example,)), path)
        model = onnx.load(path)
        if network.heads:
            # Heads are those of a fused operator, which a pass of its own makes.
            model, _ = onnxsim.simplify(model, extra_optimizers=["fuse_attention"])
            small = onnxsim.apply_attention_head_pruning(model, sparsity=0.5)
        else:
            small = onnxsim.apply_structured_pruning(model, sparsity=0.5)
    session = onnxruntime.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    numbers = [sum(math.prod(weight.dims) for weight in one.graph.initializer) for one in (model, small)]
    return lambda x: torch.from_numpy(session.run(None, {given.name: x.numpy()})[0]), numbers[0] - numbers[1]


PROJECTS = {
    "l0compress": by_l0compress,
    "torch-pruning": by_torch_pruning,
    "onnxsim": by_onnxsim,
}
_MODULES = {"torch-pruning": "torch_pruning"}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def outcome(network: Network, cut: Callable[[Network], Small]) -> str:
    """What became of a network, in words: exact and without its dead half, at best."""
    dense = network.half_dead()
    try:
        small, removed = cut(network)
        with torch.no_grad():
            error = float((small(network.example) - dense(network.example)).abs().max())
    except USER_CODE_ERRORS as reason:
        return f"fails: {type(reason).__name__}"
    if removed == 0:
        return "left whole"
    how_far = "cut" if removed >= _parameters(dense) - network.left else "cut in part"
    return how_far if error <= TOLERANCE else f"{how_far}, another function"


def main() -> None:
    torch.set_num_threads(1)
    present = [name for name in PROJECTS if find_spec(_MODULES.get(name, name)) is not None]
    rows = [(network.name, *(outcome(network, PROJECTS[name]) for name in present)) for network in NETWORKS]
    print(Table("", ("", *(f"{name} {version(name)}" for name in present)), tuple(rows)).to_markdown())


if __name__ == "__main__":
    main()
