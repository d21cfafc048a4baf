"""Which inner loops of the numba engine are worth explicit vector code: the engine with it and with plain loops.

    make bench-engine-loops        # python benchmarks/engine_loops.py [--rounds 3] [--threads 1] [--seconds 0.1]

Five processes in turn, round after round: one with ``l0compress_runtime.engines.numba_simd`` as it is, and four in
which one of its loops is replaced by that of ``benchmarks/plain_loops.py``; the rest of the engine stays. Printed are
milliseconds, the least of the rounds' medians.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

SIMD = "l0compress_runtime.engines.numba_simd"
LOOPS = ("dot", "tile", "line", "transpose")
EXPLICIT = "explicit"


def weight(rows: int, columns: int, zeros: float) -> sparse.csr_array:
    """A random weight with so many zeros at random places."""
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(rows, columns)).astype(np.float32) / np.float32(columns**0.5)
    return sparse.csr_array(dense * (generator.random(dense.shape) >= zeros))


def timed_calls(bundle: Path, threads: int) -> dict[str, Callable[[], Any]]:
    """Every layer that is timed, by name, compiled by the numba engine, and an int8 bundle."""
    from l0compress_runtime import load
    from l0compress_runtime.engines import find
    from l0compress_runtime.layers import SparseConv, SparseLinear

    (engine,) = find("numba")
    generator = np.random.default_rng(1)
    calls: dict[str, Callable[[], Any]] = {}

    def add(name: str, layer: Any, *shape: int) -> None:
        calls[name] = partial(engine.compile(layer, threads=threads), generator.normal(size=shape).astype(np.float32))

    for zeros in (0.9, 0.95):
        layer = SparseLinear(weight(4096, 4096, zeros), np.zeros(4096, np.float32))
        values = replace(
            layer,
            weight=sparse.csr_array(
                (
                    np.clip(layer.weight.data * 1000, -127, 127).astype(np.int8),
                    layer.weight.indices,
                    layer.weight.indptr,
                ),
                shape=layer.shape,
            ),
            scale=np.full(4096, 1e-3, np.float32),
        )
        for batch in (1, 8, 64):
            add(f"4096x4096, {zeros:.0%} zeros, batch {batch}", layer, batch, 4096)
            add(f"4096x4096, {zeros:.0%} zeros, int8, batch {batch}", values, batch, 4096)
    for columns, rows in ((384, 384), (384, 1536), (1536, 384)):
        layer = SparseLinear(weight(rows, columns, 0.9), np.zeros(rows, np.float32))
        for tokens in (1, 32):
            add(f"MiniLM {columns}->{rows}, 90% zeros, {tokens} tokens", layer, tokens, columns)
    convolution = SparseConv(weight(128, 1152, 0.95), (3, 3), padding=((1, 1), (1, 1)), bias=np.zeros(128, np.float32))
    add("3x3 convolution, 128 channels, 28x28, 95% zeros, batch 1", convolution, 1, 128, 28, 28)
    loaded = load(bundle, threads=threads, engine="numba")
    for batch in (1, 8, 64):
        inputs = {loaded.inputs[0].name: generator.normal(size=(batch, 1024)).astype(np.float32)}
        calls[f"int8 bundle, 1024-4096-1024, 90% zeros, batch {batch}"] = partial(loaded.run, inputs)
    return calls


def write_bundle(path: Path) -> None:
    """Two linear layers at 90 % zeros, stored as int8."""
    import torch

    import l0compress as l0

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 1024)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= torch.rand_like(parameter) >= (0.9 if parameter.dim() == 2 else 0.0)
    graph = l0.capture(model, (torch.randn(2, 1024),))
    settings = l0.BundleSettings(storage="int8", engines="numba", measure=False, threads=1)
    l0.export_bundle(graph, path, settings=settings)


def child(options: argparse.Namespace) -> None:
    """Print the median milliseconds of every call, as JSON."""
    if options.plain:
        name = f"make_{options.plain}"
        setattr(importlib.import_module(SIMD), name, getattr(importlib.import_module("plain_loops"), name))
    from l0compress_runtime.timing import Turns, in_turns

    medians = {}
    for name, call in timed_calls(options.bundle, options.threads).items():
        taken = in_turns({name: call}, Turns(options.seconds, rounds=10_000, fewest_rounds=7))
        medians[name] = float(np.median(taken[name])) / 1e6
    print(json.dumps(medians))


def measured(plain: str | None, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run one child, whose compiled code goes to a cache of its own."""
    replaced = ["--plain", plain] if plain else []
    arguments = ["--bundle", str(options.bundle), "--threads", str(options.threads), "--seconds", str(options.seconds)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments, *replaced],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder / (plain or EXPLICIT))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.1, help="for one layer at one batch size, in each round")
    parser.add_argument("--plain", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bundle:
        child(options)
        return
    columns = (None, *LOOPS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.bundle = folder / "int8.l0c"
        write_bundle(options.bundle)
        rounds = [{plain: measured(plain, options, folder) for plain in columns} for _ in range(options.rounds)]
    print(
        f"| layer | {EXPLICIT} | {' | '.join(f'plain {loop}' for loop in LOOPS)} |",
        "|---" * (2 + len(LOOPS)) + "|",
        sep="\n",
    )
    for layer in rounds[0][None]:
        least = [min(times[plain][layer] for times in rounds) for plain in columns]
        print(f"| {layer} | {' | '.join(f'{milliseconds:.3f}' for milliseconds in least)} |", flush=True)


if __name__ == "__main__":
    main()
