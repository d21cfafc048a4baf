"""Damaged and hostile files of every kind, read under limits of memory and time.

    PYTHONPATH=.:tests python tests/fuzz_files.py --mutations 10000 --seed 0

Each mutation is read by a child process of its own, forked from one that has imported everything: code that a file
makes it run, a crash, a hang and a rise in memory are all seen from outside. A reader may load the file or refuse it
with one of the package's own errors; anything else is a finding, and its file is kept.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hostile_files
import torch
from conftest import save_blobs, save_pt2, tiny_mlp
from safetensors.torch import save_file
from torch import nn

from l0compress.errors import L0Error
from l0compress.graph import capture
from l0compress.loading import DataSource, ModelSource, load_data

MOST_SECONDS = 10
MOST_BYTES = 2 * 2**30
LOADED, REFUSED, STRANGE, EXECUTED = 0, 10, 11, 12
OUTCOMES = {LOADED: "loaded", REFUSED: "refused", STRANGE: "another error", EXECUTED: "ran code"}
FINE = ("loaded", "refused")
# That nothing but the package's own errors comes out is what is tested.
EVERYTHING = (BaseException,)
Mutation = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    kind: str
    seconds: float
    peak_bytes: int
    message: str


class SmallNet(nn.Module):
    """Convolution, batch norm, keyword and dictionary: what archives of programs describe."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.norm(self.conv(x)).relu().flatten(1))}


def build_seeds(folder: Path) -> list[Path]:
    """One honest file of every kind."""
    save_pt2(tiny_mlp(), (torch.zeros(2, 8),), folder / "mlp.pt2")
    save_pt2(SmallNet(), (torch.zeros(2, 1, 4, 4),), folder / "net.pt2")
    weights = tiny_mlp().state_dict()
    torch.save(weights, folder / "weights.pt")
    torch.save({"state_dict": weights, "epoch": 1}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "weights.safetensors")
    save_blobs(folder / "blobs.npz")
    hostile_files.save_array(folder / "array.npy")
    hostile_files.save_onnx(folder / "mlp.onnx")
    rows = [f"{i},{i / 7},{'red' if i % 3 else 'blue'},{'yes' if i % 2 else 'no'}" for i in range(60)]
    (folder / "table.csv").write_text("a,b,hue,sold\n" + "\n".join(rows) + "\n")
    return sorted(folder.iterdir())


def read(path: Path) -> None:
    """Read a file as the commands do: models up to the captured graph, data up to their parts."""
    if path.suffix in (".npz", ".npy", ".csv"):
        load_data(DataSource(str(path), target_column="sold" if path.suffix == ".csv" else None))
        return
    factory = "conftest:tiny_mlp" if path.suffix in (".pt", ".pth", ".safetensors") else None
    model = ModelSource(path, factory).load()
    if path.suffix == ".pt2":
        capture(model)


def overwrite(content: bytes, rng: random.Random) -> bytes:
    """A few bytes by extremes, which are lengths and counts in many formats."""
    changed, at = bytearray(content), rng.randrange(len(content))
    piece = rng.choice([b"\xff" * 4, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"999999999999", b"-1", rng.randbytes(16)])
    changed[at : at + len(piece)] = piece
    return bytes(changed)


def truncate(content: bytes, rng: random.Random) -> bytes:
    """The beginning alone."""
    return content[: rng.randrange(len(content))]


def splice(content: bytes, rng: random.Random) -> bytes:
    """A piece of the file again, somewhere else."""
    start, at = rng.randrange(len(content)), rng.randrange(len(content))
    return content[:at] + content[start : start + rng.randint(1, 200)] + content[at:]


def delete(content: bytes, rng: random.Random) -> bytes:
    """A piece left out."""
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randint(1, 200) :]


MUTATIONS: tuple[Mutation, ...] = (
    hostile_files.flip_bits, overwrite, truncate, splice, delete, hostile_files.change_member
)  # fmt: skip


def try_file(path: Path, sprung: Path) -> Outcome:
    """Read a file in a child process under limits."""
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_as_child(path, sprung, writer))
    os.close(writer)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - started
    with os.fdopen(reader, "rb") as pipe:
        start_bytes, message = int.from_bytes(pipe.read(8), "little"), pipe.read().decode(errors="replace")
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        kind = "hang" if name in ("SIGALRM", "SIGKILL") else f"crash by {name}"
    else:
        kind = OUTCOMES.get(os.WEXITSTATUS(status), f"exit {os.WEXITSTATUS(status)}")
    if sprung.exists():
        kind = OUTCOMES[EXECUTED]
    return Outcome(kind, seconds, usage.ru_maxrss * 1024 - start_bytes, message)


def _as_child(path: Path, sprung: Path, writer: int) -> int:
    signal.alarm(MOST_SECONDS)
    os.write(writer, resident().to_bytes(8, "little"))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MOST_BYTES, hard))
    os.chdir(sprung.parent)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    code = LOADED
    try:
        read(path)
    except L0Error as refusal:
        os.write(writer, str(refusal)[:2000].encode())
        code = REFUSED
    except EVERYTHING as error:
        os.write(writer, f"{type(error).__name__}: {error}"[:2000].encode())
        code = STRANGE
    return code


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """What this process holds in memory: a child starts from there."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fuzz(
    mutations: int, seed: int, folder: Path
) -> tuple[collections.Counter[tuple[str, str]], list[str], list[float]]:
    """Run mutations; counts by kind of file and outcome, findings in words, and the largest time and memory."""
    seeds_folder, sprung = folder / "seeds", folder / "work" / "sprung"
    for path in (seeds_folder, sprung.parent):
        path.mkdir()
    seeds = build_seeds(seeds_folder)
    for path in seeds:
        read(path)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    findings, largest, rng = [], [0.0, 0.0], random.Random(seed)
    files = sorted(hostile_files.build(folder / "hostile"))
    for number in range(mutations + len(files)):
        if number < len(files):
            path, what = files[number], files[number].name
        else:
            source, change = rng.choice(seeds), rng.choice(MUTATIONS)
            path, what = folder / f"mutant{source.suffix}", f"{source.name}, {change.__name__}, number {number}"
            path.write_bytes(change(source.read_bytes(), rng))
        outcome = try_file(path, sprung)
        counts[path.suffix, outcome.kind] += 1
        largest = [max(largest[0], outcome.seconds), max(largest[1], outcome.peak_bytes)]
        if outcome.kind not in FINE or (
            number < len(files) and what not in hostile_files.HARMLESS and outcome.kind != "refused"
        ):
            findings.append(f"{what}: {outcome.kind} {outcome.message}".strip())
            kept = Path(tempfile.gettempdir(), f"finding{len(findings)}{path.suffix}")
            kept.write_bytes(path.read_bytes())
        sprung.unlink(missing_ok=True)
    return counts, findings, largest


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, findings, largest = fuzz(arguments.mutations, arguments.seed, Path(folder))
    for suffix in sorted({suffix for suffix, _ in counts}):
        row = {kind: count for (other, kind), count in counts.items() if other == suffix}
        print(f"{suffix:<13}" + "  ".join(f"{kind}: {count:,}" for kind, count in sorted(row.items())))
    print(f"longest {largest[0]:.1f} s, most memory beyond the start {largest[1] / 2**20:,.0f} MiB")
    print(f"{sum(counts.values()):,} files, {len(findings)} findings")
    for finding in findings[:40]:
        print("  " + finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
