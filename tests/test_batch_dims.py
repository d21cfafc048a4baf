"""Models that want the batch elsewhere than first: compressed, written, checked and timed at batches, not lengths."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import l0compress as l0
from l0compress.data import Batch, Data, Split
from l0compress.errors import ModelError
from l0compress.export.bundle import BundleSettings, export_bundle
from l0compress.export.bundle_session import BundleSession
from l0compress.export.onnx import export_onnx
from l0compress.export.pt2 import captured_pt2, export_pt2
from l0compress.export.session import OnnxSession
from l0compress.graph.groups.cost import cost
from l0compress.measure.bench import bench
from l0compress.pipeline.compress import compress
from l0compress.pipeline.sources import prepare
from l0compress.training.settings import FinetuneSettings


class TimeFirst(nn.Module):
    """A recurrent layer as PyTorch makes it by default, and the state that it begins with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRU(4, 3)
        self.head = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.head(self.cell(x, state)[0][-1])


WHERE = {"x": 1, "state": 1}


def graph() -> l0.CapturedGraph:
    return l0.capture(TimeFirst(), (torch.randn(6, 2, 4), torch.randn(1, 2, 3)), dynamic=WHERE)


def samples(count: int = 48) -> Split:
    """Sample by sample, as data are: what the model calls ``(length, n, features)`` is ``(n, length, features)``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, 4, generator=generator)
    return Split((x, torch.zeros(count, 1, 3)), (x.sum((1, 2)) > 0).long())


class TestCompress:
    def test_data_lead_with_samples_and_the_model_does_not(self) -> None:
        data = Data(samples(), samples())
        result = compress(TimeFirst(), data, target={"macs": 0.9}, settings=FinetuneSettings(epochs=2), dynamic=WHERE)
        assert result.small.batch_dims == (1, 1)
        assert result.val.dense.num_samples == 48
        assert result.reached <= result.limit
        # Three blocks of three rows read four features and three units at each of six steps; then the head.
        assert result.dense_cost.macs == 6 * 9 * (4 + 3) + 3 * 16 + 16 * 2

    def test_every_sample_reaches_the_model_as_itself(self) -> None:
        part = samples(5)
        prepared = prepare(TimeFirst(), Data(part, part), dynamic=WHERE)
        (batch,) = prepared.data.train.batches(5)
        x, state = part.inputs
        expected = TimeFirst()(x.transpose(0, 1), state.transpose(0, 1))
        torch.testing.assert_close(batch.run(prepared.graph.module()), expected)
        assert len(batch) == 5

    def test_keyword_inputs_go_by_their_order(self) -> None:
        batch = Batch((torch.zeros(2, 7),), {"h": torch.zeros(2, 3, 5)}, batch_dims=(0, 1))
        args, kwargs = batch.call()
        assert (args[0].shape, kwargs["h"].shape) == ((2, 7), (3, 2, 5))


class TestFiles:
    def test_axes_are_called_what_they_are(self, tmp_path: Path) -> None:
        path = export_onnx(graph(), tmp_path / "m.onnx").path
        made = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*onnx.load(path).graph.input, *onnx.load(path).graph.output)
        }
        assert made == {"x": ["length", "batch", 4], "state": [1, "batch", 3], "output_0": ["batch", 2]}
        x, state = torch.randn(9, 13, 4), torch.randn(1, 13, 3)
        torch.testing.assert_close(OnnxSession(path)(x, state)["output_0"], graph().module()(x, state).detach())

    def test_an_archive_remembers_where_the_batch_is(self, tmp_path: Path) -> None:
        """By its shapes alone, a free length that leads would be taken for the batch."""
        path = export_pt2(graph(), tmp_path / "m.pt2").path
        again = captured_pt2(path)
        assert (again.batch_dims, again.batch_size) == ((1, 1), 2)
        assert cost(again) == cost(graph())
        x, state = torch.randn(9, 13, 4), torch.randn(1, 13, 3)
        torch.testing.assert_close(again.module()(x, state), graph().module()(x, state))

    def test_a_copy_knows_it_too(self) -> None:
        again = copy.deepcopy(graph())
        assert (again.batch_dims, cost(again)) == ((1, 1), cost(graph()))

    def test_an_archive_with_no_dimensions_in_their_place_is_refused(self, tmp_path: Path) -> None:
        program = torch.export.export(nn.Linear(4, 2), (torch.randn(2, 4),), strict=False)
        torch.export.save(program, tmp_path / "m.pt2", extra_files={"batch_dims.json": '["first"]'})
        with pytest.raises(ModelError, match=r"batch_dims\.json in it names no dimensions\. Nothing was changed\."):
            l0.load_model(tmp_path / "m.pt2")

    @pytest.mark.slow
    def test_a_bundle_and_a_timing_take_batches_of_the_size_that_is_asked_for(self, tmp_path: Path) -> None:
        settings = BundleSettings(measure=False)
        bundle = export_bundle(graph(), tmp_path / "m.l0c", batch_sizes=(1, 12), settings=settings)
        assert bundle.equality.batch_sizes == (2, 1, 11, 12)
        onnx_path = export_onnx(graph(), tmp_path / "m.onnx").path
        for session in (BundleSession(bundle.path), OnnxSession(onnx_path)):
            call = session.example_call(5)
            assert {name: tuple(value.shape) for name, value in call.kwargs.items()} == {
                "x": (6, 5, 4),
                "state": (1, 5, 3),
            }
            assert call.batch_size == 5
        seen: list[tuple[int, ...]] = []

        def note(x: Tensor, state: Tensor) -> None:
            seen.append((*x.shape[:2], state.shape[1]))

        bench({"noted": note}, graph(), batch_sizes=(1, 8), rounds=1, max_seconds=0.0)
        assert set(seen) == {(6, 1, 1), (6, 8, 8)}
