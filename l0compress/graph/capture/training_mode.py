"""What a model does in training mode that its capture in evaluation mode does not show.

One run in training mode tells. Dropout inside ``scaled_dot_product_attention`` is a probability among its arguments,
which models set to 0 when they are not training: that is put back. What else draws random numbers (stochastic depth,
noise, dropout by hand) or updates a buffer in training mode alone is not in the graph: that is named.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from l0compress.devices import CPU, device_of, forked_randomness
from l0compress.graph.capture.history import changed_by_a_call
from l0compress.graph.capture.instance_state import kept
from l0compress.graph.capture.own_writes import own_writes
from l0compress.graph.nodes.network import SWITCHED, TRAINING_DROPOUT, op_name
from l0compress.graph.nodes.sources import is_own, own_lines, short_line

_POSITION = 4  # of dropout_p
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})

# A model's own forward may raise anything where it was not made for training on such inputs.
USER_CODE_ERRORS = (Exception,)


@dataclass(frozen=True)
class TrainingOnly:
    """Something that a model does in training mode and its graph does not.

    Attributes:
        what: ``bernoulli`` or whichever operator draws random numbers, or ``buffer mean`` for one that is updated.
        module: dotted path of the module that does it, empty for the model itself.
        source: ``file.py:line`` of the user's code, empty where it is not known.
    """

    what: str
    module: str
    source: str

    @property
    def sentence(self) -> str:
        """For people.

        Examples:
            >>> TrainingOnly("bernoulli", "blocks.0.drop_path", "drop.py:17").sentence
            'random numbers (bernoulli) in blocks.0.drop_path (drop.py:17)'
        """
        buffer = self.what.startswith("buffer ")
        what = f"an update of {self.what}" if buffer else f"random numbers ({self.what})"
        where = f" in {self.module}" if self.module else ""
        return f"{what}{where}{f' ({self.source})' if self.source else ''}"


@dataclass(frozen=True)
class Draw:
    """Random numbers that were drawn: by which operator, in which module, and the user's lines, innermost first."""

    op: str
    module: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class TrainingRun:
    """What one run in training mode did.

    Attributes:
        attention: the dropout probability of every call of ``scaled_dot_product_attention``, in order.
        draws: of random numbers, in order.
        updates: buffers that the model's own code changed, as what is to be said of them.
        names: of modules by each of their paths: one that stands in two places has one name.
    """

    attention: tuple[float, ...]
    draws: tuple[Draw, ...]
    updates: tuple[TrainingOnly, ...]
    names: Mapping[str, str]


def training_run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TrainingRun | None:
    """Run ``model`` once in training mode; None where it cannot run so.

    Neither the model nor the state of any random generator changes.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.25, batch_first=True)
        >>> training_run(layer, (torch.zeros(1, 3, 8),), {}).attention
        (0.25,)
    """
    own_args, own_kwargs = pytree.tree_map_only(Tensor, torch.clone, (tuple(args), dict(kwargs)))
    by_id = {id(module): name for name, module in model.named_modules()}
    recorder = _Recorder(by_id)
    try:
        with kept(model, values=True) as before, _same_random_state(device_of(model) or CPU), torch.no_grad():
            model.train()
            with recorder, recorder.python_draws(), _recorded_attention() as probabilities:
                model(*own_args, **own_kwargs)
            changed = before.changed()
    except USER_CODE_ERRORS:
        return None
    names = {path: by_id[id(module)] for path, module in model.named_modules(remove_duplicate=False)}
    updates = _updates(model, changed, args, kwargs)
    return TrainingRun(tuple(probabilities), tuple(recorder.draws), updates, names)


def note_attention_dropout_(module: fx.GraphModule, probabilities: Sequence[float]) -> None:
    """Note on every attention node what its dropout is in training mode, where it can be told.

    A model that runs through other attention calls in training mode keeps what was captured.
    """
    nodes = [node for node in module.graph.nodes if op_name(node) == "scaled_dot_product_attention"]
    if len(probabilities) == len(nodes):
        for node, probability in zip(nodes, probabilities, strict=True):
            node.meta[TRAINING_DROPOUT] = probability


