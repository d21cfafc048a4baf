"""One scale, one score: what a number means depends neither on the order of the data nor on who prints it."""

from __future__ import annotations

import json
import math
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clouds import QUICK
from conftest import printed_json, run_cli, save_pt2
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import l0compress as l0
from l0compress.data import Data, Split, StreamSplit
from l0compress.errors import DataError, InputError
from l0compress.export.bundle import export_bundle
from l0compress.export.onnx import export_onnx
from l0compress.export.pt2 import export_pt2
from l0compress.graph.capture import capture
from l0compress.pipeline.quantizing import Origin, origin_of, score_files
from l0compress.pipeline.run_manifest import read_manifest
from l0compress.pipeline.runs import open_run
from l0compress.training import survey
from l0compress.training.evaluation import evaluate
from l0compress.training.losses import cross_entropy, objective_for
from l0compress.training.outputs import outputs_of
from l0compress.training.problem import problem_of


def regression(num_samples: int = 300) -> tuple[Tensor, Tensor]:
    """Targets that rise from sample to sample: the first batch varies least."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_samples, 8, generator=generator)
    targets = 5 * inputs[:, 0] - inputs[:, 1] + 40
    order = targets.argsort()
    return inputs[order], targets[order]


def predictor(out: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, out))


class Detector(nn.Module):
    """Boxes and scores of eight anchors, nested, and a part that an artifact names first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4))
        self.boxes, self.scores = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        features = self.body(image)
        boxes = self.boxes(features).flatten(2).unflatten(1, (2, 4)).movedim(2, -1).flatten(1, 2)
        scores = self.scores(features).flatten(2).unflatten(1, (2, 3)).movedim(2, -1).flatten(1, 2)
        return [boxes, scores.argmax(-1)], scores


