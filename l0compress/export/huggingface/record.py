"""What a cut model consists of: the tensors of its file, and the record in ``config.json`` that gives them a place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from l0compress.errors import NOTHING_WRITTEN, InputError
from l0compress.export.huggingface.layouts import IN, OUT, Layout, Layouts
from l0compress.graph.cut.plan import Keeps
from l0compress.loading.modeling_l0compress import COLUMNS, INPUTS, OUTPUTS

VERSION = 1
EPSILONS = ("variance_epsilon", "eps", "epsilon")
PRODUCTS = (nn.Linear, Conv1D, nn.Embedding)
# Norms whose channels do not depend on each other, so that a narrow one is the same norm.
BY_CHANNEL = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


@dataclass(frozen=True, eq=False)
class CutModel:
    """Attributes:
    tensors: the weights by the names that the original class gives them, and the positions that layouts need.
    record: what :mod:`l0compress.loading.modeling_l0compress` reads.
    """

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Small:
    """A small graph's weights by name, and what each dimension of each parameter keeps of the dense model's."""

    state: Mapping[str, Tensor]
    keeps: Mapping[str, Keeps]


def cut_model(model: nn.Module, small: Small, layouts: Layouts) -> CutModel:
    """The tensors and the record of ``model`` with the weights of ``small``, as ``layouts`` say.

    Args:
        model: the dense model; it stays as it is.
        small: what is left of it, under the same names.
        layouts: how the cut model looks to the forward of the dense one.

    Raises:
        InputError: the small model has weights that the dense one has not, such as folded ones.
    """
    return _Builder(model, small, layouts).built()


class _Builder:
    def __init__(self, model: nn.Module, small: Small, layouts: Layouts) -> None:
        self.model, self.small, self.layouts = model, small, layouts
        self.modules = dict(model.named_modules())
        self.tensors: dict[str, Tensor] = {}
        self.shapes: dict[str, list[int]] = {}
        self.attributes: dict[str, dict[str, Any]] = {name: dict(own) for name, own in layouts.attributes.items()}
        self.norms: dict[str, int] = {}
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.absent: dict[str, str] = {}

    def built(self) -> CutModel:
        graph_names = _graph_names(self.model, self.small)
        self.absent = dict.fromkeys(self._unread(graph_names), "Identity")
        for name, tensor in _stored(self.model):
            owner = name.rpartition(".")[0]
            if owner in self.absent:
                continue
            graph_name = graph_names.get(name)
            if graph_name is None:
                self.tensors[name] = tensor
            else:
                self._add_(name, tensor, self.small.keeps[graph_name], self.small.state.get(graph_name))
        self._add_layouts_(graph_names)
        for name, columns in self.layouts.rotary.items():
            self.tensors[f"{name}.{COLUMNS}"] = torch.tensor(columns)
        rotary = {name: len(columns) for name, columns in self.layouts.rotary.items()}
        record = {
            "version": VERSION, "shapes": self.shapes, "attributes": self.attributes, "inputs": self.inputs,
            "outputs": self.outputs, "norms": self.norms, "rotary": rotary, "absent": self.absent,
        }  # fmt: skip
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in self.tensors.items()}
        return CutModel(tensors, record)

    def _unread(self, graph_names: Mapping[str, str]) -> Iterator[str]:
        """Norms whose result nothing reads any more, so that the graph does without them."""
        for name, module in self.modules.items():
            own = [f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
            if not own or isinstance(module, PRODUCTS) or any(module.children()) or self.layouts.wide:
                continue
            if all(one in graph_names and graph_names[one] not in self.small.state for one in own):
                yield name

    def _add_(self, name: str, dense: Tensor, keeps: Keeps, small: Tensor | None) -> None:
        owner = name.rpartition(".")[0]
        module = self.modules[owner]
        # Nothing is a width that few tools bear: a row of zeros stands for it.
        live = [max(size if kept is None else len(kept), min(size, 1)) for size, kept in _dims(dense, keeps)]
        if small is None or list(small.shape) != live:
            small = torch.zeros(live, dtype=dense.dtype)
        is_product = isinstance(module, PRODUCTS)
        self.tensors[name] = small if is_product else self._filled(owner, module, dense, keeps, small)

    def _add_layouts_(self, graph_names: Mapping[str, str]) -> None:
        """Shapes, and what stands around products, under every name that a tied parameter has."""
        first = {id(tensor): name for name, tensor in _stored(self.model)}
        every = [*self.model.named_parameters(remove_duplicate=False), *_stored(self.model)]
        for name, dense in dict(every).items():
            stored = first[id(dense)]
            if stored not in self.tensors or stored not in graph_names:
                continue
            owner, _, leaf = name.rpartition(".")
            if self.tensors[stored].shape != dense.shape:
                self.shapes[name] = list(self.tensors[stored].shape)
            if leaf == "weight" and isinstance(self.modules[owner], PRODUCTS):
                self._add_sides_(owner, self.modules[owner], dense, self.small.keeps[graph_names[stored]])
            if isinstance(self.modules[owner], nn.modules.conv._ConvNd):
                self._add_groups_(owner, self.modules[owner], self.tensors[stored])

    def _add_groups_(self, owner: str, module: nn.Module, weight: Tensor) -> None:
        """A convolution of each channel by itself has as many groups as channels."""
        groups = vars(module)["groups"]
        if weight.dim() > 1 and groups == vars(module)["in_channels"] > 1:
            self.attributes.setdefault(owner, {})["groups"] = weight.shape[0] * groups // vars(module)["out_channels"]

    def _add_sides_(self, owner: str, module: nn.Module, dense: Tensor, keeps: Keeps) -> None:
        sides = {IN: 0, OUT: 1} if isinstance(module, Conv1D) else {IN: 1, OUT: 0}
        if isinstance(module, nn.Embedding):
            sides = {OUT: 1}
        for side, dim in sides.items():
            layout = self._layout(owner, side, dense.shape[dim], keeps[dim])
            if layout is None or layout.is_filled:
                continue
            if side == IN:
                positions = torch.tensor(layout.at or (0,))
                self.tensors[f"{owner}.{INPUTS}"], self.inputs[owner] = positions, len(positions)
            else:
                sources = torch.full((layout.size,), max(len(layout.at), 1))
                sources[list(layout.at)] = torch.arange(len(layout.at))
                self.tensors[f"{owner}.{OUTPUTS}"], self.outputs[owner] = sources, layout.size

    def _layout(self, owner: str, side: str, size: int, kept: Tensor | None) -> Layout | None:
        if self.layouts.wide:
            return None if kept is None else Layout(size, tuple(kept.tolist()))
        return self.layouts.places.get((owner, side))

    def _filled(self, owner: str, module: nn.Module, dense: Tensor, keeps: Keeps, small: Tensor) -> Tensor:
        """Parameters other than of products, which have zeros where a layout has something that was cut."""
        for dim, kept in enumerate(keeps):
            layout = self._layout(owner, OUT, dense.shape[dim], kept)
            if layout is not None and kept is not None and not layout.is_filled:
                whole = small.new_zeros([layout.size if at == dim else size for at, size in enumerate(small.shape)])
                small = whole.index_copy(dim, torch.tensor(layout.at), small) if layout.at else whole
        if small.shape == dense.shape or dense.dim() != 1:
            return small
        if isinstance(module, nn.LayerNorm):
            self.norms[owner] = dense.shape[0]
        elif any(key in vars(module) for key in EPSILONS) and not isinstance(module, BY_CHANNEL):
            return self._scaled_norm(owner, module, small, dense.shape[0])
        return small

    def _scaled_norm(self, owner: str, module: nn.Module, small: Tensor, width: int) -> Tensor:
        """A norm by the root mean square, over what is left of ``width``: the missing ones counted as zeros."""
        share = width / small.shape[0]
        key = next(key for key in EPSILONS if key in vars(module))
        self.attributes.setdefault(owner, {})[key] = vars(module)[key] * share
        factor = math.sqrt(share)
        return (1 + small) * factor - 1 if _adds_one(module, width) else small * factor


def _adds_one(module: nn.Module, width: int) -> bool:
    """Whether a norm multiplies by one more than its weight, as Gemma's do: with weights of zero it is not zero."""
    zeros = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    return bool(torch.func.functional_call(module, zeros, (torch.ones(1, width),)).any())


