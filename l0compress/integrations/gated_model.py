"""A gated network that is called, and answers with a loss, as the model of ``transformers`` that it was made of."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from l0compress.errors import InputError
from l0compress.gates.attach import GatedNetwork, gate
from l0compress.graph import capture
from l0compress.graph.capture.dynamic import Dynamic

# Arguments of question answering that are labels, though their names do not say so.
_ANSWERS = ("start_positions", "end_positions")


class GatedModel(nn.Module):
    """What a ``transformers.Trainer`` trains in place of a model; made by :func:`gated_model`.

    ``forward`` takes what the model takes, labels included, and returns what it returns, with the model's own
    ``loss_function`` where there are labels. The state dict holds weights, gates and the budget's multiplier,
    so a checkpoint of the Trainer is complete.

    Attributes:
        gated: the gated network.
        config: the model's configuration, None where it has none.
        l0_budget: what the callback has to know to go on.
    """

    # Losses are averages over a batch, which the Trainer divides by the steps that it accumulates.
    accepts_loss_kwargs = False
    l0_budget: Tensor

    def __init__(self, gated: GatedNetwork, model: nn.Module) -> None:
        super().__init__()
        self.gated, self.config = gated, getattr(model, "config", None)
        self._loss, self._signature = getattr(model, "loss_function", None), inspect.signature(model.forward)
        self._inputs = frozenset(gated.groups.graph.example_kwargs)
        self.register_buffer("l0_budget", torch.zeros(0, dtype=torch.float64))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's outputs, with ``loss`` first where there are labels.

        Raises:
            InputError: there are labels, and the model has no ``loss_function``; or the inputs are not those of the
                batch that it was captured with.
        """
        given = self._signature.bind(*args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        inputs = {name: value for name, value in given.items() if name in self._inputs}
        others = {name: value for name, value in given.items() if name not in self._inputs and value is not None}
        strange = [name for name in others if not _is_label(name)]
        if strange:
            raise InputError(
                f"the model was called with {', '.join(strange)}, but captured without.",
                fix="Give gated_model a batch as the data collator returns it.",
            )
        outputs = self.gated(**inputs)
        return self._with_loss(outputs, others) if others else outputs

    def param_groups(self, **rates: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer, as :meth:`GatedNetwork.param_groups`."""
        return self.gated.param_groups(**rates)

    def _with_loss(self, outputs: Any, targets: dict[str, Any]) -> Any:
        if self._loss is None or not isinstance(outputs, Mapping):
            raise InputError(
                f"the model was called with {', '.join(targets)}, which its graph does not take, and it has no "
                "loss_function that would.",
                fix="Give the Trainer the loss: compute_loss_func=lambda outputs, labels, **_: ...",
            )
        sizes = {"config": self.config, "vocab_size": getattr(self.config, "vocab_size", None)}
        loss = self._loss(**{"pooled_logits": outputs.get("logits"), **outputs, **targets, **sizes})
        return type(outputs)(**{"loss": loss, **outputs})


def gated_model(model: nn.Module, batch: Mapping[str, Any], *, dynamic: Dynamic = "auto") -> GatedModel:
    """Capture a model with the inputs of a batch, without its labels, and put gates into it.

    Args:
        model: a ``PreTrainedModel``, or any module that is called by keyword; it stays as it is.
        batch: example inputs by name, as a data collator returns them.
        dynamic: which sizes are free, as for :func:`~l0compress.capture`.

    Raises:
        CaptureError, NothingToPruneError: as :func:`~l0compress.capture` and :func:`~l0compress.gate`.
    """
    inputs = {name: value for name, value in batch.items() if not _is_label(name)}
    gated = gate(capture(model, (), inputs, dynamic=dynamic))

    # The Trainer reads off the class which arguments are labels, and which columns of the data are not arguments.
    @functools.wraps(type(model).forward)
    def forward(self: GatedModel, *args: Any, **kwargs: Any) -> Any:
        return GatedModel.forward(self, *args, **kwargs)

    kind = type(f"Gated{type(model).__name__}", (GatedModel,), {"forward": forward})
    return kind(gated, model)


def _is_label(name: str) -> bool:
    """As the Trainer tells labels from inputs."""
    return "label" in name or name in _ANSWERS
