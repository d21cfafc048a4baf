"""Torch-Pruning on one model: does the result run, and does it compute the dense model without the dropped channels?

What was kept is recovered from the weights: dense weights are distinct float64 numbers, so every number of the pruned
model says which row and column of the dense weight it came from. The reference is the dense model in which the dropped
columns of every layer that reads them are zero. A result can fail this for an honest reason: Torch-Pruning also cuts
through normalisations over channels and through attention widths whose scale then changes, and leaves the rest to
fine-tuning.
"""

from __future__ import annotations

import copy
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from l0compress.graph.capture import USER_CODE_ERRORS
from zoo.catalogue import find
from zoo.weights import randomise_

TOLERANCE = 1e-8


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """Attention layers by their projections, as Torch-Pruning's README asks for them."""
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            heads[module] = module.num_heads
        elif isinstance(getattr(module, "qkv", None), nn.Linear):
            heads[module.qkv] = module.num_heads
        elif isinstance(getattr(module, "to_qkv", None), nn.Linear):
            heads[module.to_qkv] = module.n_heads
    return heads


def last_layer(model: nn.Module) -> list[nn.Module]:
    """The classifier: the last layer with 1,000 outputs (two where there is an auxiliary one)."""
    return [
        module
        for module in model.modules()
        if (isinstance(module, nn.Linear) and module.out_features == 1000)
        or (isinstance(module, nn.Conv2d) and module.out_channels == 1000)
    ]


def pruned(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of ``model``, pruned by half with the general settings."""
    import torch_pruning

    small = copy.deepcopy(model)
    pruner = torch_pruning.pruner.BasePruner(
        small,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=0.5,
        ignored_layers=last_layer(small),
        num_heads=heads_of(small),
        round_to=None,
    )
    pruner.step()
    return small.eval()


def kept_indices(dense: Tensor, small: Tensor) -> list[Tensor] | None:
    """Which index of each of the first two dimensions every slice of ``small`` is, None where numbers were changed."""
    first = (dense == small.flatten()[0]).nonzero()
    if len(first) != 1 or dense.shape[2:] != small.shape[2:]:
        return None
    row, column = dense.select(0, int(first[0, 0])), dense.select(1, int(first[0, 1]))
    found = [_looked_up(column, small.select(1, 0)), _looked_up(row, small.select(0, 0))]
    rebuilt = dense
    for dim, index in enumerate(found):
        rebuilt = rebuilt.index_select(dim, index)
    return found if rebuilt.shape == small.shape and torch.equal(rebuilt, small) else None


def _looked_up(line: Tensor, part: Tensor) -> Tensor:
    """Where the slices of ``part`` are in ``line``, by their first numbers."""
    ordered, order = line.reshape(line.shape[0], -1)[:, 0].sort()
    return order[
        torch.searchsorted(ordered, part.reshape(part.shape[0], -1)[:, 0].contiguous()).clamp(max=len(order) - 1)
    ]


def distinct_(model: nn.Module) -> nn.Module:
    """float32 numbers repeat among millions of weights; with noise below their precision float64 ones do not."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-8 * torch.rand_like(parameter))
    return model


def silence_(dense: nn.Module, small: nn.Module) -> str | None:
    """Zero what the pruned model does not read any more; a complaint where that cannot be told."""
    layers = dict(small.named_modules())
    for name, module in dense.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, (nn.Linear, nn.Conv2d)) or not isinstance(weight, Tensor):
            continue
        kept = kept_indices(weight.detach().contiguous(), layers[name].weight.detach())
        if kept is None:  # pruned to nothing, or changed
            return f"the weights of {name} are no slices of the dense ones"
        dropped = torch.ones(weight.shape[1], dtype=torch.bool)
        dropped[kept[1]] = False
        with torch.no_grad():
            weight[:, dropped] = 0
    return None


def examine(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    entry = find(name)
    model, args, kwargs = entry.build()
    randomise_(model, args, kwargs)
    model, example = distinct_(model.double()), args[0].double()
    before = sum(parameter.numel() for parameter in model.parameters())
    start = time.perf_counter()
    try:
        small = pruned(model, example)
    except USER_CODE_ERRORS as error:
        return {"outcome": "fails to prune", "reason": f"{type(error).__name__}: {error}"[:300]}
    seconds = round(time.perf_counter() - start, 2)
    left = sum(parameter.numel() for parameter in small.parameters()) / before
    found = {"seconds": {"prune": seconds}, "left": left}
    try:
        with torch.no_grad():
            result = small(example)
    except USER_CODE_ERRORS as error:
        return {**found, "outcome": "fails to run", "reason": f"{type(error).__name__}: {error}"[:300]}
    complaint = silence_(model, small)
    if complaint:
        return {**found, "outcome": "runs, cannot be compared", "reason": complaint}
    with torch.no_grad():
        expected = model(example)
    error = float((result - expected).abs().max() / expected.abs().max())
    outcome = "equal" if error <= TOLERANCE else "runs, another function"
    return {**found, "outcome": outcome, "error": error}


def main(name: str, send: Callable[[bytes], Any]) -> None:
    import json

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = examine(name)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    send(json.dumps({"name": name, "stage": "done", "peak_mb": peak, **found}).encode())
