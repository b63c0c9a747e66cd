"""Native AutoAttack against pyautoattack, and against the floor: the bare passes that the protocol needs.

    python benchmarks/attack.py --case mlp|fragile|fragile-10000|cnn|sweep [--repeat 3] [--alone] [--bf16] [--out FILE]

Trains the network of the case on first use (kept in --cache); --net, --train, --eps, --samples and so on change the case. In each repeat it
times the native attack in float32 in --workers processes of one thread (one per core; with --alone also in one process of --threads), with
--bf16 also in bfloat16, pyautoattack with --threads at each of --theirs batch sizes, and the floors: 7,864 forwards per robust sample,
1,910 of them with a gradient, in each precision with --threads at the best of --batches. `sweep` attacks a dense parent and 12 pruned
children: the native attack one model per process, pyautoattack one model after the other. Processes have been started and have imported
what they need when the clock starts, as those of a suite have. Every measurement is a line of JSON in --out; those found there are not made
again. Prints them, the medians of the ratios, and a row of a Markdown table. RTBENCH_DATA says where the data is.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import sweep
import torch
from networks import images, network
from timing import Log, ours, theirs
from torch import Tensor, nn

from machine import line
from rtbench.data.splits import take
from rtbench.engine.processes import cores
from rtbench.evaluation.guard import frozen

PASSES = 7864, 1910
CASES: dict[str, dict[str, Any]] = {
    "mlp": {"batch": 1024},
    "fragile": {"train": "natural"},
    "fragile-10000": {"train": "natural", "samples": 10_000},
    "cnn": {"net": "small-cnn", "eps": "0.3", "epochs": 6, "samples": 500},
    "sweep": {"samples": 300, "batch": 1024},
}  # fmt: skip


def floor(model: nn.Module, x: Tensor, sizes: list[int], rounds: int = 3) -> float:
    """Seconds that the bare passes of a robust sample take at the best batch size, the median of some rounds for each."""
    best = []
    with frozen(model):
        for asks in (forward, gradient):
            times = [[per_sample(asks, model, x[torch.arange(size) % len(x)]) for size in sizes] for _ in range(rounds)]
            best.append(min(map(statistics.median, zip(*times, strict=True))))
    return best[0] * (PASSES[0] - PASSES[1]) + best[1] * PASSES[1]


def forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def gradient(model: nn.Module, x: Tensor) -> None:
    x.requires_grad_()
    torch.autograd.grad(model(x).sum(), x)


def per_sample(asks: Any, model: nn.Module, x: Tensor, least: float = 0.3) -> float:
    asks(model, x)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < least:
        asks(model, x)
        done += len(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / done


def repeat(log: Log, number: int, model: nn.Module, x: Tensor, y: Tensor, chosen: argparse.Namespace) -> None:
    """One of every measurement."""
    exact = log.once("native", number, lambda: ours(model, x, y, chosen, "exact", workers=chosen.workers))
    if chosen.alone:
        log.once("alone", number, lambda: ours(model, x, y, chosen, "exact"))
    found = log.once("floor", number, lambda: {"seconds": floor(model, x, chosen.batches)})
    assert found["seconds"] > 0
    if chosen.bf16:
        half = copy.deepcopy(model).bfloat16()
        log.once("bf16", number, lambda: ours(model, x, y, chosen, "bf16", exact["robust"], chosen.workers))
        log.once("bf16 floor", number, lambda: {"seconds": floor(half, x.bfloat16(), chosen.batches)})
    for batch in chosen.theirs:
        log.once(f"official {batch}", number, lambda batch=batch: theirs(model, x, y, chosen, batch, number))  # type: ignore[misc]


def summary(log: Log, chosen: argparse.Namespace) -> None:
    """The medians over the repeats, and the row; against pyautoattack at the batch size at which its median is the lower one."""
    ratios: dict[str, list[float]] = {}
    official = {batch: [log.done[f"official {batch}", number]["seconds"] for number in range(chosen.repeat)] for batch in chosen.theirs}
    faster = min(official.values(), key=statistics.median, default=None)
    for number in range(chosen.repeat):
        found = {name: log.done[name, number] for name, at in log.done if at == number}
        robust = found["native"]["robust"].count("1")
        best = None if faster is None else faster[number]
        for name, bare in (("native", "floor"), ("alone", "floor"), ("bf16", "bf16 floor")):
            if name in found:
                seconds = found[name]["seconds"]
                ratios.setdefault(f"{name} s", []).append(seconds)
                if bare in found and robust:
                    ratios.setdefault(f"{name}, of its floor", []).append(seconds / (robust * found[bare]["seconds"]))
                if best is not None:
                    ratios.setdefault(f"{name}, times as fast as pyautoattack", []).append(best / seconds)
        if best is not None:
            ratios.setdefault("pyautoattack s", []).append(best)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    print("\n".join(f"median: {name} {value:.2f}" for name, value in medians.items()))
    print(f"| case | {' | '.join(medians)} |\n|---|{'---|' * len(medians)}")
    print(f"| {chosen.case}, {chosen.samples} points | {' | '.join(f'{value:.2f}' for value in medians.values())} |")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="mlp")
    texts = {"data": "mnist", "net": "mlp", "train": "pgd", "eps": "0.1", "norm": "linf", "cache": "/tmp/rtbench-attack", "out": ""}
    for name, default in texts.items():
        parser.add_argument(f"--{name}", default=default)
    numbers = {"samples": 1000, "repeat": 3, "epochs": 10, "batch": 512, "threads": torch.get_num_threads(), "workers": cores()}
    for name, number in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--theirs", type=int, nargs="*", default=[250, 1000])
    parser.add_argument("--batches", type=int, nargs="*", default=[128, 256, 512, 1024])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.set_defaults(**CASES[parser.parse_known_args()[0].case])
    return parser.parse_args()


def main() -> None:
    chosen = options()
    torch.set_num_threads(chosen.threads)
    chosen.device = "cuda" if torch.cuda.is_available() else "cpu"
    print(line(chosen.device))
    log = Log(chosen)
    data = images(chosen, chosen.device)
    if chosen.case == "sweep":
        for number in range(chosen.repeat):
            sweep.repeat(log, number, data, chosen)
    else:
        model = network(chosen, data, device=chosen.device)
        x, y = take(data.test, torch.arange(chosen.samples))
        ours(model, x[:64], y[:64], argparse.Namespace(**{**vars(chosen), "eps": "1"}), "exact", workers=2)
        for number in range(chosen.repeat):
            repeat(log, number, model, x, y, chosen)
    summary(log, chosen)


if __name__ == "__main__":
    main()
