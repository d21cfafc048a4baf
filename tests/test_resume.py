"""A run that goes on from any of its states ends in the same bits as one that was never stopped."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from l0compress.data import Batch, Data, DatasetSplit, Split, StreamSplit
from l0compress.errors import DivergedError, PlanError
from l0compress.gates.attach import compact, compact_again, gate
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.training.finetune import FinetuneResult, finetune
from l0compress.training.settings import FinetuneSettings, GateSettings
from l0compress.training.state_dicts import StateDict, Stateful, under

pytestmark = pytest.mark.slow

# Gates that close early, so that removals happen, between epochs and within them.
FAST = GateSettings(
    share=0.5,
    log_alpha=-2.0,
    learning_rate=1.0,
    multiplier_rate=0.5,
    compact_below=0.1,
    compact_every=1,
    compact_gain=0.0,
)
QUICK = FinetuneSettings(epochs=4, batch_size=16, learning_rate=0.01, gates=FAST)


# Gates that start open, so that the multiplier rises; a rate at which later epochs are worse.
OPEN = GateSettings(share=0.34, learning_rate=0.05, multiplier_rate=0.2, many_steps=0)
VIOLATED = replace(QUICK, epochs=6, learning_rate=0.1, seed=1, gates=OPEN)


@dataclass
class Shelf:
    """Keeps every state as the bytes that a file would hold."""

    start: StateDict | None = None
    kept: list[tuple[str, bytes]] = field(default_factory=list)

    def save_if_due_(self, state: Stateful, *, must: bool = False) -> None:
        del must
        found = state.state_dict()
        apart = {k: v.detach().clone().contiguous() for k, v in found.items() if isinstance(v, Tensor)}
        values = {name: value for name, value in found.items() if name not in apart}
        self.kept.append((json.dumps(values, allow_nan=False), save(apart)))

    def read(self, position: int) -> StateDict:
        values, tensors = self.kept[position]
        return {**json.loads(values), **load(tensors)}


def outcome(result: FinetuneResult) -> dict[str, Any]:
    """All that a run leaves but the time it took."""
    rows = [{**event.row(), "seconds": None, "seconds_left": None} for event in result.history]
    evaluations = (result.dense_evaluation, result.best_evaluation, result.best_epoch, result.last_evaluation)
    return {"history": rows, "evaluations": evaluations, "kept": result.plan.kept(), "code": result.small.module().code}


def bits(result: FinetuneResult) -> dict[str, Tensor]:
    graphs = {"small": result.small, "last": result.last, "folded": result.folded}
    return {f"{name} {key}": tensor for name, graph in graphs.items() for key, tensor in graph.state().items()}


def assert_same(again: FinetuneResult, whole: FinetuneResult) -> None:
    assert outcome(again) == outcome(whole)
    expected, found = bits(whole), bits(again)
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []


def images(num_samples: int = 64) -> Split:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(num_samples, 1, 6, 6, generator=generator)
    return Split((inputs,), (inputs.mean((1, 2, 3)) > 0).long())


def vectors(num_samples: int = 64) -> Split:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(num_samples, 8, generator=generator)
    return Split((inputs,), inputs[:, :3].argmax(1))


def conv_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.2),
        nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 2),
    )  # fmt: skip


def mlp() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))


class Tied(nn.Module):
    """One matrix read twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.inner, self.norm, self.head = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3)
        self.again = nn.Linear(8, 16)
        self.again.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x)) + torch.relu(self.again(x))
        return self.head(self.norm(hidden))


class Attending(nn.Module):
    """One block of self-attention whose dropout only one run in training mode can find."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.norm, self.qkv, self.out = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        read = F.scaled_dot_product_attention(query, key, value, dropout_p=0.2 if self.training else 0.0)
        return self.head((x + self.out(read.transpose(1, 2).flatten(2))).mean(1))


class Reading(nn.Module):
    """A recurrent layer, whose state is read at the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.read, self.head = nn.LSTM(12, 10, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(x)[0][:, -1])


