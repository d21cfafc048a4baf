"""Capture: a PyTorch model becomes one flat graph of aten operators, on which everything else happens.

requires: a module and example inputs, or an exported program.
ensures:  a :class:`CapturedGraph` in eval mode with the model's own parameter names, a dynamic batch, no submodule
          calls and no dead code.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from l0compress.errors import CaptureError, L0Error, LostInCaptureWarning
from l0compress.graph.capture.batch import (
    batch_dims_of,
    batch_dims_of_program,
    batch_of,
    doubled,
    leaves_of,
    symbols_of,
    user_inputs,
)
from l0compress.graph.capture.caches import without_caches
from l0compress.graph.capture.captured import CapturedGraph, propagate_shapes
from l0compress.graph.capture.cells import open_cells_
from l0compress.graph.capture.dynamic import Dynamic, FreeSizes, batch_places, free_sizes
from l0compress.graph.capture.einsum import expand_einsums_
from l0compress.graph.capture.fitness import check_weights
from l0compress.graph.capture.folding import fold_parametrisations_
from l0compress.graph.capture.functional import functionalise_
from l0compress.graph.capture.history import check_repeatable, without_history
from l0compress.graph.capture.inline import drop_checks_, inline_regions_
from l0compress.graph.capture.rnn_layers import any_length, by_layer_
from l0compress.graph.capture.state_writes import detach_state_, drop_state_writes_, written_state
from l0compress.graph.capture.training_mode import TrainingOnly, missing_in, note_attention_dropout_, training_run
from l0compress.graph.nodes.network import delete_unused_, network_of
from l0compress.graph.nodes.placement import apart, bring_here_
from l0compress.loading.torchscript import traced
from l0compress.loading.wrappers import traceable

# torch.export raises whatever the model's own code raises, so the boundary to user code catches all of it.
USER_CODE_ERRORS = (Exception,)
_MOST_NAMED = 3

# How torch speaks of attributes that the model sets or writes in its forward.
_OF_STATE = (
    r"The tensor attributes? .* during export",
    r"The \.grad attribute of a Tensor that is not a leaf",
    r"A model attribute `.*` requires gradient",
)


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Dynamic = "auto",
) -> CapturedGraph:
    """Capture ``model`` as a graph. The model itself is not changed.

    Args:
        model: a module, or what ``torch.export`` made of one (then its own example inputs and dynamic shapes serve).
            Of ``DataParallel``, ``torch.compile`` and averaged copies it is the module behind them.
        args: positional example inputs; a batch of one is doubled, since a size of 1 cannot be captured as dynamic.
        kwargs: keyword example inputs.
        dynamic: which sizes are free. ``"auto"``: the batch, which leads every tensor input, and the length of
            sequences, ``(n, length)`` integers and ``(n, length, features)``, with the masks beside them, where the
            model takes any length. ``"batch"``: the batch alone. ``"batch+sequence"``: as ``"auto"``, and a model that
            fixes the length of tokens is refused. A mapping says of inputs by name which dimension the batch is,
            ``{"x": 1}``, or all their free sizes, ``{"x": {0: torch.export.Dim.AUTO}}`` (a ``Dim("batch")`` among
            them is the batch). None fixes all.

    Raises:
        CaptureError: torch.export cannot capture the model, or it fixes a dimension that should be free, or what it
            returns depends on its earlier calls.

    Warns:
        LostInCaptureWarning: the model draws random numbers or updates buffers in training mode alone.

    Examples:
        >>> graph = capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.zeros(1, 4),))
        >>> sorted(graph.state())
        ['0.bias', '0.weight', '2.bias', '2.weight']
        >>> graph.module()(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    if isinstance(model, ExportedProgram):
        return _from_program(model)
    if isinstance(args, Tensor):
        raise CaptureError("args is a tensor, but must be a tuple of inputs.", fix="Pass (x,) for x.")
    args, kwargs = tuple(args), dict(kwargs or {})
    model = traceable(model)
    if isinstance(model, torch.jit.ScriptModule):
        model = traced(model, args, kwargs)
    check_weights(model, args, kwargs)
    places = batch_places(model, args, kwargs, dynamic)
    if dynamic is not None and batch_of(args, kwargs, places) == 1:
        args, kwargs = doubled(args, kwargs, places)
    attempts = free_sizes(model, args, kwargs, dynamic)
    for sizes in attempts[:-1]:
        # What fails with lengths that nobody asked to be free may do without.
        with suppress(CaptureError):
            return _captured(model, args, kwargs, sizes)
    return _captured(model, args, kwargs, attempts[-1])


def _captured(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sizes: FreeSizes) -> CapturedGraph:
    with without_history(model, args, kwargs) as state:
        module = _exported(model, args, kwargs, sizes)
        state.restore_()
        check_repeatable(model, args, kwargs, written_state(module))
        run = training_run(model, args, kwargs)
    if run is not None:
        note_attention_dropout_(module, run.attention)
    missing = () if run is None else missing_in(module, run)
    if missing:
        warnings.warn(LostInCaptureWarning(_missing_message(model, missing)), stacklevel=3)
    return replace(_finish(module, args, kwargs, sizes), training_only=missing)


def _missing_message(model: nn.Module, missing: tuple[TrainingOnly, ...]) -> str:
    more = f", and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return (
        f"the graph of {type(model).__name__} omits what the model does only in training mode: "
        f"{'; '.join(part.sentence for part in missing[:_MOST_NAMED])}{more}. Evaluation mode is complete. "
        "CapturedGraph.training_only lists everything."
    )


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], sizes: FreeSizes) -> fx.GraphModule:
    shapes = sizes.by_name(model, args, kwargs) if any(sizes.asked) else None
    try:
        with any_length(), without_caches(model), warnings.catch_warnings():
            # What the model keeps from this call is put back, and whether it matters is looked at afterwards.
            for message in _OF_STATE:
                warnings.filterwarnings("ignore", message=message, category=UserWarning)
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            return _flat_module(program)
    except L0Error:
        raise
    except USER_CODE_ERRORS as error:
        raise _refused(model, error, apart(model, args, kwargs)) from error


