"""Compress in a ``lightning.Trainer``: a callback beside a LightningModule that trains a gated network.

::

    gated = l0.gate(l0.capture(net, (x,)))                                        # 1
    module = MyModule(gated)    # its optimizer: AdamW(self.net.param_groups(lr=1e-3))    2
    callback = L0Callback(gated, "macs=0.5")                                      # 3
    lightning.Trainer(callbacks=[callback]).fit(module, loader)
    outcome = callback.finish()                                                   # 4
    l0.export_onnx(outcome.small, "small.onnx", reference=outcome.masked)         # 5
"""

from __future__ import annotations

from typing import Any

from l0compress.gates.attach import GatedNetwork
from l0compress.integrations.control import RAMP, Control, Outcome
from l0compress.loading.references import import_extra
from l0compress.training.targets import AnyTargets

__all__ = ["L0Callback"]

_lightning = import_extra("lightning.pytorch", extra="lightning", purpose="L0Callback for Lightning")


class L0Callback(_lightning.Callback):
    """Holds a gated network to a budget while Lightning trains it, as :class:`~l0compress.Budget` does.

    The penalty's gradient is added once before each step of the optimizer that holds the gates, before clipping,
    however many batches are accumulated, with automatic and manual optimization. Lightning's checkpoints hold gates,
    optimizer and multiplier.

    ``ramp`` is the share of the run's steps over which the target falls to the budget.
    """

    def __init__(self, gated: GatedNetwork, target: AnyTargets, *, ramp: float = RAMP) -> None:
        self.control = Control(gated, target, ramp=ramp)

    def on_train_start(self, trainer: Any, _module: Any) -> None:
        """Check the optimizers, and say how long the run is."""
        self.control.check_optimizers(trainer.optimizers)
        self.control.begin_(int(trainer.estimated_stepping_batches))

    def on_before_optimizer_step(self, _trainer: Any, _module: Any, optimizer: Any) -> None:
        """Add the penalty's gradient, unless the optimizer is another one's."""
        if self.control.trained_by(optimizer):
            self.control.before_step_()

    def on_train_epoch_end(self, _trainer: Any, pl_module: Any) -> None:
        """Log density and multiplier."""
        pl_module.log_dict(self.control.report())

    def state_dict(self) -> dict[str, Any]:
        """The multiplier and the ramp's position, for Lightning's checkpoint."""
        return self.control.budget.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.control.load_values_(state_dict)

    def finish(self) -> Outcome:
        """Decide, cut and verify: see :meth:`~l0compress.integrations.control.Control.finish`."""
        return self.control.finish()
