"""Layouts: how wide each dimension of a cut model has to look to the original forward, and where what is left stands.

``narrow`` makes everything as narrow as it is; only heads whose queries and values differ in width are filled up to one
width, because forward views both by one number. ``dense`` leaves all activations as wide as they were, with zeros where
something was cut: right for any forward, but only the weights are smaller then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from l0compress.export.huggingface.attention import Attention, Heads, find_attention, heads_of, module_keeps
from l0compress.graph.cut.plan import Keeps

IN, OUT = "in", "out"
FREQUENCIES = "inv_freq"
NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True)
class Layout:
    """A dimension of ``size`` positions, of which those that are left are ``at``; zeros elsewhere."""

    size: int
    at: tuple[int, ...]

    @property
    def is_filled(self) -> bool:
        """Whether everything is left, so that nothing has to be put in place."""
        return self.at == tuple(range(self.size))


@dataclass(frozen=True)
class Layouts:
    """How a cut model looks to the original forward.

    Attributes:
        places: by module and side, ``in`` or ``out``; a dimension without one is as narrow as what is left of it.
        attributes: numbers that forward reads, by module.
        rotary: the columns that are left of rotary tables, by the module that makes them.
        wide: whether every dimension keeps its dense size.
        notes: what is left of attention, by module, for the model card.
    """

    places: Mapping[tuple[str, str], Layout] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rotary: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    wide: bool = False
    notes: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)


# Every activation is as wide as in the dense model.
DENSE_LAYOUTS = Layouts(wide=True)


@dataclass(frozen=True)
class _Cut:
    """What is left of one attention module: of queries, keys and values."""

    whole: Attention
    queries: Heads
    keys: Heads
    values: Heads

    @property
    def widest(self) -> int:
        return max(len(self.queries.widths), len(self.values.widths), 1)


def narrow_layouts(model: nn.Module, keeps: Mapping[str, Keeps]) -> Layouts | None:
    """Layouts as narrow as they can be; None where heads are left that no number of heads and width describes."""
    cuts = []
    for attention in find_attention(model):
        outputs = [module_keeps(keeps, model, rows.module)[1] for rows in attention.parts]
        queries, keys, values = (
            heads_of(kept, rows, attention.head_width) for kept, rows in zip(outputs, attention.parts, strict=True)
        )
        if queries is None or keys is None or values is None or len(keys.heads) != len(values.heads):
            return None
        if len(queries.heads) % max(len(keys.heads), 1):
            return None
        cuts.append(_Cut(attention, queries, keys, values))
    # One model may have tables by kind of layer: full_attention_inv_freq beside sliding_attention_inv_freq.
    found = [name.rpartition(".") for name, _ in model.named_buffers()]
    tables = sorted({owner for owner, _, leaf in found if leaf.endswith(FREQUENCIES)})
    columns = _columns(cuts) if tables else None
    widths = [_width(cut, bool(tables), columns) for cut in cuts]
    places: dict[tuple[str, str], Layout] = {}
    attributes: dict[str, dict[str, Any]] = {}
    for cut, width in zip(cuts, widths, strict=True):
        aligned = bool(tables) and columns is None
        _place_(places, cut, width, aligned=aligned)
        _place_norms_(places, cut, width, model, aligned=aligned)
        attributes[cut.whole.name] = _attributes(model.get_submodule(cut.whole.name), cut, width)
    return Layouts(
        places=places,
        attributes={name: values for name, values in attributes.items() if values},
        rotary={} if columns is None else {name: columns for name in tables if _is_cut(keeps, name)},
        notes={cut.whole.name: _notes(cut) for cut in cuts},
    )


def _is_cut(keeps: Mapping[str, Keeps], name: str) -> bool:
    frequencies = [dims for key, dims in keeps.items() if key.startswith(f"{name}.") and key.endswith(FREQUENCIES)]
    return any(kept is not None for dims in frequencies for kept in dims)


def _columns(cuts: Sequence[_Cut]) -> tuple[int, ...] | None:
    """The positions in a head that all layers share, so that rotary tables are cut to them; None to leave those whole.

    Tables are shared by all layers, and turn values of no layer: a layer with wider values has them whole.
    """
    left = {cut.queries.widths for cut in cuts if cut.queries.heads}
    if len(left) != 1:
        return None
    (columns,) = left
    return None if any(len(cut.values.widths) > len(columns) for cut in cuts) else columns


def _width(cut: _Cut, rotary: bool, columns: tuple[int, ...] | None) -> int:
    if not rotary:
        return cut.widest
    return cut.whole.head_width if columns is None else len(columns)


def _place_(places: dict[tuple[str, str], Layout], cut: _Cut, width: int, *, aligned: bool) -> None:
    """Put queries, keys and values into heads of one width; ``aligned`` queries and keys stay where they were."""
    sizes, at, offset = {}, {}, 0
    for rows, part in zip(cut.whole.parts, (cut.queries, cut.keys, cut.values), strict=True):
        heads = max(len(part.heads), 1)
        if rows.module not in sizes:
            sizes[rows.module], at[rows.module], offset = 0, [], 0
        inside = part.widths if aligned and part is not cut.values else range(len(part.widths))
        at[rows.module] += [offset + head * width + place for head in range(len(part.heads)) for place in inside]
        offset += heads * width
        sizes[rows.module] = offset
    for module, size in sizes.items():
        places[module, OUT] = Layout(size, tuple(at[module]))
    group = len(cut.queries.heads) // max(len(cut.values.heads), 1)
    behind = [
        head * width + place
        for head in range(len(cut.values.heads) * max(group, 1))
        for place in range(len(cut.values.widths))
    ]
    places[cut.whole.reader, IN] = Layout(max(len(cut.queries.heads), 1) * width, tuple(behind))


def _place_norms_(
    places: dict[tuple[str, str], Layout], cut: _Cut, width: int, model: nn.Module, *, aligned: bool
) -> None:
    """Norms of queries and keys are over one head, or over all of them."""
    children = dict(model.get_submodule(cut.whole.name).named_children())
    inside = cut.queries.widths if aligned else tuple(range(len(cut.queries.widths)))
    for norm, rows in zip(NORMS, cut.whole.parts, strict=False):
        if norm in children:
            (weight, *_) = children[norm].parameters()
            one_head = weight.numel() == cut.whole.head_width
            places[f"{cut.whole.name}.{norm}", OUT] = Layout(width, inside) if one_head else places[rows.module, OUT]


def _attributes(module: nn.Module, cut: _Cut, width: int) -> dict[str, Any]:
    heads, pairs = max(len(cut.queries.heads), 1), max(len(cut.keys.heads), 1)
    wanted = {
        "head_dim": width,
        "attention_head_size": width,
        "dim_per_head": width,
        "head_size": width,
        "key_value_proj_dim": width,
        "num_heads": heads,
        "num_attention_heads": heads,
        "n_heads": heads,
        "num_key_value_heads": pairs,
        "num_key_value_groups": heads // pairs,
        "all_head_size": heads * width,
        "split_size": heads * width,
        "inner_dim": heads * width,
    }
    own = vars(module)
    return {key: value for key, value in wanted.items() if isinstance(own.get(key), int) and own[key] != value}


def _notes(cut: _Cut) -> dict[str, tuple[int, int]]:
    width = cut.whole.head_width
    return {
        "heads": (cut.whole.parts[0].count // width, len(cut.queries.heads)),
        "key and value heads": (cut.whole.parts[1].count // width, len(cut.keys.heads)),
        "width of queries and keys": (width, len(cut.queries.widths)),
        "width of values": (width, len(cut.values.widths)),
    }
