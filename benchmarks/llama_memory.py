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
from l0compress.training.units import in_units

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
    number, gates = sum(weight.numel() for weight in gated.weights().values()), gated.groups.num_moves
    devices = sorted({weight.device.type for weight in gated.weights().values()})
    print(f"{number:,} parameters on {', '.join(devices)}; {gates:,} gates in {len(gated.groups.groups):,} groups")
    print(f"captured in {captured:.0f} s, gated after {seconds:.0f} s\n")
    budget = l0.Budget(gated, {"macs": 0.5})
    print(f"{budget}\n")
    units = in_units(gated.network).units
    sizes = sorted((sum(weight.numel() for weight in unit.parameters()) for unit in units), reverse=True)
    print(f"{len(sizes)} units of {sizes[-1]:,} to {sizes[0]:,} parameters; {number - sum(sizes):,} are of several\n")
    _table(number, sizes, gates, _activations(graph) * arguments.tokens, arguments.ranks)


def _table(number: int, units: list[int], gates: int, activations: int, ranks: int) -> None:
    divided = [
        ("weights", number * _FLOAT32),
        ("gradients", number * _FLOAT32),
        ("moments of AdamW", number * _FLOAT32 * _MOMENTS),
        ("the dense teacher", number * _FLOAT32),
    ]
    # While one unit is computed the next is fetched; the gradient of one is whole until it is added up. What several
    # units read is whole from the first of them to the last.
    gathered = [
        ("two units whole", sum(units[:2]) * _FLOAT32),
        ("the gradient of one", units[0] * _FLOAT32),
        ("what several units read, and its gradient", (number - sum(units)) * _FLOAT32 * 2),
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
