"""The page of a run: what it says against the run's own files, that it loads nothing, and how it fits a screen."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import fields, is_dataclass, replace
from html import escape
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from conftest import printed_json, run_cli, without_data
from torch import nn

from l0compress.cli.commands.finetune import finetune as command
from l0compress.errors import InputError
from l0compress.graph.capture import capture
from l0compress.graph.cut.widths import layer_widths
from l0compress.loading import load_pt2
from l0compress.measure.bench import BenchReport, Timing
from l0compress.measure.page.axes import axis_over
from l0compress.measure.page.curves import Series, Span, curves
from l0compress.measure.page.placing import Box, placed
from l0compress.measure.page.scatter import Mark, scatter
from l0compress.measure.pareto import Point, Tradeoff
from l0compress.pipeline.config import complete, read_config
from l0compress.pipeline.kept_bench import BENCH, keep_bench, kept_bench
from l0compress.pipeline.report import write_report
from l0compress.pipeline.report.asked import finetune_command
from l0compress.pipeline.report.told import told_by
from l0compress.pipeline.report.write import page_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "br", "wbr", "img", "input", "link", "hr"}
HOSTILE = "</title><script>alert('1')</script><img src=x onerror=\"alert(1)\">&amp;"


class Read(HTMLParser):
    """The elements of a page: tags with attributes, and the text in each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.section = ""
        self.texts: dict[str, list[str]] = {}
        self.facts: dict[str, list[str]] = {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs).get("id") or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.texts.setdefault(self.section, []).append(data.strip())
            if self.open[-1] == "dt":
                self.facts[data] = []
            elif self.open[-1] == "dd":
                list(self.facts.values())[-1].append(data)

    def text(self, section: str) -> str:
        return " ".join(self.texts[section]).replace("\xa0", " ")


