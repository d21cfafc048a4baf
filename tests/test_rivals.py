"""Other projects in the benchmark of quality: they get what ours get, and are held to the same budget."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import resnet20
import torch
from quality import housing
from quality.__main__ import _parser
from quality.cells import DENSE, ONNXSIM, RIVALS, TORCH_PRUNING, Cell, Grid, Selection
from quality.harness import Options, fingerprints
from quality.images import with_convolutions
from quality.page import write_page
from quality.plot import COLOURS
from quality.problem import Problem
from quality.records import Row
from quality.running import run_cell
from quality.summary import duels, summaries
from rivals import missing
from rivals.made import NotCut, fitted, refusals_of
from rivals.probe import by_l0compress, outcome
from rivals.probe_networks import NETWORKS, Network
from rivals.training import trained
from rivals.with_onnxsim import feeds_of
from rivals.with_torch_pruning import HESSIAN, TAYLOR, gradients_for, last_linear
from test_quality import numbers, table
from torch import nn

from l0compress.data import Data, Split
from l0compress.errors import InputError
from l0compress.graph import capture
from l0compress.graph.groups.cost import cost
from l0compress.training.finetune import finetune
from l0compress.training.settings import FinetuneSettings

GRID = Grid("toy", "macs", (0.5, 0.25), (0, 4), rivals=RIVALS)
INSTALLED = {**dict.fromkeys(TORCH_PRUNING, "torch_pruning"), ONNXSIM: "onnxsim"}


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    """A network that was shown some numbers, and the numbers."""
    data = numbers()
    housing.make_dense(tmp_path / "dense.pt", True, data=data)
    return housing.load(tmp_path / "dense.pt", data=data)


def cell(method: str, *, epochs: int) -> Cell:
    return Cell("housing", "macs", 0.4, epochs, method, 0)


class TestCells:
    def test_what_needs_training_gets_it_and_what_cannot_train_does_not(self):
        cells = [one for one in Selection(("l0", *RIVALS), (0,)).cells(GRID) if one.method in RIVALS]
        assert {(one.method, one.budget) for one in cells if one.epochs == 4} == {
            (name, budget) for name in TORCH_PRUNING for budget in (0.5, 0.25)
        }
        assert {(one.method, one.budget) for one in cells if one.epochs == 0} == {(ONNXSIM, 0.5), (ONNXSIM, 0.25)}

    def test_a_task_names_those_that_it_can_be_given_to(self):
        cells = Selection(RIVALS, (0,)).cells(replace(GRID, rivals=(ONNXSIM,), sparse=(100,)))
        assert {one.method for one in cells} == {DENSE, ONNXSIM}

    def test_they_are_asked_for_by_name_or_all_at_once(self):
        assert _parser().parse_args([]).rivals == ()
        assert _parser().parse_args(["--rivals", "all"]).rivals == RIVALS
        assert _parser().parse_args(["--rivals", "onnxsim"]).rivals == ("onnxsim",)

    @pytest.mark.parametrize("method", RIVALS)
    def test_what_is_not_installed_is_left_out_with_the_reason(self, method: str):
        said = missing(method)
        if find_spec(INSTALLED[method]) is not None:
            assert said is None
        else:
            name = INSTALLED[method].replace("_", "-")
            assert said == f"{name} is not installed: make bench-quality RIVALS=all"

    @pytest.mark.slow
    def test_another_version_of_a_project_makes_its_rows_again_and_no_others(self, tmp_path: Path, monkeypatch):
        options = Options(tmp_path, Selection(), smoke=True)
        cells, marks = [cell("l0", epochs=0), cell(ONNXSIM, epochs=0)], []
        for version in ("onnxsim 1", "onnxsim 2"):
            monkeypatch.setattr("quality.harness.versions", {ONNXSIM: version}.__getitem__)
            marks.append(fingerprints(table(), cells, options))
        assert [marks[0][one] == marks[1][one] for one in cells] == [True, False]


class TestBudget:
    def test_the_largest_network_within_the_budget_is_found(self):
        @cache
        def linear(width: int):
            return capture(nn.Linear(8, width, bias=False), (torch.zeros(2, 8),))

        for width, more in product((1, 7), (0, 7)):
            share, graph = fitted(lambda share: linear(max(1, round(8 * (1 - share)))), "params", 8 * width + more)
            assert graph is linear(width) and max(1, round(8 * (1 - share))) == width

    def test_a_budget_out_of_reach_is_said(self):
        graph = capture(nn.Linear(8, 4, bias=False), (torch.zeros(2, 8),))
        with pytest.raises(NotCut, match=r"^no share of its channels leaves 31 params or fewer$"):
            fitted(lambda _: graph, "params", 31)

    def test_what_another_project_says_is_told_as_its_own(self):
        with (
            pytest.raises(NotCut, match=r"^Torch-Pruning: IndexError: 32 is out of bounds$"),
            refusals_of("Torch-Pruning"),
        ):
            raise IndexError("32 is out of bounds")
        with pytest.raises(InputError, match=r"^ours$"), refusals_of("Torch-Pruning"):
            raise InputError("ours")


class TestTraining:
    def test_the_trainer_is_that_of_a_method_which_decides_before_training(self, problem: Problem):
        ours = partial(finetune, problem.graph, problem.data, {"macs": 0.4})
        cut = ours(settings=FinetuneSettings(method="magnitude", epochs=0)).small
        expected = ours(settings=FinetuneSettings(method="magnitude", epochs=3)).last.state()
        made = trained([cut], cell("torch-pruning-magnitude", epochs=3), problem)
        assert made.cost == cost(cut)
        found = made.last.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_of_several_cuts_the_one_that_is_best_before_training_is_trained(self, problem: Problem):
        cuts = [
            finetune(problem.graph, problem.data, {"macs": share}, settings=FinetuneSettings(epochs=0)).small
            for share in (0.2, 0.9)
        ]
        for order in (cuts, cuts[::-1]):
            assert trained(order, cell("torch-pruning-taylor", epochs=1), problem).cost == cost(cuts[1])


class TestScores:
    def test_gradients_are_those_of_the_mean_loss_and_squares_those_of_single_samples(self):
        layer = nn.Linear(2, 1, bias=False).double()
        x, y = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
        by_hand = 2 * (layer(x).detach().flatten() - y).unsqueeze(1) * x
        samples = Split((x,), y)
        torch.testing.assert_close(gradients_for(TAYLOR, layer, samples)["weight"][0], by_hand.mean(0))
        torch.testing.assert_close(gradients_for(HESSIAN, layer, samples)["weight"][0], by_hand.square().mean(0))
        assert layer.weight.grad is None

    def test_samples_for_scores_are_those_that_ours_get_with_their_labels(self, problem: Problem):
        few, scoring = problem.calibration(3), problem.scoring(3)
        given = torch.cat([few.val.inputs[0], few.train.inputs[0]])
        assert torch.equal(scoring.inputs[0], given)
        truth = {
            tuple(x.tolist()): y for x, y in zip(problem.data.train.inputs[0], problem.data.train.targets, strict=True)
        }
        assert all(truth[tuple(x.tolist())] == y for x, y in zip(scoring.inputs[0], scoring.targets, strict=True))

    def test_the_layer_of_the_outputs_is_the_last_linear_one(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.ReLU())
        assert last_linear(model) is model[1]

    def test_files_are_fed_every_sample_by_name(self):
        parts = [Split((torch.arange(100.0).view(100, 1) + shift,), None) for shift in (0, 1000)]
        feeds = feeds_of(["x"], Data(train=parts[0], val=parts[1]))
        values = [float(value) for feed in feeds for value in feed["x"].flatten()]
        assert values == [*map(float, range(100)), *map(float, range(1000, 1100))]


class TestPage:
    def rows(self) -> list[Row]:
        tests = {DENSE: 10.0, "l0": 11.0, "magnitude": 12.0, "torch-pruning-taylor": 10.5, "onnxsim": 13.0}
        epochs = {"onnxsim": 0}
        cells = [Cell("housing", "macs", 0.5, epochs.get(name, 4), name, 0) for name in tests]
        cells.append(Cell("housing", "macs", 0.5, 0, "l0", 0))
        return [Row(one, "now", 10, 20, 0.5, 9.0, tests[one.method], 9.0, 1.0, 1.0, 1, 1) for one in cells]

    def test_other_projects_are_fought_apart_from_our_own_methods(self):
        found = summaries(self.rows())
        (own,) = duels(found, housing.HOUSING.score, "housing")
        assert (own.rival.setting.method, own.lead) == ("magnitude", 1.0)
        theirs = duels(found, housing.HOUSING.score, "housing", of_other_projects=True)
        assert {(duel.rival.setting.method, duel.lead) for duel in theirs} == {
            ("torch-pruning-taylor", -0.5),
            ("onnxsim", 2.0),
        }

    def test_the_page_says_where_another_project_is_ahead(self, tmp_path: Path):
        page = write_page({"housing": housing.HOUSING}, self.rows(), tmp_path)
        _, _, section = page.partition("## Learned gates against other projects")
        score = housing.HOUSING.score.name
        assert "At or ahead of the best of the others in 1 of 2 cells" in section
        assert (
            f"- housing, 0.5 macs, 4 epochs: {score} 11.00 against 10.50 of torch-pruning-taylor, with one seed"
            in section
        )

    def test_every_line_has_a_colour_of_its_own(self, tmp_path: Path):
        assert len(set(COLOURS.values())) == len(COLOURS)
        write_page({"housing": housing.HOUSING}, self.rows(), tmp_path)
        picture = (tmp_path / "quality.svg").read_text()
        assert all(
            f"{name}, {epochs} epochs" in picture for name, epochs in (("onnxsim", 0), ("torch-pruning-taylor", 4))
        )

    def test_without_them_it_does_not_speak_of_them(self, tmp_path: Path):
        own = [row for row in self.rows() if row.cell.method not in RIVALS]
        assert "other projects" not in write_page({"housing": housing.HOUSING}, own, tmp_path)


class TestProbe:
    @pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
    def test_the_dead_half_of_every_network_is_found_and_nothing_else_changes(self, network: Network):
        assert outcome(network, by_l0compress) == "cut"

    def test_what_goes_wrong_is_told_as_what_it_is(self):
        network = NETWORKS[0]
        dense = network.half_dead()
        half = sum(parameter.numel() for parameter in dense.parameters()) - network.left

        def fails(_: Network):
            raise IndexError

        assert outcome(network, fails) == "fails: IndexError"
        assert outcome(network, lambda _: (dense, 0)) == "left whole"
        assert outcome(network, lambda _: (dense, 1)) == "cut in part"
        assert outcome(network, lambda _: (lambda x: dense(x) + 1, half)) == "cut, another function"


def test_convolutions_in_place_of_padded_shortcuts_compute_the_same():
    torch.manual_seed(0)
    model = resnet20.model().double().eval()
    other = with_convolutions(model).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(other(x), model(x))
    more = sum(p.numel() for p in other.parameters()) - sum(p.numel() for p in model.parameters())
    assert more == 16 * 32 + 32 * 64


@pytest.mark.mostly_slow
@pytest.mark.parametrize("method", RIVALS)
def test_a_row_of_a_rival_keeps_to_the_budget_as_we_count_it(problem: Problem, method: str):
    pytest.importorskip(INSTALLED[method])
    found = run_cell(
        cell(method, epochs=0 if method == ONNXSIM else 2), problem, housing.HOUSING.score, fingerprint="now"
    )
    assert 0.35 < found.reached <= 0.4
    assert found.reached == found.macs / cost(problem.graph).macs


def test_torch_pruning_cannot_cut_padded_shortcuts():
    torch_pruning = pytest.importorskip("torch_pruning")
    model = resnet20.model().eval()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        torch.zeros(2, 3, 32, 32),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.3,
        ignored_layers=[model.linear],
    )
    with pytest.raises(IndexError):
        pruner.step()
