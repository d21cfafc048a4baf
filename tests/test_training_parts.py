"""What the training loop is made of: losses, optimizers, batch norm, evaluation, dropout of inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from clouds import QUICK
from torch import Tensor, nn

from l0compress.data import Batch, Data, Split, StreamSplit
from l0compress.errors import DataError, InputError
from l0compress.graph.capture import CapturedGraph, capture
from l0compress.training.evaluation import Evaluation, evaluate
from l0compress.training.final_phase import FinalPhase
from l0compress.training.finetune import finetune
from l0compress.training.input_dropout import drop_inputs, dropout
from l0compress.training.losses import cross_entropy, kl_divergence, logits_of, mse, objective_for
from l0compress.training.optim import carry_state_, cosine, weight_optimizer
from l0compress.training.problem import problem_of
from l0compress.training.rates import ATTENTION_RATE, FULL_STEPS, learning_rate_for, typical_width
from l0compress.training.recalibrate import recalibrate
from l0compress.training.settings import PLAIN_RATE
from l0compress.training.teacher import outgrown


class TestLosses:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
    teacher = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 1.0]])

    def test_kl_divergence_is_the_textbook_sum(self):
        for temperature in (1.0, 2.0):
            p = torch.softmax(self.teacher / temperature, -1)
            q = torch.softmax(self.logits / temperature, -1)
            expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
            assert kl_divergence(self.logits, self.teacher, temperature=temperature).item() == pytest.approx(
                expected.item(), rel=1e-5
            )

    def test_ignored_labels_count_for_neither_loss(self):
        targets = torch.tensor([0, -100])
        assert torch.isclose(cross_entropy(self.logits, targets), F.cross_entropy(self.logits[:1], targets[:1]))
        both = kl_divergence(self.logits, self.teacher, temperature=2.0, targets=targets)
        assert torch.isclose(both, kl_divergence(self.logits[:1], self.teacher[:1], temperature=2.0))

    def test_sequences_and_pixels_are_classified_position_by_position(self):
        sequence, targets = torch.randn(2, 5, 4), torch.randint(4, (2, 5))
        expected = F.cross_entropy(sequence.reshape(10, 4), targets.reshape(10))
        assert torch.isclose(cross_entropy(sequence, targets), expected)
        assert torch.isclose(cross_entropy(sequence.movedim(-1, 1), targets), expected)

    def test_outputs_may_be_a_tensor_a_tuple_or_a_mapping(self):
        for outputs in (self.logits, (self.logits, None), [self.logits], {"hidden": None, "logits": self.logits}):
            assert logits_of(outputs) is self.logits

    def test_outputs_without_a_tensor_are_refused(self):
        with pytest.raises(DataError, match="The model returns dict with no tensor in it, so no loss can be computed"):
            logits_of({"hidden": None})

    def test_shapes_that_do_not_fit_are_refused_with_both_shapes(self):
        with pytest.raises(DataError, match=r"output of shape \(2, 3\) does not fit class labels of shape \(3,\)"):
            cross_entropy(self.logits, torch.tensor([0, 1, 2]))
        with pytest.raises(DataError, match=r"predicts values of shape \(2, 3\), but the targets have shape \(2,\)"):
            mse(self.logits, torch.tensor([0.0, 1.0]))

    def test_the_loss_is_half_task_and_half_distillation(self):
        targets = torch.tensor([0, 1])
        objective = objective_for("auto", targets, self.teacher)
        expected = 0.5 * F.cross_entropy(self.logits, targets) + 0.5 * kl_divergence(
            self.logits, self.teacher, temperature=2.0
        )
        assert torch.isclose(objective.loss(self.logits, targets, self.teacher), expected)

    def test_outputs_beside_the_first_are_taught_by_the_dense_model(self):
        """Each by its squared error over the variance of the dense model's."""
        box, dense_box = torch.randn(2, 4), 3 * torch.randn(2, 4)
        targets = torch.tensor([0, 1])
        student, teacher = {"logits": self.logits, "boxes": [box]}, {"logits": self.teacher, "boxes": [dense_box]}
        objective = objective_for("auto", targets, teacher)
        alone = objective_for("auto", targets, self.teacher).distillation(self.logits, self.teacher, targets)
        expected = alone + ((box - dense_box) ** 2).mean() / dense_box.var(correction=0)
        assert torch.isclose(objective.distillation(student, teacher, targets), expected)

    @pytest.mark.parametrize("targets", [torch.tensor([0, 1]), None])
    def test_probabilities_are_taught_as_the_logits_that_they_came_from(self, targets):
        student, teacher = self.logits.softmax(1), self.teacher.softmax(1)
        objective = objective_for("cross-entropy", targets, teacher)
        expected = objective_for("cross-entropy", targets, self.teacher).loss(self.logits, targets, self.teacher)
        assert objective.probabilities
        assert torch.isclose(objective.loss(student, targets, teacher), expected)
        assert torch.isfinite(objective.loss(torch.eye(3)[:2], targets, teacher))

    def test_what_may_be_classes_or_values_is_compared_as_both(self):
        """An offset of a whole row is nothing to a class, and everything to a reconstruction."""
        objective = objective_for("auto", None, self.teacher)
        assert objective.kind == "classes"
        expected = kl_divergence(self.logits, self.teacher, temperature=2.0)
        expected = expected + F.mse_loss(self.logits, self.teacher) / self.teacher.var(correction=0)
        assert torch.isclose(objective.distillation(self.logits, self.teacher), expected)
        assert objective.distillation(self.teacher + 1, self.teacher) > 0.5

    def test_auto_chooses_by_targets_and_outputs(self):
        assert objective_for("auto", torch.tensor([0, 1]), self.logits).kind == "classes"
        assert objective_for("auto", torch.tensor([0.0, 1.0]), torch.zeros(2, 1)).kind == "values"
        assert objective_for("auto", None, {"logits": self.logits}).kind == "classes"
        assert objective_for("auto", None, {"last_hidden_state": torch.zeros(2, 4, 8)}).kind == "values"

    def test_an_unknown_loss_is_refused(self):
        with pytest.raises(InputError) as error:
            objective_for("hinge", None, self.logits)
        assert str(error.value) == (
            "Unknown loss 'hinge': expected one of auto, cross-entropy, bce, mse, or a function of (outputs, targets). "
            "Nothing was changed."
        )


