"""One network in training: what the trainer was called with, how far it is, which samples and which rate are next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rtbench import keys
from rtbench.builtin.trainers.optimizers import make_optimizer
from rtbench.builtin.trainers.schedule import scale, warmed
from rtbench.data.splits import batches
from rtbench.errors import UserError
from rtbench.parts.kinds import Progress
from rtbench.parts.masks import Masks


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


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters to optimise; UserError if there are none."""
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise UserError("no parameter of the model requires grad: there is nothing to train")
    return found


def order(n: int, rng: torch.Generator, epoch: int) -> Tensor:
    """The epoch's permutation of n samples: a function of the stage's seed and the epoch, so that resuming needs no state."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(keys.seed(rng.initial_seed(), "order", epoch)))
