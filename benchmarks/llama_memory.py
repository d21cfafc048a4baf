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

_FLOAT32 = 4
# The example that is captured; gating takes memory in proportion to it.
_SAMPLES, _TOKENS = 2, 128
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
    graph = _captured(arguments)
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
    _table(weights, gates, _activations(graph) * arguments.tokens, arguments.ranks)


def _table(weights: dict[str, int], gates: int, activations: int, ranks: int) -> None:
    number, units = sum(weights.values()), sorted(_units(weights).values(), reverse=True)
    divided = [
        ("weights", number * _FLOAT32),
        ("gradients", number * _FLOAT32),
        ("moments of AdamW", number * _FLOAT32 * _MOMENTS),
        ("the dense teacher", number * _FLOAT32),
    ]
    # While one unit is computed the next is fetched; the gradient of one is whole until it is added up.
    gathered = [
        ("the two largest units whole", sum(units[:2]) * _FLOAT32),
        ("gradient of the largest whole", units[0] * _FLOAT32),
    ]
    everywhere = [
        ("gates, with gradients and moments", gates * _FLOAT32 * (2 + _MOMENTS)),
        ("activations of one sample, all kept", activations * _FLOAT32),
    ]
    rows = [
        *((what, size, size / ranks) for what, size in divided),
        *((what, 0, size) for what, size in gathered),
        *((what, size, size) for what, size in everywhere),
    ]
    print(f"| GiB, all in float32 | whole | divided over {ranks} |\n|---|---:|---:|")
    for what, whole, part in (*rows, ("**together**", sum(row[1] for row in rows), sum(row[2] for row in rows))):
        print(f"| {what} | {whole / 2**30:.2f} | {part / 2**30:.2f} |")


def _units(weights: dict[str, int]) -> dict[str, int]:
    """Elements of what FSDP would gather at once: each decoder layer by itself, and the rest."""
    units: dict[str, int] = {}
    for name, count in weights.items():
        parts = name.split(".")
        unit = ".".join(parts[:3]) if "layers" in parts else "embedding and head"
        units[unit] = units.get(unit, 0) + count
    return units


def _activations(graph: CapturedGraph) -> int:
    """Elements that a forward pass of one token makes anew, if nothing is thrown away or computed again.

    Attention is one operator, which keeps no table of tokens by tokens, so that all of them are in proportion to
    tokens.
    """
    return sum(_sizes(graph)) // (_SAMPLES * _TOKENS)


def _sizes(graph: CapturedGraph) -> Iterator[int]:
    for node in graph.nodes():
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if not any(part in str(node.target) for part in _VIEWS):
            yield value.numel()


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
        ids = torch.zeros(_SAMPLES, _TOKENS, dtype=torch.long)
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
