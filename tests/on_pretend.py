"""On another device than the CPU: nothing mixes devices, numbers are the CPU's bit by bit, and no step waits without need.

The pretend device is there for a whole process, so test_device.py runs these tests in one of their own.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import DEVICE, Pretend, waits

import rtbench
import studies
from rtbench.data.splits import take
from rtbench.engine.loop import Loop
from rtbench.evaluation import proposal, watch
from rtbench.evaluation.tries import SYNC
from rtbench.testing import lab

SUITE = """
name = "device"
data = "digits"
[recipes.magnitude]
steps = [{ init = "net" }, { train = "fit", objective = "natural" }, { prune = "magnitude" }, { train = "fit", objective = "fgsm" }]
[recipes.normalised]
steps = [{ init = "net" }, { train = "fit", objective = "pgd" }, { prune = "normalised" }, { rewind = "init" }, { train = "adam" }]
[recipes.random]
steps = [{ init = "net" }, { train = "fit", objective = "trades" }, { prune = "random" }]
[recipes.filters]
steps = [{ init = "deep" }, { train = "adam" }, { prune = "filters" }]
[probes]
clean       = { use = "accuracy", at = "last" }
loss        = { use = "loss", objective = "fgsm", at = "last" }
cost        = { use = "cost", at = "last" }
density     = { use = "density", at = "last" }
sparsity    = { use = "sparsity", at = "last" }
parameters  = { use = "parameters", at = "last" }
macs        = { use = "macs", at = "last" }
convergence = { use = "convergence", at = "last" }
weights     = { use = "weights", at = ["first", "last"] }
mask        = { use = "mask", at = "last" }
survivors   = { use = "survivors", from = "origin", at = "last" }
overlap     = { use = "overlap", from = [{ recipe = "magnitude" }], at = "last" }
transfer    = { use = "transfer", attack = "climb", samples = 6, from = [{ recipe = "magnitude" }], at = "last" }
pool        = { use = "pool", attack = "climb", samples = 6, from = [{ recipe = "magnitude" }], at = "last" }
curve       = { use = "curve", attack = "climb", samples = 6, at = "last" }
distances   = { use = "curve", attack = "near", samples = 6, at = "last" }
[parts]
digits     = { use = "digits", share = 0.1, augment = "pad-crop-flip" }
net        = { use = "lenet", channels = [4, 6], hidden = 12, kernel = 3, padding = 1 }
deep       = { use = "wrn", depth = 10, width = 1 }
step       = { use = "fgsm", norm = "linf", eps = 0.1 }
climb      = { use = "pgd", norm = "linf", eps = 0.1, steps = 2 }
kl         = { use = "pgd", norm = "linf", eps = 0.1, steps = 2, loss = "kl", start = "gaussian" }
near       = { use = "fmn", norm = "linf", eps = 0.1, steps = 4 }
fgsm       = { use = "robust", attack = "step", mix = 0.5, smooth = 0.1 }
pgd        = { use = "robust", attack = "climb", l1 = 1e-4 }
trades     = { use = "trades", attack = "kl" }
valid      = { use = "accuracy", split = "valid", samples = 10 }
fit        = { use = "sgd", batch = 24, steps = 5, clip = 1.0, schedule = "cosine", probes = { v = "valid" }, every = 2, select = "v" }
adam       = { use = "sgd", optimizer = "adam", lr = 0.01, batch = 24, steps = 3 }
magnitude  = { use = "magnitude", drop = 0.5 }
normalised = { use = "normalised-magnitude", drop = 0.5, channels = true }
random     = { use = "random", scope = "layer", drop = 0.5 }
filters    = { use = "filters", drop = 0.3, channels = true }
"""

STOPPED = """
name = "stopped"
data = "digits"
[recipes.one]
steps = [{ init = "net" }, { train = "sgd" }, { prune = "cut" }, { train = "adam" }]
[probes]
apgd   = { use = "accuracy", attack = "apgd", samples = 6, at = "last" }
square = { use = "accuracy", attack = "square", samples = 6, at = "last" }
pgd    = { use = "accuracy", attack = "pgd", samples = 6, batch = 2, at = "last" }
[parts]
digits = { use = "digits", share = 0.1, augment = "pad-crop" }
net    = { use = "lenet", channels = [4, 6], hidden = 12, kernel = 3, padding = 1 }
pgd    = { use = "pgd", norm = "linf", eps = 0.1, steps = 2 }
apgd   = { use = "apgd", norm = "linf", eps = 0.1, steps = 3, loss = "dlr" }
square = { use = "square", norm = "linf", eps = 0.1, queries = 20 }
valid  = { use = "accuracy", split = "valid", samples = 10 }
sgd    = { use = "sgd", batch = 24, steps = 4, schedule = "one-cycle", probes = { v = "valid" }, every = 2, select = "v" }
adam   = { use = "sgd", optimizer = "adam", lr = 0.01, batch = 24, steps = 3 }
cut    = { use = "filters", drop = 0.3 }
"""


STACKED = """
name = "stacked"
data = "digits"
trials = 3
[recipes.sparse]
steps = [{ init = "net" }, { train = "fit" }, { prune = "magnitude", drop = 0.5 }, { rewind = "init" }, { train = "fit" }, { train = "adam" }]
[probes]
clean = { use = "accuracy", at = "last" }
[parts]
digits = { use = "digits", share = 0.05, augment = "pad-crop" }
net  = { use = "mlp", hidden = [16] }
pgd  = { use = "pgd", norm = "linf", eps = 0.1, steps = 2 }
hard = { use = "robust", attack = "pgd", mix = 0.5 }
fit  = { use = "sgd", objective = "hard", batch = 24, steps = 4, probes = { v = { use = "loss", split = "valid" } }, select = "v", best = "min" }
adam = { use = "sgd", optimizer = "adam", lr = 0.01, batch = 24, steps = 3 }
"""

DENSE = """
name = "dense"
data = "digits"
trials = 3
[recipes.dense]
steps = [{ init = "net" }, { train = "fit" }]
[probes]
density = { use = "density", at = "last" }
[parts]
digits = { use = "digits", share = 0.5, augment = "pad-crop" }
net  = { use = "mlp", hidden = [16] }
pgd  = { use = "pgd", norm = "linf", eps = 0.1, steps = 2 }
hard = { use = "robust", attack = "pgd", mix = 0.5 }
fit  = { use = "sgd", optimizer = "adam", objective = "hard", batch = 24, steps = 0 }
"""


@pytest.fixture(autouse=True)
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the device pass for plain ones, as a GPU's are, and the CPU trains in the memory layout of a GPU."""
    monkeypatch.setattr(watch, "Tensor", Pretend)
    monkeypatch.setattr(proposal, "type", lambda value: torch.Tensor if type(value) is Pretend else type(value), raising=False)
    monkeypatch.setattr(importlib.import_module("rtbench.builtin.trainers.sgd"), "channels_last", lambda *_: contextlib.nullcontext())


