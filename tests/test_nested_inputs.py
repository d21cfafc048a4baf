"""Inputs in tuples and dicts, and inputs that all samples share: from data of every kind to a compressed model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import l0compress as l0
from l0compress.data import Batch, Data, Split, StreamSplit, example_batch
from l0compress.data.batches import as_batch, collate, joined
from l0compress.data.inputs import Form
from l0compress.errors import DataError
from l0compress.export.onnx import export_onnx
from l0compress.export.session import OnnxSession
from l0compress.loading.parts import as_split
from l0compress.pipeline.compress import compress
from l0compress.pipeline.compress_result import CompressResult
from l0compress.pipeline.fingerprints import data_fingerprint
from l0compress.pipeline.sources import prepare
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings

FEW = FinetuneSettings(epochs=2, batch_size=16)


class Stateful(nn.Module):
    """A recurrent layer and the state that it begins with, which PyTorch wants as ``(layers, n, hidden)``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(self.cell(x, state)[0][:, -1])


WHERE = {"x": 0, "state": 1}


def states(count: int = 32) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, h, c = (torch.randn(count, *sizes, generator=generator) for sizes in ((6, 4), (1, 3), (1, 3)))
    return x, (h, c), (x.sum((1, 2)) > 0).long()


class Samples(Dataset):
    def __init__(self, *, named: bool = False) -> None:
        self.named = named

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Any:
        x, (h, c), y = states()
        state = h[index], c[index]
        return ({"x": x[index], "state": state} if self.named else (x[index], state)), y[index]


def in_memory() -> Any:
    x, state, y = states()
    return Split((x, state), y)


def by_name() -> Any:
    x, state, y = states()
    return Split({"x": x, "state": state}, y)


def arrays() -> Any:
    x, (h, c), y = states()
    return (x.numpy(), (h.numpy(), c.numpy())), y.numpy()


SOURCES: dict[str, Callable[[], Any]] = {
    "Split": in_memory,
    "Split by name": by_name,
    "arrays": arrays,
    "Dataset": Samples,
    "Dataset by name": lambda: Samples(named=True),
    "DataLoader": lambda: DataLoader(Samples(), batch_size=16),
    "DataLoader by name": lambda: DataLoader(Samples(named=True), batch_size=16),
}


