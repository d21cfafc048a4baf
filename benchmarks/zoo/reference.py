"""The dense model that a plan leaves, built without the package's masks, reads or surgery.

Only the kept indices of every parameter are taken from the plan. Where a weight reads (the columns of a linear layer or
a convolution), dropped indices become zero. Everywhere else they become noise, which must not matter, since nothing
reads it: a reader that the plan has forgotten shows up as a difference. Two exceptions are zero throughout: weights
whose rows meet another activation in a product (queries and keys), where nothing stands in between that could ignore
them, and weights whose use is not plain to see. A norm whose weight has lost channels gets zeros for them: what else
is added to those channels (a bias that runs over tokens) is no matter of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from l0compress.graph import CapturedGraph, GraphNetwork, KeepPlan
from l0compress.graph.nodes.network import op_name

Keeps = Sequence[Tensor | None]
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_PRODUCTS = ("matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention", "einsum")
_SUMS = ("sum", "mean", "linalg_vector_norm", "norm", "linalg_norm")
# Where in the arguments of a norm over channels its weight stands.
_NORMS = {"layer_norm": 2, "native_layer_norm": 2, "rms_norm": 2, "group_norm": 2}
_LOOSE = ("batch_norm", "add", "mul", "sub", "embedding", "layer_norm", "where", "sym_size")


def reads_sums(plan: KeepPlan) -> bool:
    """Whether a sum, a mean or a norm over channels has dropped ones, which no choice of weights can silence."""
    nodes = {node.name: node for node in plan.groups.graph.nodes()}
    reads = (read for read in plan.groups.reads if op_name(nodes[read.node]) in _SUMS)
    return any(bool(read.silenced(plan.alive).any()) for read in reads)


def silenced(graph: CapturedGraph, keeps: Mapping[str, Keeps], *, noisy: bool) -> GraphNetwork:
    """``graph`` with dropped columns zeroed, and dropped rows filled with noise (zero, too, where not ``noisy``)."""
    network = graph.module()
    _silence_norms_(network, keeps)
    readers, quiet = reading_dims(network), _meeting_activations(network)
    generator = torch.Generator().manual_seed(11)
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(
        network.named_buffers(remove_duplicate=False)
    )
    with torch.no_grad():
        for name, kept in keeps.items():
            if name in tensors and any(keep is not None for keep in kept):
                zero_dims = readers.get(name) if noisy and name not in quiet else None
                _overwrite_(tensors[name], kept, zero_dims, generator)
    return network


def _silence_norms_(network: GraphNetwork, keeps: Mapping[str, Keeps]) -> None:
    """Multiply what a norm reads by one where its weight keeps the channel, and by zero where it does not."""
    for index, node in enumerate(list(network.graph.nodes)):
        place = _NORMS.get(op_name(node), len(node.args))
        weight = node.args[place] if place < len(node.args) else None
        kept = keeps.get(str(weight.target), ()) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ()
        if not any(keep is not None for keep in kept):
            continue
        mask = torch.ones(tuple(weight.meta["val"].shape))
        for dim, keep in enumerate(kept):
            if keep is not None:
                mask.movedim(dim, 0)[_dropped(keep, mask.shape[dim])] = 0
        source = node.args[0]
        if op_name(node) == "group_norm":
            mask = mask.view(-1, *[1] * (source.meta["val"].dim() - 2))
        network.register_buffer(f"kept_{index}", mask.to(source.meta["val"].dtype))
        with network.graph.inserting_before(node):
            held = network.graph.get_attr(f"kept_{index}")
            product = network.graph.call_function(torch.ops.aten.mul.Tensor, (source, held))
        product.meta["val"] = source.meta["val"]
        held.meta["val"] = mask
        node.replace_input_with(source, product)
    network.recompile()


def _overwrite_(tensor: Tensor, kept: Keeps, zero_dims: frozenset[int] | None, generator: torch.Generator) -> None:
    noise = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
    for dim, keep in enumerate(kept):
        if keep is not None and zero_dims is not None and dim not in zero_dims:
            index = [slice(None)] * tensor.dim()
            index[dim] = _dropped(keep, tensor.shape[dim])
            tensor[tuple(index)] = noise[tuple(index)]
    for dim, keep in enumerate(kept):
        if keep is not None and (zero_dims is None or dim in zero_dims):
            index = [slice(None)] * tensor.dim()
            index[dim] = _dropped(keep, tensor.shape[dim])
            tensor[tuple(index)] = 0


def _dropped(keep: Tensor, size: int) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[keep] = False
    return mask


def reading_dims(network: GraphNetwork) -> dict[str, frozenset[int] | None]:
    """For each parameter and buffer the dimensions that its users sum over; None where a use is not plain to see."""
    found: dict[str, frozenset[int] | None] = {}
    for node in network.graph.nodes:
        if node.op != "get_attr":
            continue
        for user in node.users:
            dims, name = _summed(node, user), str(node.target)
            earlier = found.get(name, dims)
            found[name] = dims if dims == earlier else None
    return found


def _summed(node: fx.Node, user: fx.Node) -> frozenset[int] | None:
    name, positions = op_name(user), [i for i, arg in enumerate(user.args) if arg is node]
    if name == "linear":
        return frozenset({1}) if positions == [1] else frozenset()
    if name in _CONVOLUTIONS:
        return frozenset({1}) if positions == [1] else frozenset()
    if name in _TRANSPOSED:
        return frozenset({0}) if positions == [1] else frozenset()
    if name in ("mm", "matmul") and positions == [1] and node.meta["val"].dim() == 2:
        return frozenset({0})
    if name == "addmm" and node.meta["val"].dim() == 2 and positions == [2]:
        return frozenset({0})
    return frozenset() if name in _LOOSE or (name == "addmm" and positions == [0]) else None


def _meeting_activations(network: GraphNetwork) -> set[str]:
    """Parameters from which a product of two activations is reached before any other layer reads them."""
    found: set[str] = set()
    for node in network.graph.nodes:
        if op_name(node) in _PRODUCTS:
            operands = node.args[1:] if op_name(node) in ("addmm", "baddbmm") else node.args
            sources = [arg for arg in operands if isinstance(arg, fx.Node)]
            if not any(source.op == "get_attr" for source in sources):
                for source in sources:
                    found |= _behind(source, set())
    return found


def _behind(node: fx.Node, seen: set[fx.Node]) -> set[str]:
    pending, found = [node], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "get_attr":
            found.add(str(current.target))
        elif op_name(current) in ("linear", *_CONVOLUTIONS, *_TRANSPOSED) or (
            op_name(current) in _PRODUCTS and any(arg.op == "get_attr" for arg in current.all_input_nodes)
        ):
            found |= {str(arg.target) for arg in current.all_input_nodes if arg.op == "get_attr"}
        elif op_name(current) not in _PRODUCTS:
            pending.extend(current.all_input_nodes)
    return found
