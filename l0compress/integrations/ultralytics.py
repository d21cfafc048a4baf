"""Compress in the trainer of ultralytics, with its data, augmentation and losses.

::

    compression = L0Callback("macs=0.5")                                          # 1
    YOLO("yolo11n.pt").train(trainer=compression.trainer(DetectionTrainer), data="coco8.yaml", epochs=10)       # 2
    outcome = compression.finish()                                                # 3
    l0.export_onnx(decoded(outcome.small), "small.onnx")                          # 4
"""

from __future__ import annotations

import math
from typing import Any

import torch

from l0compress.errors import InputError
from l0compress.integrations.control import RAMP, Control, Outcome
from l0compress.integrations.gated_yolo import Both, GatedYolo, decoded
from l0compress.training.targets import AnyTargets

__all__ = ["Both", "GatedYolo", "L0Callback", "decoded"]


class L0Callback:
    """Holds a YOLO to a budget while ultralytics trains it, as :class:`~l0compress.Budget` does.

    The callbacks of ultralytics can exchange neither the model nor what comes before a step, so this one goes in by the
    argument ``trainer``. The gates have an optimizer of their own, whatever the weights are trained by.

    ``ramp`` is the share of the run's steps over which the target falls to the budget.
    """

    def __init__(self, target: AnyTargets, *, ramp: float = RAMP, gate_lr: float = 0.05) -> None:
        self._target, self._ramp, self._rate = target, ramp, gate_lr
        self._control: Control | None = None

    def trainer(self, kind: Any) -> Any:
        """The trainer class ``kind``, say ``DetectionTrainer``, that trains with gates."""
        return _gated_trainer(kind, self)

    @property
    def control(self) -> Control:
        """The gated network and its budget.

        Raises:
            InputError: no training has begun.
        """
        if self._control is None:
            raise InputError(
                "no training has begun.", fix="Write yolo.train(trainer=compression.trainer(DetectionTrainer), ...)."
            )
        return self._control

    def begin_(self, model: GatedYolo) -> None:
        """Take a model under the budget."""
        self._control = Control(model.gated, self._target, ramp=self._ramp)
        self.optimizer = torch.optim.AdamW(self._control.gated.gate_parameters().values(), self._rate, weight_decay=0.0)

    def finish(self) -> Outcome:
        """Decide, cut and verify: see :meth:`~l0compress.integrations.control.Control.finish`."""
        return self.control.finish()


def _gated_trainer(kind: Any, callback: L0Callback) -> Any:
    class GatedTrainer(kind):
        def get_model(self, *args: Any, **kwargs: Any) -> GatedYolo:
            if self.resume or self.world_size > 1:
                raise InputError(
                    "gates are trained by one process, and without resume.", fix="Start anew, with device=0 or 'cpu'."
                )
            model = GatedYolo(super().get_model(*args, **kwargs), self.args.imgsz)
            callback.begin_(model)
            return model

        def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
            dataset = super().build_dataset(*args, **kwargs)
            dataset.rect = False  # a graph takes images of one size
            return dataset

        def build_optimizer(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            optimizer, gates = super().build_optimizer(model, *args, **kwargs), callback.control.gate_ids()
            groups = {group["param_group"]: group for group in optimizer.param_groups}
            left = [parameter for parameter in groups["weight"]["params"] if id(parameter) not in gates]
            # In a graph the weights of norms are vectors like any other, and are not decayed either.
            groups["bn"]["params"] += [parameter for parameter in left if parameter.dim() < 2]
            groups["weight"]["params"] = [parameter for parameter in left if parameter.dim() > 1]
            steps = math.ceil(len(self.train_loader) * self.epochs / self.accumulate)
            callback.control.begin_(steps)
            return optimizer

        def optimizer_step(self) -> None:
            scale = self.scaler.get_scale()
            for parameter in callback.control.gated.gate_parameters().values():
                if parameter.grad is not None:
                    parameter.grad.div_(scale).nan_to_num_(0.0, 0.0, 0.0)
            super().optimizer_step()
            callback.control.before_step_()
            callback.optimizer.step()
            callback.optimizer.zero_grad()

    return GatedTrainer
