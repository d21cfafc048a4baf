"""Thousands of random networks: ``python tests/graph/fuzz.py --examples 2000 --seed 0``, or ``make fuzz``.

Examples are drawn in batches of their own seeds, so that a failure in one does not end the others; the exit status is
1 if there is any. ``--shrink images 17`` looks for the smallest network that fails in batch 17 (minutes).
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from hypothesis import HealthCheck, Phase, given, seed, settings
from random_networks import Draw, Network, Tally, check, draws, image_networks, token_networks

FAMILIES = {"images": image_networks, "tokens": token_networks}
BATCH = 20


def run_batch(family: str, number: int, count: int, tally: Tally, *, smallest: bool = False) -> str | None:
    """Look at ``count`` networks; the report of the failure, if there is one."""

    phases = [Phase.generate, Phase.shrink] if smallest else [Phase.generate]
    checks = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)

    @seed(number)
    @settings(max_examples=count, deadline=None, suppress_health_check=checks, database=None, phases=phases)
    @given(FAMILIES[family](), draws())
    def look(network: Network, draw: Draw) -> None:
        check(network, draw, tally)

    try:
        look()
    except BaseException as failure:  # hypothesis may raise a group of failures, which is no Exception
        if isinstance(failure, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(failure))
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no batch after that time")
    parser.add_argument("--shrink", nargs=2, metavar=("FAMILY", "BATCH"))
    options = parser.parse_args()
    if options.shrink:
        failure = run_batch(options.shrink[0], int(options.shrink[1]), BATCH, Tally(), smallest=True)
        print(failure or "nothing fails")
        return 1 if failure else 0
    tally, failures, started = Tally(), [], time.monotonic()
    number = options.seed * 1_000_000
    while tally.networks < options.examples and time.monotonic() - started < 60 * options.minutes:
        family = list(FAMILIES)[number % len(FAMILIES)]
        failure = run_batch(family, number, BATCH, tally)
        if failure is not None:
            failures.append(f"{family} {number}")
            print(f"--- {failures[-1]}\n{failure}", flush=True)
        number += 1
        seconds = time.monotonic() - started
        print(
            f"{tally.networks:6} networks {tally.plans:7} plans {seconds:7.0f} s  {len(failures)} failures", flush=True
        )
    report(tally, failures, time.monotonic() - started)
    return 1 if failures else 0


def report(tally: Tally, failures: list[str], seconds: float) -> None:
    print(f"\nnetworks          {tally.networks} (and {tally.frozen} of which nothing can be cut)")
    print(f"plans             {tally.plans}, {tally.vanished} of them with something vanished")
    print(f"moves             {tally.cut} cut of {tally.moves}")
    print(f"cut once more     {tally.again}")
    print(f"seconds           {seconds:.0f}")
    print(f"failures          {len(failures)} {failures}")
    for kind, count in tally.kinds.most_common():
        print(f"    {kind:16} {count}")


if __name__ == "__main__":
    sys.exit(main())