class TestOptimizer:
    def test_sliced_state_continues_as_if_the_rest_had_never_been_there(self):
        """Adam is elementwise: training a whole matrix and cutting it equals training the cut one all along."""
        torch.manual_seed(0)
        keep = (torch.tensor([0, 2]), torch.tensor([1, 3, 4]))
        whole = nn.Parameter(torch.randn(4, 5))
        part = nn.Parameter(whole.detach()[keep[0]][:, keep[1]].clone())
        settings = {"learning_rate": 0.01, "weight_decay": 0.1}
        whole_optimizer, part_optimizer = (weight_optimizer({"w": p}, "adamw", **settings) for p in (whole, part))
        gradients = torch.randn(6, 4, 5)
        for gradient in gradients[:3]:
            whole.grad, part.grad = gradient, gradient[keep[0]][:, keep[1]]
            whole_optimizer.step()
            part_optimizer.step()
        cut = nn.Parameter(whole.detach()[keep[0]][:, keep[1]].clone())
        cut_optimizer = weight_optimizer({"w": cut}, "adamw", **settings)
        carry_state_(cut_optimizer, whole_optimizer, {"w": (whole, cut)}, {"w": keep})
        for gradient in gradients[3:]:
            cut.grad, part.grad = gradient[keep[0]][:, keep[1]], gradient[keep[0]][:, keep[1]].clone()
            cut_optimizer.step()
            part_optimizer.step()
        assert torch.equal(cut, part)

    def test_vectors_are_not_decayed(self):
        matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
        optimizer = weight_optimizer({"m": matrix, "v": vector}, "sgd", learning_rate=0.1, weight_decay=0.5)
        matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
        optimizer.step()
        assert torch.equal(vector, torch.ones(2)) and (matrix < 1).all()

    def test_the_schedule_is_a_cosine_after_a_linear_warmup(self):
        assert cosine(0.55, floor=0.2, warmup=0.1) == pytest.approx(0.2 + 0.8 * 0.5)
        assert (cosine(0.0, warmup=0.1), cosine(1.0), cosine(1.5)) == (0.0, 0.0, 0.0)


