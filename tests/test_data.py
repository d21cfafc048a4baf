"""Splits yield batches: in memory or streamed, in order or shuffled by a seed."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from l0compress.data import Batch, Data, Split, StreamSplit, as_batch, example_batch
from l0compress.errors import DataError, InputError, PenaltyWarning
from l0compress.graph.capture import capture
from l0compress.loading.datasets import as_data
from l0compress.pipeline.compress import compress
from l0compress.pipeline.sources import prepare
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings


def numbered(num_samples: int) -> Split:
    """Sample i holds the number i, and so does its target."""
    return Split((torch.arange(float(num_samples)).view(-1, 1),), torch.arange(num_samples))


def seen(batches) -> list[int]:
    return [int(value) for batch in batches for value in batch.targets]


@given(num_samples=st.integers(1, 40), batch_size=st.integers(1, 12), seed=st.none() | st.integers(0, 2**32))
def test_an_epoch_yields_every_sample_once_with_its_own_target(num_samples, batch_size, seed):
    batches = list(numbered(num_samples).batches(batch_size, seed=seed))
    assert sorted(seen(batches)) == list(range(num_samples))
    assert all(torch.equal(batch.args[0].flatten().long(), batch.targets) for batch in batches)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_without_a_seed_the_order_is_kept():
    assert seen(numbered(7).batches(3)) == list(range(7))


def test_a_seed_fixes_the_order_and_another_seed_changes_it():
    split = numbered(50)
    assert seen(split.batches(8, seed=1)) == seen(split.batches(8, seed=1))
    assert seen(split.batches(8, seed=1)) != seen(split.batches(8, seed=2))


def test_shuffling_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    list(numbered(20).batches(4, seed=3))
    list(StreamSplit(DataLoader(TensorDataset(torch.zeros(20, 1)), batch_size=4)).batches(4, seed=3))
    assert torch.equal(torch.get_rng_state(), before) is True


@given(num_samples=st.integers(1, 40), batch_size=st.integers(1, 12))
def test_drop_last_leaves_only_whole_batches_unless_there_is_but_one(num_samples, batch_size):
    lengths = [len(batch) for batch in numbered(num_samples).batches(batch_size, drop_last=True)]
    assert lengths == [batch_size] * (num_samples // batch_size) or lengths == [num_samples]


def test_keyword_inputs_stay_keywords():
    split = Split({"ids": torch.arange(6).view(3, 2), "mask": torch.ones(3, 2)}, torch.arange(3))
    (batch,) = split.batches(3)
    assert batch.args == () and set(batch.kwargs) == {"ids", "mask"} and len(batch) == 3


def test_inputs_and_targets_of_different_lengths_are_refused():
    message = "Inputs and targets have different numbers of samples (input 0: 3, the targets: 4)."
    with pytest.raises(DataError, match=re.escape(message)):
        Split((torch.zeros(3, 2),), torch.zeros(4))


def test_no_samples_are_refused():
    with pytest.raises(DataError, match=r"^The data has no samples\.$"):
        Split((torch.zeros(0, 2),))


def loader(**options) -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(10.0).view(-1, 1), torch.arange(10)), batch_size=4, **options)


def test_a_stream_keeps_its_own_batches_and_counts_its_samples():
    split = StreamSplit(loader())
    assert len(split) == 10
    assert [len(batch) for batch in split.batches(64)] == [4, 4, 2]
    assert [len(batch) for batch in split.batches(64, drop_last=True)] == [4, 4]


def test_a_shuffling_loader_follows_the_seed():
    split = StreamSplit(loader(shuffle=True))
    first, again, other = (seen(split.batches(4, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == list(range(10))


def test_a_one_shot_iterator_is_refused():
    message = "The data is an iterator that is used up after one epoch. Give a DataLoader or a list of batches."
    with pytest.raises(DataError, match=re.escape(message)):
        StreamSplit(iter([(torch.zeros(1), torch.zeros(1))]))


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
def test_targets_of_a_dict_are_found_by_name(key):
    batch = as_batch({"x": torch.zeros(2, 3), key: torch.tensor([1, 0])})
    assert list(batch.kwargs) == ["x"] and batch.targets is not None and batch.targets.tolist() == [1, 0]


def test_several_inputs_come_before_the_target():
    batch = as_batch((torch.zeros(2, 3), torch.ones(2, 4), torch.tensor([1, 0])))
    assert [tensor.shape[1] for tensor in batch.args] == [3, 4]


@pytest.mark.parametrize("kind", [tuple, list])
def test_inputs_may_stand_together_before_the_target(kind):
    x1, x2, y = torch.zeros(2, 3), torch.ones(2, 4), torch.tensor([1, 0])
    batch = as_batch(kind([(x1, x2), y]))
    assert [tensor.shape[1] for tensor in batch.args] == [3, 4] and batch.targets is y
    batch = as_batch(kind([{"a": x1, "b": x2}, y]))
    assert (list(batch.kwargs), batch.args) == (["a", "b"], ()) and batch.targets is y


def test_arrays_are_tensors():
    for inputs in ((X.numpy(),), [X], {"a": X.numpy()}):
        split = Split(inputs, Y.numpy())
        batch = split.take(slice(0, 2))
        assert all(isinstance(x, torch.Tensor) for x in (*batch.args, *batch.kwargs.values(), batch.targets))
    assert Split((X,), Y).inputs[0] is X


def test_a_tensor_without_its_tuple_is_refused():
    with pytest.raises(DataError, match=r"^The inputs of a part are Tensor, .* Pass \(x,\) for x\.$"):
        Split(X, Y)  # pyright: ignore[reportArgumentType]


def test_a_loader_alone_is_no_part():
    message = r"^The val part is DataLoader, but must be a Split or a StreamSplit\. .* StreamSplit\(loader\)"
    with pytest.raises(DataError, match=message):
        Data(Split((X,), Y), DataLoader(TensorDataset(X, Y)))  # pyright: ignore[reportArgumentType]


def test_what_is_no_batch_is_refused():
    message = (
        "The data yields str, which is not a batch. Yield (x, y), (x1, x2, y), ((x1, x2), y), ({'name': x}, y), a "
        "tensor, or a dict of tensors."
    )
    with pytest.raises(DataError, match=re.escape(message)):
        as_batch("x")


def test_the_example_is_the_first_samples_in_order():
    data = Data(numbered(9), numbered(3))
    assert example_batch(data).targets.tolist() == [0, 1]
    assert example_batch(Data(StreamSplit(loader()), numbered(3))).targets.tolist() == [0, 1]


def test_a_batch_moves_to_a_device_whole():
    batch = Batch((torch.zeros(2),), {"m": torch.zeros(2)}, torch.zeros(2)).to("meta")
    assert {batch.args[0].device.type, batch.kwargs["m"].device.type, batch.targets.device.type} == {"meta"}


X, Y = torch.zeros(6, 3), torch.tensor([0, 1] * 3)


@pytest.mark.parametrize(
    ("part", "inputs"),
    [
        ((X, Y), (X,)),
        ((X.numpy(), Y.numpy()), (X,)),
        ((X.tolist(), Y.tolist()), (X,)),
        (((X, X), Y), (X, X)),
        (({"a": X, "b": X}, Y), {"a": X, "b": X}),
        ({"a": X, "y": Y}, {"a": X}),
        ({"a": X, "labels": Y}, {"a": X}),
    ],
)
def test_parts_that_a_function_returns(part, inputs):
    split = as_data({"train": part, "val": part}, name="m:f").train
    assert isinstance(split, Split) and split.targets is not None and torch.equal(split.targets, Y)
    assert type(split.inputs) is type(inputs)
    for got, expected in zip(tree_leaves(split.inputs), tree_leaves(inputs), strict=True):
        assert torch.equal(got, expected)


def test_two_batches_are_no_part_of_tensors():
    split = as_data({"train": ((X, Y), (X, Y)), "val": (X, Y)}, name="m:f").train
    assert isinstance(split, StreamSplit) and len(split) == 12


class TestBeforeAnythingIsTrained:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

    @pytest.mark.parametrize("part", ["val", "test"])
    def test_a_part_of_another_shape(self, part):
        parts = {"train": Split((X,), Y), "val": Split((X,), Y), part: Split((torch.zeros(4, 5),), Y[:4])}
        message = (
            rf"^The model cannot run on the {part} part \(.+\)\. Its samples have the shape \(5,\), those of the train "
            r"part \(3,\)\. Nothing was changed\. Give all parts the shape that the model takes\.$"
        )
        with pytest.raises(DataError, match=message):
            prepare(self.model, Data(**parts))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_weights_that_are_too_coarse(self, dtype):
        part = Split((X.to(dtype),), Y)
        message = rf"the model's '0\.weight' is {str(dtype)[6:]}, but training requires float32\. .*model\.float\(\)"
        with pytest.raises(InputError, match=message):
            prepare(copy.deepcopy(self.model).to(dtype), Data(part, part))

    @pytest.mark.parametrize(
        ("loss", "said"),
        [
            (
                lambda outputs, _: outputs["logits"],
                r"cannot be computed on .* \(.*\)\. Nothing was changed\. It is called",
            ),
            (lambda outputs, _: outputs, r"returns torch\.float32 \(2, 2\)\. Nothing was changed\. Return a floating"),
            (lambda *_: 1.0, r"returns float\. Nothing was changed\. Return a floating-point tensor with one number"),
        ],
    )
    def test_a_loss_that_is_none(self, loss, said):
        part = Split((X,), Y)
        with pytest.raises(InputError, match=rf"^The loss '<lambda>' {said}"):
            prepare(self.model, Data(part, part), loss=loss)

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            (
                {"data": 3},
                r"^'data' must return Data or a dict with 'train', 'val' and optionally 'test', but returns int\.",
            ),
            ({"target": 0.5}, r"The target is 0\.5, but must be a unit with a number\."),
            ({"target": {"params": "half"}}, r"Target 'params=half': 'half' is str, but must be a number\."),
            ({"settings": {"epochs": 2}}, r"settings is dict, but must be FinetuneSettings\."),
            ({"model": "net.pt"}, r"the model is str, but must be an nn\.Module or an ExportedProgram\."),
        ],
    )
    def test_arguments_of_another_type(self, wrong, said):
        given = {"model": self.model, "data": {"train": (X, Y), "val": (X, Y)}, "target": {"params": 0.5}, **wrong}
        with pytest.raises(InputError, match=said):
            compress(**given)

    @pytest.mark.parametrize("target", ["params=0.8", {"params": 0.8}, "params=36"])
    def test_a_target_is_written_as_on_the_command_line(self, target):
        if target == "params=36":
            with pytest.raises(
                InputError, match=r"^Target 'params=36' is out of range\. A fraction of the dense model"
            ):
                compress(self.model, {"train": (X, Y), "val": (X, Y)}, target=target)
            return
        few = FinetuneSettings(epochs=2)
        result = compress(self.model, {"train": (X, Y), "val": (X, Y)}, target=target, settings=few)
        assert (str(result.target), result.reached <= 40) == ("params=0.8", True)

    def test_a_target_of_finetune_is_text_too(self):
        part = Split((X,), Y)
        graph, few = capture(self.model, (X[:2],)), FinetuneSettings(epochs=2)
        text, mapping = (
            finetune(graph, Data(part, part), target, settings=few) for target in ("macs=0.8", {"macs": 0.8})
        )
        assert text.plan.kept() == mapping.plan.kept() and text.last_evaluation == mapping.last_evaluation
        with pytest.warns(PenaltyWarning, match=r"^The penalty 1e-06 "):
            whole = finetune(graph, Data(part, part), "penalty=1e-6", settings=few)
        assert bool(whole.plan.keep.all())

    def test_parts_may_be_a_dict(self):
        data = prepare(self.model, {"train": (X, Y), "val": (X, Y)}).data
        assert torch.equal(data.train.inputs[0], X) and torch.equal(data.val.targets, Y)