ONE, OTHER = torch.ones(3), torch.ones(3, device=DEVICE)
FIRST = torch.tensor([0])
REFUSED: list[Callable[[], Any]] = [
    lambda: ONE + OTHER, lambda: torch.cat([ONE, OTHER]), lambda: torch.where(ONE > 0, OTHER, OTHER), lambda: ONE[FIRST.to(DEVICE)],
    lambda: ONE.add_(OTHER), lambda: torch.tensor(1.0).add_(OTHER[0]), lambda: OTHER.index_copy_(0, FIRST, OTHER[:1]),
    lambda: OTHER.index_put_((FIRST,), ONE[:1]), lambda: torch.nn.Linear(3, 2)(OTHER), lambda: OTHER.numpy(),
    lambda: torch.rand(3, generator=torch.Generator(), device=DEVICE), lambda: OTHER.normal_(generator=torch.Generator()),
]  # fmt: skip


@pytest.mark.parametrize("mistake", REFUSED)
def test_the_device_refuses_what_a_gpu_refuses(mistake: Callable[[], Any]) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        mistake()


def test_the_device_allows_what_a_gpu_allows() -> None:
    x = torch.arange(3.0, device=DEVICE)
    x[FIRST] = 5.0
    x[torch.tensor([False, True, False])] += 1
    assert (x * torch.tensor(2.0)).tolist() == [10, 4, 4] and x[FIRST].tolist() == [5] and x.device == torch.device(DEVICE)


def test_the_device_counts_what_waits() -> None:
    x = torch.arange(3.0, device=DEVICE)
    with waits() as found:
        x[x > 1] = 0.0
        x[FIRST].add_(1).sum()
        x.copy_(ONE)
    assert not found
    with waits() as found:
        found_here = [x[x > 0], x.nonzero(), x.cpu(), bool(x.any()), float(x[0]), x.tolist(), torch.equal(x, x)]
    assert sum(found.values()) == len(found_here)


def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = lab.data().test
    assert found is not None
    return take(found, torch.arange(n))