class TestScale:
    def test_it_is_the_variance_of_all_targets_whatever_their_order(self) -> None:
        inputs, targets = regression()
        graph = capture(predictor(), (inputs[:2],))
        shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
        val, readings, scores = Split((inputs,), targets), [], []
        for order in (slice(None), shuffled):
            train = Split((inputs[order],), targets[order])
            problem = problem_of(graph, Data(train, val), QUICK)
            readings.append(problem.objective.reading)
            scores.append(evaluate(graph.module(), val, problem.objective).metric)
        assert readings[0].scale == pytest.approx(targets.double().numpy().var(), rel=1e-12)
        assert readings[1].scale == pytest.approx(readings[0].scale, rel=1e-12)
        predicted = outputs_of(graph.module(), val.take(slice(None))).flatten().double()
        wrong = float((predicted - targets.double()).square().sum())
        unexplained = wrong / float((targets.double() - targets.double().mean()).square().sum())
        assert scores == pytest.approx([unexplained, unexplained], rel=1e-5)

    def test_predicting_the_mean_scores_one(self) -> None:
        inputs, targets = regression()
        objective = problem_of(capture(predictor(), (inputs[:2],)), data_of(inputs, targets), QUICK).objective
        assert float(objective.score(targets.mean().expand(300, 1), targets, None)) == pytest.approx(1, rel=1e-5)

    def test_without_labels_it_is_the_variance_of_every_output_of_the_dense_model(self) -> None:
        images = torch.randn(70, 1, 8, 8) * torch.linspace(0.01, 3, 70)[:, None, None, None]
        graph = capture(Detector(), (images[:2],))
        reading = problem_of(graph, data_of(images), QUICK).objective.reading
        (boxes, _), scores = outputs_of(graph.module(), Split((images,)).take(slice(None)))
        # The first tensor that stands by itself is the main one.
        assert reading.scale == pytest.approx(float(scores.double().var(correction=0)), rel=1e-5)
        assert reading.others == pytest.approx([float(boxes.double().var(correction=0))], rel=1e-5)

    def test_an_output_that_does_not_vary_is_not_divided_by_its_rounding(self) -> None:
        moments = survey.Moments()
        moments.add_(torch.full((100,), 1e3) + 1e-4 * torch.randn(100).double())
        assert moments.scale == 1
        moments.add_(torch.tensor([math.nan, math.inf, 1e3]))
        assert moments.count == 101

    def test_a_large_part_is_sampled_evenly_and_by_a_rule(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Targets all count; the dense model runs on whole batches, every third of them here."""
        monkeypatch.setattr(survey, "MOST_SAMPLES", 100)
        inputs, targets = regression()
        batches, answered = Split((inputs,), targets), []

        def answer(batch: l0.data.Batch) -> Tensor:
            answered.append(batch.args[0])
            return batch.args[0][:, :1]

        first = next(batches.batches(10))
        assert survey.reading_of("mse", batches, answer, first=first, batch_size=10).scale == pytest.approx(
            targets.double().numpy().var()
        )
        assert len(answered) == 1
        unlabelled = survey.reading_of("mse", Split((inputs,)), answer, first=first_of(inputs), batch_size=10)
        seen = torch.cat(answered[2:])
        assert torch.equal(seen, torch.cat([inputs[start : start + 10] for start in range(0, 300, 30)]))
        assert unlabelled.scale == pytest.approx(seen[:, 0].double().numpy().var())

    def test_a_stream_gives_the_same_and_draws_nothing_from_anybody(self) -> None:
        inputs, targets = regression()
        graph, own = capture(predictor(), (inputs[:2],)), torch.Generator().manual_seed(3)
        loader = DataLoader(TensorDataset(inputs, targets), 32, shuffle=True, generator=own)
        stream, first = StreamSplit(loader, 300), first_of(inputs, targets)
        before = torch.get_rng_state(), own.get_state(), random.getstate(), np.random.get_state()[1].tolist()
        streamed = survey.reading_of(
            "auto", stream, lambda b: outputs_of(graph.module(), b), first=first, batch_size=32
        )
        after = torch.get_rng_state(), own.get_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1]) and before[2:] == after[2:]
        assert streamed.scale == pytest.approx(targets.double().numpy().var(), rel=1e-12)

    def test_a_target_that_is_not_finite_is_found_in_a_stream(self) -> None:
        inputs, targets = regression()
        targets[77] = math.nan
        stream = StreamSplit([(inputs[at : at + 50], targets[at : at + 50]) for at in range(0, 300, 50)])
        with pytest.raises(DataError) as error:
            problem_of(capture(predictor(), (inputs[:2],)), Data(stream, stream), QUICK)
        assert str(error.value) == (
            "Sample 77 of the train part has a value that is not finite in the target. Nothing was changed. Remove or "
            "repair it."
        )

    def test_a_first_batch_that_happens_to_look_like_a_softmax_decides_nothing(self) -> None:
        """Rows of an identity are distributions; the last batch is not."""
        inputs = torch.cat([torch.eye(3).repeat(30, 1), torch.randn(30, 3)])
        graph = capture(nn.Identity(), (inputs[:2],))
        reading = problem_of(graph, data_of(inputs, torch.zeros(120).long()), QUICK).objective.reading
        assert not reading.probabilities
        assert problem_of(graph, data_of(inputs[:90], torch.zeros(90).long()), QUICK).objective.reading.probabilities


def data_of(inputs: Tensor, targets: Tensor | None = None) -> Data:
    part = Split((inputs,), targets)
    return Data(part, part, part)


def first_of(inputs: Tensor, targets: Tensor | None = None) -> l0.data.Batch:
    return next(Split((inputs,), targets).batches(8))


@pytest.fixture(scope="module")
def regressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on values, by the command line."""
    folder = tmp_path_factory.mktemp("regressed")
    inputs, targets = regression()
    mixed = torch.randperm(300, generator=torch.Generator().manual_seed(2))[:60]
    np.savez(folder / "rising.npz", x_train=inputs, y_train=targets, x_test=inputs[mixed], y_test=targets[mixed])
    save_pt2(predictor(), (inputs[:2],), folder / "net.pt2")
    arguments = ("--data", folder / "rising.npz", "--target", "params=0.6", "--epochs", "3", "-o", folder / "run")
    outcome = run_cli("finetune", folder / "net.pt2", *arguments)
    (folder / "printed.txt").write_text(outcome.stdout)
    assert outcome.exit_code == 0, outcome.stderr
    return folder


@pytest.mark.slow
class TestOneScoreEverywhere:
    def test_run_bench_and_export_show_the_same_number_for_the_same_function(
        self, regressed: Path, tmp_path: Path
    ) -> None:
        run = regressed / "run"
        result = json.loads((run / "result.json").read_text())["test"]
        exported = printed_json("export", run, "--quantize", "int8", "-o", tmp_path / "int8.onnx")
        printed_json("export", run, "-o", tmp_path / "small.onnx")
        benched = printed_json("bench", tmp_path / "small.onnx", "--against", run, "--batch", "1", "--threads", "1")
        assert benched["score"] == exported["scores"]["score"] == "relative squared error"
        small = result["small"]["metric"]
        assert exported["scores"]["float"]["metric"] == pytest.approx(small, rel=1e-5)
        metrics = benched["metrics"]
        assert metrics["small"] == pytest.approx(small, rel=1e-5)
        assert metrics["dense"] == pytest.approx(result["dense"]["metric"], rel=1e-5)
        assert metrics["dense int8"] != pytest.approx(metrics["dense"], rel=1e-5)
        assert exported["scores"]["int8"]["metric"] != pytest.approx(small, rel=1e-5)

    def test_the_scale_is_kept_and_an_old_run_without_it_means_the_same(self, regressed: Path, tmp_path: Path) -> None:
        kept = read_manifest(regressed / "run").about["reading"]
        with np.load(regressed / "rising.npz") as arrays:
            # A twelfth of the training part became the validation part.
            assert kept["scale"] == pytest.approx(arrays["y_train"].astype(float).var(), rel=0.2)
        readings = {}
        for name, change in {"kept": {}, "old": None, "doubled": {"scale": 2 * kept["scale"]}}.items():
            shutil.copytree(regressed / "run", tmp_path / name)
            manifest = read_manifest(tmp_path / name)
            about = {key: value for key, value in manifest.about.items() if key != "reading"}
            replace(manifest, about=about if change is None else {**about, "reading": {**kept, **change}}).write(
                tmp_path / name
            )
            run = open_run(tmp_path / name)
            origin = origin_of(run)
            scores = score_files(origin, {"small": run.small})
            readings[name] = (origin.objective.reading.scale, scores["small"].metric)
        assert readings["old"] == readings["kept"]
        assert readings["doubled"] == pytest.approx((2 * readings["kept"][0], readings["kept"][1] / 2))

    def test_what_is_printed_says_what_it_is(self, regressed: Path) -> None:
        printed = (regressed / "printed.txt").read_text()
        scale = read_manifest(regressed / "run").about["reading"]["scale"]
        assert "test relative squared error" in printed
        assert (
            "Relative squared error: the mean squared error over the variance of the targets in the training part, "
            f"{scale:.4g}. 0 is exact, and 1 is no better than their mean."
        ) in printed

    def test_every_form_of_a_detector_has_one_score(self, tmp_path: Path) -> None:
        """Nested outputs, one of them integers: an artifact's flat names are read as the model's own nesting is."""
        torch.manual_seed(1)
        images = torch.randn(48, 1, 8, 8)
        data = data_of(images)
        result = l0.compress(Detector(), data, target={"params": 0.7}, settings=replace(QUICK, epochs=2))
        problem = problem_of(result.dense, data, QUICK)
        origin = Origin(result.dense, data, problem.objective)
        forms = {
            "dense": export_onnx(result.dense, tmp_path / "dense.onnx").path,
            "onnx": export_onnx(result.small, tmp_path / "small.onnx", reference=result.masked).path,
            "bundle": export_bundle(
                result.small, tmp_path / "small.l0c", reference=result.masked, batch_sizes=(1,)
            ).path,
            "pt2": export_pt2(result.small, tmp_path / "small.pt2", reference=result.masked).path,
        }
        scores = {name: score.metric for name, score in score_files(origin, forms).items()}
        assert scores.pop("dense") == pytest.approx(0, abs=1e-9)
        assert list(scores.values()) == pytest.approx([result.test.small.metric] * 3, rel=1e-4)
        assert result.test.small.metric > 1e-3
        assert result.reading.meaning == (
            "Relative squared error: the mean squared distance from the dense model's outputs over the variance of the "
            f"dense model's outputs in the training part, {result.reading.scale:.4g}, summed over all outputs. 0 is "
            "exact, and 1 is no better than their mean."
        )

    def test_scores_do_not_depend_on_the_temperature_of_the_training(self) -> None:
        inputs, _ = regression()
        result = l0.compress(
            Named(), data_of(inputs), target={"params": 0.6}, settings=replace(QUICK, epochs=2, final_temperature=3.0)
        )
        assert result.test is not None
        assert (result.test.small, result.test.dense) == (result.val.small, result.val.dense)
        assert result.reading.score_name == "agreement"


class Named(nn.Module):
    """Three classes under the name of their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.net = predictor(3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x)}


class TestOneLogit:
    """A network that returns one number for the classes 0 and 1."""

    inputs = torch.randn(240, 8, generator=torch.Generator().manual_seed(4))
    labels = (inputs[:, 0] + 0.3 * inputs[:, 1] > 0).long()

    def net(self, *ending: nn.Module) -> nn.Module:
        """Knows the labels, not quite."""
        net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1), *ending)
        torch.manual_seed(0)
        with torch.no_grad():
            net[0].weight.copy_(0.05 * torch.randn(6, 8))
            net[0].weight[0, 0], net[0].weight[1, 0] = 4.0, -4.0
            net[2].weight.copy_(torch.tensor([[1.0, -1.0, 0.1, 0.1, 0.1, 0.1]]))
            net[2].bias.zero_()
        return net

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32])
    @pytest.mark.parametrize("ending, flat", [((), False), ((), True), ((nn.Sigmoid(),), False)])
    def test_it_is_trained_by_binary_cross_entropy_and_scored_by_accuracy(
        self, ending: tuple[nn.Module, ...], flat: bool, dtype: torch.dtype
    ) -> None:
        net = self.net(*ending, *([nn.Flatten(0)] if flat else []))
        graph = capture(net, (self.inputs[:2],))
        data = data_of(self.inputs, self.labels.to(dtype))
        problem = problem_of(graph, data, QUICK)
        outputs = outputs_of(graph.module(), data.train.take(slice(None)))
        logits = torch.logit(outputs.flatten().double()) if ending else outputs.flatten().double()
        measured = evaluate(graph.module(), data.val, problem.objective)
        assert (problem.objective.kind, measured.metric_name) == ("binary", "accuracy")
        assert measured.metric == ((logits > 0) == self.labels.bool()).double().mean().item()
        expected = nn.functional.binary_cross_entropy_with_logits(logits, self.labels.double())
        assert measured.loss == pytest.approx(expected.item(), rel=1e-4)

    def test_the_distance_from_the_teacher_is_that_of_two_bernoullis(self) -> None:
        objective = objective_for("bce", torch.tensor([0, 1]), torch.tensor([[-3.0], [2.0]]))
        student, teacher = torch.tensor([[0.5], [1.5]]), torch.tensor([[-1.0], [2.0]])
        q, p = (torch.sigmoid(logits.double() / 2) for logits in (student, teacher))
        expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
        distance = objective.distillation(student, teacher, torch.tensor([0, 1]))
        assert float(distance) == pytest.approx(float(expected), rel=1e-5)

    def test_values_of_zero_and_one_that_are_predicted_as_values_stay_values(self) -> None:
        """A line that was fitted to the labels explains them as values, and leaves the range of a probability."""
        labels = self.labels.float()
        design = torch.cat([self.inputs, torch.ones(240, 1)], 1)
        fitted = torch.linalg.lstsq(design, labels[:, None]).solution.flatten()
        line = nn.Linear(8, 1)
        with torch.no_grad():
            line.weight.copy_(fitted[None, :8])
            line.bias.copy_(fitted[8:])
        reading = problem_of(capture(line, (self.inputs[:2],)), data_of(self.inputs, labels), QUICK).objective.reading
        assert (reading.kind, reading.scale) == ("values", pytest.approx(labels.double().var(correction=0).item()))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
    def test_what_may_be_either_is_refused_with_what_to_write(self, dtype: torch.dtype) -> None:
        line = nn.Linear(8, 1)
        with torch.no_grad():
            line.weight.fill_(0.0)
            line.weight[0, 5], line.bias[0] = 3.0, 0.0
        graph, data = capture(line, (self.inputs[:2],)), data_of(self.inputs, self.labels.to(dtype))
        lowest, highest = (f"{float(bound):.3g}" for bound in (3 * self.inputs[:, 5]).aminmax())
        with pytest.raises(InputError) as error:
            problem_of(graph, data, QUICK)
        assert str(error.value) == (
            f"The labels are 0 and 1, and the model returns one number per sample, from {lowest} to {highest}, which "
            "may be a logit or a value. Nothing was changed. Pass --loss bce if it is a logit, or --loss mse if it is "
            "a value."
        )
        assert problem_of(graph, data, replace(QUICK, loss="bce")).objective.kind == "binary"

    def test_a_whole_run_stays_within_its_budget_and_knows_the_labels(self) -> None:
        data = data_of(self.inputs, self.labels.int())
        result = l0.compress(self.net(), data, target={"params": 0.6}, settings=replace(QUICK, epochs=4))
        assert result.reading.kind == "binary" and result.test is not None
        assert result.test.dense.metric > 0.85 and result.test.small.metric > 0.85

    def test_counts_are_no_labels_of_one_logit(self) -> None:
        counts = self.labels.clone()
        counts[7] = 5
        with pytest.raises(DataError) as error:
            l0.compress(self.net(), data_of(self.inputs, counts), target={"params": 0.6}, settings=QUICK)
        assert str(error.value) == (
            "Label 5 of sample 7 in the train part is out of range: the model returns one score per label, so labels "
            "are 0 to 1. Nothing was changed. Give labels of the model's classes; -100 leaves a sample out."
        )

    def test_cross_entropy_of_one_score_says_what_to_write(self) -> None:
        settings = replace(QUICK, loss="cross-entropy")
        with pytest.raises(DataError) as error:
            l0.compress(self.net(), data_of(self.inputs, self.labels), target={"params": 0.6}, settings=settings)
        assert str(error.value) == (
            "The model returns one score per label, (2, 1) for (2,), but cross-entropy takes one per class. Nothing "
            "was changed. For labels of 0 and 1 pass --loss bce."
        )


class TestLabels:
    inputs = torch.randn(128, 8, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(128) % 3

    @pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int8])
    def test_whole_numbers_of_any_type_are_classes_and_give_the_same_bits(self, dtype: torch.dtype) -> None:
        graph = capture(predictor(3), (self.inputs[:2],))
        found = []
        for labels in (self.labels, self.labels.to(dtype)):
            data, network = data_of(self.inputs, labels), graph.module()
            problem = problem_of(graph, data, QUICK)
            torch.manual_seed(0)  # of the dropped inputs
            problem.loss(network, data.train.take(slice(0, 40))).backward()
            gradients = [parameter.grad for parameter in network.parameters()]
            found.append((evaluate(network, data.val, problem.objective), gradients))
        assert found[0][0] == found[1][0] and found[0][0].metric_name == "accuracy"
        assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))

    @pytest.mark.parametrize("wrong", [3, -1])
    def test_a_label_out_of_range_is_found_in_a_stream_before_training(self, wrong: int) -> None:
        labels = self.labels.clone()
        labels[101] = wrong
        stream = StreamSplit([(self.inputs[at : at + 32], labels[at : at + 32]) for at in range(0, 128, 32)])
        events: list[object] = []
        with pytest.raises(DataError) as error:
            l0.compress(predictor(3), Data(stream, stream), target={"params": 0.6}, on_event=events.append)
        assert str(error.value) == (
            f"Label {wrong} of sample 101 in the train part is out of range: the model has 3 outputs, so labels are 0 "
            "to 2. Nothing was changed. Give labels of the model's classes; -100 leaves a sample out."
        )
        assert not events

    def test_a_label_that_comes_later_is_named_where_it_comes(self) -> None:
        with pytest.raises(DataError) as error:
            cross_entropy(torch.zeros(4, 3), torch.tensor([0, 1, 3, 2]))
        assert str(error.value) == (
            "Label 3 of sample 2 of a batch is out of range: the model has 3 classes, so labels are 0 to 2. Give "
            "labels of the model's classes; -100 leaves a sample out; for regression pass --loss mse."
        )

    def test_a_batch_in_which_no_label_counts_teaches_nothing(self) -> None:
        logits = torch.randn(2, 3, requires_grad=True)
        objective = objective_for("auto", torch.tensor([0, 1]), logits.detach())
        loss = objective.loss(logits, torch.tensor([-100, -100]), torch.randn(2, 3))
        loss.backward()
        assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


class TestBatchesOfOneSample:
    """A variance of one number is not defined, and would make NaN of the running statistics."""

    @pytest.mark.parametrize("gated", [False, True])
    def test_training_mode_refuses_as_pytorch_does(self, gated: bool) -> None:
        model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        graph = capture(model, (torch.randn(2, 8),))
        network = (l0.gate(graph) if gated else graph.module()).train()
        with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training"):
            model.train()(torch.randn(1, 8))
        with pytest.raises(InputError) as error:
            network(torch.randn(1, 8))
        assert str(error.value) == (
            "Expected more than 1 value per channel when training, got an input of shape (1, 6) for a batch norm. "
            "Nothing was changed. Give batches of two samples or more, or call .eval() first."
        )
        network(torch.randn(2, 8))
        assert all(torch.isfinite(buffer).all() for _, buffer in network.named_buffers() if buffer.is_floating_point())
        assert torch.isfinite(network.eval()(torch.randn(1, 8))).all()

    def test_many_values_of_one_sample_are_fine(self) -> None:
        graph = capture(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), (torch.randn(2, 1, 6, 6),))
        assert torch.isfinite(graph.module().train()(torch.randn(1, 1, 6, 6))).all()

    def test_batches_of_one_are_refused_before_training(self) -> None:
        model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        data = data_of(torch.randn(32, 8), torch.arange(32) % 3)
        with pytest.raises(DataError) as error:
            l0.compress(model, data, target={"params": 0.6}, settings=replace(QUICK, batch_size=1))
        assert str(error.value) == (
            "Every training batch has one sample, and the model has a batch norm with one value per channel and "
            "sample, so its variance is undefined. Nothing was changed. Pass --batch-size 2 or more, for at least two "
            "training samples."
        )

    def test_a_streams_last_sample_is_passed_over(self) -> None:
        model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        inputs, labels = torch.randn(33, 8), torch.arange(33) % 3
        stream = StreamSplit([(inputs[at : at + 8], labels[at : at + 8]) for at in range(0, 33, 8)])
        settings = replace(QUICK, epochs=2, batch_size=1)
        result = l0.compress(model, Data(stream, stream), target={"params": 0.8}, settings=settings)
        assert all(bool(tensor.isfinite().all()) for tensor in result.small.state().values())


@pytest.mark.slow
def test_two_runs_in_threads_give_what_they_give_alone() -> None:
    """One generator belongs to the whole process: runs at the same time take turns."""
    inputs, labels = TestLabels.inputs, TestLabels.labels

    def run(seed: int) -> dict[str, Tensor]:
        settings = replace(QUICK, epochs=2, seed=seed)
        return l0.compress(
            predictor(3), data_of(inputs, labels), target={"params": 0.6}, settings=settings
        ).small.state()

    alone = [run(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(run, (1, 2)))
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