def missing_in(module: fx.GraphModule, run: TrainingRun) -> tuple[TrainingOnly, ...]:
    """What a run in training mode did that a graph, switched to training, does not do; each once.

    Args:
        module: straight from ``torch.export``, with the dropout of its attention noted.
    """
    nodes = [(_module_of(node, run.names), node) for node in module.graph.nodes if _draws(node)]
    at_line = Counter((path, line) for path, node in nodes for line in own_lines(node)[:1])
    without_line = Counter(path for path, node in nodes if not own_lines(node))
    recurrent = {path for path, node in nodes if op_name(node) in _RECURRENT}
    missing: list[TrainingOnly] = []
    for draw in run.draws:
        line = next((line for line in draw.lines if at_line[draw.module, line]), None)
        if draw.module in recurrent:  # one operator, which draws for each of its layers
            continue
        if line is not None:
            at_line[draw.module, line] -= 1
        elif without_line[draw.module]:
            without_line[draw.module] -= 1
        else:
            missing.append(TrainingOnly(draw.op, draw.module, draw.lines[0] if draw.lines else ""))
    return tuple(dict.fromkeys([*missing, *run.updates]))


def _draws(node: fx.Node) -> bool:
    """Whether a node of the graph draws random numbers in training mode."""
    name = op_name(node)
    if name == "scaled_dot_product_attention":
        return bool(node.meta.get(TRAINING_DROPOUT))
    if name in SWITCHED:
        return not name.endswith("dropout") or bool(node.args[1])
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags and name != "rrelu"


def _module_of(node: fx.Node, names: Mapping[str, str]) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return names.get(path, path)


def _updates(
    model: nn.Module, changed: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[TrainingOnly, ...]:
    """The buffers among what changed that evaluation leaves alone; those of PyTorch's own layers are in the graph."""
    modules = dict(model.named_modules())
    owners = {name: name.rpartition(".")[0] for name, _ in model.named_buffers()}
    own = [name for name in changed if name in owners and not _is_torch(modules[owners[name]])]
    if not own:
        return ()
    also = changed_by_a_call(model, args, kwargs)
    lines = {write.name: write.source for write in own_writes(model).found}
    return tuple(
        TrainingOnly(f"buffer {name.rpartition('.')[2]}", owners[name], lines.get(name, ""))
        for name in own
        if name not in also
    )


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "torch"


class _Recorder(TorchDispatchMode):
    """Notes every operator that draws random numbers, and where it was called."""

    def __init__(self, modules: Mapping[int, str]) -> None:
        super().__init__()
        self.modules = modules
        self.draws: list[Draw] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and _drops(func, args, kwargs or {}):
            self._note_(func._schema.name.partition("::")[2].rstrip("_"), sys._getframe(1))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def python_draws(self) -> Iterator[None]:
        """Note the calls of Python's and NumPy's generators, too."""

        def profile(frame: FrameType, event: str, called: Any) -> None:
            if event == "c_call" and isinstance(getattr(called, "__self__", None), random.Random):
                self._note_("random", frame)

        before, profiler = _numpy_position(), sys.getprofile()
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(profiler)
        if _numpy_position() != before:
            self.draws.append(Draw("numpy.random", "", ()))

    def _note_(self, op: str, start: FrameType | None) -> None:
        lines: list[str] = []
        path: str | None = None
        frame = start
        while frame is not None and frame.f_code.co_name != training_run.__name__:
            code = frame.f_code
            if is_own(code.co_filename) and code.co_filename not in (__file__, random.__file__):
                lines.append(short_line(code.co_filename, frame.f_lineno))
            if path is None and code.co_argcount:
                path = self.modules.get(id(frame.f_locals.get(code.co_varnames[0])))
            frame = frame.f_back
        self.draws.append(Draw(op, path or "", tuple(lines)))


def _numpy_position() -> Any:
    """How far NumPy's generator has come."""
    return np.random.get_state(legacy=False)["state"]["pos"]


def _drops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """False for attention that is called with a dropout of 0; true for other operators."""
    names = [argument.name for argument in func._schema.arguments]
    return bool({**dict(zip(names, args, strict=False)), **kwargs}.get("dropout_p", "dropout_p" not in names))


@contextmanager
def _same_random_state(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with forked_randomness(device):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _recorded_attention() -> Iterator[list[float]]:
    """The dropout probabilities of the attention calls that are made meanwhile."""
    original, probabilities = F.scaled_dot_product_attention, []

    def recording(*args: Any, **kwargs: Any) -> Tensor:
        probabilities.append(float(args[_POSITION] if len(args) > _POSITION else kwargs.get("dropout_p", 0.0)))
        return original(*args, **kwargs)

    # A TorchFunctionMode would not look into multi_head_attention_forward.
    F.scaled_dot_product_attention = recording
    try:
        yield probabilities
    finally:
        F.scaled_dot_product_attention = original
