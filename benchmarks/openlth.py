"""Training steps per second of the sgd trainer against OpenLTH's own loop doing the same work.

    python benchmarks/openlth.py CHECKOUT [--steps 600] [--rounds 3] [--threads 1] [--workers 0]

CHECKOUT is a working copy of github.com/facebookresearch/open_lth, whose modules are used as they are. Both train LeNet-300-100 with
biases, 90 % pruned, on all of MNIST (or noise of its shape where RTBENCH_DATA has none), by SGD at rate 0.1 in batches of 128, OpenLTH's
own settings, without callbacks, probes or checkpoints; --workers are its data loading processes. They take turns; the ratio is that of
the medians. "compute" is a step of nothing but training on one batch again and again, "data" what it takes to draw one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train import FOUND, images

from machine import line
from rtbench.data.splits import Data, Split, batches
from rtbench.data.vision import torchvision
from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.parts.masks import apply_, prunable
from rtbench.planning.resolve import Resolver

BATCH, RATE, KEEP = 128, 0.1, 0.1


def ours(data: Data, steps: int) -> Callable[[], None]:
    torch.manual_seed(0)
    net = Resolver({}, FOUND)("architecture", {"use": "mlp", "mean": [0.1307], "std": [0.3081]}, "mlp")
    model: nn.Module = Binder(FOUND, 0, torch.Generator()).part("architecture", net)(shape=data.shape, classes=data.classes)
    masks = {name: torch.rand_like(model.get_parameter(name)) < KEEP for name in prunable(model)}
    apply_(model, masks)
    trainer = {"use": "sgd", "objective": "natural", "lr": RATE, "momentum": 0.0, "batch": BATCH, "steps": steps}
    part = Resolver({}, FOUND)("trainer", trainer, "fit")

    def run() -> None:
        rng = torch.Generator().manual_seed(0)
        Binder(FOUND, 0, rng, data).part("trainer", part)(model=model, masks=masks, data=data, rng=rng, loop=Loop(model, masks, rng))

    return run


def theirs(data: Data, steps: int, workers: int) -> tuple[Callable[[], None], Any]:
    """OpenLTH's training.train.train on its own model, mask and loader; and the loader."""
    if not hasattr(np, "product"):  # which NumPy 2 has no more
        np.product = np.prod  # type: ignore[attr-defined]
    torchvision()
    torch.nn.parallel.DistributedDataParallel = nn.DataParallel  # its subclass of it fits no torch of today; neither is used here
    from datasets import mnist  # type: ignore[import-not-found]
    from foundations.hparams import TrainingHparams  # type: ignore[import-not-found]
    from foundations.step import Step  # type: ignore[import-not-found]
    from models import initializers, mnist_lenet
    from platforms import local, platform  # type: ignore[import-not-found]
    from pruning.mask import Mask  # type: ignore[import-not-found]
    from pruning.pruned_model import PrunedModel  # type: ignore[import-not-found]
    from training.train import train

    platform._PLATFORM = local.Platform(num_workers=workers)
    torch.manual_seed(0)
    bare = mnist_lenet.Model.get_model_from_name("mnist_lenet_300_100", initializers.kaiming_normal)
    mask = Mask({name: (torch.rand_like(bare.state_dict()[name]) < KEEP).float() for name in bare.prunable_layer_names})
    model = PrunedModel(bare, mask)
    loader = mnist.DataLoader(mnist.Dataset(data.train.x.squeeze(1), data.train.y), BATCH, workers)

    def run() -> None:
        end = Step.from_iteration(steps, loader.iterations_per_epoch)
        with tempfile.TemporaryDirectory() as folder:
            train(TrainingHparams("sgd", RATE, f"{steps}it"), model, loader, folder, end_step=end)

    return run, loader


def compute(x: Tensor, y: Tensor, steps: int) -> float:
    """Seconds a step of nothing but forward, backward and update on one batch: what neither loop can do without."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    opt = torch.optim.SGD(model.parameters(), lr=RATE, fused=True)
    started = time.perf_counter()
    for _ in range(steps):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
    return (time.perf_counter() - started) / steps


def drawn(loader: Any, steps: int) -> float:
    """Seconds that a batch takes to come."""
    started = time.perf_counter()
    for number, _ in enumerate(loader, start=1):
        if number == steps:
            break
    return (time.perf_counter() - started) / number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout")
    for name, number in {"steps": 600, "rounds": 3, "threads": torch.get_num_threads(), "workers": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    sys.path.insert(0, chosen.checkout)
    print(line())
    found = images()
    whole = Split(found.train.x, found.train.y, found.train.ids)
    data = found._replace(train=whole)
    their, loader = theirs(data, chosen.steps, chosen.workers)
    runs, times = {"rtbench": ours(data, chosen.steps), "OpenLTH": their}, dict[str, list[float]]()
    for _ in range(chosen.rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times.setdefault(name, []).append((time.perf_counter() - started) / chosen.steps)
    seconds = {name: statistics.median(found[1:]) for name, found in times.items()}
    order = torch.randperm(len(whole))
    x, y = next(iter(batches(whole, BATCH, order)))
    floor = statistics.median(compute(x, y, chosen.steps) for _ in range(chosen.rounds))
    ours_data, their_data = drawn(batches(whole, BATCH, order), chosen.steps), drawn(loader, min(chosen.steps, 200))
    print(", ".join(f"{name} {1 / value:.0f} steps/s" for name, value in seconds.items()))
    print(
        f"ratio {seconds['OpenLTH'] / seconds['rtbench']:.2f}; at most {seconds['OpenLTH'] / floor:.2f} for a loop of nothing but compute"
    )
    print(f"ms a step: compute {1000 * floor:.2f}; data: rtbench {1000 * ours_data:.2f}, OpenLTH {1000 * their_data:.2f}")


if __name__ == "__main__":
    main()
