"""Time to expand suites of thousands of stages, keys included, on one core: `rtbench.planning.plan.expand` alone, nothing runs.

    python benchmarks/plan.py [--repeats 5] [--profile]

The recipe "ticket" of cosentino2019 as it is (18 cells of 20 rounds, 5 trials); with 3 drop rates (54 cells); and with 6 rates, 3 learning
rates and 4 batch sizes on 5 rounds (1,296 cells, 1 trial), where little is shared. Data are not read: planning needs only their digest.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import time

from machine import line
from rtbench.planning import suite
from rtbench.planning.plan import Plan, expand
from rtbench.plugins import catalogue

RATES = ["axes.drop=[0.1, 0.2, 0.3]", "parts.cut.drop=$drop"]
GRID = [
    "axes.drop=[0.1, 0.15, 0.2, 0.25, 0.3, 0.35]", "parts.cut.drop=$drop", "axes.lr=[1e-3, 1.2e-3, 2e-3]", "parts.fit.lr=$lr",
    "axes.batch=[60, 100, 128, 256]", "parts.fit.batch=$batch", "recipes.ticket.steps.2.repeat=5", "trials=1",
]  # fmt: skip
FOUND = catalogue()


def timed(overrides: list[str]) -> tuple[Plan, float]:
    """The plan and the seconds of `expand`."""
    loaded = suite.load("cosentino2019", None, overrides)
    started = time.perf_counter()
    plan = expand(loaded, FOUND, lambda part, where: part["use"], {"recipe": ["ticket"]})
    return plan, time.perf_counter() - started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--profile", action="store_true", help="print where the time of the last suite goes")
    given = options.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(line())
    print(f"{'suite':8} {'cells':>6} {'stages':>8} {'asked for':>10} {'median s':>9} {'best s':>8} {'us/stage':>9}")
    for name, more in (("ticket", []), ("rates", RATES), ("grid", GRID)):
        tries = [timed(more) for _ in range(given.repeats)]
        plan, median = tries[0][0], statistics.median(seconds for _, seconds in tries)
        cells = len({(point.recipe, str(point.cell)) for point in plan.points})
        best = min(seconds for _, seconds in tries)
        row = f"{name:8} {cells:6} {len(plan.stages):8,} {plan.asked:10,} {median:9.3f} {best:8.3f} {1e6 * median / len(plan.stages):9.1f}"
        print(row, flush=True)
    if given.profile:
        with cProfile.Profile() as profile:
            timed(GRID)
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