ATTACKS: list[tuple[str, str, dict[str, Any]]] = [
    ("fgsm", "linf", {}), ("pgd", "linf", {"steps": 2, "restarts": 2}), ("pgd", "l2", {"steps": 2, "label": "target"}),
    ("pgd", "l1", {"steps": 2, "loss": "kl"}), ("noise", "l2", {}), ("apgd", "linf", {"loss": "ce", "steps": 8}),
    ("apgd", "l2", {"loss": "dlr", "steps": 6}), ("apgd", "linf", {"loss": "dlr-targeted", "steps": 6, "precision": "bf16"}),
    ("fab", "linf", {"steps": 4}), ("fab", "l2", {"steps": 4}), ("square", "linf", {"queries": 40}), ("square", "l2", {"queries": 40}),
    ("fmn", "linf", {"steps": 6}), ("fmn", "l2", {"steps": 6}), ("deepfool", "l2", {}), ("deepfool", "linf", {}), ("cw", "l2", {"steps": 4}),
]  # fmt: skip


@pytest.mark.parametrize(("attack", "norm", "knobs"), ATTACKS)
def test_an_attack_gives_the_same_verdicts(attack: str, norm: str, knobs: dict[str, Any]) -> None:
    x, y = images(10)
    how: dict[str, Any] = {"norm": norm, "eps": {"linf": "0.12", "l2": "0.8", "l1": "3"}[norm], "knobs": knobs, "batch": 8}
    one, other = (rtbench.evaluate(lab.trained().eval(), x, y, attack, device=device, **how).attacks[attack] for device in ("cpu", DEVICE))
    assert other.failure is None and one.robust is not None and other.robust is not None
    assert torch.equal(other.robust, one.robust) and lab.alike(other.inner, one.inner) and other.flags == one.flags


def test_square_on_images_far_wider_than_high() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(6, 1, 6, 40), torch.zeros(6, dtype=torch.int64)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(240, 3))
    y = model(x).argmax(1)
    one, other = (rtbench.evaluate(model, x, y, "square", "linf", 0.02, knobs={"queries": 60}, device=d) for d in ("cpu", DEVICE))
    assert other.attacks["square"].failure is None and lab.alike(other.attacks["square"].robust, one.attacks["square"].robust)


def test_a_whole_study_gives_the_same_bytes(tmp_path: Path) -> None:
    suite = studies.write(tmp_path, SUITE)
    one, other = studies.run(suite, tmp_path / "cpu"), studies.run(suite, tmp_path / "other", device=DEVICE)
    assert one.tally.done == other.tally.done and not other.tally.failed
    assert studies.tree(tmp_path / "other") == studies.tree(tmp_path / "cpu")


@pytest.mark.filterwarnings("ignore:.*networks are trained each alone")
def test_a_study_in_stacks_gives_the_same_bytes(tmp_path: Path) -> None:
    suite = studies.write(tmp_path, STACKED)
    one, other = (studies.run(suite, tmp_path / device, device=device, stack=3) for device in ("cpu", DEVICE))
    assert one.tally.stacked == other.tally.stacked == 9 and not other.tally.failed
    assert studies.tree(tmp_path / "cpu") == studies.tree(tmp_path / DEVICE)


def test_a_study_stopped_at_every_step_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = studies.write(tmp_path, STOPPED)
    studies.run(suite, tmp_path / "whole", device=DEVICE)
    monkeypatch.setattr("rtbench.engine.run.Loop", lambda **how: Loop(**{**how, "deadline": 0.0}))
    late, stops = True, 0
    while late and stops < 60:
        tally = studies.run(suite, tmp_path / "stopped", device=DEVICE).tally
        assert not tally.failed
        late, stops = tally.late, stops + 1
    assert stops > 10 and studies.tree(tmp_path / "stopped") == studies.tree(tmp_path / "whole")


@pytest.mark.parametrize(("attack", "knob", "knobs"), [("apgd", "steps", {"loss": "dlr"}), ("fab", "steps", {})])
def test_a_step_that_breaks_nothing_waits_once_in_eight(attack: str, knob: str, knobs: dict[str, Any]) -> None:
    x, y = images(4)
    counts = []
    for steps in (8, 40):
        with waits() as found:
            rtbench.evaluate(lab.trained().eval(), x, y, attack, "linf", 0.0005, knobs={**knobs, knob: steps}, device=DEVICE)
        counts.append(sum(found.values()))
    assert counts[1] - counts[0] <= (40 - 8) / SYNC


@pytest.mark.parametrize("augment", ["none", "pad-crop"])
def test_a_training_step_waits_for_nothing_alone_or_in_a_stack(augment: str, tmp_path: Path) -> None:
    for stack in (1, 3):
        counts = []
        for steps in (4, 20):
            with waits() as found:
                text = DENSE.replace("steps = 0 }", f"steps = {steps} }}").replace("pad-crop", augment)
                suite = studies.write(tmp_path, text, f"{stack}-{steps}.toml")
                studies.run(suite, tmp_path / f"{stack}-{steps}", device=DEVICE, stack=stack)
            counts.append(sum(found.values()))
        assert counts[0] == counts[1] > 0, "of all steps of an epoch only the last one waits, for the mean of their losses"