def _refused(model: nn.Module, error: BaseException, hint: str) -> CaptureError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    source = next((line for line in lines if line.startswith("File ") and "site-packages/torch" not in line), "")
    where = f" ({source})" if source else ""
    unknown = re.match(r"Found <class '(?:[\w.]*\.)?(\w+)'> in output, which is not a known type", reason)
    if unknown:
        return CaptureError(
            f"torch.export cannot capture {type(model).__name__}: it returns a {unknown[1]}, which is neither a "
            "tensor nor a container known to torch.export.",
            fix=(
                "Return tensors, in tuples, lists or dicts; if it is a cache, omit use_cache=True: a graph keeps "
                f"nothing between calls.{hint}"
            ),
        )
    return CaptureError(
        f"torch.export cannot capture {type(model).__name__}: {reason}{where}.",
        fix=(
            "Make the model's forward free of data-dependent Python control flow, or check that the example inputs "
            f"have the shape, dtype and keywords that it expects.{hint}"
        ),
    )


def _from_program(program: ExportedProgram) -> CapturedGraph:
    if program.example_inputs is None:
        raise CaptureError(
            "the exported program holds no example inputs.",
            fix="Export it again with torch.export.save from the program that torch.export.export returned.",
        )
    args, kwargs = program.example_inputs
    if program.call_spec.in_spec is None:
        raise CaptureError("the exported program does not say how its inputs are packed; export it again.")
    flat = _flat_module(program)
    check_repeatable(network_of(flat), args, kwargs, written_state(flat))
    sizes = FreeSizes.of_symbols(symbols_of(user_inputs(program)))
    return _finish(flat, tuple(args), dict(kwargs), replace(sizes, batch=batch_dims_of_program(program)))


def _flat_module(program: ExportedProgram) -> fx.GraphModule:
    try:
        module = program.module()
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as reason:
        raise CaptureError(
            f"the exported program cannot be put together ({type(reason).__name__}: {reason}).",
            fix="Export it again, or copy its file again.",
        ) from reason
    if not isinstance(module, fx.GraphModule):
        raise CaptureError(f"torch.export returned a {type(module).__name__}, not a graph.", fix="")
    inline_regions_(module)
    drop_checks_(module)
    detach_state_(module)
    return module


def _finish(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any], sizes: FreeSizes) -> CapturedGraph:
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    sizes = sizes.settled(placeholders)
    batch_dims = batch_dims_of(leaves_of(args, kwargs), symbols_of(placeholders), sizes.batch)
    drop_state_writes_(module)
    functionalise_(module)
    expand_einsums_(module)
    fold_parametrisations_(module)
    shapeless = any([open_cells_(module), by_layer_(module)])
    module.graph.eliminate_dead_code()
    delete_unused_(module)
    module.recompile()
    args, kwargs = pytree.tree_map_only(Tensor, _owned, (args, kwargs))
    network = network_of(module)
    elsewhere = bring_here_(network, args, kwargs)
    codegen: Any = module.graph._codegen
    shapes = sizes.by_graph_name(codegen.pytree_info.orig_args, args, kwargs)
    if elsewhere:
        args, kwargs = pytree.tree_map_only(Tensor, torch.Tensor.cpu, (args, kwargs))
    graph = CapturedGraph(network, args, kwargs, shapes, batch_dims)
    return propagate_shapes(graph) if shapeless or elsewhere else graph


def _owned(example: Tensor) -> Tensor:
    """A copy of an example input: saving a view would write the whole data set behind it into every file."""
    return example.detach().clone()
