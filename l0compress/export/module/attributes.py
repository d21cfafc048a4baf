"""The attributes that say how wide a module is: those of PyTorch's layers, and those of other people's modules.

PyTorch's layers are known by their class. In any other module an attribute is a width if its forward passes that very
number to an operator and the cut changes it there; where two numbers are equal, which is which is found by trying.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNCellBase

from l0compress.export.module.norms import NarrowLayerNorm, NarrowRMSNorm, narrowed
from l0compress.export.module.transaction import Transaction
from l0compress.graph import CapturedGraph, KeepPlan
from l0compress.graph.cut.kept import kept_of
from l0compress.graph.cut.sizes import module_of, sizes_in_calls
from l0compress.graph.labels.values import Value
from l0compress.graph.nodes.network import op_name

# More attributes of equal numbers than this many trials can tell apart are not told apart.
MOST_TRIALS = 32
UNCHANGED = -1
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}
_NARROW: dict[type, type[NarrowLayerNorm] | type[NarrowRMSNorm]] = {
    nn.LayerNorm: NarrowLayerNorm,
    nn.RMSNorm: NarrowRMSNorm,
}


@dataclass(frozen=True)
class Width:
    """An attribute of one module and the values that it may have after the cut."""

    module: nn.Module
    name: str
    values: tuple[int, ...]


@dataclass
class Choice:
    """The same attribute in all modules of a class: either way of reading its number goes for all of them."""

    widths: list[Width] = field(default_factory=list)

    @property
    def ways(self) -> int:
        return max(len(width.values) for width in self.widths)

    def take_(self, changes: Transaction, way: int) -> None:
        """Give each attribute its value; ``UNCHANGED`` leaves all as they are."""
        if way == UNCHANGED:
            return
        for width in self.widths:
            new = width.values[min(way, len(width.values) - 1)]
            changes.put_(width.module, width.name, new)


def choices_of(modules: dict[str, nn.Module], dense: CapturedGraph, small: CapturedGraph) -> tuple[Choice, ...]:
    """The attributes of modules that are not PyTorch's own which the cut may change."""
    found: dict[tuple[type, str], Choice] = {}
    seen: set[tuple[int, str]] = set()
    for path, pairs in sizes_in_calls(dense, small).items():
        module = modules.get(path)
        if module is None or type(module).__module__.startswith("torch.nn."):
            continue
        for name, value in vars(module).items():
            values = tuple(dict.fromkeys(new for old, new in pairs if type(value) is int and old == value))
            if values and values != (value,) and (id(module), name) not in seen:
                seen.add((id(module), name))
                found.setdefault((type(module), name), Choice()).widths.append(Width(module, name, values))
    return tuple(found.values())


def ways_through(choices: tuple[Choice, ...]) -> Iterator[tuple[int, ...]]:
    """All ways of choosing, as far as they are tried."""
    return itertools.islice(itertools.product(*(range(choice.ways) for choice in choices)), MOST_TRIALS)


def describe_(
    changes: Transaction, modules: dict[str, nn.Module], dense: CapturedGraph, small: CapturedGraph, plan: KeepPlan
) -> None:
    """Bring the attributes of PyTorch's layers, whose parameters are cut, in line with these; narrow their norms."""
    after = {node.name: node for node in small.nodes()}
    for module in dict.fromkeys(modules.values()):
        for name, value in _by_weights(module).items():
            changes.put_(module, name, value)
    for node in dense.nodes():
        module = modules.get(module_of(node) or "") if node.op == "call_function" else None
        if module is not None and node.name in after and type(module).__module__.startswith("torch.nn."):
            _by_call_(changes, modules[""], module, node, after[node.name], plan)


def _by_weights(module: nn.Module) -> dict[str, Any]:
    """What the parameters of a layer say of its widths."""
    if isinstance(module, nn.Linear):
        return dict(zip(("out_features", "in_features"), module.weight.shape, strict=True))
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return dict(zip(("num_embeddings", "embedding_dim"), module.weight.shape, strict=True))
    if isinstance(module, nn.PReLU):
        return {"num_parameters": module.weight.shape[0]}
    if isinstance(module, nn.RNNBase):
        return _of_recurrent(module, module.weight_ih_l0, module.weight_hh_l0, module.mode.split("_")[0])
    if isinstance(module, RNNCellBase):
        return _of_recurrent(module, module.weight_ih, module.weight_hh, type(module).__name__)
    if isinstance(module, nn.MultiheadAttention):
        return _of_attention(module)
    return {}


def _of_recurrent(module: nn.Module, from_input: Any, from_hidden: Any, kind: str) -> dict[str, Any]:
    widths = {"input_size": from_input.shape[1], "hidden_size": from_input.shape[0] // _GATES.get(kind, 1)}
    projected = isinstance(module, nn.RNNBase) and module.proj_size > 0
    return {**widths, "proj_size": from_hidden.shape[1]} if projected else widths


def _of_attention(module: nn.MultiheadAttention) -> dict[str, Any]:
    inner, embedded = module.out_proj.weight.shape[1], module.out_proj.weight.shape[0]
    alike = {name: embedded for name in ("kdim", "vdim") if getattr(module, name) == module.embed_dim}
    return {"embed_dim": embedded, "num_heads": inner // module.head_dim, **alike}


def _by_call_(
    changes: Transaction, root: nn.Module, module: nn.Module, node: fx.Node, after: fx.Node, plan: KeepPlan
) -> None:
    """What only the call of a layer tells: how many groups there are, and how wide the input of a norm is."""
    if isinstance(module, _ConvNd) and "conv" in op_name(node):
        groups = _argument(after, "groups", 1)
        first, second = module.weight.shape[:2]
        wide = (first, second * groups) if isinstance(module, _ConvTransposeNd) else (second * groups, first)
        for name, value in zip(("in_channels", "out_channels", "groups"), (*wide, groups), strict=True):
            changes.put_(module, name, value)
        return
    source = plan.groups.labelled.values.get(node.all_input_nodes[0].name) if node.all_input_nodes else None
    if not isinstance(source, Value):
        return
    kept = kept_of(source, plan)
    if isinstance(module, _NormBase):
        changes.put_(module, "num_features", kept.shape[1])
    elif isinstance(module, nn.GroupNorm):
        changes.put_(module, "num_channels", kept.shape[1])
        changes.put_(module, "num_groups", _argument(after, "num_groups", module.num_groups))
    elif kept.shape[-1] != kept.dense[-1] and type(module) in _NARROW:
        changes.swap_(root, module, narrowed(_NARROW[type(module)], module, kept.shape[-1]))


def _argument(node: fx.Node, name: str, default: int) -> int:
    """An integer argument of a call by its name in the operator's schema."""
    target: Any = node.target
    for position, argument in enumerate(target._schema.arguments):
        if argument.name == name and position < len(node.args):
            value: Any = node.args[position]
            return int(value)
    return default
