"""The check after surgery: the small model and the masked dense one compute the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from l0compress.data import Batch
from l0compress.devices import CPU, device_of
from l0compress.errors import NotEqualError

_RELATIVE = {torch.float64: 1e-10}
_RELATIVE_DEFAULT = 1e-5


def check_equal(small: nn.Module, dense: nn.Module, batch: Batch) -> float:
    """The largest difference of two models' outputs on ``batch``, relative to the dense one's largest magnitude.

    Raises:
        NotEqualError: it is above 1e-5 (1e-10 in float64), or the outputs differ in structure or shape.
    """
    with torch.no_grad():
        batches = ((module, batch.to(device_of(module) or CPU)) for module in (small, dense))
        got, wanted = (_tensors(own.run(module)) for module, own in batches)
    if [tensor.shape for tensor in got] != [tensor.shape for tensor in wanted]:
        raise NotEqualError("After surgery the model's outputs have other shapes than before. Nothing was written.")
    worst = 0.0
    for position, (a, b) in enumerate(zip(got, wanted, strict=True)):
        difference = float((a.double() - b.double()).abs().max()) / max(float(b.double().abs().max()), 1e-30)
        limit = _RELATIVE.get(b.dtype, _RELATIVE_DEFAULT)
        # Written so that NaN fails too.
        if not difference <= limit:
            raise NotEqualError(
                f"After surgery, output {position} differs from the masked dense model's by {difference:.2e} of its "
                f"largest value (allowed {limit:.0e}). Nothing was written. This is a defect of l0compress: please "
                "report the model."
            )
        worst = max(worst, difference)
    return worst


def _tensors(outputs: Any) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return [leaf.cpu() for leaf in leaves]
