"""Reparametrised weights: what hangs on parameters alone and normalises them becomes the parameter itself.

A weight norm, a spectral norm, an orthogonal parametrisation or a standardised weight computes the weight that a layer
uses from others, and mixes channels on the way: removing one would change all that is left. The weight that the layer
uses has no such trouble, so it takes their place, as ``remove_parametrizations`` would have it. The model computes the
same; from here on the weight is trained directly.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from l0compress.graph.nodes.constant_index import is_written
from l0compress.graph.nodes.mutation import writes
from l0compress.graph.nodes.network import attribute, op_name

# Operators of reparametrisations that mix channels. Products, sums and elementwise functions of parameters (low-rank
# adapters, scales) are left alone: their channels pass, and training goes on as the user meant it.
_MIXING = frozenset(
    {
        "_weight_norm",
        "mv",
        "dot",
        "vdot",
        "linalg_vector_norm",
        "linalg_norm",
        "linalg_householder_product",
        "linalg_matrix_exp",
        "matrix_exp",
        "linalg_qr",
        "linalg_solve",
        "linalg_solve_ex",
        "linalg_solve_triangular",
        "linalg_inv",
        "norm_except_dim",
        "batch_norm",
        "var_mean",
        "std_mean",
        "var",
        "std",
        "norm",
    }
)


def fold_parametrisations_(module: fx.GraphModule) -> None:
    """Replace each reparametrised weight by a parameter that holds its value."""
    constant: set[fx.Node] = set()
    mixed: list[fx.Node] = []
    seen: dict[str, fx.Node] = {}
    for node in list(module.graph.nodes):
        if _is_constant(module, node, constant):
            same = seen.setdefault(f"{node.op} {node.target} {node.args} {node.kwargs}", node)
            if same is not node:  # a layer that is used twice computes its weight twice
                node.replace_all_uses_with(same)
                module.graph.erase_node(node)
                continue
            constant.add(node)
            if op_name(node) in _MIXING or any(source in mixed for source in node.all_input_nodes):
                mixed.append(node)
    for node in mixed:
        outside = [user for user in node.users if user not in constant]
        region = _region(node)
        sources = [source for source in region if _is_parameter(module, source)]
        if outside and sources and not _used_elsewhere(module, region, outside):
            value = _computed(module, node, {})
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
                _replace_(module, node, value, sources, outside)


def _is_constant(module: fx.GraphModule, node: fx.Node, constant: set[fx.Node]) -> bool:
    """Whether a node hangs on parameters, buffers and literals alone, and nobody writes it."""
    target: Any = node.target
    if is_written(node):
        return False
    if node.op == "get_attr":
        return isinstance(attribute(module, str(target)), Tensor)
    if node.op != "call_function" or not all(source in constant for source in node.all_input_nodes):
        return False
    if target is operator.getitem:
        return True
    is_operator = isinstance(target, torch._ops.OpOverload)
    return is_operator and not writes(node) and torch.Tag.nondeterministic_seeded not in target.tags


def _computed(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node not in known:
        target: Any = node.target
        for source in node.all_input_nodes:
            _computed(module, source, known)
        args, kwargs = map_arg((node.args, node.kwargs), lambda source: known[source])
        with torch.no_grad():
            known[node] = attribute(module, str(target)) if node.op == "get_attr" else target(*args, **kwargs)
    return known[node]


def _region(node: fx.Node) -> list[fx.Node]:
    """A node and all that it is computed from, the nearest first."""
    found, pending = [], [node]
    while pending:
        current = pending.pop(0)
        if current not in found:
            found.append(current)
            pending.extend(current.all_input_nodes)
    return found


def _is_parameter(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "get_attr" and isinstance(attribute(module, str(node.target)), nn.Parameter)


def _used_elsewhere(module: fx.GraphModule, region: list[fx.Node], outside: list[fx.Node]) -> bool:
    """Whether a parameter of the region serves another purpose as well; folding would untie the two."""
    return any(
        user not in region and user not in outside
        for node in region
        if any(_is_parameter(module, source) for source in _region(node))
        for user in node.users
    ) or any(user in outside for node in region[1:] for user in node.users)


def _replace_(
    module: fx.GraphModule, node: fx.Node, value: Tensor, sources: list[fx.Node], outside: list[fx.Node]
) -> None:
    trained = any(attribute(module, str(source.target)).requires_grad for source in sources)
    name = _free_name(module, str(sources[-1].target))
    owner_name, _, leaf = name.rpartition(".")
    owner: nn.Module = attribute(module, owner_name) if owner_name else module
    owner.register_parameter(leaf, nn.Parameter(value.detach().clone().contiguous(), requires_grad=trained))
    with module.graph.inserting_before(node):
        weight = module.graph.get_attr(name)
    weight.meta = dict(node.meta)
    for user in outside:
        user.replace_input_with(node, weight)


def _free_name(module: fx.GraphModule, source: str) -> str:
    """``conv.weight`` for what ``conv.parametrizations.weight.original1`` or ``conv.weight_v`` is made into."""
    owner, _, rest = source.partition("parametrizations.")
    name = owner + rest.split(".")[0] if rest else source.removesuffix("_v").removesuffix("_g").removesuffix("_orig")
    path, _, leaf = name.rpartition(".")
    holder: nn.Module = attribute(module, path) if path else module
    taken = {*holder._parameters, *holder._buffers, *holder._modules, *vars(holder)}
    while leaf in taken:
        leaf += "_folded"
    return f"{path}.{leaf}" if path else leaf
