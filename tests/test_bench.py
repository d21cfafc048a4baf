"""Timings: who was timed, how often, with what; never how long it took."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bundles import SPARSE, with_every_layer_on
from conftest import run_cli
from torch import nn

from l0compress import export_bundle
from l0compress.errors import InputError, RunError
from l0compress.export.onnx import export_onnx
from l0compress.export.pt2 import export_pt2
from l0compress.graph import CapturedGraph, capture
from l0compress.measure.bench import CALLS_A_ROUND, FEWEST_ROUNDS, BenchReport, Timing, bench
from l0compress.measure.footprint import footprint
from l0compress.measure.plot import plot_latency
from l0compress.verification.calls import Call

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def graph() -> CapturedGraph:
    return capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(2, 4),))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, graph: CapturedGraph) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(graph, folder / "model.onnx")
    export_pt2(graph, folder / "model.pt2")
    return folder


@pytest.fixture
def artifacts(tmp_path: Path, exported: Path) -> dict[str, Path]:
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    return {kind: tmp_path / f"model.{kind}" for kind in ("onnx", "pt2")}


def test_files_graphs_and_modules_are_timed_side_by_side(artifacts, graph):
    report = bench({**artifacts, "graph": graph, "eager": graph.module()}, batch_sizes=(1, 3), threads=1, rounds=4)
    assert [(timing.name, timing.batch_size) for timing in report.timings] == [
        (name, size) for size in (1, 3) for name in ("onnx", "pt2", "graph", "eager")
    ]
    assert {timing.num_calls for timing in report.timings} == {4 * CALLS_A_ROUND}
    assert report.threads == 1 and report.batch_sizes == (1, 3)
    assert report.file_bytes == {
        "onnx": artifacts["onnx"].stat().st_size,
        "pt2": artifacts["pt2"].stat().st_size,
        "graph": None,
        "eager": None,
    }


def test_every_candidate_sees_the_batch_size(graph):
    seen: list[int] = []

    def recording(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x

    bench({"recording": recording}, graph, batch_sizes=(2, 7), rounds=1)
    assert sorted(set(seen)) == [2, 7]


def test_candidates_take_turns_and_the_order_rotates():
    calls: list[str] = []
    candidates = {name: lambda _, name=name: calls.append(name) for name in "ab"}
    bench(candidates, Call((torch.ones(2, 1),)), batch_sizes=(1,), rounds=3)
    turns = [calls[i] for i in range(len(calls)) if i == 0 or calls[i] != calls[i - 1]]
    # The warm-up is a, b; then a, b | b, a | a, b, where neighbours of one name melt together.
    assert turns == ["a", "b", "a", "b", "a", "b"]


def test_an_onnx_file_alone_says_what_it_takes(artifacts):
    assert bench({"onnx": artifacts["onnx"]}, batch_sizes=(4,), rounds=1).timing("onnx", 4).num_calls == CALLS_A_ROUND


def test_a_slow_model_gets_the_fewest_rounds():
    report = bench({"f": torch.relu}, Call((torch.ones(2),)), batch_sizes=(1,), rounds=50, max_seconds=0)
    assert report.timing("f", 1).num_calls == FEWEST_ROUNDS * CALLS_A_ROUND


def test_the_number_of_threads_is_restored(graph):
    before, inside = torch.get_num_threads(), []
    bench({"f": lambda _: inside.append(torch.get_num_threads())}, graph, batch_sizes=(1,), threads=2, rounds=1)
    assert set(inside) == {2} and torch.get_num_threads() == before


def test_medians_percentiles_and_throughput():
    report = BenchReport(2, (Timing("dense", 8, 100, 4.0, 5.0, 2000.0), Timing("small", 8, 100, 1.0, 2.0, 8000.0)), {})
    assert report.speedup("small", "dense", 8) == 4.0


def test_the_report_is_json(artifacts):
    written = json.loads(json.dumps(bench(artifacts, batch_sizes=(1,), rounds=1).to_json()))
    assert written["threads"] == 2
    assert [entry["name"] for entry in written["candidates"]] == ["onnx", "pt2"]
    assert written["timings"][0].keys() == {
        "name", "batch_size", "num_calls", "median_ms", "p95_ms", "samples_per_second"
    }  # fmt: skip


class TestBadInput:
    @pytest.mark.parametrize("wrong", [(0,), (), ["1"], (1.5,), None])
    def test_batch_sizes(self, wrong):
        with pytest.raises(InputError, match=re.escape(f"batch sizes {wrong!r}: expected integers from 1 to 1,000")):
            bench({"f": torch.relu}, Call((torch.ones(2),)), batch_sizes=wrong)

    @pytest.mark.parametrize("wrong", [{"threads": 0}, {"threads": "2"}, {"rounds": 0}, {"rounds": 1.5}])
    def test_counts(self, wrong):
        given = {"threads": 2, "rounds": 20} | wrong
        said = f"1 candidates, threads={given['threads']!r}, rounds={given['rounds']!r}: timing needs at least one"
        with pytest.raises(InputError, match=re.escape(said)):
            bench({"f": torch.relu}, Call((torch.ones(2),)), **wrong)

    def test_no_candidates(self):
        with pytest.raises(InputError, match="0 candidates, threads=2, rounds=20: timing needs at least one of each"):
            bench({})

    def test_nobody_knows_the_inputs(self):
        with pytest.raises(InputError, match="no candidate records its inputs"):
            bench({"f": torch.relu})

    def test_a_module_in_training_mode(self):
        with pytest.raises(InputError, match="Linear is in training mode"):
            bench({"f": nn.Linear(2, 2)}, Call((torch.ones(2, 2),)))

    def test_inputs_that_an_artifact_does_not_take(self, artifacts):
        with pytest.raises(InputError, match="cannot run on these inputs"):
            bench({"onnx": artifacts["onnx"]}, Call((torch.ones(2, 5),)))

    def test_a_file_of_another_kind(self, tmp_path):
        with pytest.raises(RunError, match=r"it is not an \.onnx file, a \.pt2 file or a bundle"):
            bench({"f": tmp_path / "model.txt"})


class TestFootprint:
    def test_a_larger_model_takes_more(self, tmp_path: Path) -> None:
        sizes = {}
        for width in (16, 2048):
            graph = capture(nn.Linear(2048, width), (torch.randn(2, 2048),))
            sizes[width] = footprint(export_onnx(graph, tmp_path / f"{width}.onnx").path)
        weight_bytes = 4 * 2048 * 2048
        assert sizes[2048] - sizes[16] > 0.9 * weight_bytes

    def test_what_cannot_be_loaded_is_named(self, tmp_path: Path) -> None:
        for name, reason in {
            "broken.onnx": r"ONNX Runtime cannot load .*broken\.onnx",
            "broken.pt2": r"Cannot measure the memory of .*broken\.pt2: .*Cannot read model",
        }.items():
            (tmp_path / name).write_bytes(b"no model")
            with pytest.raises(RunError, match=reason):
                footprint(tmp_path / name)

    def test_of_a_bundle_too_and_no_package_that_runs_its_layers_is_counted(self, tmp_path: Path) -> None:
        model = nn.Linear(1024, 1024)
        model.weight.data *= torch.rand(1024, 1024) < 0.25
        path = export_bundle(capture(model, (torch.randn(2, 1024),)), tmp_path / "model.l0c", settings=SPARSE).path
        # A float32 and the number of its column for every weight that is left; torch alone would take 150 MB.
        weight_bytes = 0.25 * 1024 * 1024 * 8
        for engine in ("scipy", "torch"):
            path.write_bytes(with_every_layer_on(engine, path.read_bytes()))
            assert weight_bytes < footprint(path) < 60e6

    def test_onnx_files_and_bundles_are_measured_without_torch(self) -> None:
        program = "import sys, l0compress.measure.memory; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class TestPlot:
    REPORT = BenchReport(
        threads=1,
        timings=(Timing("dense", 1, 15, 2.0, 3.0, 500.0), Timing("small", 1, 15, 1.0, 1.5, 1000.0)),
        file_bytes={"dense": 4, "small": 2},
    )

    @pytest.mark.parametrize("suffix, magic", [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
    def test_it_is_drawn(self, tmp_path: Path, suffix: str, magic: bytes) -> None:
        assert plot_latency(self.REPORT, tmp_path / f"bench{suffix}").read_bytes().startswith(magic)

    @pytest.mark.parametrize("name", ["bench.bmp", "missing/bench.png"])
    def test_where_it_cannot_be_drawn(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputError, match=r"in an existing folder\. Nothing was drawn\."):
            plot_latency(self.REPORT, tmp_path / name)

    def test_a_link_is_followed_and_what_is_no_file_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link.png").symlink_to("file")
        plot_latency(self.REPORT, tmp_path / "link.png")
        assert (tmp_path / "link.png").is_symlink() and (tmp_path / "file").read_bytes().startswith(b"\x89PNG")
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(RunError, match=r"pipe\.png is not a file but a device, a pipe"):
            plot_latency(self.REPORT, tmp_path / "pipe.png")

    def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_timed(self, tmp_path: Path) -> None:
        outcome = run_cli("bench", tmp_path / "missing.onnx", "--plot", tmp_path / "bench.bmp")
        assert outcome.exit_code == 2 and outcome.stderr.startswith("Error: Cannot draw ")
