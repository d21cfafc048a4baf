"""Norms over very many values: ONNX Runtime's float32 sums are off, and files must not be refused over that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from l0compress.export.norms import MANY, split_norms_
from l0compress.export.onnx import export_onnx
from l0compress.export.quantize import quantize_onnx
from l0compress.export.session import OnnxSession
from l0compress.graph import KeepPlan, capture, find_groups, masked, shrink
from l0compress.verification.calls import Call

NORMS = {
    "one group": nn.GroupNorm(1, 16),
    "two groups": nn.GroupNorm(2, 16),
    "without weights": nn.GroupNorm(1, 16, affine=False),
    "of layers": nn.LayerNorm([16, 40, 40]),
    "of layers, without weights": nn.LayerNorm([16, 40, 40], elementwise_affine=False),
    "of images": nn.LayerNorm([40, 40]),
}


class Normalised(nn.Module):
    """A norm over what is nowhere negative, so that sums grow long."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3, padding=1), norm, nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(torch.relu(self.a(x)))).amax((2, 3))


def graph_of(norm: nn.Module):
    torch.manual_seed(0)
    model = Normalised(norm)
    with torch.no_grad():
        for parameter in model.norm.parameters():
            parameter.normal_()
    return capture(model.eval(), (torch.rand(2, 3, 40, 40) + 1,))


def large_norms(network: nn.Module) -> int:
    return sum(getattr(node.target, "__module__", "") == split_norms_.__module__ for node in network.graph.nodes)


@pytest.mark.mostly_slow
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_what_is_left_of_a_model_is_as_close_in_onnx_as_in_pytorch(norm, tmp_path):
    graph = graph_of(norm)
    groups = find_groups(graph)
    plan = KeepPlan.random(groups, 0.6, 1)
    reference = masked(graph.to(torch.float64), plan)
    session = OnnxSession(export_onnx(shrink(graph, plan), tmp_path / "model.onnx").path)
    (x,) = graph.example_args
    (found,) = session(x).values()
    expected = reference(x.double()).detach()
    assert float((found - expected).abs().max() / expected.abs().max()) < 2e-6


@pytest.mark.parametrize(("side", "expected"), [(8, 0), (9, 1)])
def test_only_norms_over_many_values_are_taken_apart(side, expected):
    assert 16 * 8 * 8 <= MANY < 16 * 9 * 9
    graph = capture(Normalised(nn.GroupNorm(1, 16)).eval(), (torch.rand(2, 3, side, side),))
    network = graph.module()
    split_norms_(network)
    assert large_norms(network) == expected


def test_a_group_norm_can_be_quantized(tmp_path):
    """ONNX Runtime's quantizer refuses the operator that torch would make of it."""
    graph = graph_of(nn.GroupNorm(1, 16))
    source = export_onnx(graph, tmp_path / "float.onnx").path
    path = quantize_onnx(source, tmp_path / "int8.onnx", calibration=[Call(graph.example_args)])
    (exact,), (rounded,) = (OnnxSession(file)(*graph.example_args).values() for file in (source, path))
    assert float((rounded - exact).norm() / exact.norm()) < 0.1