def _dims(dense: Tensor, keeps: Keeps) -> Iterator[tuple[int, Tensor | None]]:
    return zip(dense.shape, keeps, strict=True)


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a file of weights has: each parameter once, and the buffers that a state has."""
    parameters = dict(model.named_parameters())
    persistent = model.state_dict().keys()
    yield from parameters.items()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)


def _graph_names(model: nn.Module, small: Small) -> dict[str, str]:
    """The names of parameters and buffers in the graph, by those in the file; what is tied has one there.

    Raises:
        InputError: a parameter of the graph is none of the model's.
    """
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    by_tensor = {id(tensor): name for name, tensor in every if name in small.keeps}
    names = {name: by_tensor[id(tensor)] for name, tensor in _stored(model) if id(tensor) in by_tensor}
    check_names([*small.state], [name for name, _ in every])
    return names


def check_names(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raises:
    InputError: a weight of the small model is none of the folder's model.
    """
    foreign = sorted(set(wanted) - set(known))
    if foreign:
        raise InputError(
            f"the small model has a weight {foreign[0]!r} ({len(foreign)} such), which the folder's model lacks: it "
            "was folded from others when the model was captured, or the folder is another model's.",
            fix="Name the folder that was compressed, or export it as onnx or pt2.",
            assurance=NOTHING_WRITTEN,
        )