class TestStates:
    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("source", SOURCES)
    def test_every_sample_reaches_the_model_as_itself(self, source: str) -> None:
        x, (h, c), _ = states()
        data = {"train": SOURCES[source](), "val": SOURCES[source]()}
        prepared = prepare(Stateful(), data, dynamic=WHERE)
        assert prepared.graph.batch_dims == (0, 1, 1)
        network = prepared.graph.module()
        got = torch.cat([batch.run(network) for batch in prepared.data.train.batches(16)])
        torch.testing.assert_close(got, Stateful()(x, (h.transpose(0, 1), c.transpose(0, 1))))

    def compressed(self, source: str) -> CompressResult:
        data = {"train": SOURCES[source](), "val": SOURCES[source]()}
        return compress(Stateful(), data, target={"macs": 0.9}, settings=FEW, dynamic=WHERE)

    @pytest.mark.slow
    def test_what_is_compressed_from_a_split_and_a_loader_computes_the_same_as_its_onnx_file(
        self, tmp_path: Path
    ) -> None:
        x, h, c = torch.randn(5, 6, 4), torch.randn(1, 5, 3), torch.randn(1, 5, 3)
        for source in ("Split", "DataLoader"):
            result = self.compressed(source)
            assert result.reached <= result.limit and result.small.batch_dims == (0, 1, 1)
            assert result.val.dense.num_samples == 32
            session = OnnxSession(export_onnx(result.small, tmp_path / f"{source}.onnx").path)
            (got,) = session(x, (h, c)).values()
            torch.testing.assert_close(got, result.small.module()(x, (h, c)).detach())

    def test_shuffling_keeps_every_state_with_its_sample(self) -> None:
        rows = torch.arange(9.0).view(9, 1)
        part = Split((rows, {"state": (rows * 10, rows * 100)}), torch.arange(9))
        for batch in part.batches(4, seed=3):
            first, state = batch.args
            torch.testing.assert_close(state["state"], (first * 10, first * 100))
            assert batch.targets is not None and torch.equal(first.flatten().long(), batch.targets)

    def test_a_batch_moves_whole(self) -> None:
        there = in_memory().take(slice(2)).to("meta")
        assert {leaf.device.type for leaf in there.leaves()} == {"meta"}

    def test_a_list_in_a_batch_is_rows_unless_each_of_its_tensors_has_every_sample(self) -> None:
        x, h, c, y = torch.zeros(4, 2), torch.zeros(4, 1), torch.ones(4, 1), torch.zeros(4)
        assert isinstance(as_batch([[x, [h, c]], y]).args[1], tuple)
        assert as_batch([{"x": [torch.zeros(3)] * 4}, y]).kwargs["x"].shape == (4, 3)

    def test_containers_become_those_of_the_example_and_names_take_its_order(self) -> None:
        x, h, c = torch.zeros(2, 6, 4), torch.ones(2, 1, 3), torch.full((2, 1, 3), 2.0)
        form = Form((x,), {"state": [h, c], "scale": h}, (0, 1, 1, 0))
        args, kwargs = form.filled((x,), {"scale": h, "state": (h, c)})
        assert args == (x,) and list(kwargs) == ["state", "scale"] and type(kwargs["state"]) is list

    def test_a_batch_is_moved_by_the_name_of_its_input(self) -> None:
        graph = l0.capture(
            Stateful(), (), {"x": torch.zeros(2, 6, 4), "state": (torch.zeros(1, 2, 3),) * 2}, dynamic=WHERE
        )
        x, state, y = states(4)
        part = Split({"state": state, "x": x}, y)
        (batch,) = Data(part, part).called_like(graph.form).val.batches(4)
        _, kwargs = batch.call()
        assert (kwargs["x"].shape, kwargs["state"][0].shape) == ((4, 6, 4), (1, 4, 3))

    def test_leaves_with_other_numbers_of_samples_are_refused(self) -> None:
        x, (h, c), y = states()
        message = (
            "Inputs and targets have different numbers of samples (input 0: 32, input 1[0]: 32, input 1[1]: 31, the "
            "targets: 32). Nothing was changed. Give one target for each sample."
        )
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            Split((x, (h, c[:-1])), y)

    def test_samples_of_other_structures_are_refused(self) -> None:
        x, h = np.zeros(2), np.zeros(1)
        message = "^The samples do not all have the same inputs, or some lack a target. Nothing was changed. Give all"
        with pytest.raises(DataError, match=message):
            collate([((x, (h, h)), 1), ((x, (h,)), 1)])

    def test_a_batch_of_another_structure_is_refused(self) -> None:
        x, (h, c), y = states(4)
        message = (
            "Batch 1 of the data has nothing for input 1[1], but the first batch has decimal numbers of 3 dimensions. "
            "Nothing was changed. Give batches of the same form."
        )
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            StreamSplit([((x, (h, c)), y), ((x, (h,)), y)])