class TestBatchNorm:
    def graph(self) -> CapturedGraph:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 3))
        return capture(model, (torch.zeros(2, 2, 8, 8),))

    def test_statistics_become_the_means_over_the_batches(self):
        graph = self.graph()
        batches = [Batch((torch.randn(16, 2, 8, 8) * scale + 1,), {}) for scale in (1.0, 2.0, 3.0)]
        state = recalibrate(graph, batches).state()
        conv = [F.conv2d(batch.args[0], graph.state()["0.weight"], graph.state()["0.bias"]) for batch in batches]
        means = torch.stack([out.mean((0, 2, 3)) for out in conv]).mean(0)
        variances = torch.stack([out.var((0, 2, 3)) for out in conv]).mean(0)
        assert torch.allclose(state["1.running_mean"], means, atol=1e-5)
        assert torch.allclose(state["1.running_var"], variances, atol=1e-4)

    def test_everything_else_stays(self):
        graph = self.graph()
        before = {name: tensor.clone() for name, tensor in graph.state().items()}
        after = recalibrate(graph, [Batch((torch.randn(4, 2, 8, 8),), {})]).state()
        assert {name for name in before if not torch.equal(before[name], after[name])} == {
            "1.running_mean", "1.running_var"
        }  # fmt: skip
        assert all(torch.equal(tensor, before[name]) for name, tensor in graph.state().items())

    def test_a_graph_without_statistics_is_returned_as_it_is(self, graph):
        assert recalibrate(graph, [Batch((torch.zeros(2, 8),), {})]) is graph


class Read:
    """Batches of 8 samples, and how often they are read."""

    def __init__(self, split: Split) -> None:
        self.batches, self.times = list(split.batches(8, drop_last=True)), 0

    def __iter__(self) -> Iterator[Batch]:
        self.times += 1
        return iter(self.batches)


