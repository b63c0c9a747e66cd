"""The trainer: mini-batch gradient descent on any objective, masked, with schedules, selection and probes on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from torch import nn

from rtbench.builtin.trainers.course import Course
from rtbench.builtin.trainers.descent import Net, Pruned, descend
from rtbench.builtin.trainers.layout import channels_last, one_step
from rtbench.builtin.trainers.schedule import Schedule, Warmup
from rtbench.builtin.trainers.stacked import stacked
from rtbench.builtin.trainers.walk import SNAPSHOT, walk
from rtbench.parts.kinds import Passes, declare
from rtbench.parts.knobs import Objective, OneOf, Probe, Range
from rtbench.parts.masks import Masks

FALL = 0.2


def consistent(knobs: dict[str, Any]) -> None:
    """Raises ValueError for knobs that do not go together."""
    if knobs["nesterov"] and (knobs["optimizer"] != "sgd" or knobs["momentum"] == 0):
        raise ValueError('nesterov needs optimizer = "sgd" and a momentum above 0')
    if knobs["select"] != "last" and knobs["select"].split(".")[0] not in knobs["probes"]:
        raise ValueError(f'select = "{knobs["select"]}" is neither "last" nor one of probes ({", ".join(knobs["probes"]) or "none given"})')
    if knobs["patience"] is not None and knobs["select"] == "last":
        raise ValueError('patience waits for a better `select`, and select = "last" knows none; name one of probes')
    if knobs["best"] == "max" and (knobs["probes"].get(knobs["select"]) or {}).get("use") == "loss":
        raise ValueError(f'select = "{knobs["select"]}" is a loss, and best = "max" keeps its largest value; give best = "min"')
    if knobs["improve"] > 0 and knobs["select"] == "last":
        raise ValueError('improve says how much better `select` must be, and select = "last" knows no better')
    if knobs["snapshots"] and (knobs["patience"] is not None or knobs["on_collapse"] == "stop"):
        raise ValueError("training may stop before a snapshot is there: give either snapshots, or patience or on_collapse")
    if knobs["guard"] and knobs["guard"].split(".")[0] not in knobs["probes"]:
        raise ValueError(f'guard = "{knobs["guard"]}" is not one of probes ({", ".join(knobs["probes"]) or "none given"})')
    if not knobs["guard"] and (knobs["on_collapse"] == "stop" or knobs["fall"] != FALL):
        raise ValueError("on_collapse and fall are about a guard, and there is none")
    for name in knobs["snapshots"]:
        if not SNAPSHOT.fullmatch(name):
            raise ValueError(f'snapshot "{name}" is not of the form "step-500" or "epoch-2"')


def predicted(knobs: dict[str, Any], sizes: dict[str, int], nested: Callable[..., Passes]) -> Passes:
    """Forward and gradient passes of a whole training, probes on the way aside."""
    n = sizes["train"] // knobs["batch"] * knobs["batch"] if knobs["drop_last"] else sizes["train"]
    epochs = knobs["epochs"] if knobs["epochs"] is not None else knobs["steps"] / max(1, math.ceil(n / knobs["batch"]))
    samples = n * epochs
    forwards, gradients = nested("objective", knobs["objective"])
    return forwards * samples, gradients * samples


@declare(check=consistent, passes=predicted, stacked=stacked)
def sgd(
    model: nn.Module, masks: Masks, data: Any, rng: torch.Generator, loop: Any, *,
    objective: Objective = "natural",
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd",
    lr: Annotated[float, Range("(0, inf)")] = 0.1,
    momentum: Annotated[float, Range("[0, 1)")] = 0.9,
    nesterov: bool = False,
    decay: Annotated[float, Range("[0, inf)")] = 0.0,
    batch: Annotated[int, Range("[1, inf)")] = 128,
    epochs: Annotated[int | None, Range("[1, inf)"), OneOf("length")] = None,
    steps: Annotated[int | None, Range("[1, inf)"), OneOf("length")] = None,
    schedule: Schedule = "constant",
    drops: Annotated[list[float], Range("(0, 1)")] = [0.5, 0.75],  # noqa: B006
    milestones: Annotated[list[int], Range("[0, inf)")] = [],  # noqa: B006
    gamma: Annotated[float, Range("(0, 1]")] = 0.1,
    peak: Annotated[float, Range("(0, 1)")] = 0.3,
    warmup: Annotated[float, Range("[0, inf)")] = 0.0,
    warmup_lr: Annotated[float, Range("[0, inf)")] = 0.0,
    warmup_kind: Warmup = "linear",
    clip: Annotated[float | None, Range("(0, inf)")] = None,
    drop_last: bool = False,
    precision: Literal["exact", "bf16"] = "exact",
    probes: dict[str, Probe] = {},  # noqa: B006
    every: Annotated[int, Range("[0, inf)")] = 0,
    select: str = "last",
    best: Literal["max", "min"] = "max",
    improve: Annotated[float, Range("[0, inf)")] = 0.0,
    patience: Annotated[int | None, Range("[1, inf)")] = None,
    guard: str = "",
    fall: Annotated[float, Range("(0, 1]")] = FALL,
    on_collapse: Literal["record", "stop"] = "record",
    snapshots: list[str] = [],  # noqa: B006
) -> None:  # fmt: skip
    """Trains what requires grad, keeping pruned weights at 0. Logs "loss", the mean over each epoch, at its last step.

    Logs the numbers of `probes`, too, and with every number "epoch", the epochs done; "stopped" where `patience` ended it; "collapsed"
    where `guard` first fell by `fall`: adversarial training on one-step attacks can lose all robustness within an epoch (Wong, Rice &
    Kolter 2020, arXiv:2001.03994).

    objective: what is minimised, averaged over the batch
    optimizer: sgd, adam (Kingma & Ba 2015, arXiv:1412.6980), adamw (arXiv:1711.05101) or rmsprop
    lr: base learning rate
    momentum: of sgd and rmsprop
    nesterov: Nesterov's momentum, for sgd
    decay: weight decay
    batch: samples per step
    epochs: length in passes over the training data
    steps: length in steps instead
    schedule: how the learning rate falls; it ends exactly at the last step
    drops: for schedule step, the fractions of all steps at which the rate is multiplied by gamma
    milestones: for schedule milestones, the epochs at which it is
    gamma: factor of step and milestones
    peak: for one-cycle, the fraction of all steps at which the rate is highest
    warmup: epochs of warm-up
    warmup_lr: rate at the start of the warm-up
    warmup_kind: linear per step, one stair per epoch, or constant at warmup_lr
    clip: largest norm of the whole gradient
    drop_last: leave out the last, smaller batch of an epoch
    precision: "exact" for float32 throughout; "bf16" for losses and attacks in bfloat16, weights and what is measured staying float32
    probes: measured while training, by name; they draw nothing from training's randomness
    every: steps between two such measurements; 0 is once per epoch
    select: "last", or the probe (on the validation split) whose best state is the result
    best: whether the largest or the smallest value of `select` is best
    improve: by how much `select` must be better to count as better
    patience: measurements without a better `select` after which training stops; the rate falls as if it did not
    guard: the probe (on the validation split), best a few steps of PGD on some hundred samples, whose fall is catastrophic overfitting
    fall: how far below its highest value `guard` must be for that
    on_collapse: record it and go on, or stop training there; what comes out is what `select` says
    snapshots: states to keep, "step-500" or "epoch-2", for a later rewind
    """
    course = Course(
        model, masks, data, rng, loop, objective, optimizer, lr, momentum, nesterov, decay, batch, epochs, steps, schedule, drops,
        milestones, gamma, peak, warmup, warmup_lr, warmup_kind, clip, drop_last, precision, probes, every, select, best, improve, patience,
        guard, fall, on_collapse, snapshots,
    )  # fmt: skip
    model.train()
    with channels_last(model, rng, lambda: one_step(course)):
        weights = Pruned(dict(model.named_parameters(remove_duplicate=False)), masks)
        net = Net(model, course.opt, course.train, weights, course.running.view(1))
        for step in walk(course):
            descend(net, course, step, course.samples(step), objective)
