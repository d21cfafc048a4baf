"""Compress in a ``transformers.Trainer``: a callback, and the model that it trains in place of yours.

::

    model = gated_model(model, batch)                                             # 1
    callback = L0Callback(model, "macs=0.5")                                      # 2
    optimizer = torch.optim.AdamW(model.param_groups(lr=args.learning_rate))      # 3
    trainer = Trainer(model, args, ..., callbacks=[callback], optimizers=(optimizer, None))
    trainer.train()
    outcome = callback.finish()                                                   # 4
    l0.export_onnx(outcome.small, "small.onnx", reference=outcome.masked)         # 5
"""

from __future__ import annotations

from typing import Any

from l0compress.errors import InputError
from l0compress.integrations.control import RAMP, Control, Outcome
from l0compress.integrations.gated_model import GatedModel, gated_model
from l0compress.loading.references import import_extra
from l0compress.training.targets import AnyTargets

__all__ = ["GatedModel", "L0Callback", "gated_model"]

_transformers = import_extra("transformers", extra="transformers", purpose="L0Callback for transformers")


class L0Callback(_transformers.TrainerCallback):
    """Holds a :class:`GatedModel` to a budget while a Trainer trains it, as :class:`~l0compress.Budget` does.

    The penalty's gradient is added once before each step of the optimizer, after clipping, however many batches are
    accumulated. Checkpoints of the Trainer hold gates, their optimizer's state and the multiplier.

    ``ramp`` is the share of the run's steps over which the target falls to the budget.
    """

    def __init__(self, model: GatedModel, target: AnyTargets, *, ramp: float = RAMP) -> None:
        self.model, self.control = model, Control(model.gated, target, ramp=ramp)
        model.l0_budget = self.control.values()

    def on_train_begin(self, args: Any, state: Any, _: Any, optimizer: Any = None, **__: Any) -> None:
        """Check the optimizer, and go on where a checkpoint stopped."""
        if args.fp16 and not args.max_grad_norm:
            raise InputError(
                "with fp16 and without clipping, gradients are scaled when the penalty's is added to them.",
                fix="Set max_grad_norm, say to 1e9, or use bf16.",
            )
        self.control.check_optimizers([optimizer])
        self.control.load_values_(self.model.l0_budget.cpu())
        self.control.begin_(state.max_steps)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Add the penalty's gradient."""
        self.control.before_step_()
        self.model.l0_budget.copy_(self.control.values())

    def on_log(self, _: Any, state: Any, __: Any, logs: Any = None, **___: Any) -> None:
        """Add density and multiplier to what is logged."""
        for entry in (logs, *state.log_history[-1:]):
            entry.update(self.control.report())

    def finish(self) -> Outcome:
        """Decide, cut and verify: see :meth:`~l0compress.integrations.control.Control.finish`."""
        return self.control.finish()