class TestSteps:
    def test_they_are_counted_on_the_batches_that_a_loader_yields_and_so_is_the_rate(self, graph, data):
        settings = replace(QUICK, batch_size=64, epochs=300, learning_rate=None)
        read = Read(data.train)
        problem = problem_of(graph, Data(StreamSplit(read), data.val), settings)
        assert problem.steps_per_epoch == len(read.batches)
        assert problem.settings.rate == settings.settled(graph, 300 * len(read.batches)).rate
        assert problem.settings.rate > settings.settled(graph, 300 * len(read.batches) // 8).rate

    @pytest.mark.slow
    def test_a_loader_is_read_once_in_an_epoch(self, graph, data):
        """Every further time would move its random state."""
        times = []
        for epochs in (2, 6):
            read = Read(data.train)
            settings = replace(QUICK, epochs=epochs)
            finetune(graph, Data(StreamSplit(read), data.val), {"params": 0.5}, settings=settings)
            times.append(read.times)
        assert times[1] - times[0] == 4


class TestTeaching:
    def test_a_teacher_teaches_until_its_student_is_surely_ahead(self, graph, data):
        """Of 400 samples two standard errors of a difference are about 0.056 at 80 %."""
        reading = problem_of(graph, data, QUICK).objective.reading
        dense = Evaluation(loss=0.5, metric=0.8, metric_name="accuracy", num_samples=400)
        assert not outgrown(reading, replace(dense, metric=0.85), dense)
        assert outgrown(reading, replace(dense, metric=0.86), dense)

    def test_without_labels_nothing_but_the_teacher_teaches(self, graph, data):
        unlabelled = Data(*(Split(part.inputs) for part in (data.train, data.val)))
        reading = problem_of(graph, unlabelled, QUICK).objective.reading
        worse, better = (Evaluation(0.5, metric, "accuracy", 400) for metric in (0.1, 1.0))
        assert not outgrown(reading, better, worse)

    def test_the_final_phase_lets_an_outgrown_teacher_go(self, graph, data):
        problem = problem_of(graph, data, QUICK)
        for metric, teaches in ((0.0, False), (1.0, True)):
            dense = Evaluation(loss=0.5, metric=metric, metric_name="accuracy", num_samples=400)
            phase = FinalPhase(problem, graph, teacher=dense, densities={"macs": 1.0})
            phase.begin_()
            assert phase.last.metric > 0.5
            assert (phase.epoch_problem().teacher is not None) == teaches


class TestEvaluation:
    def test_accuracy_and_loss_are_exact_over_uneven_batches(self, graph, data):
        problem = problem_of(graph, data, QUICK)
        network = graph.module()
        with torch.no_grad():
            logits = network(data.val.inputs[0])
        measured = evaluate(network, data.val, replace(problem.objective, task_share=1.0), batch_size=100)
        assert measured.metric == (logits.argmax(-1) == data.val.targets).float().mean().item()
        assert measured.loss == pytest.approx(F.cross_entropy(logits, data.val.targets).item(), rel=1e-5)
        assert measured.num_samples == len(data.val)

    def test_the_mode_is_restored(self, graph, data):
        network = graph.module().train()
        evaluate(network, data.val, problem_of(graph, data, QUICK).objective)
        assert network.training


class TestInputDropout:
    def test_the_share_dropped_and_the_mean_are_right(self):
        torch.manual_seed(0)
        dropped = dropout(torch.ones(400, 500), 0.25)
        assert (dropped == 0).double().mean().item() == pytest.approx(0.25, abs=0.005)
        assert torch.allclose(dropped.unique(), torch.tensor([0.0, 4 / 3]))

    def test_only_flat_floating_inputs_are_touched(self):
        image, tokens, flat = torch.ones(2, 1, 4, 4), torch.ones(2, 50, dtype=torch.long), torch.ones(2, 500)
        batch = drop_inputs(Batch((image, tokens), {"features": flat}), 0.5)
        assert torch.equal(batch.args[0], image) and torch.equal(batch.args[1], tokens)
        assert (batch.kwargs["features"] == 0).any()


class TestLearningRate:
    """What attends trains at a rate that falls with the width of its layers; what does not, at one for all."""

    @staticmethod
    def graph(width: int, *, normed: bool) -> CapturedGraph:
        layers = [nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 4)]
        return capture(nn.Sequential(*([nn.LayerNorm(width)] if normed else []), *layers), (torch.zeros(2, width),))

    @pytest.mark.parametrize(("width", "rate"), [(96, 4e-3), (384, 5e-4), (1536, 6.25e-5), (8, PLAIN_RATE)])
    def test_it_goes_by_the_inputs_that_most_weights_sum_over(self, width: int, rate: float) -> None:
        assert learning_rate_for(self.graph(width, normed=True), FULL_STEPS) == pytest.approx(rate)

    @pytest.mark.parametrize("width", [8, 768])
    def test_without_attention_or_layer_norm_width_does_not_count(self, width: int) -> None:
        assert learning_rate_for(self.graph(width, normed=False), FULL_STEPS) == PLAIN_RATE

    @pytest.mark.parametrize(("normed", "share"), [(True, 0.5), (False, 0.25)])
    def test_a_short_run_has_less_of_it(self, normed: bool, share: float) -> None:
        graph = self.graph(384, normed=normed)
        long, middle, short = (learning_rate_for(graph, steps) for steps in (FULL_STEPS, round(0.36 * FULL_STEPS), 50))
        assert middle == pytest.approx(0.6 * long)
        assert short == pytest.approx(share * long)

    def test_half_of_the_elements_decide_and_tables_that_are_looked_up_do_not_count(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.norm = nn.Embedding(1000, 8), nn.LayerNorm(8)
                self.first, self.second = nn.Linear(8, 40), nn.Linear(40, 7)

            def forward(self, x: Tensor) -> Tensor:
                return self.second(torch.relu(self.first(self.norm(self.table(x)))))

        assert typical_width(capture(Net(), (torch.zeros(2, 5, dtype=torch.long),))) == 8

    def test_a_network_without_products_has_the_width_of_reference(self) -> None:
        graph = capture(nn.Sequential(nn.LayerNorm(4), nn.ReLU()), (torch.zeros(2, 4),))
        assert learning_rate_for(graph, FULL_STEPS) == ATTENTION_RATE
