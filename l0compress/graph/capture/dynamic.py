"""Which sizes of the example inputs are free: what is asked of ``torch.export``, and what came of it.

By default the batch is free and so is the length of a sequence, where an input has one and the model takes any. What is
asked of torch.export leaves it the last word: a size that the model's own code fixes stays fixed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from l0compress.errors import CaptureError
from l0compress.graph.capture.batch import BatchDims, batch_of, leading, leaves_of
from l0compress.graph.capture.hints import UNSAID, Hint, hints_of, named_batch

Dynamic = Literal["auto", "batch", "batch+sequence"] | Mapping[str, Any] | None

# Images are resized and cropped to one size before a model sees them; lengths are as the data are.
_READ_IMAGES = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class FreeSizes:
    """The sizes to ask ``torch.export`` for, input by input (leaf by leaf of ``(args, kwargs)``).

    Attributes:
        asked: the dimensions that are to be free, each with its size as ``torch.export`` takes it.
        needed: of each group of dimensions one has to stay free, or the model is refused; others may turn out fixed.
        batch: the batch dimensions that are known beforehand.
    """

    asked: tuple[dict[int, Any], ...]
    needed: tuple[tuple[tuple[int, ...], ...], ...]
    batch: BatchDims

    @classmethod
    def of_symbols(cls, symbols: Sequence[Mapping[int, str]]) -> FreeSizes:
        """What is free in an exported program."""
        count = len(symbols)
        return cls(tuple(dict.fromkeys(free, Dim.AUTO) for free in symbols), ((),) * count, (None,) * count)

    def by_name(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """As ``torch.export.export`` takes them for ``dynamic_shapes``."""
        _, spec = pytree.tree_flatten((args, dict(kwargs)))
        args_dims, kwargs_dims = pytree.tree_unflatten([dims or None for dims in self.asked], spec)
        return dict(inspect.signature(model.forward).bind(*args_dims, **kwargs_dims).arguments)

    def by_graph_name(
        self, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """As :meth:`by_name`, by the names that a captured graph has for its arguments; None where nothing is free."""
        if not any(self.asked):
            return None
        _, spec = pytree.tree_flatten((args, dict(kwargs)))
        args_dims, kwargs_dims = pytree.tree_unflatten([dims or None for dims in self.asked], spec)
        return dict(zip(names, (*args_dims, *kwargs_dims.values()), strict=True))

    def settled(self, placeholders: Sequence[fx.Node]) -> FreeSizes:
        """What is left of them in a captured graph.

        Raises:
            CaptureError: the model's own code fixes a size that has to be free. torch.export does not say so.
        """
        free: list[dict[int, Any]] = []
        for node, asked, needed in zip(placeholders, self.asked, self.needed, strict=True):
            value: Any = node.meta.get("val")
            # An input that nothing reads has no size of its own.
            read = isinstance(value, Tensor) and bool(node.users)
            fixed = {dim for dim, size in asked.items() if _is_free(size) and is_concrete_int(value.shape[dim])}
            lost = next((group[0] for group in needed if fixed.issuperset(group)), None) if read else None
            if lost is not None:
                raise CaptureError(
                    f"the model's own code fixes dimension {lost} of input {node.name!r} to {int(value.shape[lost])}, "
                    "so that size cannot be dynamic.",
                    fix=(
                        f"Use x.shape[{lost}] or -1 instead of a literal or len(x) in the model's forward, or capture "
                        "with dynamic=None for this one size. Where the batch is another dimension, say which: "
                        f"dynamic={{{node.name!r}: 1}}."
                    ),
                )
            free.append({dim: size for dim, size in asked.items() if dim not in fixed or not read})
        return FreeSizes(tuple(free), self.needed, self.batch)


def batch_places(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Dynamic) -> BatchDims:
    """Where the batch of each input is said to be, and is taken to be where nothing is said, before it is captured.

    Raises:
        CaptureError: the inputs do not fit the model's forward, or ``dynamic`` does not fit the inputs.
    """
    return _places(leaves_of(args, kwargs), hints_of(model, args, kwargs, dynamic))


def said_batch_dims(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Dynamic) -> BatchDims:
    """Where the batch of each input is said to be; 0 where nothing is said, None of what is no tensor.

    Raises:
        CaptureError: the inputs do not fit the model's forward, or ``dynamic`` does not fit the inputs.
    """
    leaves, hints = leaves_of(args, kwargs), hints_of(model, args, kwargs, dynamic)
    return tuple(
        (said if said is not None else 0) if isinstance(leaf, Tensor) and leaf.dim() else None
        for leaf, said in zip(leaves, map(_said, hints), strict=True)
    )


def _said(hint: Hint) -> int | None:
    return hint if type(hint) is int else named_batch(hint)


def _places(leaves: Sequence[Any], hints: Sequence[Hint]) -> BatchDims:
    said = tuple(map(_said, hints))
    first = next((int(leaf.shape[dim]) for leaf, dim in zip(leaves, said, strict=True) if dim is not None), None)
    led = leading(leaves, batch_of(tuple(leaves), {}) if first is None else first)
    return tuple(at if dim is None else dim for dim, at in zip(said, led, strict=True))


def free_sizes(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Dynamic
) -> tuple[FreeSizes, ...]:
    """What to try, one after the other: what was asked for; by default the batch alone where the lengths do not do.

    Raises:
        CaptureError: the inputs do not fit the model's forward, or ``dynamic`` does not fit the inputs.
    """
    leaves = leaves_of(args, kwargs)
    hints = hints_of(model, args, kwargs, dynamic)
    places = _places(leaves, hints)
    size = batch_of(tuple(leaves), {}, places)
    explicit = [hint is None or isinstance(hint, Mapping) for hint in hints]
    # What is not said is found out; where sizes are given one by one, and none is called the batch, it leads.
    known = tuple(None if hint == UNSAID else dim for hint, dim in zip(hints, places, strict=True))
    groups = [_batch_groups(leaf, hint, size, at) for at, (leaf, hint) in enumerate(zip(leaves, hints, strict=True))]
    batch = FreeSizes(
        tuple(_asked(hint, found) for hint, found in zip(hints, groups, strict=True)),
        tuple(_needed(hint, found) for hint, found in zip(hints, groups, strict=True)),
        known,
    )
    if dynamic == "batch" or all(explicit):
        return (batch,)
    lengths = _lengths(leaves, places, explicit, has_images=any(isinstance(m, _READ_IMAGES) for m in model.modules()))
    if not any(lengths):
        return (batch,)
    strict = dynamic == "batch+sequence"
    both = FreeSizes(
        tuple({**dims, **dict.fromkeys(more, Dim.AUTO)} for dims, more in zip(batch.asked, lengths, strict=True)),
        tuple(
            (*needed, *((dim,) for dim in more if strict and _is_tokens(leaf)))
            for leaf, needed, more in zip(leaves, batch.needed, lengths, strict=True)
        ),
        known,
    )
    return (both,) if strict else (both, batch)


def _batch_groups(leaf: Any, hint: Hint, size: int, position: int) -> tuple[tuple[int, ...], ...]:
    """Where the batch of an input may lie, of which nothing or the batch alone is said."""
    if type(hint) is int:
        return ((hint,),)
    if hint != UNSAID or not isinstance(leaf, Tensor) or not leaf.dim():
        return ()
    # A recurrent state is (layers, n, hidden); which of two equal sizes is the batch, torch.export finds out.
    as_state = position > 0 and leaf.dim() == 3 and leaf.is_floating_point() and leaf.shape[1] == size
    places = tuple(dim for dim, possible in ((0, leaf.shape[0] == size), (1, as_state)) if possible)
    return (places,) if places else ()


def _asked(hint: Hint, groups: tuple[tuple[int, ...], ...]) -> dict[int, Any]:
    if isinstance(hint, Mapping):
        return dict(hint)
    return {dim: Dim.AUTO for group in groups for dim in group}


def _needed(hint: Hint, groups: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    if isinstance(hint, Mapping):
        return tuple((dim,) for dim, size in hint.items() if _is_free(size))
    # A state that merely has the batch's size somewhere may be no state at all.
    return tuple(group for group in groups if hint != UNSAID or 0 in group)


def _lengths(
    leaves: Sequence[Any], batch: Sequence[int | None], explicit: Sequence[bool], *, has_images: bool
) -> list[tuple[int, ...]]:
    """The dimensions of each input that may be the length of a sequence.

    That is the dimension beside the batch of tokens, ``(n, length)`` integers, and of sequences of features,
    ``(n, length, features)``; and every other dimension of that size, such as those of masks.
    """
    own: list[tuple[int, ...]] = []
    for leaf, place, fixed in zip(leaves, batch, explicit, strict=True):
        features = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() == 3 and not has_images
        is_sequence = not fixed and place is not None and (features or _is_tokens(leaf))
        first = 0 if place else 1
        own.append((first,) if is_sequence and leaf.shape[first] > 1 else ())
    found: list[tuple[int, ...]] = []
    for at, (leaf, place, fixed) in enumerate(zip(leaves, batch, explicit, strict=True)):
        sizes = {leaves[k].shape[dim] for k, dims in enumerate(own) if k != at for dim in dims}
        tied = () if fixed or not isinstance(leaf, Tensor) else range(leaf.dim())
        found.append(tuple(d for d in tied if d != place and (d in own[at] or leaf.shape[d] in sizes)))
    return found


def _is_tokens(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == 2 and not leaf.is_floating_point()


def _is_free(size: Any) -> bool:
    return size is not None and not isinstance(size, int) and size != Dim.STATIC