class Carried(nn.Module):
    """A recurrent layer that is given the state that it begins with, and a temperature that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.cell = nn.LSTM(12, 6, batch_first=True)
        self.head = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor], temperature: Tensor) -> Tensor:
        return self.head(self.cell(x, state)[0][:, -1]) / temperature


def stateful() -> Data:
    part = sequences()
    generator = torch.Generator().manual_seed(10)
    h, c = torch.randn(2, len(part), 1, 6, generator=generator)
    with_states = Split((*part.inputs, (h, c), torch.tensor(0.5)), part.targets)
    return Data(with_states, with_states)


def sequences(num_samples: int = 64) -> Split:
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(num_samples, 5, 12, generator=generator)
    return Split((inputs,), inputs[:, :, :3].sum(1).argmax(1))


def jitter(batch: Batch, generator: torch.Generator) -> Batch:
    noise = torch.randn(batch.args[0].shape, generator=generator) / 10
    return Batch((batch.args[0] + noise,), {}, batch.targets)


def in_memory(part: Callable[[], Split]) -> Callable[[], Data]:
    return lambda: Data(part(), part(), augment=jitter)


class Drawing(Dataset):
    """Draws from every global generator when a sample is read."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(8) + float(np.random.normal()) + random.random()
        return self.split.inputs[0][index] + noise / 20, self.split.targets[index]


def loader(**options: Any) -> Callable[[], Data]:
    def make() -> Data:
        split = vectors()
        return Data(StreamSplit(DataLoader(Drawing(split), batch_size=16, shuffle=True, **options)), split)

    return make


def drawn() -> Data:
    split = vectors()
    return Data(DatasetSplit(Drawing(split), torch.arange(len(split))), split)


def own_generator() -> Data:
    """A loader whose shuffles depend on how many epochs it has seen."""
    split = vectors()
    tensors = TensorDataset(split.inputs[0], split.targets)
    generator = torch.Generator().manual_seed(11)
    return Data(StreamSplit(DataLoader(tensors, batch_size=16, shuffle=True, generator=generator)), split)


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    settings: FinetuneSettings = QUICK
    target: dict[str, float] = field(default_factory=lambda: {"params": 0.4})
    every: int = 1
    dynamic: Any = "auto"
    batch_dims: tuple[int | None, ...] = ()

    @cached_property
    def graph(self) -> CapturedGraph:
        batch = next(iter(self.data().val.batches(2)))
        return capture(self.model(), replace(batch, batch_dims=self.batch_dims).call()[0], dynamic=self.dynamic)

    def run(self, shelf: Shelf) -> FinetuneResult:
        graph = self.graph
        random.seed(7)
        np.random.seed(7)
        return finetune(graph, self.data(), self.target, settings=self.settings, checkpoints=shelf)


