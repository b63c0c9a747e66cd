"""One network's way through a training: which samples and which rate at each step, and what is due between two steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rtbench import keys
from rtbench.builtin.trainers.descent import make_optimizer
from rtbench.builtin.trainers.schedule import scale, warmed
from rtbench.builtin.trainers.watch import measure
from rtbench.data.splits import batches
from rtbench.errors import UserError
from rtbench.parts.kinds import Progress
from rtbench.parts.masks import Masks

SNAPSHOT = re.compile(r"(step|epoch)-(\d+)")


@dataclass(eq=False)
class Course:
    """What `sgd` was called with, in its order and explained there, and what changes on the way."""

    model: nn.Module
    masks: Masks
    data: Any
    rng: torch.Generator
    loop: Any
    objective: Any
    optimizer: str
    lr: float
    momentum: float
    nesterov: bool
    decay: float
    batch: int
    epochs: int | None
    steps: int | None
    schedule: str
    drops: list[float]
    milestones: list[int]
    gamma: float
    peak: float
    warmup: float
    warmup_lr: float
    warmup_kind: str
    clip: float | None
    drop_last: bool
    precision: str
    probes: dict[str, Any]
    every: int
    select: str
    best: str
    improve: float
    patience: int | None
    guard: str
    fall: float
    on_collapse: str
    snapshots: list[str]
    feed: Iterator[tuple[Tensor, Tensor]] | None = None
    seen: dict[str, Any] = field(default_factory=dict)
    """What must be remembered of measurements, over a kill too."""

    def __post_init__(self) -> None:
        self.per_epoch = batches_in(len(self.data.train), self.batch, self.drop_last)
        self.total = self.steps if self.steps is not None else (self.epochs or 0) * self.per_epoch
        self.train = trainable(self.model)
        self.opt = make_optimizer(self.optimizer, self.train, self.lr, self.momentum, self.nesterov, self.decay)
        self.running = torch.zeros((), device=self.train[0].device)
        """The losses of this epoch's steps, added up."""

    def walk(self) -> Iterator[int]:
        """The number of each step when it is to be made; after it whatever is due is logged, kept, measured and saved."""
        wanted = places(self.snapshots, self.per_epoch, self.total)
        for name in wanted.get(0, ()):
            self.loop.keep(name)
        for step in self.loop(range(self.total), state={"opt": self.opt, "running": self.running, "seen": self.seen}):
            yield step
            done = step + 1
            ends = done % self.per_epoch == 0 or done == self.total
            due = bool(self.probes) and (done % (self.every or self.per_epoch) == 0 or done == self.total)
            if ends or due:
                self.loop.log(done, "epoch", done / self.per_epoch)
            if ends:
                self.loop.log(done, "loss", float(self.running) / (step % self.per_epoch + 1))
                self.running.zero_()
            for name in wanted.get(done, ()):
                self.loop.keep(name)
            if due and measure(self, done):
                break
        if "state" in self.seen:
            self.model.load_state_dict(self.seen["state"])

    def samples(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of this step, to be asked for in the order of steps."""
        epoch, i = divmod(step, self.per_epoch)
        if self.feed is None or i == 0:
            split = self.data.train
            rest = order(len(split), self.rng, epoch)[i * self.batch :]
            self.feed = batches(split, self.batch, rest, True, self.rng, self.drop_last)
        return next(self.feed)

    def rate(self, step: int) -> float:
        """The learning rate of this step."""
        factor = scale(self.schedule, step, self.total, self.per_epoch, self.drops, self.milestones, self.gamma, self.peak)
        return warmed(self.lr * factor, step, self.per_epoch, self.warmup, self.warmup_lr, self.warmup_kind)

    def progress(self, step: int) -> Progress:
        return Progress(step, self.total, step // self.per_epoch, math.ceil(self.total / self.per_epoch))


def batches_in(n: int, batch: int, drop_last: bool) -> int:
    """Steps in one pass over n samples; UserError if there is no full batch and no other is wanted."""
    if drop_last and n < batch:
        raise UserError(f"drop_last leaves no batch of {batch} in {n} training samples; take a smaller batch")
    return n // batch if drop_last else math.ceil(n / batch)


def places(snapshots: list[str], per_epoch: int, total: int) -> dict[int, list[str]]:
    """The snapshots to keep by the number of steps done; UserError for one that training never reaches."""
    found: dict[int, list[str]] = {}
    for name in snapshots:
        unit, _, number = name.partition("-")
        step = int(number) * (per_epoch if unit == "epoch" else 1)
        if step > total:
            raise UserError(f'snapshot "{name}" lies at step {step} and training ends at step {total}')
        found.setdefault(step, []).append(name)
    return found


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters to optimise; UserError if there are none."""
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise UserError("no parameter of the model requires grad: there is nothing to train")
    return found


def order(n: int, rng: torch.Generator, epoch: int) -> Tensor:
    """The epoch's permutation of n samples: a function of the stage's seed and the epoch, so that resuming needs no state."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(keys.seed(rng.initial_seed(), "order", epoch)))
