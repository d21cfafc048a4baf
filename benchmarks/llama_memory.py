"""What a Llama of a billion parameters with gates takes in memory, captured without ever having its weights.

    python benchmarks/llama_memory.py [--ranks 8] [--tokens 2048]

The model is made, captured and gated on the meta device, where tensors have shapes and no values; what it would take
when it is trained is added up from those shapes. ``--hidden`` and the like make a smaller one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import l0compress as l0
from l0compress.graph.capture import CapturedGraph

_FLOAT32, _BFLOAT16 = 4, 2
# The first and the second moment of Adam.
_MOMENTS = 2
_VIEWS = (
    "view",
    "_unsafe_view",
    "reshape",
    "transpose",
    "permute",
    "expand",
    "unsqueeze",
    "squeeze",
    "slice",
    "select",
)


def main() -> None:
    """Capture, gate, and print the table."""
    arguments = _arguments()
    began = time.perf_counter()
    graph, tokens = _captured(arguments), arguments.tokens
    captured = time.perf_counter() - began
    gated = l0.gate(graph)
    seconds = time.perf_counter() - began
    weights = {name: weight.numel() for name, weight in gated.weights().items()}
    number, gates = sum(weights.values()), gated.groups.num_moves
    devices = sorted({weight.device.type for weight in gated.weights().values()})
    print(f"{number:,} parameters on {', '.join(devices)}; {gates:,} gates in {len(gated.groups.groups):,} groups")
    print(f"captured in {captured:.0f} s, gated after {seconds:.0f} s\n")
    budget = l0.Budget(gated, {"macs": 0.5})
    print(f"{budget}\n")
    _table(weights, gates, _activations(graph, tokens), arguments.ranks)


def _table(weights: dict[str, int], gates: int, activations: int, ranks: int) -> None:
    number, units = sum(weights.values()), _units(weights)
    name, largest = max(units.items(), key=lambda unit: unit[1])
    rows = [
        ("weights, float32", number * _FLOAT32, ranks),
        ("gradients, float32", number * _FLOAT32, ranks),
        ("moments of AdamW, float32", number * _FLOAT32 * _MOMENTS, ranks),
        ("the dense teacher, bfloat16", number * _BFLOAT16, ranks),
        ("gates, with gradients and moments", gates * _FLOAT32 * (2 + _MOMENTS), 1),
        (f"largest unit whole ({name}), bfloat16, and the next", 2 * largest * _BFLOAT16, 1),
        ("its gradient before it is divided, float32", largest * _FLOAT32, 1),
        ("activations of one sample, bfloat16, all kept", activations * _BFLOAT16, 1),
    ]
    print(f"| GiB | one process | each of {ranks} |\n|---|---:|---:|")
    totals = [0.0, 0.0]
    for what, size, divided in rows:
        # By itself a process has every unit whole anyway.
        alone = 0.0 if divided == 1 and "unit" in what or "before it" in what else size / 2**30
        shares = alone, size / divided / 2**30
        totals = [total + share for total, share in zip(totals, shares, strict=True)]
        print(f"| {what} | {shares[0]:.2f} | {shares[1]:.2f} |")
    print(f"| **together** | **{totals[0]:.1f}** | **{totals[1]:.1f}** |")


def _units(weights: dict[str, int]) -> dict[str, int]:
    """Elements of what FSDP would gather at once: each decoder layer by itself, and the rest."""
    units: dict[str, int] = {}
    for name, count in weights.items():
        parts = name.split(".")
        unit = ".".join(parts[:3]) if "layers" in parts else "embedding and head"
        units[unit] = units.get(unit, 0) + count
    return units


def _activations(graph: CapturedGraph, tokens: int) -> int:
    """Elements that a forward pass of one sample makes anew, if nothing is thrown away or computed again."""
    return sum(_elements(graph, tokens))


def _elements(graph: CapturedGraph, tokens: int) -> Iterator[int]:
    for node in graph.nodes():
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if any(part in str(node.target) for part in _VIEWS):
            continue
        yield _size(value.shape, tokens)


def _size(shape: torch.Size, tokens: int) -> int:
    """Elements of a shape that was captured for two samples of as many tokens as there are, for one of them."""
    total = 1
    for size in shape:
        total *= int(size)
    return total // 2 if shape and int(shape[0]) == 2 else total


def _captured(arguments: argparse.Namespace) -> CapturedGraph:
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.heads // 4,
        tie_word_embeddings=True,
        use_cache=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
        ids = torch.zeros(2, arguments.tokens, dtype=torch.long)
    return l0.capture(model, (ids,), dynamic=None)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (
        ("ranks", 8),
        ("tokens", 2048),
        ("vocabulary", 128_256),
        ("hidden", 2048),
        ("layers", 16),
        ("heads", 32),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


if __name__ == "__main__":
    main()