CASES = {
    "linear layers": Case(mlp, in_memory(vectors), replace(QUICK, epochs=6)),
    "a budget that is violated, a best epoch before the last": Case(mlp, in_memory(vectors), VIOLATED, every=3),
    "convolutions, batch norm, dropout": Case(conv_net, in_memory(images), every=3),
    "tied weights": Case(Tied, in_memory(vectors), target={"params": 0.7}, every=3),
    "attention": Case(Attending, in_memory(sequences), target={"params": 0.6}, every=4),
    "a recurrent layer": Case(Reading, in_memory(sequences), target={"params": 0.6}, every=4),
    "a state in a tuple, and a temperature": Case(
        Carried,
        stateful,
        replace(QUICK, epochs=2),
        target={"params": 0.9},
        every=4,
        dynamic={"x": 0, "state": 1},
        batch_dims=(0, 1, 1, None),
    ),
    "single weights": Case(mlp, in_memory(vectors), replace(VIOLATED, granularity="weights"), every=5),
    "channels and single weights": Case(conv_net, in_memory(images), replace(QUICK, granularity="both"), every=5),
    "SGD without clipping": Case(mlp, in_memory(vectors), replace(QUICK, optimizer="sgd", clip=None), every=3),
    "rounding as in int8": Case(conv_net, in_memory(images), replace(QUICK, quantization_aware=True), every=7),
    "rounding as in int8, single weights": Case(
        mlp, in_memory(vectors), replace(QUICK, quantization_aware=True, granularity="weights"), every=7
    ),
    "ternary weights": Case(mlp, in_memory(vectors), replace(QUICK, ternary=True), every=7),
    "dropout and DropConnect": Case(
        conv_net, in_memory(images), replace(QUICK, dropout=0.2, drop_connect=0.1), every=5
    ),
    "dropout and DropConnect, single weights": Case(
        mlp, in_memory(vectors), replace(QUICK, dropout=0.2, drop_connect=0.1, granularity="weights"), every=5
    ),
    "a penalty on activations, and units that leave in the end": Case(
        mlp, in_memory(vectors), replace(QUICK, activation_l1=0.1, learning_rate=0.05), every=5
    ),
    "several targets": Case(mlp, in_memory(vectors), VIOLATED, target={"params": 0.5, "macs": 0.4}, every=3),
    "a layer that is kept, and floors": Case(
        conv_net, in_memory(images), replace(QUICK, min_density=0.3), target={"params": 0.7}, every=3
    ),
    "a fixed penalty": Case(mlp, in_memory(vectors), target={"penalty": 1e-3}, every=3),
    "a loader that draws from global generators": Case(mlp, loader(), every=3),
    "a loader with a generator of its own": Case(mlp, own_generator, every=3),
    "a loader with workers": Case(mlp, loader(num_workers=2), replace(QUICK, epochs=2), every=4),
    "a loader whose workers live on": Case(
        mlp, loader(num_workers=1, persistent_workers=True), replace(QUICK, epochs=2), every=6
    ),
    "a data set that draws its samples": Case(mlp, drawn, every=5),
}


@pytest.mark.filterwarnings("ignore:The penalty 0.001 ")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_from_every_state_the_end_is_the_same(case: Case) -> None:
    shelf = Shelf()
    whole = case.run(shelf)
    assert len(shelf.kept) == case.settings.epochs * (4 + 1)
    for position in range(0, len(shelf.kept), case.every):
        assert_same(case.run(Shelf(shelf.read(position))), whole)


SHARED = replace(QUICK, gates=replace(FAST, fewest_steps=6))


@pytest.mark.parametrize("data", [in_memory(vectors), own_generator, loader(), loader(num_workers=2), drawn])
def test_an_epoch_may_belong_to_two_phases(data: Callable[[], Data]) -> None:
    case, shelf = Case(mlp, data, SHARED), Shelf()
    whole = case.run(shelf)
    ends = [(event.stage, event.epoch, event.step) for event in whole.history]
    finals = [("finetune", epoch, 4) for epoch in (2, 3, 4)]
    assert ends == [("gates", 1, 4), ("gates", 2, 2), *finals]
    assert len(shelf.kept) == 4 * 4 + len(ends)
    for position in (2, 5, 6, 7, 8, 9, 10, 12):
        assert_same(case.run(Shelf(shelf.read(position))), whole)


def test_two_phases_that_share_an_epoch_see_each_of_its_samples_once() -> None:
    seen: list[Tensor] = []

    def noted(batch: Batch, generator: torch.Generator) -> Batch:
        del generator
        seen.append(batch.args[0])
        return batch

    part = vectors()
    Case(mlp, lambda: Data(part, part, augment=noted), replace(SHARED, distill=False)).run(Shelf())
    assert len(seen) == 4 * 4
    for epoch in range(4):
        drawn = torch.cat(seen[4 * epoch : 4 * epoch + 4])
        assert torch.equal(drawn.sort(0).values, part.inputs[0].sort(0).values)


def test_the_states_of_a_resumed_run_are_those_of_the_whole_one() -> None:
    case, shelf = CASES["linear layers"], Shelf()
    case.run(shelf)
    for position in (0, 6, 12):
        resumed = Shelf(shelf.read(position))
        case.run(resumed)
        assert len(resumed.kept) == len(shelf.kept) - position - 1
        for (values, tensors), (values_then, tensors_then) in zip(
            resumed.kept, shelf.kept[position + 1 :], strict=True
        ):
            assert without_time(values) == without_time(values_then)
            assert tensors == tensors_then


