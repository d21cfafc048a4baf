"""A run over two hosts, which are two network namespaces of this machine, against one process by itself.

    sudo python benchmarks/two_hosts.py

Each host has a folder of its own with the model and the data, and a network of its own; a cable (veth) joins them. The
run folder appears on the first host alone. Needs root, for the namespaces, which are removed again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

HOSTS = ("l0host0", "l0host1")
PORT = 29512
FINETUNE = ("finetune", "model.pt2", "--data", "data.npz", "--target", "macs=0.5", "--epochs", "12", "-o", "run")


def main() -> None:
    """Run both ways and compare."""
    with tempfile.TemporaryDirectory() as text, network():
        folder = Path(text)
        for name in (*HOSTS, "alone"):
            (folder / name).mkdir()
        write_files(folder / "alone")
        for host in HOSTS:
            shutil.copytree(folder / "alone", folder / host, dirs_exist_ok=True)
        processes = [
            subprocess.Popen(launch(rank), cwd=folder / host, env=env(rank)) for rank, host in enumerate(HOSTS)
        ]
        codes = [process.wait() for process in processes]
        line = [sys.executable, "-m", "l0compress", *FINETUNE]
        codes.append(subprocess.run(line, cwd=folder / "alone", env=env(None)).returncode)
        if any(codes):
            sys.exit(f"exit codes {codes}")
        compare(folder)


def launch(rank: int) -> list[str]:
    """The command on one host."""
    nodes = ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"]
    where = ["--master-addr", address(0), "--master-port", str(PORT)]
    python = [sys.executable, "-m", "torch.distributed.run", *nodes, *where, "-m", "l0compress", *FINETUNE]
    return ["ip", "netns", "exec", HOSTS[rank], *python]


def env(rank: int | None) -> dict[str, str]:
    """One thread, and gloo on the cable; this package wherever the working folder is."""
    here = str(Path(__file__).resolve().parents[1])
    own = {} if rank is None else {"GLOO_SOCKET_IFNAME": cable(rank)}
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here, **own}


def compare(folder: Path) -> None:
    """Say where the run folder is, and how far the losses are apart."""
    where = [name for name in HOSTS if (folder / name / "run").exists()]
    losses = [list(read_losses(folder / name / "run")) for name in (HOSTS[0], "alone")]
    plans = [(folder / name / "run" / "plan.json").read_text() for name in (HOSTS[0], "alone")]
    apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
    print(f"\nrun folder on: {', '.join(where)}")
    print(f"the same plan: {'yes' if plans[0] == plans[1] else 'no'}")
    print(f"{len(losses[0])} epochs, losses at most {apart:.1e} apart, the last {losses[0][-1]:.4f}")
    if where != [HOSTS[0]] or plans[0] != plans[1] or apart > 1e-3:
        sys.exit("the two hosts do not reach what one process reaches")


def read_losses(run: Path) -> Iterator[float]:
    """The loss of every epoch."""
    for row in (run / "metrics.jsonl").read_text().splitlines():
        yield json.loads(row)["loss"]


def write_files(folder: Path) -> None:
    """A small network and its data."""
    torch.manual_seed(0)
    x = torch.randn(256, 12)
    network = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
    program = torch.export.export(network, (x[:2],), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, folder / "model.pt2")
    np.savez(folder / "data.npz", x=x.numpy(), y=x[:, :4].argmax(1).numpy())


@contextmanager
def network() -> Iterator[None]:
    """Two namespaces with a cable between them."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", cable(0), "netns", HOSTS[0], "type", "veth", "peer", "name", cable(1), "netns", HOSTS[1])
        for rank, host in enumerate(HOSTS):
            ip("-n", host, "address", "add", f"{address(rank)}/24", "dev", cable(rank))
            for device in ("lo", cable(rank)):
                ip("-n", host, "link", "set", device, "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], check=False, stderr=subprocess.DEVNULL)


def cable(rank: int) -> str:
    """The end of the cable on a host."""
    return f"l0cable{rank}"


def address(rank: int) -> str:
    """The address of a host."""
    return f"10.77.0.{rank + 1}"


def ip(*words: str) -> None:
    """Change the network."""
    command: Sequence[str] = ("ip", *words)
    if subprocess.run(command).returncode:
        sys.exit(f"{' '.join(command)!r} failed: it needs root, and a kernel with namespaces.")


if __name__ == "__main__":
    main()
