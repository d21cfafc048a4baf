"""Capture: a PyTorch model becomes one flat graph of aten operators, on which everything else happens.

requires: a module and example inputs, or an exported program.
ensures:  a :class:`CapturedGraph` in eval mode with the model's own parameter names, a dynamic batch, no submodule
          calls and no dead code.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.export import ExportedProgram
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from l0compress.data.inputs import Form
from l0compress.errors import CaptureError, InputError, L0Error, LostInCaptureWarning
from l0compress.graph.batch import (
    BatchDims,
    batch_dims_of,
    batch_dims_of_program,
    batch_of,
    doubled,
    leaves_of,
    symbols_of,
    user_inputs,
)
from l0compress.graph.caches import without_caches
from l0compress.graph.cells import open_cells_
from l0compress.graph.describe import headed, input_texts, size_text
from l0compress.graph.dynamic import Dynamic, FreeSizes, batch_places, free_sizes
from l0compress.graph.einsum import expand_einsums_
from l0compress.graph.fitness import check_weights
from l0compress.graph.folding import fold_parametrisations_
from l0compress.graph.functional import functionalise_
from l0compress.graph.history import check_repeatable, without_history
from l0compress.graph.inline import drop_checks_, inline_regions_
from l0compress.graph.network import GraphNetwork, delete_unused_, network_of, retype_node_
from l0compress.graph.pickling import inputs_of, put_inputs_
from l0compress.graph.placement import apart, bring_here_
from l0compress.graph.recurrent import any_length, by_layer_
from l0compress.graph.state_writes import detach_state_, drop_state_writes_, written_state
from l0compress.graph.training_mode import TrainingOnly, missing_in, note_attention_dropout_, training_run
from l0compress.loading.torchscript import traced
from l0compress.loading.wrappers import unwrapped

# torch.export raises whatever the model's own code raises, so the boundary to user code catches all of it.
USER_CODE_ERRORS = (Exception,)
_MOST_NAMED = 3

# How torch speaks of attributes that the model sets or writes in its forward.
_OF_STATE = (
    r"The tensor attributes? .* during export",
    r"The \.grad attribute of a Tensor that is not a leaf",
    r"A model attribute `.*` requires gradient",
)


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A model as one graph. Immutable: every stage returns a new one.

    It is on the CPU, wherever the model was; :meth:`module` is a network that ``.to(device)`` moves.

    Attributes:
        graph_module: aten operators over parameters and buffers under the user's names. Never mutated.
        example_args: positional example inputs, batch of at least 2.
        example_kwargs: keyword example inputs.
        dynamic_shapes: what ``torch.export.export`` needs to capture :meth:`module` again, by input name.
        batch_dims: the dimension of each input that the batch is, leaf by leaf of ``(example_args, example_kwargs)``;
            None where an input has no batch.
        training_only: what the user's model does in training mode that the graph does not: random numbers, and buffers
            that its own code updates. Empty for an exported program, which does not tell.
    """

    graph_module: fx.GraphModule
    example_args: tuple[Any, ...]
    example_kwargs: dict[str, Any]
    dynamic_shapes: dict[str, Any] | None
    batch_dims: BatchDims
    training_only: tuple[TrainingOnly, ...] = ()

    def module(self) -> GraphNetwork:
        """A trainable copy, in eval mode; ``forward`` takes what the user's model takes."""
        return network_of(self.graph_module)

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, detached, not copied."""
        return {name: tensor.detach() for name, tensor in self.graph_module.state_dict().items()}

    def with_state(self, state: Mapping[str, Tensor]) -> CapturedGraph:
        """The same graph with other weights.

        Raises:
            KeyError: a parameter or buffer of the graph is missing in ``state``.
        """
        duplicate: fx.GraphModule = network_of(self.graph_module)
        with torch.no_grad():
            for name, tensor in duplicate.state_dict().items():
                tensor.copy_(state[name])
        return replace(self, graph_module=duplicate)

    def to(self, dtype: torch.dtype) -> CapturedGraph:
        """The same graph with floating-point weights and example inputs in ``dtype`` (float64 for exact checks)."""

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        args, kwargs = pytree.tree_map(cast, (self.example_args, self.example_kwargs))
        duplicate = network_of(self.graph_module)
        own = {tensor.dtype for tensor in self.state().values() if tensor.is_floating_point()}
        for node in duplicate.graph.nodes:
            for old in own | {torch.float32}:
                retype_node_(node, dtype, old)
        duplicate.to(dtype)
        duplicate.recompile()
        return propagate_shapes(replace(self, graph_module=duplicate, example_args=args, example_kwargs=kwargs))

    @property
    def batch_size(self) -> int:
        """Samples in the example inputs."""
        return batch_of(self.example_args, self.example_kwargs, self.batch_dims)

    @property
    def form(self) -> Form:
        """How the model is called."""
        return Form(self.example_args, self.example_kwargs, self.batch_dims)

    def nodes(self) -> Iterator[fx.Node]:
        return iter(self.graph_module.graph.nodes)

    def __repr__(self) -> str:
        graph = self.graph_module.graph
        return headed(f"CapturedGraph({size_text(self.graph_module, graph)})", input_texts(graph))

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedGraph:
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (self.example_args, self.example_kwargs))
        duplicate = network_of(self.graph_module)
        return replace(self, graph_module=duplicate, example_args=args, example_kwargs=kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.example_args, self.example_kwargs, self.dynamic_shapes, self.batch_dims)
        return _unpickled, (network_of(self.graph_module), *inputs_of(self.graph_module.graph), fields)


def _unpickled(
    network: GraphNetwork, inputs: tuple[Any, ...], symbols: Mapping[Any, int], fields: Any
) -> CapturedGraph:
    put_inputs_(network.graph, inputs, symbols)
    return propagate_shapes(CapturedGraph(network, *fields))


def check_captured(graph: object, verb: str) -> None:
    """Raises:
    InputError: what is given to ``verb`` is no captured graph; the message says what to write.
    """
    if isinstance(graph, CapturedGraph):
        return
    raise InputError(
        f"{verb} takes a captured graph, and this is {type(graph).__name__}. Nothing was changed. Capture the model "
        "first: graph = l0compress.capture(model, (example_input,))."
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
        raise CaptureError("args is a tensor, and has to be a tuple of inputs. Nothing was changed. Pass (x,) for x.")
    args, kwargs = tuple(args), dict(kwargs or {})
    model = unwrapped(model)
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
        f"the graph of {type(model).__name__} does not do what the model does in training mode alone: "
        f"{'; '.join(part.sentence for part in missing[:_MOST_NAMED])}{more}. What it computes in evaluation mode is "
        "whole. CapturedGraph.training_only lists everything."
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
        raise CaptureError(_capture_message(model, error) + apart(model, args, kwargs)) from error


def _capture_message(model: nn.Module, error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    source = next((line for line in lines if line.startswith("File ") and "site-packages/torch" not in line), "")
    where = f" ({source})" if source else ""
    unknown = re.match(r"Found <class '(?:[\w.]*\.)?(\w+)'> in output, which is not a known type", reason)
    if unknown:
        return (
            f"torch.export cannot capture {type(model).__name__}: it returns a {unknown[1]}, which is neither tensors "
            "nor a container that torch.export knows. Nothing was changed. Return tensors, in tuples, lists or dicts; "
            "leave out use_cache=True where it is a cache, since a graph keeps nothing from one call to the next."
        )
    return (
        f"torch.export cannot capture {type(model).__name__}: {reason}{where}. Nothing was changed. Make the model's "
        "forward free of data-dependent Python control flow, or check that the example inputs have the shape, dtype "
        "and keywords that it expects."
    )


def _from_program(program: ExportedProgram) -> CapturedGraph:
    if program.example_inputs is None:
        raise CaptureError(
            "the exported program holds no example inputs. Nothing was changed. Export it again with torch.export.save "
            "from the program that torch.export.export returned."
        )
    args, kwargs = program.example_inputs
    if program.call_spec.in_spec is None:
        raise CaptureError("the exported program does not say how its inputs are packed; export it again.")
    flat = _flat_module(program)
    check_repeatable(network_of(flat), args, kwargs, written_state(flat))
    sizes = FreeSizes.of_symbols(symbols_of(user_inputs(program)))
    return _finish(flat, tuple(args), dict(kwargs), replace(sizes, batch=batch_dims_of_program(program)))


def _flat_module(program: ExportedProgram) -> fx.GraphModule:
    module = program.module()
    if not isinstance(module, fx.GraphModule):
        raise CaptureError(f"torch.export returned a {type(module).__name__}, not a graph. Nothing was changed.")
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


def propagate_shapes(graph: CapturedGraph) -> CapturedGraph:
    """Recompute every node's shape after a rewrite, keeping dynamic dimensions dynamic."""
    module = graph.graph_module
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    leaves = pytree.tree_leaves((graph.example_args, graph.example_kwargs))
    values = [node.meta["val"] for node in placeholders]
    mode = next(value.fake_mode for value in values if isinstance(value, torch._subclasses.FakeTensor))
    with mode:
        inputs = [
            torch.empty(value.shape, dtype=leaf.dtype, device=leaf.device) if isinstance(value, Tensor) else value
            for value, leaf in zip(values, leaves, strict=True)
        ]
    # Without the Python dispatcher some operators ask symbolic tensors for concrete sizes.
    with torch.no_grad(), enable_python_dispatcher(), any_length():
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*inputs)
    return graph
