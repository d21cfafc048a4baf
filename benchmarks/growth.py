"""How label, group, shrink and hardening grow with the network: seconds, and memory beyond the weights.

    make bench-growth                        # python benchmarks/growth.py [NAME ...]

Every network runs in a process of its own. Memory is the peak resident size of that process from capture to shrink,
less what it held when the model was built and had run once. The Llama of 1.2 billion parameters (16 layers of width
2048, 32 query and 8 key heads, 8192 wide MLPs) lives on the meta device: it has shapes and no weights, and so has what
is cut from it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision_without_ops
from torch import nn

import l0compress as l0
from l0compress.graph.labels.walk import label
from l0compress.training.harden import decide
from l0compress.training.limits import Limits

COLUMNS = (
    "network",
    "parameters",
    "nodes",
    "moves",
    "capture s",
    "label s",
    "group s",
    "plan s",
    "shrink s",
    "harden s",
    "memory MB",
)
# Most seconds for label, group and shrink together, most for hardening, and most MB, where a bound was set.
BOUNDS = {"resnet50": (3.0, 2.0, None), "vit_l_16": (30.0, 10.0, None), "llama-16": (120.0, 10.0, 4096)}
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
VITS = ("vit_s_16", "vit_b_16", "vit_l_16")
LLAMAS = ("llama-2", "llama-4", "llama-8", "llama-16")


def build(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model in eval mode and example inputs of batch 2."""
    if name.startswith("llama"):
        return _llama(int(name.partition("-")[2]))
    models = torchvision_without_ops.load().models
    if name == "vit_s_16":
        vit = models.VisionTransformer(
            image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
        )
        return vit.eval(), (torch.randn(2, 3, 224, 224),), {}
    return models.get_model(name, weights=None).eval(), (torch.randn(2, 3, 224, 224),), {}


def _llama(layers: int) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    torchvision_without_ops.load()
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
        tokens = torch.zeros(2, 64, dtype=torch.long)
    return model.eval(), (), {"input_ids": tokens}


def resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(seconds: dict[str, float], stage: str, function: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = function()
    seconds[stage] = round(time.perf_counter() - start, 2)
    return result


def measure(name: str) -> dict[str, Any]:
    """One network: what :data:`COLUMNS` says."""
    torch.set_num_threads(1)
    model, args, kwargs = build(name)
    if not name.startswith("llama"):  # nothing runs on the meta device
        with torch.no_grad():
            model(*args, **kwargs)
    # What the first capture imports is not what this one costs.
    l0.find_groups(l0.capture(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), (torch.zeros(2, 2),)))
    before, seconds = resident_mb(), {}
    graph = timed(seconds, "capture s", lambda: l0.capture(model, args, kwargs))
    timed(seconds, "label s", lambda: label(graph))
    groups = timed(seconds, "group s", lambda: l0.find_groups(graph))
    seconds["group s"] = round(seconds["group s"] - seconds["label s"], 2)  # find_groups labels too
    plan = timed(seconds, "plan s", lambda: l0.KeepPlan.random(groups, density=0.5))
    small = timed(seconds, "shrink s", lambda: l0.shrink(graph, plan))
    scores = torch.randn(groups.num_moves, generator=torch.Generator().manual_seed(0))
    half = l0.cost(graph).macs // 2
    timed(seconds, "harden s", lambda: decide(Limits.counted(groups, {"macs": half}), scores))
    return {
        "network": name,
        "parameters": f"{l0.cost(graph).params:,}",
        "nodes": len(list(graph.nodes())),
        "moves": groups.num_moves,
        **seconds,
        "memory MB": round(resident_mb() - before),
        "left": l0.cost(small).params,
    }


def passes(row: dict[str, Any]) -> bool:
    if row["network"] not in BOUNDS:
        return True
    most_cutting, most_hardening, most_mb = BOUNDS[row["network"]]
    cutting = row["label s"] + row["group s"] + row["shrink s"]
    within = [
        cutting <= most_cutting,
        row["harden s"] <= most_hardening,
        most_mb is None or row["memory MB"] <= most_mb,
    ]
    bound = f"{most_cutting:g} s, {most_hardening:g} s" + (f", {most_mb} MB" if most_mb else "")
    print(
        f"\n{row['network']}: {cutting:.2f} s, hardening {row['harden s']} s, {row['memory MB']} MB; wanted {bound}: "
        f"{'ok' if all(within) else 'MISSED'}"
    )
    return all(within)


def main(names: list[str]) -> int:
    if names[:1] == ["--one"]:
        print(json.dumps(measure(names[1])))
        return 0
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for name in names or (*RESNETS, *VITS, *LLAMAS):
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print("| " + " | ".join(str(rows[-1][column]) for column in COLUMNS) + " |", flush=True)
    return int([passes(row) for row in rows].count(False) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
