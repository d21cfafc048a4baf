"""Classes that are missing from a part, or come one after the other, are spoken of before anything is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import run_cli, save_pt2, tiny_mlp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from l0compress.data import Data, Split, StreamSplit
from l0compress.errors import DataError, DataWarning
from l0compress.graph.capture import capture
from l0compress.loading import DataSource, images, load_data
from l0compress.loading.classes import class_warnings
from l0compress.loading.splits import SHARES, shuffled_parts, stratified_order, with_val
from l0compress.pipeline.compress import compress
from l0compress.training.problem import problem_of
from l0compress.training.settings import FinetuneSettings


def labelled(*labels: int) -> Split:
    """A sample a label, which holds its label."""
    targets = torch.tensor(labels)
    return Split((targets.float().view(-1, 1).repeat(1, 8),), targets)


LABELS = st.lists(st.integers(0, 4), min_size=10, max_size=80)


class TestStratifiedSplits:
    @given(labels=LABELS, seed=st.integers(0, 99))
    def test_every_part_has_its_share_of_every_class(self, labels, seed):
        targets = torch.tensor(labels)
        parts = shuffled_parts(len(labels), "x", seed, SHARES, targets)
        assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(len(labels)))
        assert [len(index) for index in parts.values()][:2] == [int(0.6 * len(labels)), int(0.2 * len(labels))]
        for index in parts.values():
            expected = targets.bincount(minlength=5) * len(index) / len(labels)
            assert (targets[index].bincount(minlength=5) - expected).abs().max() < 2

    @given(labels=LABELS, seed=st.integers(0, 99))
    def test_the_same_seed_gives_the_same_parts_and_another_seed_others(self, labels, seed):
        targets = torch.tensor(labels)
        order = stratified_order(len(labels), seed, targets)
        assert torch.equal(order, stratified_order(len(labels), seed, targets))
        assert not torch.equal(order, stratified_order(len(labels), seed + 1, targets))

    @pytest.mark.parametrize("labels", [None, torch.arange(50)])
    def test_without_classes_it_is_a_plain_permutation(self, labels):
        plain = torch.randperm(50, generator=torch.Generator().manual_seed(3))
        assert torch.equal(stratified_order(50, 3, labels), plain)

    def test_a_validation_part_is_split_off_in_the_same_way(self):
        data = with_val({"train": labelled(*[0] * 120, *[1] * 24)}, "x", 0)
        assert data.train.targets.bincount().tolist() == [110, 22] and data.val.targets.bincount().tolist() == [10, 2]

    def test_a_class_of_one_sample_is_trained_on(self):
        data = with_val({"train": labelled(*[0] * 47, 1)}, "x", 0)
        assert data.train.targets.bincount().tolist() == [43, 1]

    def test_sorted_files_of_every_kind(self, tmp_path):
        pillow = pytest.importorskip("PIL.Image")
        labels = np.repeat([0, 1, 2], 10)
        np.savez(tmp_path / "sorted.npz", x=labels[:, None] * 1.0, y=labels)
        rows = "\n".join(f"{i}.5,{'abc'[label]}" for i, label in enumerate(labels))
        (tmp_path / "sorted.csv").write_text(f"size,hue\n{rows}\n")
        for i, label in enumerate(labels):
            (tmp_path / "pictures" / "abc"[label]).mkdir(parents=True, exist_ok=True)
            pillow.new("L", (4, 4), i).save(tmp_path / "pictures" / "abc"[label] / f"{i}.png")
        for name, column in (("sorted.npz", None), ("sorted.csv", "hue"), ("pictures", None)):
            parts = load_data(DataSource(str(tmp_path / name), target_column=column)).parts()
            counts = {part: split.targets.bincount().tolist() for part, split in parts.items()}
            assert counts == {"train": [6, 6, 6], "val": [2, 2, 2], "test": [2, 2, 2]}, name


class TestWhatIsSaid:
    def test_nothing_about_parts_that_have_all_classes_in_any_order(self):
        assert class_warnings(Data(labelled(0, 0, 1, 1, 2, 2), labelled(2, 1, 0), labelled(0, 1, 2))) == ()

    def test_nothing_about_values_and_unlabelled_data(self):
        values = Split((torch.zeros(4, 1),), torch.ones(4))
        assert class_warnings(Data(values, values)) == class_warnings(Data(Split((torch.zeros(4, 1),)), values)) == ()

    def test_a_training_part_of_one_class(self):
        message = (
            "^All samples of the train part are of class 3: there is nothing to distinguish\\. Nothing was changed\\. "
            "Give samples of the other classes \\(shuffle data sorted by class before you split them\\), or "
            "pass --no-labels to learn only from the dense model\\.$"
        )
        with pytest.raises(DataError, match=message):
            class_warnings(Data(labelled(3, 3, 3, -100), labelled(0, 1)))

    def test_a_training_part_whose_labels_are_all_ignored(self):
        with pytest.raises(DataError, match=r"^Every label of the train part is -100, which marks a sample as ignored"):
            class_warnings(Data(labelled(-100, -100), labelled(0, 1)))

    def test_parts_that_were_cut_from_sorted_data(self):
        assert class_warnings(Data(labelled(0, 0, 1, 1), labelled(2, 2), labelled(3, 4))) == (
            "All samples of the val part are of class 2, and the train part has 2 classes, so metrics on it mean "
            "little. Shuffle data sorted by class before splitting them.",
            "The train part has no sample of class 2, which the val part has: the network will unlearn it.",
            "The test part has no sample of classes 0 and 1, which the train part has: their accuracy there is "
            "unknown.",
            "The train part has no sample of classes 3 and 4, which the test part has: the network will unlearn them.",
        )

    def test_many_missing_classes_are_counted(self):
        (message,) = class_warnings(Data(labelled(*range(20)), labelled(0, 1)))
        assert message.startswith("The val part has no sample of 18 classes (2, 3, 4, 5, 6, ...), which the train part")


class TestStreams:
    def stream(self, **options) -> StreamSplit:
        x, y = torch.zeros(64, 8), torch.arange(64) // 32
        return StreamSplit(DataLoader(TensorDataset(x, y), batch_size=4, **options))

    SAID = (
        "The first 4 batches of the train part, 16 samples, are all of class 0: the stream is sorted by class, and the "
        "network unlearns each class while it sees the next. Shuffle it: DataLoader(..., shuffle=True)."
    )

    def test_a_stream_that_is_sorted(self):
        assert class_warnings(Data(self.stream(), labelled(0, 1))) == (self.SAID,)

    def test_a_stream_that_is_shuffled(self):
        assert class_warnings(Data(self.stream(shuffle=True), labelled(0, 1))) == ()

    def test_a_stream_of_hardly_any_other_class(self):
        x, y = torch.zeros(64, 8), (torch.arange(64) > 62).long()
        assert class_warnings(Data(StreamSplit(DataLoader(TensorDataset(x, y), batch_size=4)), labelled(0, 1))) == ()

    def test_a_stream_whose_samples_nobody_counted(self):
        uncounted = StreamSplit(self.stream().source, num_samples=64)
        assert uncounted.labels is None and class_warnings(Data(uncounted, labelled(0, 1))) == (self.SAID,)

    def test_a_stream_of_one_class(self):
        x, y = torch.zeros(8, 8), torch.ones(8)
        with pytest.raises(DataError, match=r"^All samples of the train part are of class 1: "):
            class_warnings(Data(StreamSplit([(x, y.long())]), labelled(0, 1)))

    def test_a_folder_that_is_streamed(self, tmp_path, monkeypatch):
        pillow = pytest.importorskip("PIL.Image")
        for part, count in (("train", 40), ("val", 1)):
            for name in ("cat", "dog")[: 1 if part == "val" else 2]:
                (tmp_path / part / name).mkdir(parents=True)
                for i in range(count):
                    pillow.new("L", (2, 2), i).save(tmp_path / part / name / f"{i}.png")
        monkeypatch.setattr(images, "IN_MEMORY_BYTES", 10)
        (message,) = class_warnings(load_data(DataSource(str(tmp_path), batch_size=4)))
        assert message.startswith("All samples of the val part are of class 0, and the train part has 2 classes")


def test_the_order_of_training_mixes_what_is_sorted():
    split = labelled(*[0] * 40, *[1] * 40)
    graph = capture(tiny_mlp(), (split.inputs[0][:2],))
    problem = problem_of(graph, Data(split, split), FinetuneSettings(batch_size=20))
    for epoch in range(3):
        shares = [float(batch.targets.double().mean()) for batch in problem.batches(problem.epoch(epoch))]
        assert len(shares) == 4 and all(0.1 < share < 0.9 for share in shares)


class TestWhereItIsSaid:
    few = FinetuneSettings(epochs=2)
    odd = Data(labelled(0, 1, 2), labelled(0, 1))
    said = "The val part has no sample of class 2, which the train part has: its accuracy there is unknown."

    def model(self) -> nn.Module:
        return tiny_mlp()

    def test_as_a_warning_where_nobody_listens(self):
        with pytest.warns(DataWarning, match=f"^{self.said}$"):
            compress(self.model(), self.odd, target={"params": 0.6}, settings=self.few)

    def test_as_the_first_event_where_somebody_does(self):
        told = []
        compress(self.model(), self.odd, target={"params": 0.6}, settings=self.few, on_event=told.append)
        assert (told[0].stage, told[0].message, told[0].epoch_done) == ("warning", self.said, False)
        assert {event.stage for event in told[1:] if event.message} == {"decided"}

    def test_one_class_is_refused_before_anything_is_computed(self):
        told = []
        with pytest.raises(DataError, match=r"^All samples of the train part are of class 0: "):
            compress(
                self.model(), Data(labelled(0, 0, 0), labelled(0, 1)), target={"params": 0.6}, on_event=told.append
            )
        assert told == []

    def test_on_the_command_line_and_in_the_run(self, tmp_path):
        save_pt2(tiny_mlp(), (torch.zeros(2, 8),), tmp_path / "mlp.pt2")
        train, val = self.odd.train, self.odd.val
        np.savez(
            tmp_path / "odd.npz", x_train=train.inputs[0], y_train=train.targets, x_val=val.inputs[0], y_val=[0, 1]
        )
        run = tmp_path / "run"
        arguments = ("--data", tmp_path / "odd.npz", "--target", "params=0.6", "--epochs", "2", "-o", run, "--json")
        outcome = run_cli("finetune", tmp_path / "mlp.pt2", *arguments)
        assert outcome.stderr.splitlines()[0] == f"Warning: {self.said}"
        assert json.loads(outcome.stdout)["warnings"] == [self.said]
        assert json.loads((run / "run.json").read_text())["about"]["warnings"] == [self.said]
        logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert [line["message"] for line in logged if line["what"] == "warning"] == [self.said]
        again = run_cli("finetune", "--resume", run, "--json")
        assert json.loads(again.stdout)["warnings"] == [self.said]
