"""Kill a run at random moments, resume it each time, and compare every hash with the run that nobody touched.

    python benchmarks/resume.py [--kills 30] [--seed 0] [--signals KILL,TERM] [--epochs 12] [--target macs=0.25]

A digits classifier is compressed by the command line, each life of the run being a process of its own. Two of three
lives end at a random moment after they have kept a snapshot, so that the kills spread over the run, the writing of
snapshots and of results included; the third ends before that, at a random moment from the start of its process on.
After the last kill the run is resumed to its end. Equal has to be every file but the log: the weights (dense, masked
and small ``.pt2``), metrics, plan, result, configuration, the manifest over them, and the ONNX file exported from the
run; with several targets, those of every member of the family.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_COMPARED = ("log.jsonl", ".lock")
STOPPED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143}


@dataclass
class Tally:
    """What the kills met."""

    kills: int = 0
    positions: list[str] = field(default_factory=list)
    finished: int = 0
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Moment:
    """When a life ends: so many seconds after its first snapshot or, if early, after its process has begun."""

    seconds: float
    early: bool = False


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "l0compress", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def life(folder: Path, run: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """One process of the run: begins it, or goes on with it."""
    arguments = (
        "finetune", folder / "digits.pt2", "--data", "digits", "--target", options.target, "--threads", "1",
        "--epochs", str(options.epochs), "--checkpoint-every", str(options.every), "-o", run, "--resume", "--json",
    )  # fmt: skip
    return subprocess.Popen(
        command(*arguments), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def whole(folder: Path, run: Path, options: argparse.Namespace) -> float:
    """A life that nobody ends; its seconds."""
    began = time.monotonic()
    process = life(folder, run, options)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run failed with {process.returncode}:\n{errors.decode()}")
    return time.monotonic() - began


def hashes(folder: Path, run: Path) -> dict[str, str]:
    subprocess.run(
        command("export", run, "--json"), cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL
    )
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in NOT_COMPARED)
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def reached(run: Path) -> str:
    """Where the run stands, as its manifest says; read without the package."""
    lines = (run / "run.json").read_text().splitlines() if (run / "run.json").exists() else []
    return next((line.split('"')[3] for line in lines if '"position"' in line), "before its beginning")


def killed_run(
    folder: Path, run: Path, number: signal.Signals, moments: list[Moment], options: argparse.Namespace, tally: Tally
) -> None:
    """Live and die at ``moments`` until they are used up or the run is finished."""
    while moments:
        before = changed(run / "run.json")
        process = life(folder, run, options)
        while not moments[0].early and process.poll() is None and changed(run / "run.json") == before:
            time.sleep(0.002)
        try:
            _, errors = process.communicate(timeout=moments[0].seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            _, errors = process.communicate()
        if process.returncode == 0:
            break
        # A signal that comes before the package listens for it ends the process as the kernel ends any.
        if process.returncode not in (STOPPED[number], -number):
            raise SystemExit(f"a life ended with {process.returncode}:\n{errors.decode()}")
        moments.pop(0)
        tally.kills += 1
        tally.positions.append(reached(run))
        print(f"  {number.name} {tally.kills:2}: {reached(run)}", flush=True)
    whole(folder, run, options)
    tally.finished += 1


def changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def prove(folder: Path, number: signal.Signals, options: argparse.Namespace, seconds: float, startup: float) -> Tally:
    draw, tally, expected = random.Random(options.seed), Tally(), hashes(folder, folder / "whole")
    stretch = (seconds - startup) / options.kills
    moments = [
        Moment(draw.uniform(0, 1.2 * startup), True) if kill % 3 == 2 else Moment(draw.uniform(0, 2 * stretch))
        for kill in range(options.kills)
    ]
    while moments:
        run = folder / f"{number.name}-{tally.finished}"
        killed_run(folder, run, number, moments, options, tally)
        found = hashes(folder, run)
        names = sorted(found.keys() | expected.keys())
        tally.differences += [f"{run.name}/{name}" for name in names if found.get(name) != expected.get(name)]
    return tally


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signals", default="KILL,TERM")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--target", default="macs=0.25")
    parser.add_argument("--every", type=int, default=5, help="steps between two snapshots")
    return parser.parse_args()


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, ROOT / "examples/digits_train.py", folder], env=environment(), check=True)
        seconds = whole(folder, folder / "whole", options)
        startup = whole(folder, folder / "whole", options)
        print(f"uninterrupted: {seconds:.1f} s, of which about {startup:.1f} s to start up")
        failed = False
        for number in (signal.Signals[f"SIG{short}"] for short in options.signals.split(",")):
            tally = prove(folder, number, options, seconds, startup)
            different = ", ".join(tally.differences) or "none"
            print(
                f"{number.name}: killed {tally.kills} times at {len(set(tally.positions))} different states, "
                f"{tally.finished} run(s) finished; files with another hash than the uninterrupted run: {different}"
            )
            failed |= bool(tally.differences)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