def read(run: Path, page: Path, **how: bool) -> Read:
    write_report(run, page, **how)
    return Read(page.read_text())


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Read:
    return read(finished / "run", tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def family(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("family") / "run"
    how = ("--data", finished / "blobs.npz", "--target", "params=0.8,0.5", "--epochs", "0", "-o", run)
    assert run_cli("finetune", finished / "mlp.pt2", *how).exit_code == 0
    return run


@pytest.fixture(scope="module")
def zeros(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("zeros") / "run"
    how = ("--data", finished / "blobs.npz", "--target", "params=0.4", "--granularity", "weights", "--epochs", "2")
    assert run_cli("finetune", finished / "mlp.pt2", *how, "-o", run).exit_code == 0
    return run


class TestWhatItSays:
    def test_budget_and_scores_are_those_of_the_run(self, finished: Path, page: Read) -> None:
        result = json.loads((finished / "run/result.json").read_text())
        used, limit = result["target"]["reached"], result["target"]["limit"]
        share = f"{100 * used / limit:.1f} %"
        assert page.facts["Budget"] == [f"{used} of at most {limit} parameters ({share})".replace(" %", "\xa0%")]
        before, after = (result["test"][name] for name in ("dense", "small"))
        scores = f"accuracy {before['metric']:.4f} → {after['metric']:.4f}"
        said = f"{scores}, loss {before['loss']:.4f} → {after['loss']:.4f}"
        assert page.facts["Test"] == [f"{said}, 60 samples"]
        assert f"within {result['equality']['max_relative']:.1e} of the largest output" in page.facts["Proof"][0]
        counts = [(result["dense"][unit], result["small"][unit]) for unit in ("params", "macs", "bytes")]
        rows = page.text("forms").partition("dense ")[2].partition("Shares")[0]
        small = " ".join(f"{after:,} {100 * after / before:.1f} %" for before, after in counts)
        assert rows.startswith(f"{before['metric']:.4f} " + " ".join(f"{count:,}" for count, _ in counts))
        assert rows.strip().endswith(f"small {after['metric']:.4f} {small}")

    def test_widths_are_those_of_the_small_model(self, finished: Path, page: Read) -> None:
        dense, small = (dict(load_pt2(finished / f"run/{name}.pt2").named_parameters()) for name in ("dense", "small"))
        hidden = dense["0.weight"].shape[0], small["0.weight"].shape[0]
        text = page.text("network")
        assert f"{hidden[0]} → {hidden[1]} {100 * hidden[1] / hidden[0]:.1f} %" in text
        assert "3 \u00d7 6 → 3 \u00d7 " in text and "whole" in text
        shares = [values["style"] for tag, values in page.tags if tag == "b" and "left" in str(values.get("style"))]
        assert f"width:{100 * hidden[1] / hidden[0]:.2f}%" in str(shares[0])

    def test_what_stayed_whole_is_what_inspect_says(self, finished: Path, page: Read) -> None:
        frozen = printed_json("inspect", finished / "mlp.pt2")["frozen"]
        assert {place["where"] for place in frozen} == {"2.weight", "2.bias"}
        held = 3 * 6 + 3
        assert f"{frozen[0]['reason']} {held} ({100 * held / 75:.1f} %)" in page.text("whole")

    def test_curves_have_a_point_for_every_epoch(self, finished: Path, page: Read) -> None:
        rows = (finished / "run/metrics.jsonl").read_text().splitlines()
        drawn = [values for tag, values in page.tags if tag == "polyline" and values["class"] == "c0"]
        longest = [values["points"] for values in drawn if "0,4" not in str(values["points"])]
        assert [len(str(points).split()) for points in longest] == [len(rows), len(rows)]

    def test_time_is_that_of_kinds_of_operators_in_both(self, page: Read) -> None:
        text = page.text("time")
        assert "Gemm" in text and "µs dense" in text and "µs small" in text

    def test_environment_is_what_the_run_noted(self, finished: Path, page: Read) -> None:
        about = json.loads((finished / "run/run.json").read_text())["about"]
        (noted,) = [
            entry["machine"]
            for entry in map(json.loads, (finished / "run/log.jsonl").read_text().splitlines())
            if entry["what"] == "began"
        ]
        assert f"torch {about['versions']['torch']}" in page.facts["Versions"][0]
        assert page.facts["Processor"] == [f"{noted['cpu']}, {noted['cores']} cores, {noted['system']}"]
        assert page.facts["Seed"] == ["0"] and page.facts["SHA-256 of the model"] == [about["model"]]

    def test_the_command_makes_the_same_settings(self, finished: Path, tmp_path: Path, page: Read) -> None:
        settings = read_config(finished / "run/config.toml")
        lines = [line for line in page.texts["again"] if line.startswith("l0compress finetune") and "--data" in line]
        words = shlex.split(lines[0])[2:]
        printed = run_cli("finetune", *words[: words.index("-o")], "--print-config").stdout
        (tmp_path / "again.toml").write_text(printed)
        assert complete(read_config(tmp_path / "again.toml")) == complete(settings)

    def test_without_a_profile_that_section_is_missing(self, finished: Path, tmp_path: Path) -> None:
        assert "time" not in read(finished / "run", tmp_path / "page.html", profile=False).texts


class TestOtherRuns:
    @pytest.mark.slow
    def test_a_family_shows_every_member_and_what_no_other_beats(self, family: Path, tmp_path: Path) -> None:
        page = read(family, tmp_path / "page.html", profile=False)
        results = {
            name: json.loads((family / name / "result.json").read_text()) for name in ("params=0.8", "params=0.5")
        }
        for name, result in results.items():
            (said,) = page.facts[f"{name}: budget"]
            assert said.startswith(f"{result['target']['reached']} of at most {result['target']['limit']} parameters")
            assert name in " ".join(page.texts["pareto"]) and f"{result['small']['macs']:,}" in page.text("forms")
        circles = [values for tag, values in page.tags if tag == "circle"]
        assert [values["class"] for values in circles] == ["form", "form"]

    def test_zeros_are_counted_layer_by_layer(self, zeros: Path, tmp_path: Path) -> None:
        page = read(zeros, tmp_path / "page.html", profile=False)
        weights = dict(load_pt2(zeros / "small.pt2").named_parameters())
        for name in ("0.weight", "2.weight"):
            assert f"{weights[name].numel()} → {int(weights[name].count_nonzero())}" in page.text("network")
        result = json.loads((zeros / "result.json").read_text())
        assert f"{result['nonzero']['params']}" in page.text("forms")

    def test_what_was_timed_is_in_the_table_and_drawn(self, finished: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
        timings = [Timing(name, 8, 15, ms, 2 * ms, 8000 / ms) for name, ms in (("dense", 4.0), ("small", 1.0))]
        report = BenchReport(2, tuple(timings), {"dense": 4000, "small": 1000}, {})
        points = tuple(Point(name, score, size, {8: ms}) for name, score, size, ms in _FORMS)
        tradeoff = Tradeoff(points, "test accuracy", threads=2, references=("dense",))
        assert keep_bench(run, report, tradeoff) == ()
        kept = kept_bench(run)
        assert kept is not None and kept.tradeoff == tradeoff and kept.report == report
        page = read(run, tmp_path / "page.html", profile=False)
        assert "batch 8, ms" in page.text("forms") and "1.000 25.0 %" in page.text("forms")
        assert "median latency, ms" in page.text("pareto") and "4.0 times as fast" in page.text("")

    def test_a_damaged_record_of_times_counts_as_none(self, finished: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
        for content in ("", "[]", '{"bench": 3}', '{"bench": {"threads": 1, "candidates": [], "timings": []}}'):
            (run / BENCH).write_text(content)
            assert kept_bench(run) is None
        read(run, tmp_path / "page.html", profile=False)

    def test_neither_the_data_nor_a_log_are_needed(self, finished: Path, tmp_path: Path) -> None:
        run = without_data(finished / "run", tmp_path / "run")
        (run / "log.jsonl").unlink()
        page = read(run, tmp_path / "page.html", profile=False)
        assert page.facts["Processor"] == ["not noted by this run"]


_FORMS = (("dense", 0.9, 4000, 4.0), ("small", 0.8, 1000, 1.0))


class TestSafety:
    def test_it_loads_nothing_and_runs_nothing(self, finished: Path, tmp_path: Path) -> None:
        write_report(finished / "run", tmp_path / "page.html", profile=False)
        html = (tmp_path / "page.html").read_text()
        page = Read(html)
        assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "img", "a", "form"}
        named = {name for _, values in page.tags for name in values}
        assert not named & {"src", "href", "xlink:href", "srcset", "data", "action", "background"}
        assert not [name for name in named if name.startswith("on")]
        assert not re.search(r"https?:|url\(|@import", html)

    def test_hostile_texts_stay_texts_wherever_they_stand(self, finished: Path) -> None:
        from l0compress.measure.page.render import html_of

        whole = page_of(told_by(finished / "run"), profile=True, batch=1, threads=1)
        whole = replace(whole, scatters=(scatter("t", [Mark("m", 1, 2)], x_name="x", y_name="y"),))
        plain, hostile = (html_of(_spoiled(whole, text)) for text in ("plain", HOSTILE))
        tags = [[tag for tag, _ in Read(html).tags if tag != "wbr"] for html in (plain, hostile)]
        assert tags[0] == tags[1] and len(tags[0]) > 100
        assert "<script" not in hostile and "<img" not in hostile and "&lt;script&gt;" in hostile

    def test_a_hostile_name_of_a_run_is_escaped(self, finished: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(finished / "run", tmp_path / "<b onclick=alert(1)>run"))
        write_report(run, profile=False)
        html = (run / "report.html").read_text()
        assert "<b onclick" not in html and "&lt;b onclick=alert(1)&gt;run" in html.replace("<wbr>", "")


def _spoiled(value: Any, text: str) -> Any:
    """The same page with a hostile text in place of every text; places in drawings stay."""
    if isinstance(value, str):
        return value if re.fullmatch(r"start|middle|end|[\d., -]*", value) else text
    if isinstance(value, tuple):
        return tuple(_spoiled(each, text) for each in value)
    if not is_dataclass(value):
        return value
    return replace(value, **{field.name: _spoiled(getattr(value, field.name), text) for field in fields(value)})


class TestCommand:
    def test_it_writes_beside_the_run_and_says_so(self, finished: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
        outcome = run_cli("report", run, "--no-profile")
        size = (run / "report.html").stat().st_size
        assert outcome.stdout.splitlines()[0] == f"wrote {run / 'report.html'} ({size:,} bytes)"
        assert printed_json("report", run, "--no-profile", "-o", tmp_path / "a.html") == {
            "path": str(tmp_path / "a.html"),
            "size_bytes": (tmp_path / "a.html").stat().st_size,
        }

    def test_what_it_cannot_write_is_refused_before_anything_is_computed(
        self, finished: Path, unfinished: Path, tmp_path: Path
    ) -> None:
        refused = run_cli("report", finished / "run", "-o", tmp_path / "page.pdf")
        assert refused.exit_code == 2 and refused.stderr == (
            f"Error: Cannot write a report to '{tmp_path / 'page.pdf'}': it is an .html or .htm file. Nothing was "
            "written. Give such a name.\n"
        )
        assert "is not finished" in run_cli("report", unfinished).stderr
        assert not (tmp_path / "page.pdf").exists()

    def test_without_jinja2_it_names_the_extra(self, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else found(name))
        with pytest.raises(InputError) as caught:
            write_report(finished / "run", finished / "never.html")
        assert str(caught.value) == (
            "A report needs jinja2. Nothing was written. Install it: pip install 'l0compress[report]'."
        )
        assert not (finished / "never.html").exists()


class TestDrawings:
    @pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.9731, 0.9742), (3.0, 3.0), (0.0, 912345.0), (-2.0, 7.0)])
    def test_an_axis_covers_its_values_in_even_steps(self, low: float, high: float) -> None:
        axis = axis_over(low, high, ends=(200, 10))
        assert axis.low <= low and axis.high >= high and 2 <= len(axis.ticks) <= 8
        steps = {round(b - a, 9) for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)}
        assert len(steps) == 1
        assert [float(text.replace(",", "")) for _, text in axis.marks] == pytest.approx(axis.ticks, abs=1e-9)

    def test_names_of_a_crowd_do_not_cover_each_other(self) -> None:
        marks = [(100.0 + 7 * number, 100.0 + (number % 3)) for number in range(8)]
        boxes = placed(marks, [(60, 14)] * 8, inside=Box(0, 0, 380, 300), gap=9)
        assert not any(one.overlap(other) for one, other in combinations(boxes, 2))
        assert all(box.left >= 0 and box.right <= 380 and box.top >= 0 and box.bottom <= 300 for box in boxes)

    def test_names_of_spans_keep_apart_and_inside(self) -> None:
        spans = [Span(f"macs=0.{number:02}", 2 * number, 2 * number + 2) for number in range(18)]
        drawing = curves("t", [Series("s", tuple((float(x), float(x % 5)) for x in range(37)))], spans)
        assert drawing is not None and 2 <= len(drawing.spans) < 18
        for one, other in combinations(drawing.spans, 2):
            assert one.y != other.y or abs(one.x - other.x) >= len(one.text) * 7

    def test_an_embedding_and_a_product_end_with_their_outputs(self) -> None:
        import torch

        class Reads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.product = nn.Embedding(11, 4), nn.Parameter(torch.randn(4, 6))
                self.up = nn.ConvTranspose1d(6, 5, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.up((self.words(x) @ self.product).transpose(1, 2))

        graph = capture(Reads(), (torch.zeros(2, 3, dtype=torch.long),))
        assert [(row.name, row.before) for row in layer_widths(graph, graph)] == [
            ("words.weight", 4),
            ("product", 6),
            ("up.weight", 5),
        ]

    def test_a_setting_without_a_flag_leaves_the_configuration_alone(self) -> None:
        assert "method" in command.__signature__.parameters
        settings = {"model": "n.pt2", "data": "digits", "target": ["macs=0.5", "bytes=9"], "labels_first": 1}
        assert finetune_command(settings) == (
            "l0compress finetune n.pt2 --data digits --target macs=0.5 --target bytes=9"
        )


# In a frame, since a window of Chromium is never narrower than 500 pixels.
_MEASURE = """<!DOCTYPE html><iframe style="border:0" width="{width}" height="2000" srcdoc="{page}"></iframe><script>
const frame = document.querySelector('iframe');
frame.addEventListener('load', () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const boxes = [...page.querySelectorAll('svg text.mark')].map(one => one.getBoundingClientRect());
  let covered = 0;
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {{
    covered += a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3; }}));
  const found = [frame.contentWindow.innerWidth, root.scrollWidth, covered, boxes.length];
  document.body.setAttribute('data-found', found.join(' '));
}});
</script>"""


@pytest.fixture(scope="module")
def pages(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    run = Path(shutil.copytree(family, folder / ("a" * 60 + "-with-a-long-name")))
    sizes = {"dense": 4000, "dense int8": 1500, "params=0.8": 3900, "params=0.5": 3000, "params=0.5 int8": 1400}
    timings = tuple(Timing(name, 1, 9, size / 1e3, size / 9e2, 1.0) for name, size in sizes.items())
    points = tuple(Point(name, 0.9, size, {1: size / 1e3}) for name, size in sizes.items())
    tradeoff = Tradeoff(points, "test accuracy", references=("dense", "dense int8"))
    assert keep_bench(run, BenchReport(1, timings, dict(sizes)), tradeoff) == ()
    whole = page_of(told_by(run), profile=True, batch=1, threads=1)
    from l0compress.measure.page.render import html_of

    long = "encoder.layers.11.attention.self.query_key_value_projection.parametrizations.weight.original0"
    layers = tuple(replace(layer, name=f"{long}.{number}") for number, layer in enumerate(whole.layers * 40))
    for name, content in (("real", whole), ("long", replace(whole, layers=layers))):
        (folder / f"{name}.html").write_text(html_of(content))
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
class TestInABrowser:
    @pytest.mark.parametrize("width", [390, 1280])
    @pytest.mark.parametrize("name", ["real", "long"])
    def test_nothing_is_wider_than_the_screen_and_no_name_covers_another(
        self, pages: Path, name: str, width: int, tmp_path: Path
    ) -> None:
        quiet = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync", "--disable-component-update")
        how = ("--headless", "--no-sandbox", *quiet, "--disable-background-networking", "--window-size=1400,2100")
        framed = tmp_path / "framed.html"
        framed.write_text(_MEASURE.format(width=width, page=escape((pages / f"{name}.html").read_text())))
        outcome = subprocess.run(
            [str(CHROMIUM), *how, f"--user-data-dir={tmp_path / 'own'}", "--dump-dom", framed.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found = re.search(r'data-found="(\d+) (\d+) (\d+) (\d+)"', outcome.stdout)
        assert found is not None
        inner, scrolled, covered, names = map(int, found.groups())
        assert inner == width and scrolled <= inner
        assert covered == 0 and names >= 8
