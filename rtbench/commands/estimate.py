"""What a run will cost, before it is run: stages, passes, time and disk."""

from __future__ import annotations

import functools
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from rtbench import keys
from rtbench.commands.drift import Drift, drifted
from rtbench.commands.study import Study
from rtbench.engine.run import build, load_data
from rtbench.evaluation import findings, panel
from rtbench.evaluation.process import threads
from rtbench.parts.kinds import Passes, minimal
from rtbench.parts.masks import prunable
from rtbench.planning.plan import Stage
from rtbench.plugins import Catalogue
from rtbench.running.schedule import missing
from rtbench.storage.index import Index
from rtbench.storage.store import Store

KINDS = {"train": "trainer", "prune": "pruner", "probe": "probe"}
BATCH = 128
TRIES, LONG = 50, 0.2
"""How often a pass is timed at most, and the seconds after which three times are enough."""


def estimate(study: Study, store: str | Path) -> dict[str, Any]:
    """Counts per verb (total, cached, todo), what there would be without sharing, and the predicted cost of what is to do.

    seconds come from like stages in the store, or else from passes times the measured speed of the network; stages of which neither
    is known are counted in "unknown". "stored", "measured": how many stages either speaks for, "device": what was measured on. passes:
    forwards and gradients. bytes: of states to be written.
    """
    plan = study.plan
    done, history, todo, changed = set[str](), dict[str, float](), list(plan.stages), list[Drift]()
    if (Path(store) / "schema.json").is_file():
        opened = Store(store, create=False)
        index = Index(opened)
        done, history = index.done(), index.seconds()
        todo = missing(plan, opened, done)
        changed = drifted(study.catalogue, opened, index, plan.stages.keys() - todo)
        index.close()
    wanted, verbs = set(todo), dict[str, dict[str, int]]()
    for key, stage in plan.stages.items():
        row = verbs.setdefault(stage.verb, {"total": 0, "cached": 0, "todo": 0})
        row["total"] += 1
        row["todo" if key in wanted else "cached"] += 1
    speeds: dict[str, Speed] = {}
    totals = {"seconds": 0.0, "bytes": 0, "forwards": 0.0, "gradients": 0.0, "unknown": 0, "stored": 0, "measured": 0}
    for key in todo:
        add(plan.stages[key], study, history, speeds, totals)
    return {
        "suite": plan.suite.name, "stages": verbs, "asked": plan.asked, "trainings": plan.naive["train"],
        "seconds": totals["seconds"], "bytes": totals["bytes"], "unknown": totals["unknown"],
        "stored": totals["stored"], "measured": totals["measured"], "device": study.options.device,
        "passes": {"forwards": totals["forwards"], "gradients": totals["gradients"]},
        "drift": changed,
    }  # fmt: skip


class Speed:
    """The measured speed and size of one network on one dataset."""

    def __init__(self, stage: Stage, study: Study) -> None:
        data = load_data(stage.data, study.catalogue, study.options)
        device = study.options.device
        with torch.random.fork_rng():
            model = build(study.catalogue, stage.net, data, torch.Generator()).to(device)
        state = model.state_dict()
        self.bytes = sum(t.numel() * t.element_size() for t in state.values())
        self.mask_bytes = sum(model.get_parameter(name).numel() for name in prunable(model))
        self.sizes = {name: len(split) for name in ("train", "valid", "test") if (split := getattr(data, name)) is not None}
        x, y = torch.rand(BATCH, *data.shape, device=device), torch.zeros(BATCH, dtype=torch.int64, device=device)
        model.eval()
        with threads(1):  # as workers compute; with more threads than idle cores a pass takes many times as long
            self.gradient = _seconds(lambda: torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters())), device) / BATCH
            with torch.no_grad():
                self.forward = _seconds(lambda: model(x), device) / BATCH


def _seconds(call: Any, device: str) -> float:
    """The best of many calls: on a busy machine most are interrupted, and a stage is not slowed down as much as the worst of them."""
    call()
    best, begun = float("inf"), time.perf_counter()
    for i in range(TRIES):
        started = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, (now := time.perf_counter()) - started)
        if i >= 2 and now - begun > LONG:
            break
    return best


def add(stage: Stage, study: Study, history: dict[str, float], speeds: dict[str, Speed], totals: dict[str, Any]) -> None:
    """Adds one stage's predicted cost to the totals."""
    name = keys.canonical([stage.net, stage.data])
    if name not in speeds:
        speeds[name] = Speed(stage, study)
    speed = speeds[name]
    if stage.verb != "probe":
        totals["bytes"] += speed.bytes + (speed.mask_bytes if stage.verb == "prune" or "masks" in stage.inputs else 0)
    passes = predict(stage, study.catalogue, speed.sizes)
    known = history.get(keys.alike(stage.described()))
    if passes is not None:
        totals["forwards"] += passes[0]
        totals["gradients"] += passes[1]
    if known is not None:
        totals["seconds"] += known
        totals["stored"] += 1
    elif passes is not None:
        totals["measured"] += any(passes)
        totals["seconds"] += (passes[0] - passes[1]) * speed.forward + passes[1] * speed.gradient
    elif stage.verb in ("train", "prune"):
        totals["unknown"] += 1


def predict(stage: Stage, catalogue: Catalogue, sizes: dict[str, int]) -> Passes | None:
    """The passes of a stage as its part predicts them; None where a part does not say."""

    looks = 0  # runs of an attack in a probe, after each of which the judge looks for flags

    def nested(outer: str, kind: str, part: dict[str, Any], radii: int = 1) -> Passes:
        nonlocal looks
        function = catalogue.get(kind, part["use"]).function
        passes = getattr(function, "passes", None)
        if passes is None:
            raise LookupError
        forwards, gradients = passes(part["knobs"], sizes, functools.partial(nested, kind))
        runs = 1 if minimal(function, part["knobs"].get("norm", "")) else radii
        if (outer, kind) == ("probe", "attack") and Fraction(part["knobs"].get("eps", 0)):
            looks = max(looks, runs)
        return forwards * runs, gradients * runs

    if stage.verb not in KINDS:
        return 0.0, 0.0
    sources = sum(role != "own" for role in stage.borrowed()) if stage.borrowed() else 1
    try:
        forwards, gradients = nested("", KINDS[stage.verb], stage.part)
    except LookupError:
        return None
    more = _looked(stage.part["knobs"], sizes) if looks else (0, 0)
    return sources * forwards + looks * more[0], sources * gradients + looks * more[1]


def _looked(knobs: dict[str, Any], sizes: dict[str, int]) -> Passes:
    """What the judge asks of a probe's samples to find flags, where all are right clean."""
    whole = sizes.get(knobs.get("split", ""), 0)
    asked = min(panel.SAMPLES, knobs.get("samples") or whole, whole)
    return min(asked, knobs.get("batch", asked)) * findings.FORWARDS + asked * panel.FORWARDS, asked * panel.GRADIENTS
