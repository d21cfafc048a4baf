"""The benchmark of quality: which cells there are, which of them count as finished, how models are judged."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from quality import housing
from quality.__main__ import _parser, finished
from quality.cells import DENSE, Cell, Grid, Selection
from quality.harness import Options, dense_of, fingerprints, run
from quality.page import write_page
from quality.problem import Problem, Score, Task, fewer, hits, squared_errors, surprise
from quality.records import Records, Row, sources_fingerprint
from quality.running import run_cell
from quality.summary import duels, summaries
from quality.wanted import Want, checked

from l0compress.data import Data, Split
from l0compress.training.settings import METHOD_NAMES

GRID = Grid("toy", "macs", (0.5, 0.25), (0, 4), quick=((0.5, 4),))
CELL = Cell("toy", "macs", 0.5, 4, "l0", 0)
ERROR = Score("error in %", hits, scale=100)


def row(cell: Cell, test: float, *, mark: str = "now", seconds: float = 1.0) -> Row:
    return Row(cell, mark, 10, 20, 0.5, test, test, test, seconds, seconds, 1, 1)


def numbers(features: int = 5) -> Data:
    """A table to predict from: one smooth number of some columns, and three parts."""
    inputs = torch.randn(320, features, generator=torch.Generator().manual_seed(0))
    values = inputs[:, 0] * 2 + inputs[:, 1].abs()
    parts = [Split((inputs[i::4],), values[i::4]) for i in range(4)]
    train = Split((torch.cat([parts[0].inputs[0], parts[1].inputs[0]]),), torch.cat([values[0::4], values[1::4]]))
    return Data(train=train, val=parts[2], test=parts[3])


def table(grid: Grid = GRID) -> Task:
    """The task on California housing with other rows."""
    data = numbers()
    make, load = partial(housing.make_dense, data=data), partial(housing.load, data=data)
    return replace(housing.HOUSING, grid=grid, make_dense=make, load=load, missing=lambda: None)


class TestCells:
    def test_every_budget_has_all_epochs_methods_and_seeds_beside_the_dense_models(self):
        cells = Selection(("l0", "magnitude"), (0, 1)).cells(GRID)
        compressed = {(c.budget, c.epochs, c.method, c.seed) for c in cells if c.method != DENSE}
        assert compressed == set(product((0.5, 0.25), (0, 4), ("l0", "magnitude"), (0, 1)))
        assert [(c.epochs, c.seed) for c in cells if c.method == DENSE] == [(0, 0), (4, 0), (4, 1)]
        assert len(set(cells)) == len(cells) == 19

    def test_quick_runs_what_the_grid_names(self):
        cells = Selection(("l0",), (0,), quick=True).cells(replace(GRID, sparse=(100,)))
        assert [(c.budget, c.epochs, c.method) for c in cells] == [(1.0, 0, DENSE), (1.0, 4, DENSE), (0.5, 4, "l0")]

    def test_some_budgets_and_epochs_can_be_asked_for(self):
        chosen = Selection(("l0",), (0,), budgets=(0.5, 100), epochs=(4,)).cells(replace(GRID, sparse=(100, 50)))
        assert [(c.budget, c.epochs, c.method) for c in chosen if c.method != DENSE] == [(0.5, 4, "l0"), (100, 4, "l0")]

    def test_a_task_without_any_of_them_has_no_cells(self):
        assert Selection(("l0",), (0,), budgets=(0.1,)).cells(GRID) == []
        assert Selection(("l0",), (0,), quick=True).cells(replace(GRID, quick=())) == []

    def test_single_weights_are_left_to_the_methods_that_score_them(self):
        cells = Selection(("l0", "search", "magnitude"), (0,)).cells(replace(GRID, sparse=(100,)))
        assert [(c.method, c.epochs) for c in cells if c.granularity == "weights"] == [("l0", 4), ("magnitude", 4)]

    def test_every_method_is_asked_for_where_it_can_decide(self):
        cells = [
            cell for cell in Selection(METHOD_NAMES, (0,)).cells(replace(GRID, sparse=(100,))) if cell.method != DENSE
        ]
        trained = {cell.method for cell in cells if cell.granularity == "structured" and cell.epochs}
        untrained = {cell.method for cell in cells if cell.granularity == "structured" and not cell.epochs}
        sparse = {cell.method for cell in cells if cell.granularity == "weights"}
        assert trained | sparse == set(METHOD_NAMES)
        assert trained - untrained == {"gradual-magnitude", "group-lasso", "l1", "proximal"}
        assert trained - sparse == {"group-lasso", "search", "reinforce"}

    def test_all_of_them_may_be_named_at_once(self):
        assert _parser().parse_args(["--methods", "all"]).methods == METHOD_NAMES
        assert _parser().parse_args(["--methods", "l1,search"]).methods == ("l1", "search")

    def test_shortened_runs_are_not_repeated(self):
        cells = Selection(("l0",), (0,), most_epochs=2).cells(replace(GRID, epochs=(0, 4, 12)))
        assert sorted({c.epochs for c in cells}) == [0, 2]
        assert len(set(cells)) == len(cells) == 6


class TestRecords:
    def test_rows_come_back_as_they_were(self, tmp_path: Path):
        records = Records(tmp_path / "cells.jsonl")
        rows = [row(CELL, 1.5), row(replace(CELL, budget=9_560, unit="params"), 2.5)]
        for one in rows:
            records.append(one)
        assert records.rows() == rows
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["cells.jsonl"]

    def test_a_cell_is_finished_while_what_it_depends_on_is_the_same(self, tmp_path: Path):
        records = Records(tmp_path / "cells.jsonl")
        for test, mark in ((1.0, "before"), (2.0, "now"), (3.0, "later")):
            records.append(row(CELL, test, mark=mark))
        assert records.finished({CELL: "now"}) == {CELL: row(CELL, 2.0)}
        assert records.finished({CELL: "other"}) == {}
        assert records.finished({CELL: "other"}, any_version=True) == {CELL: row(CELL, 3.0, mark="later")}
        assert records.finished({replace(CELL, seed=1): "now"}) == {}

    def test_code_counts_and_comments_do_not(self, tmp_path: Path):
        file = tmp_path / "training" / "steps.py"
        file.parent.mkdir()
        marks = []
        for source in (
            "def f():\n    return 1\n",
            'def f():\n    """One."""\n    return 1  # one\n',
            "def f(): return 2",
        ):
            file.write_text(source)
            marks.append(sources_fingerprint(tmp_path, ["training"]))
        assert marks[0] == marks[1] != marks[2]


class TestScores:
    def test_scores_are_means_over_samples_whatever_the_batches(self):
        data = numbers()
        model = housing.regressor(5).eval()
        expected = float(np.mean((model(data.val.inputs[0]).detach().numpy()[:, 0] - data.val.targets.numpy()) ** 2))
        for batch_size in (7, 256):
            score = Score("squared error", squared_errors)
            assert score(model, data.val, batch_size=batch_size) == pytest.approx(expected, rel=1e-6)

    def test_surprise_is_the_mean_negative_log_likelihood_of_each_sequence(self):
        logits, tokens = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2], [4, 4, 0]])
        chances = logits.double().softmax(-1)
        expected = [-chances[i, range(3), tokens[i]].log().mean() for i in range(2)]
        torch.testing.assert_close(surprise(logits, tokens).double(), torch.stack(expected), rtol=1e-5, atol=1e-6)

    def test_better_has_the_sign_of_the_score(self):
        assert Score("error", hits).better(1.0, 3.0) == 2.0
        assert Score("accuracy", hits, higher_is_better=True).better(1.0, 3.0) == -2.0


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    """A network that was shown the numbers, and the numbers."""
    data = numbers()
    housing.make_dense(tmp_path / "dense.pt", True, data=data)
    return housing.load(tmp_path / "dense.pt", data=data)


class TestProblems:
    def test_runs_without_training_get_few_samples_and_no_labels(self, problem: Problem):
        few = problem.calibration(0)
        assert few.train.targets is None and few.val.targets is None and few.test is None
        assert (len(few.train), len(few.val)) == (140, 20)
        given = {tuple(x.tolist()) for x in problem.data.train.inputs[0]}
        shown = [tuple(x.tolist()) for part in (few.train, few.val) for x in part.inputs[0]]
        assert len(set(shown)) == 160 and set(shown) <= given
        assert not torch.equal(few.train.inputs[0], problem.calibration(1).train.inputs[0])

    def test_excluded_parameters_come_on_top_of_the_share(self, problem: Problem):
        total = sum(p.numel() for p in housing.regressor(5).parameters())
        assert replace(problem, excluded=89).target("params", 0.5) == {"params": 89 + (total - 89) // 2}
        assert problem.target("macs", 0.5) == {"macs": 0.5}

    def test_a_taste_has_samples_of_all_classes_of_sorted_data(self):
        part = Split((torch.zeros(1000, 1),), torch.arange(10).repeat_interleave(100))
        taste = fewer(Data(train=part, val=part), 100)
        assert len(taste.train) == 100
        assert set(taste.train.targets.tolist()) == set(range(10))


class TestHarness:
    GRID = Grid("housing", "macs", (0.5,), (2,))

    def options(self, folder: Path, **others: object) -> Options:
        return Options(folder, Selection(("l0", "magnitude"), (0,)), smoke=True, **others)

    @pytest.mark.slow
    def test_finished_cells_are_skipped_and_the_others_come_out_as_before(self, tmp_path: Path, capsys):
        task, options = table(self.GRID), self.options(tmp_path)
        assert run([task], options) == []
        first = options.records.rows()
        assert [r.cell.method for r in first] == [DENSE, DENSE, "l0", "magnitude"]
        lines = options.records.path.read_text().splitlines(keepends=True)
        options.records.path.write_text("".join(lines[:2] + lines[3:]))
        assert run([task], options) == []
        again = options.records.rows()
        assert [r.cell for r in again] == [first[0].cell, first[1].cell, first[3].cell, first[2].cell]
        assert again[-1].test == first[2].test and again[-1].val == first[2].val
        assert "housing: 1 of 4 cells to run" in capsys.readouterr().out

    def test_a_cell_keeps_to_its_budget_and_says_what_it_took(self, tmp_path: Path):
        task = table(self.GRID)
        problem = task.load(dense_of(task, self.options(tmp_path)))
        cell = Cell("housing", "macs", 0.5, 2, "l0", 0)
        measured = run_cell(cell, problem, task.score, fingerprint="now")
        assert 0.4 < measured.reached <= 0.5
        assert measured.threads == 1 and measured.seconds > 0

    def test_the_dense_model_is_whole_or_not_there(self, tmp_path: Path):
        def broken(path: Path, _taste: bool) -> None:
            path.mkdir()
            raise KeyboardInterrupt

        options = self.options(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            dense_of(replace(table(), make_dense=broken), options)
        assert list((tmp_path / "dense-smoke").iterdir()) == []

    @pytest.mark.slow
    def test_another_dense_model_makes_other_cells(self, tmp_path: Path):
        task, options = table(self.GRID), self.options(tmp_path)
        cells = options.cells(task)
        before = fingerprints(task, cells, options)
        path = dense_of(task, options)
        path.write_bytes(path.read_bytes() + b"!")
        assert not set(before.values()) & set(fingerprints(task, cells, options).values())

    def test_what_the_package_refuses_is_told_and_the_rest_goes_on(self, tmp_path: Path):
        task = table(replace(self.GRID, budgets=(1e-9, 0.5)))
        failures = run([task], replace(self.options(tmp_path), selection=Selection(("magnitude",), (0,))))
        assert len(failures) == 1
        assert failures[0].startswith("housing structured macs=1e-09 epochs=2 magnitude seed=0: TargetError: ")

    def test_the_page_has_a_row_for_each_setting(self, tmp_path: Path):
        rows = [
            replace(row(replace(CELL, task="housing", budget=0.5, method=method, seed=seed), test), val=9.0)
            for method, seed, test in (("l0", 0, 10.0), ("l0", 1, 12.0), ("magnitude", 0, 14.0), ("magnitude", 1, 15.0))
        ]
        dense = row(Cell("housing", "macs", 1.0, 4, DENSE, 0), 10.5)
        page = write_page({"housing": table(self.GRID)}, [dense, *rows], tmp_path)
        assert "| 0.5 | 4 | l0 | 2 | 0.500 | 9.00 | 11.00 (10.00-12.00) | +0.50 | 1 (1) | 1 x 1 |" in page
        assert "At or ahead of the best of the others in 1 of 1 cells, in 1 of them" in page
        assert (tmp_path / "quality.md").read_text() == page
        assert "<svg" in (tmp_path / "quality.svg").read_text()
        assert "earlier version" not in page

    @pytest.mark.slow
    def test_the_page_says_which_of_its_rows_another_version_of_the_code_made(self, tmp_path: Path):
        task, options = table(self.GRID), self.options(tmp_path)
        now = fingerprints(task, options.cells(task), options)
        for cell, mark in now.items():
            options.records.append(row(cell, 1.0, mark="before" if cell.method == "magnitude" else mark))
        assert finished([task], options)[1] == 0
        rows, earlier = finished([task], replace(options, any_version=True))
        assert 0 < earlier < len(rows)
        page = write_page({"housing": task}, rows, tmp_path, earlier=earlier)
        assert (
            f"**{earlier} of the {len(rows)} runs behind this page were made by an earlier version of the code**"
            in page
        )


class TestSummaries:
    def rows(self, ours: list[float], *rivals: list[float]) -> list[Row]:
        methods = ("l0", "fisher", "magnitude")
        return [
            row(replace(CELL, method=method, seed=seed), test)
            for method, tests in zip(methods, (ours, *rivals), strict=False)
            for seed, test in enumerate(tests)
        ]

    def test_gates_are_measured_against_the_best_of_the_others(self):
        (duel,) = duels(summaries(self.rows([2.0, 3.0], [4.0, 5.0], [3.5, 3.7])), ERROR, "toy")
        assert (duel.rival.setting.method, duel.clear) == ("magnitude", True)
        assert duel.lead == pytest.approx(1.1)

    @pytest.mark.parametrize(
        ("ours", "rival", "clear", "doubt"),
        [
            ([2.0, 4.0], [3.0, 5.0], False, "within what the seeds differ by"),
            ([5.0, 6.0], [3.0, 4.0], True, "by more than the seeds differ"),
            ([2.0], [3.0], False, "with one seed"),
        ],
    )
    def test_a_lead_is_clear_where_several_seeds_do_not_overlap(self, ours, rival, clear, doubt):
        (duel,) = duels(summaries(self.rows(ours, rival)), ERROR, "toy")
        assert (duel.clear, duel.doubt) == (clear, doubt)

    def test_bounds_are_kept_on_the_mean_and_from_the_dense_model(self):
        dense = row(Cell("toy", "macs", 1.0, 0, DENSE, 0), 2.0)
        found = summaries([dense, *self.rows([2.5, 3.1])])
        assert checked(Want("toy", 0.5, 4, 2.8), found, ERROR) == (
            "toy, 0.5 macs, 4 epochs: error in % 2.80 (2.50-3.10), wanted at most 2.80",
            True,
        )
        assert checked(Want("toy", 0.5, 4, 0.7, above_dense=True), found, ERROR) == (
            "toy, 0.5 macs, 4 epochs: error in % 2.80 (2.50-3.10), wanted at most 2.70 (from the dense model)",
            False,
        )
        assert checked(Want("toy", 0.25, 4, 2.8), found, ERROR) is None

    def test_what_takes_too_long_is_missed(self):
        found = summaries([row(CELL, 1.0, seconds=200.0)])
        words, holds = checked(Want("toy", 0.5, 4, 2.0, most_seconds=180), found, ERROR) or ("", True)
        assert words.endswith("in 200 s, wanted at most 180") and not holds
