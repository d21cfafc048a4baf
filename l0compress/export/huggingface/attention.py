"""Attention of ``transformers`` by the names of its parts: which rows are which heads, and what forward reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from l0compress.graph.cut.plan import Keeps

HEAD_WIDTH = ("head_dim", "attention_head_size", "dim_per_head", "head_size", "key_value_proj_dim")
SEPARATE = (
    ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"),
)  # fmt: skip
FUSED = "c_attn"
READERS = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "o")
# Where the module that views heads holds no product behind them, its parent does.
READERS_BESIDE = ("output.dense", "output")


@dataclass(frozen=True)
class Rows:
    """Features of a product that are heads: ``count`` outputs (or inputs) of ``module`` from ``start`` on."""

    module: str
    start: int
    count: int


@dataclass(frozen=True)
class Attention:
    """One attention module, before the cut.

    Attributes:
        name: the module whose forward views heads.
        head_width: their width there.
        parts: queries, keys and values.
        reader: the product behind the heads.
    """

    name: str
    head_width: int
    parts: tuple[Rows, Rows, Rows]
    reader: str


@dataclass(frozen=True)
class Heads:
    """What is left of a part: the heads and, the same in all of them, the positions in a head."""

    heads: tuple[int, ...]
    widths: tuple[int, ...]


def find_attention(model: nn.Module) -> Iterator[Attention]:
    """The attention modules whose parts have known names; others are left out.

    >>> import transformers
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    >>> model = transformers.BertModel(transformers.BertConfig(vocab_size=5, **sizes))
    >>> [(found.name, found.head_width, found.reader) for found in find_attention(model)]
    [('encoder.layer.0.attention.self', 4, 'encoder.layer.0.attention.output.dense')]
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        width = next((value for key in HEAD_WIDTH if isinstance(value := vars(module).get(key), int)), None)
        parts = _parts(name, module)
        reader = _reader(name, modules)
        if width is not None and parts is not None and reader is not None:
            yield Attention(name, width, parts, reader)


def _parts(name: str, module: nn.Module) -> tuple[Rows, Rows, Rows] | None:
    fused = module._modules.get(FUSED)
    if fused is not None:
        count = _outputs(fused) // 3
        first, second, third = (Rows(f"{name}.{FUSED}", at * count, count) for at in range(3))
        return first, second, third
    for names in SEPARATE:
        found = [module._modules.get(part) for part in names]
        if all(isinstance(part, nn.Linear | Conv1D) for part in found):
            first, second, third = (
                Rows(f"{name}.{part}", 0, _outputs(layer)) for part, layer in zip(names, found, strict=True)
            )
            return first, second, third
    return None


def _reader(name: str, modules: Mapping[str, nn.Module]) -> str | None:
    parent = name.rpartition(".")[0]
    candidates = [*(f"{name}.{leaf}" for leaf in READERS), *(f"{parent}.{leaf}" for leaf in READERS_BESIDE)]
    return next((path for path in candidates if isinstance(modules.get(path), nn.Linear | Conv1D)), None)


def _outputs(layer: nn.Module | None) -> int:
    return layer.nf if isinstance(layer, Conv1D) else layer.out_features if isinstance(layer, nn.Linear) else 0


def heads_of(kept: Tensor | None, rows: Rows, width: int) -> Heads | None:
    """Read the heads and widths that are left off kept indices; None where these are no rectangle.

    >>> import torch
    >>> heads_of(torch.tensor([1, 3, 9, 11]), Rows("query", 0, 16), 4)
    Heads(heads=(0, 2), widths=(1, 3))
    """
    every = range(rows.start, rows.start + rows.count) if kept is None else kept.tolist()
    own = [index - rows.start for index in every if rows.start <= index < rows.start + rows.count]
    heads = tuple(sorted({index // width for index in own}))
    widths = tuple(sorted({index % width for index in own}))
    rectangle = [head * width + at for head in heads for at in widths]
    return Heads(heads, widths) if own == rectangle else None


def module_keeps(keeps: Mapping[str, Keeps], model: nn.Module, name: str) -> tuple[Tensor | None, Tensor | None]:
    """The kept inputs and outputs of a product."""
    layer = model.get_submodule(name)
    dims = keeps.get(f"{name}.weight", (None, None))
    return (dims[0], dims[1]) if isinstance(layer, Conv1D) else (dims[1], dims[0])
