"""Budgets in milliseconds: is the time that was asked for the time that is measured, and how far is the model off?

    python benchmarks/latency.py targets [--networks resnet18,minilm32 ...] [--shares 0.5,0.3] [--dtype float32]
    python benchmarks/latency.py model [--plans 50]

``targets`` holds networks with random weights to shares of their own time, decided by magnitude, and measures what
comes out in turns with the dense network. ``model`` compares what the model of time predicts with what is measured,
over random plans. Weights do not matter for a time. Every line is appended to ``results/latency.jsonl`` and not
repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision_without_ops  # noqa: F401
from torch import Tensor, nn

import l0compress as l0
from l0compress.graph.groups import Groups
from l0compress.latency import Deployment, MeasuredTime, measure_time
from l0compress.latency.fit import plan_of_densities
from l0compress.training.closing import closed
from l0compress.training.harden import decide
from l0compress.training.limits import Limits
from l0compress.training.methods.magnitude import magnitude_scores
from l0compress.training.targets import Target

RESULTS = Path("results/latency.jsonl")
Made = tuple[nn.Module, tuple[Tensor, ...]]


def _image(name: str, size: int = 224) -> Callable[[], Made]:
    def make() -> Made:
        import torchvision.models as models

        return getattr(models, name)(weights=None), (torch.randn(2, 3, size, size),)

    return make


def _vit() -> Made:
    from torchvision.models import VisionTransformer

    return VisionTransformer(224, 16, 12, 6, 384, 1536), (torch.randn(2, 3, 224, 224),)


def _minilm(tokens: int) -> Callable[[], Made]:
    def make() -> Made:
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        return BertForSequenceClassification(config), (torch.randint(0, 1000, (2, tokens)),)

    return make


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(128, 512, num_layers=2, batch_first=True), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


NETWORKS: dict[str, Callable[[], Made]] = {
    "resnet18": _image("resnet18"),
    "resnet50": _image("resnet50"),
    "mobilenet": _image("mobilenet_v2"),
    "convnext": _image("convnext_tiny"),
    "vit": _vit,
    "minilm32": _minilm(32),
    "minilm128": _minilm(128),
    "lstm": lambda: (_Lstm(), (torch.randn(2, 64, 128),)),
}


def main() -> None:
    options = _options()
    done = {json.dumps(row["what"], sort_keys=True) for row in _rows()}
    for name in options.networks.split(","):
        torch.manual_seed(0)
        model, inputs = NETWORKS[name]()
        groups = l0.find_groups(l0.capture(model.eval(), inputs))
        for batch in map(int, options.batches.split(",")):
            for threads in map(int, options.threads.split(",")):
                deployment = Deployment(batch, threads, options.dtype)
                what = {"kind": options.kind, "network": name, **deployment.to_json()}
                wanted = [what | {"share": float(share)} for share in options.shares.split(",")]
                wanted = [what | {"plans": options.plans}] if options.kind == "model" else wanted
                missing = [each for each in wanted if json.dumps(each, sort_keys=True) not in done]
                if missing:
                    begin = time.perf_counter()
                    known = measure_time(groups, deployment)
                    seconds = round(time.perf_counter() - begin, 1)
                    for each in missing:
                        _note({"what": each, "fit_seconds": seconds, **_run(each, groups, known)})


def _run(what: dict[str, Any], groups: Groups, known: MeasuredTime) -> dict[str, Any]:
    if what["kind"] == "model":
        return _errors(groups, known, what["plans"])
    return _held(groups, known, what["share"])


def _held(groups: Groups, known: MeasuredTime, share: float) -> dict[str, Any]:
    """Hold the network to a share of its time, and measure what comes out."""
    target = Target.of(f"latency={share}").on(known.dense, known)
    limits = Limits.of(groups, (target,))
    scores = magnitude_scores(groups)
    first = decide(limits, scores)
    plan = closed(lambda within: decide(within, scores), lambda plan: l0.shrink(groups.graph, plan), limits)
    measured = known.beside.time(l0.shrink(groups.graph, plan))
    before = known.beside.time(l0.shrink(groups.graph, first))
    dense = groups.graph
    return {
        "dense_ms": known.dense / 1e6,
        "asked_ms": target.limit / 1e6,
        "measured_ms": measured / 1e6,
        "off": measured / target.limit - 1,
        "off_without_closing": before / target.limit - 1,
        "macs": plan.cost.macs / l0.cost(dense).macs,
    }


def _errors(groups: Groups, known: MeasuredTime, count: int) -> dict[str, Any]:
    """What the model says of random plans, beside what is measured."""
    resource = known(groups)
    draws = torch.Generator().manual_seed(1)
    errors = []
    for _ in range(count):
        level = 0.2 + 0.8 * float(torch.rand(1, generator=draws))
        spread = torch.rand(len(groups.groups), generator=draws).tolist()
        plan = plan_of_densities(groups, [level * (0.5 + each) for each in spread])
        measured = known.beside.time(l0.shrink(groups.graph, plan))
        errors.append(resource.cost(plan.keep) / measured - 1)
    absolute = sorted(abs(error) for error in errors)
    return {"median": absolute[len(absolute) // 2], "largest": absolute[-1], "errors": errors}


def _rows() -> Iterator[dict[str, Any]]:
    if RESULTS.is_file():
        yield from (json.loads(line) for line in RESULTS.read_text().splitlines())


def _note(row: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
    print({key: value for key, value in shown.items() if key != "errors"}, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("targets", "model"))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", default="2,1")
    parser.add_argument("--shares", default="0.5,0.3")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--plans", type=int, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    main()
