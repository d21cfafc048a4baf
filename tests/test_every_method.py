"""What holds for every method by name: its budget, its refusals, its bits, and what it does after it was stopped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from clouds import QUICK, blobs, trained_mlp
from test_resume import Shelf, assert_same

from l0compress.data import Data
from l0compress.errors import InputError
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.graph.cut.masked import masked
from l0compress.graph.groups.cost import cost
from l0compress.graph.groups.weights import nonzero_cost
from l0compress.training.finetune import FinetuneResult, finetune
from l0compress.training.methods import METHODS, OF_WEIGHTS
from l0compress.training.settings import METHOD_NAMES, TRAINED_METHODS
from l0compress.verification.calls import Call
from l0compress.verification.equality import verify

SHORT = replace(QUICK, epochs=2, batch_size=64, trials=5)
BUDGET = {"params": 0.4}
ONLY_WEIGHTS = ("layer-magnitude",)
GATED = ("l0", "hybrid")
STRUCTURED = tuple(name for name in METHOD_NAMES if name not in ONLY_WEIGHTS)
WEIGHTS = tuple(dict.fromkeys((*(name for name in METHOD_NAMES if name in GATED), *OF_WEIGHTS, *ONLY_WEIGHTS)))
BOTH = tuple(name for name in WEIGHTS if name in GATED or name not in TRAINED_METHODS)
CASES = [
    *((name, "structured") for name in STRUCTURED),
    *((name, "weights") for name in WEIGHTS),
    *((name, "both") for name in BOTH),
]


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(blobs(128), blobs(64, seed=1))


@pytest.fixture(scope="module")
def graph(data: Data) -> CapturedGraph:
    return capture(trained_mlp(data.train), (data.train.inputs[0][:2],))


def run(
    graph: CapturedGraph, data: Data, method: str, granularity: str, shelf: Shelf | None = None, **changes
) -> FinetuneResult:
    settings = replace(SHORT, method=method, granularity=granularity, **changes)
    return finetune(graph, data, BUDGET, settings=settings, checkpoints=shelf)


def test_every_name_has_a_method_and_every_method_of_weights_a_name() -> None:
    assert tuple(METHODS) == METHOD_NAMES
    assert set(OF_WEIGHTS) | set(TRAINED_METHODS) <= set(METHOD_NAMES)


@pytest.mark.mostly_slow
@pytest.mark.parametrize(
    ("method", "granularity", "epochs"),
    # A single epoch is divided between what decides in training and what comes after it.
    [(*case, 2) for case in CASES] + [(*case, 1) for case in CASES if case[0] in TRAINED_METHODS],
)
def test_the_budget_is_met_and_a_run_that_was_stopped_anywhere_ends_in_the_same_bits(
    graph, data, method, granularity, epochs
):
    shelf = Shelf()
    whole = run(graph, data, method, granularity, shelf, epochs=epochs)
    counted = cost if granularity == "structured" else nonzero_cost
    used, most = counted(whole.small).params, int(0.4 * cost(graph).params)
    assert used == most if granularity != "structured" else 0.9 * most < used <= most
    assert {event.epoch for event in whole.history} == set(range(1, epochs + 1))
    call = Call(data.val.take(slice(0, 9)).args)
    assert verify(whole.small, masked(whole.folded, whole.plan), inputs=[call]).max_relative < 1e-6
    # A state after every step of two, one at the end of each epoch, and those of a search before.
    for position in sorted({0, 1, len(shelf.kept) // 2, len(shelf.kept) - 2}):
        resumed = run(graph, data, method, granularity, Shelf(shelf.read(position)), epochs=epochs)
        assert_same(resumed, whole)


@pytest.mark.parametrize("method", [name for name in STRUCTURED if name not in WEIGHTS])
def test_what_decides_on_channels_alone_says_so(graph, data, method):
    with pytest.raises(InputError) as error:
        run(graph, data, method, "weights")
    assert str(error.value) == (
        f"Method {method!r} decides on channels, heads and units, not on single weights. Nothing was changed. Pass "
        "--granularity structured, or --method l0 or magnitude for single weights."
    )


@pytest.mark.parametrize("method", [name for name in WEIGHTS if name not in BOTH])
def test_channels_and_weights_at_once_are_for_gates_and_scores(graph, data, method):
    with pytest.raises(InputError, match=r"not on 'both'\. Nothing was changed\. Pass --granularity structured or"):
        run(graph, data, method, "both")


def needing_epochs() -> list[tuple[str, str]]:
    return [case for case in CASES if case[0] in TRAINED_METHODS and case[0] not in GATED]


@pytest.mark.parametrize(("method", "granularity"), needing_epochs())
def test_what_trains_to_decide_needs_epochs(graph, data, method, granularity):
    with pytest.raises(InputError) as error:
        run(graph, data, method, granularity, epochs=0)
    assert str(error.value) == (
        f"In 0 steps method {method!r} trains nothing, so it has nothing to decide by. Nothing was changed. Pass "
        "more --epochs, or a method that decides before training, such as --method magnitude."
    )


@pytest.mark.parametrize("method", [name for name in STRUCTURED if name not in TRAINED_METHODS])
def test_what_decides_before_training_needs_neither_epochs_nor_labels(graph, method):
    unlabelled = Data(blobs(128, labels=False), blobs(64, labels=False, seed=1))
    result = run(graph, unlabelled, method, "structured", epochs=0)
    assert cost(result.small).params <= 0.4 * cost(graph).params
    assert bool(torch.isfinite(torch.tensor(result.last_evaluation.loss)))