def without_time(text: str) -> dict[str, Any]:
    values = json.loads(text)
    rows = [{**row, "seconds": 0, "seconds_left": 0} for row in values["history"]]
    return {**values, "seconds": 0, "history": rows}


def test_removals_happen_and_are_repeated() -> None:
    """Without this the tests above would say nothing of removals."""
    shelf = Shelf()
    CASES["linear layers"].run(shelf)
    cuts = [state.get("cuts", 0) for state in map(shelf.read, range(len(shelf.kept)))]
    assert max(cuts) >= 2


def test_the_budget_is_violated_and_the_best_epoch_is_not_the_last() -> None:
    """Nor of the multiplier and the best weights."""
    shelf = Shelf()
    result = CASES["a budget that is violated, a best epoch before the last"].run(shelf)
    assert shelf.read(8)["budget"]["multiplier"] > 3
    assert 0 < result.best_epoch < 4


def test_a_state_holds_no_more_than_tensors_and_json() -> None:
    shelf = Shelf()
    CASES["linear layers"].run(shelf)
    state = shelf.read(3)
    tensors = {name for name, value in state.items() if isinstance(value, Tensor)}
    assert state.keys() - tensors == {
        "stage", "epoch", "epochs", "step", "steps", "total", "seconds", "dense", "history", "budget", "cuts",
        "refused", "reading",
    }  # fmt: skip
    roots = {name.split(".")[0] for name in tensors}
    assert roots == {"network", "optimizer", "random", "augmenting", "cuts", "start", "score"}


def test_a_removal_that_leads_elsewhere_is_refused() -> None:
    gated = gate(CASES["linear layers"].graph)
    with torch.no_grad():
        gated.gates.log_alpha[8:20] = -9.0
    kept = compact(gated).kept_moves
    assert torch.equal(compact_again(gated, kept).kept_moves, kept)
    for wrong in (kept.flip(0), kept[:0], kept + 100):
        with pytest.raises(PlanError, match="gives a different network"):
            compact_again(gated, wrong)


class TestDivergence:
    """What is said when numbers break down."""

    def stopped(self, model: nn.Module, **changes: Any) -> tuple[str, Shelf]:
        shelf, data = Shelf(), in_memory(vectors)()
        settings = replace(QUICK, **changes)
        graph = capture(model, (data.train.inputs[0][:2],))
        with pytest.raises(DivergedError) as error:
            finetune(graph, data, {"params": 0.4}, settings=settings, checkpoints=shelf)
        return str(error.value), shelf

    def test_a_rate_beyond_all_measure(self) -> None:
        message, shelf = self.stopped(mlp(), learning_rate=1e38, clip=None, optimizer="sgd")
        assert "Lower the learning rate (--lr)" in message
        assert all(torch.isfinite(tensor).all() for tensor in under("network", shelf.read(-1)).values())

    def test_a_loss_beyond_all_measure(self) -> None:
        message, _ = self.stopped(mlp(), learning_rate=1e4, clip=None, optimizer="sgd", epochs=8)
        assert message.startswith(("The loss became ", "Parameter "))

    def test_the_layer_is_named(self) -> None:
        class Rooted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)

            def forward(self, x: Tensor) -> Tensor:
                # The root of what is negative: only training, with its dropped inputs, gets there.
                return self.second(torch.log(self.first(x) + 3.0))

        torch.manual_seed(0)
        model = Rooted()
        with torch.no_grad():
            model.first.weight.mul_(0.1)
        message, _ = self.stopped(model, learning_rate=0.5)
        assert message.startswith("The loss became nan at step ")
        assert "Node 'log' is the first whose output is not finite." in message

    def test_a_gradient_that_is_not_finite_is_caught_before_it_is_kept(self) -> None:
        def steep(outputs: Tensor, targets: Tensor) -> Tensor:
            del targets
            # Its value is 0 and its gradient is not a number.
            return torch.sqrt((outputs - outputs.detach()).square()).sum()

        message, shelf = self.stopped(mlp(), loss=steep, distill=False, clip=None)
        assert message.startswith("Parameter '0.weight' has values that are not finite at step 1 of epoch 1.")
        assert shelf.kept == []
