"""PGD-10 adversarial training of VGG-16 on a CPU or GPU: the sgd trainer against plain loops in float32, steps per second.

    python benchmarks/vgg.py [--steps 4] [--rounds 3] [--width 1] [--batch 64] [--threads 2]

Noise of CIFAR-10's shape: the arithmetic does not care. "plain" is the textbook loop: the attack calls loss.backward(), which computes
gradients of all weights as well and throws them away; "plain, grad of x" asks for the gradient of the images alone. Both leave convolutions
in the default memory layout. "rtbench" computes in float32, too, "rtbench, bf16" losses and attacks in bfloat16. They take turns; ratios of
medians.

"at most" is what a step of nothing but the trainer's own convolutions would be; a profile says how long they take. Beside it stands
how many floating-point operations a second they come to, and a large matrix product.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from machine import line
from rtbench.data.splits import Data, Split
from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
FOUND = catalogue()


def network(width: float, device: str) -> nn.Module:
    torch.manual_seed(0)
    part = Resolver({}, FOUND)("architecture", {"use": "vgg", "head": "512", "width": width}, "vgg")
    model: nn.Module = Binder(FOUND, 0, torch.Generator()).part("architecture", part)(shape=(3, 32, 32), classes=10)
    return model.to(device)


def ours(data: Data, chosen: argparse.Namespace, precision: str) -> Callable[[], None]:
    model = network(chosen.width, chosen.device)
    attack = {"use": "pgd", "norm": "linf", "eps": "8/255", "step": "2/255", "steps": STEPS}
    trainer = {"use": "sgd", "objective": {"use": "robust", "attack": attack}, "lr": 0.01, "batch": chosen.batch, "steps": chosen.steps,
               "precision": precision}  # fmt: skip
    part = Resolver({}, FOUND)("trainer", trainer, "fit")

    def run() -> None:
        rng = torch.Generator().manual_seed(0)
        Binder(FOUND, 0, rng, data).part("trainer", part)(model=model, masks={}, data=data, rng=rng, loop=Loop(model, {}, rng))

    return run


def plain(data: Data, chosen: argparse.Namespace, only_x: bool) -> Callable[[], None]:
    model = network(chosen.width, chosen.device)
    opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x_all, y_all = data.train.x.float() / 255, data.train.y

    def pgd(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv = x_adv.detach().requires_grad_(True)
            loss = cross_entropy(model(x_adv), y)
            if only_x:
                (grad,) = torch.autograd.grad(loss, x_adv)
            else:
                loss.backward()
                grad = x_adv.grad
            x_adv = (x_adv.detach() + STEP * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
        model.train()
        return x_adv.detach()

    def run() -> None:
        for step in range(chosen.steps):
            rows = torch.arange(chosen.batch, device=x_all.device) + step * chosen.batch
            x, y = x_all[rows], y_all[rows]
            loss = cross_entropy(model(pgd(x, y)), y)
            opt.zero_grad()
            loss.backward()
            opt.step()

    return run


def floor(run: Callable[[], None], chosen: argparse.Namespace) -> float:
    """Seconds a step that the trainer's convolutions take by themselves."""
    cuda = chosen.device == "cuda"
    with torch.profiler.profile() as found:  # of the operations, to which a GPU's time is booked, too
        run()
    events = [event for event in found.key_averages() if event.key.startswith("aten::") and "conv" in event.key]
    times = [event.self_device_time_total if cuda else event.self_cpu_time_total for event in events]
    return sum(times) / 1e6 / chosen.steps


def operations(width: float, batch: int) -> float:
    """Of all convolutions of one step: the attack's forwards and gradients of images, then a forward, these and gradients of weights."""
    model, found = network(width, "cpu"), []

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        found.append(2 * layer.weight.numel() * out.shape[-1] * out.shape[-2])

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    model(torch.zeros(2, 3, 32, 32))
    return float(sum(found) * batch * (2 * STEPS + 3))


def product(device: str) -> float:
    """Floating-point operations a second of a large float32 matrix product."""
    a, b = torch.rand(2, 2048, 2048, device=device)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        float((a @ b)[0, 0])
        times.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in {"steps": 4, "rounds": 3, "batch": 64, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--width", type=float, default=1.0)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.device = "cuda" if torch.cuda.is_available() else "cpu"
    print(line(chosen.device))
    n = chosen.batch * chosen.steps
    x = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, device=chosen.device)
    split = Split(x, torch.randint(0, 10, (n,), device=chosen.device), torch.arange(n))
    data = Data(split, split, None, None, (3, 32, 32), 10)
    runs: dict[str, Any] = {
        "rtbench": ours(data, chosen, "exact"),
        "rtbench, bf16": ours(data, chosen, "bf16"),
        "plain": plain(data, chosen, False),
        "plain, grad of x": plain(data, chosen, True),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(chosen.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if chosen.device == "cuda":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - started) / chosen.steps)
    seconds = {name: statistics.median(found) for name, found in times.items()}
    print("s a step: " + ", ".join(f"{name} {value:.2f}" for name, value in seconds.items()))
    bare = floor(runs["rtbench"], chosen)
    for name in list(seconds)[2:]:
        fast, faster = (seconds[name] / seconds[way] for way in ("rtbench", "rtbench, bf16"))
        print(f"times as fast as {name}: {fast:.2f} (at most {seconds[name] / bare:.2f}), in bf16 {faster:.2f}")
    rate = operations(chosen.width, chosen.batch) / bare
    print(f"convolutions: {bare:.2f} s a step, {rate / 1e9:.0f} GFLOP/s; a matrix product: {product(chosen.device) / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