class Tempered(nn.Module):
    """Scores over a temperature, which is one number for all samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor, temperature: Any) -> Tensor:
        return self.body(x) / temperature


HALF = torch.tensor(0.5)


def vectors(count: int = 32) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def tempered(temperature: Any) -> Split:
    x, y = vectors()
    return Split((x, temperature), y)


def streamed() -> StreamSplit:
    x, y = vectors()
    rows = list(zip(x, y, strict=True))
    return StreamSplit(DataLoader(rows, batch_size=16, collate_fn=lambda found: (with_half(found), labels(found))))  # pyright: ignore[reportArgumentType]


def with_half(rows: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in rows]), HALF


def labels(rows: list[Any]) -> Tensor:
    return torch.stack([y for _, y in rows])


class TestConstants:
    @pytest.mark.parametrize("make", [lambda: tempered(HALF), streamed], ids=["Split", "DataLoader"])
    def test_a_temperature_goes_through_compress_and_stays_an_input(self, make: Any, tmp_path: Path) -> None:
        result = compress(Tempered(), Data(make(), make()), target={"macs": 0.6}, settings=FEW)
        assert result.reached <= result.limit and result.small.batch_dims == (0, None)
        session = OnnxSession(export_onnx(result.small, tmp_path / "m.onnx").path)
        x, _ = vectors(5)
        (half,), (two,) = (session(x, torch.tensor(value)).values() for value in (0.5, 2.0))
        torch.testing.assert_close(half, result.small.module()(x, HALF).detach())
        torch.testing.assert_close(half, 4 * two)

    def test_a_number_of_python_is_part_of_the_model(self) -> None:
        prepared = prepare(Tempered(), Data(tempered(0.5), tempered(0.5)))
        (batch,) = prepared.data.val.batches(32)
        assert batch.args[1] == 0.5
        x, _ = vectors()
        torch.testing.assert_close(batch.run(prepared.graph.module()), 2 * Tempered().body(x))

    @pytest.mark.mostly_slow
    @pytest.mark.parametrize("temperature", [HALF, 0.5], ids=["tensor", "number"])
    @pytest.mark.parametrize("named", [False, True])
    def test_what_data_lack_is_the_examples(self, temperature: Any, *, named: bool) -> None:
        x, y = vectors()
        inputs = ((x[:2],), {"temperature": temperature}) if named else ((x[:2], temperature), {})
        graph = l0.capture(Tempered(), *inputs)
        data = Data(Split((x,), y), StreamSplit([(x, y)]))
        result = finetune(graph, data, {"macs": 0.6}, settings=FEW)
        # The dense scores are the body's over the temperature, by which their cross-entropy is not that of the body.
        scores = 2 * Tempered().body(x).detach()
        assert result.dense_evaluation.loss == pytest.approx(float(nn.functional.cross_entropy(scores, y)), rel=1e-5)

    def test_an_exported_program_brings_its_own(self) -> None:
        x, y = vectors()
        dims = ({0: torch.export.Dim.AUTO}, None)
        program = torch.export.export(Tempered(), (x[:2], HALF), dynamic_shapes=dims, strict=False)
        prepared = prepare(program, {"train": (x, y), "val": (x, y)})
        (batch,) = prepared.data.train.batches(32)
        torch.testing.assert_close(batch.run(prepared.graph.module()), 2 * Tempered().body(x))

    def test_a_slice_shares_them(self) -> None:
        batch = example_batch(Data(tempered(HALF), tempered(HALF)))
        assert len(batch) == 2 and torch.equal(batch.args[1], HALF)
        assert torch.equal(joined([batch, batch]).args[1], HALF) and len(joined([batch, batch])) == 4

    def test_constants_alone_are_no_data(self) -> None:
        message = "A part has a single number for input 0. Nothing was changed. Give one per sample."
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            Split((HALF, 3.0), torch.zeros(2))

    def test_one_that_is_not_finite_is_refused(self) -> None:
        broken = tempered(torch.tensor(float("nan")))
        message = "In the train part, input 1 is nan. Nothing was changed. Give a finite number."
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            prepare(Tempered(), Data(broken, broken))


class TestFingerprint:
    def of(self, part: Split) -> str:
        return data_fingerprint(Data(part, part))["train"]["sha256"]

    def test_that_of_flat_inputs_is_what_it_always_was(self) -> None:
        """The name of each tensor, its type and shape, and its bytes."""
        x, y = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0])
        for inputs, name in (((x,), "0"), ({"x": x}, "x")):
            content = [f"{name}torch.float32 (3, 2)".encode(), x.numpy().tobytes()]
            content += [b"targetstorch.int64 (3,)", y.numpy().tobytes()]
            assert self.of(Split(inputs, y)) == hashlib.sha256(b"".join(content)).hexdigest()

    def test_states_and_constants_count(self) -> None:
        x, (h, c), y = states(4)
        parts = [
            Split((x, (h, c), 0.5), y),
            Split((x, (h, c + 1), 0.5), y),
            Split((x, (c, h), 0.5), y),
            Split((x, (h, c), 0.25), y),
            Split((x, (h, c), HALF), y),
        ]
        assert len({self.of(part) for part in parts}) == len(parts)
        assert self.of(parts[0]) == self.of(Split((x.clone(), (h, c), 0.5), y))


def test_positional_and_named_inputs_stay_beside_one_another() -> None:
    whole = Batch((torch.zeros(3, 2),), {"scale": 2.0}, torch.zeros(3))
    part = Split.of(whole)
    again = part.mapped(lambda batch: replace(batch, batch_dims=(0, None))).take(slice(2))
    assert (len(again), again.kwargs, again.batch_dims) == (2, {"scale": 2.0}, (0, None))
    assert [str(place) for place in part.places()] == ["0", "scale"]


def test_a_tuple_with_targets_last_may_hold_a_state() -> None:
    x, (h, c), y = states(4)
    for content in ((x, (h, c), y), ((x, (h, c)), y)):
        part = as_split(content)
        assert isinstance(part, Split) and [str(place) for place in part.places()] == ["0", "1[0]", "1[1]"]
