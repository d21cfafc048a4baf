"""What a process holds while a gated network is trained beside its teacher, whole and divided over several processes.

    python benchmarks/sharded_memory.py [--ranks 2] [--width 768] [--layers 24] [--whole]

Measured, in bytes that the operating system counts as resident: the highest in three steps of AdamW, less what the
process held before it had either network. The processes are on this machine and talk through gloo.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing.spawn as starting
from torch import nn

import l0compress as l0
from l0compress.gates.network import GatedNetwork
from l0compress.graph.nodes.network import GraphNetwork
from l0compress.training.held import Held
from l0compress.training.processes import joined

_STEPS, _SAMPLES = 3, 8


def main() -> None:
    """Start the processes; each prints what it held."""
    arguments = _arguments()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the operating system
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    starting.spawn(_train, (arguments, port), nprocs=arguments.ranks)


def _train(rank: int, arguments: argparse.Namespace, port: int) -> None:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": arguments.ranks, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in own.items()}}
    torch.set_num_threads(1)
    divided = Held if arguments.whole else joined().divided
    _steps(8, 2, divided)  # what is imported on the way is no part of a network
    peak, count = _steps(arguments.width, arguments.layers, divided)
    print(f"process {rank}: {peak / 2**20:.0f} MiB; one copy of the weights is {4 * count / 2**20:.0f} MiB", flush=True)
    joined().leave_()


def _steps(width: int, layers: int, divided: Callable[[GatedNetwork | GraphNetwork], Held]) -> tuple[int, int]:
    """Train; returns what was held at most, and how many weights there are."""
    blocks = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)]
    graph = l0.capture(nn.Sequential(*blocks), (torch.zeros(2, width),))
    before = _resident("VmRSS")
    teacher, gated = divided(graph.module()), l0.gate(graph)
    held = divided(gated)
    weights = list(held.parameters_of(gated.weights()).values())
    optimizer = torch.optim.AdamW(weights, fused=True)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    x = torch.randn(_SAMPLES, width)
    for _ in range(_STEPS):
        with torch.no_grad():
            taught = teacher.network(x)
        nn.functional.mse_loss(held.network(x), taught).backward()
        optimizer.step()
        optimizer.zero_grad()
    return _resident("VmHWM") - before, sum(weight.numel() for weight in weights)


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("ranks", 2), ("width", 768), ("layers", 24)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--whole", action="store_true", help="every process holds all of it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
