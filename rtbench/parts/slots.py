"""The slot protocol of native attacks: an attack is a per-step update of a fixed-size batch of slots.

Every slot holds one try (a sample, a target, a restart) at its own step. The engine fills slots, asks the method for a step, notices
every misclassified point that the method queried, empties slots whose sample is broken or whose steps are spent, and fills them again.
A method therefore treats rows independently, and never mixes, sorts or counts over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rtbench import keys
from rtbench.parts import threats
from rtbench.parts.noise import GOLDEN, SECOND, mix
from rtbench.parts.threats import Threat

RECHECKED = 64
"""Samples at most, the first that a search in bfloat16 leaves robust, that are attacked again in float32."""
Flag = Callable[[str, Tensor], None]
Notice = Callable[["Slots", Tensor, Tensor, "Tensor | None"], None]


@dataclass(frozen=True)
class Method:
    """One native attack.

    begin(slots, rows): writes the state of newly filled rows, int64 (m,), through `slots.put`; asks nothing of the model.
    step(slots): one update of all rows, asking the model by `slots.forward` and `slots.gradient`. It returns None, or int64 (B,), how
    many steps each row took, where it tried the next `slots.lanes` of them at once. steps: steps of a try. lanes: the most it can try.
    skipped: how many a row may take besides, because they need not be tried.
    targets: how many of the likeliest wrong classes are attacked in turn, 0 for none. restarts: tries per target.
    forwards, gradients: what one step asks of the model per sample, `gradients` of the forwards being differentiated.
    """

    name: str
    begin: Callable[[Slots, Tensor], None]
    step: Callable[[Slots], Tensor | None]
    steps: int
    targets: int = 0
    restarts: int = 1
    forwards: int = 1
    gradients: int = 0
    lanes: int = 1
    skipped: int = 0

    @property
    def tries(self) -> int:
        """Tries of a sample that is never broken."""
        return max(1, self.targets) * self.restarts


class Native(NamedTuple):
    """What a native attack part returns: methods, each run on what those before it left robust, and flags.

    precision: "bf16" searches with a copy of the model in bfloat16; every claim is judged in float32 whatever it says, and some of the
    samples that it left robust are attacked again in float32.
    """

    methods: tuple[Method, ...]
    flags: tuple[str, ...] = ()
    precision: str = "exact"


@dataclass
class Slots:
    """The batch a method works on, B rows. Dead rows hold finite numbers that nobody reads.

    x, y: image and label. lower, upper: for linf, the largest ball that float32 can express. target: the class to reach, y where
    there is none. age: steps this try has had; restart: which restart it is. key: what the try's noise is drawn from. state: the
    method's own tensors (B, ...). lanes: how many steps ahead of each row fit into the batch. fit(n): rows that the model is asked at
    for n of them. scratch: what a method keeps between steps only to save time; emptied whenever rows are filled or moved; floats in it
    survive a kill.
    """

    model: nn.Module
    threat: Threat
    x: Tensor
    y: Tensor
    notice: Notice
    flag: Flag = lambda name, rows: None
    """Called with a finding and the rows, bool (B,), it is true of; dead rows do not count."""
    leave: Callable[[Tensor], None] = lambda rows: None
    """Called with rows, bool (B,), whose try has nothing more to do: the engine frees them after this step."""
    target: Tensor = field(init=False)
    age: Tensor = field(init=False)
    restart: Tensor = field(init=False)
    key: Tensor = field(init=False)
    lower: Tensor = field(init=False)
    upper: Tensor = field(init=False)
    state: dict[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    lanes: int = 1
    fit: Callable[[int], int] = lambda rows: rows
    scratch: dict[str, Any] = field(default_factory=dict)
    asked: int = 0
    tried: int = 0
    """Rows passed through the model so far, those of empty slots included; and without those that only fill up the batch."""

    def __post_init__(self) -> None:
        self.target = self.y.clone()
        self.age, self.restart, self.key = (torch.zeros_like(self.y) for _ in range(3))
        self.lower, self.upper = (self.x.clone(), self.x.clone()) if self.threat.norm == "linf" else (self.x, self.x)

    @property
    def eps(self) -> float:
        return float(self.threat.eps)

    def column(self, values: Tensor) -> Tensor:
        """(B,) as (B, 1, 1, 1), to meet images."""
        return values.view(-1, *[1] * (self.x.dim() - 1))

    def put(self, name: str, rows: Tensor, values: Tensor | float) -> None:
        """Writes state of newly filled rows; a number makes state of shape (B,)."""
        if name not in self.state:
            like = values if isinstance(values, Tensor) else self.x.new_empty(1)
            self.state[name] = torch.zeros(len(self.y), *like.shape[1:], dtype=like.dtype, device=self.x.device)
        if isinstance(values, Tensor):
            self.state[name].index_copy_(0, rows, values)
        else:
            self.state[name].index_fill_(0, rows, values)

    def keep(self, name: str, where: Tensor, values: Tensor) -> None:
        """Writes state (B, ...) in the rows `where`, bool (B,), from the same rows of values."""
        target = self.state[name]
        if target.device.type == "cpu":  # copying rows costs a tenth of choosing among all numbers, and to look costs nothing
            rows = where.nonzero().squeeze(1)
            target.index_copy_(0, rows, values[rows])
        else:
            torch.where(where.view(-1, *[1] * (target.dim() - 1)), values, target, out=target)

    def bits(self, rows: Tensor | None = None, count: int = 1, age: Tensor | None = None) -> Tensor:
        """64 random bits, int64 (m, count), of these rows at their present step, the same ones whatever shares the batch.

        age: (lanes * B,), other steps of all rows, lane by lane.
        """
        if age is not None:
            state = (self.key + age.view(-1, len(self.key)) * GOLDEN).flatten()
        else:
            key, now = (self.key, self.age) if rows is None else (self.key[rows], self.age[rows])
            state = key + now * GOLDEN
        if count == 1:
            return mix(state)[:, None]
        return mix(mix(state)[:, None] + torch.arange(1, count + 1, device=state.device).mul_(GOLDEN))

    def clip_(self, points: Tensor) -> Tensor:
        """Moves points into the ball and the box, in place for linf; strictly inside but for rare rounding under l2 and l1."""
        if self.threat.norm == "linf":
            return points.clamp_(self.lower, self.upper)
        return threats.onto_ball(points.clamp_(0, 1).sub_(self.x), self.threat.norm, self.eps * (1 - 1e-6)).add_(self.x)

    @torch.no_grad()
    def ask(self, points: Tensor, tried: int | None = None) -> Tensor:
        """Logits (n, k) of points (n, ...), n of a size that `fit` gave, the first `tried` of them meant; nothing is noticed."""
        self.asked += len(points)
        self.tried += len(points) if tried is None else tried
        logits: Tensor = self.model(points.to(self.dtype)).float()
        return logits

    def forward(self, points: Tensor, among: Tensor | None = None) -> Tensor:
        """Logits (B, k) of points (B, ...). among: bool (B,), rows that may lie inside the ball; all if not given."""
        logits = self.ask(points)
        self.notice(self, points, logits, among)
        return logits

    def gradient(self, points: Tensor, loss: Callable[[Tensor], Tensor], among: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(logits (B, k), loss (B,), gradient of the loss (B, ...)) at points; samples do not mix, so one sum serves all."""
        self.asked += len(points)
        self.tried += len(points)
        with torch.enable_grad():
            asked = points.detach().to(self.dtype).requires_grad_()
            logits = self.model(asked).float()
            losses = loss(logits)
            (slope,) = torch.autograd.grad(losses.sum(), asked)
        logits = logits.detach()
        self.notice(self, points, logits, among)
        return logits, losses.detach(), threats.finite(slope.to(points.dtype))

    def slopes(self, points: Tensor, values: Callable[[Tensor], Tensor], among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(values (B, m) of the logits at points, the gradient of each (B, m, ...)): one forward, differentiated m times."""
        with torch.enable_grad():
            asked = points.detach().to(self.dtype).requires_grad_()
            logits = self.model(asked).float()
            found = values(logits)
            each = [torch.autograd.grad(one.sum(), asked, retain_graph=True)[0] for one in found.unbind(1)]
        self.notice(self, points, logits.detach(), among)
        return found.detach(), torch.stack([threats.finite(one.to(points.dtype)) for one in each], 1)


def missed(logits: Tensor, y: Tensor) -> Tensor:
    """bool (n,): which answers are wrong; one that is not finite counts as wrong."""
    wrong = logits.argmax(1) != y
    if logits.device.type != "cpu" or not math.isfinite(float(logits.sum())):  # one number tells whether to look closer
        wrong |= ~torch.isfinite(logits).all(1)
    return wrong


def trial_keys(seed: int, method: str, ids: Tensor, trial: Tensor) -> Tensor:
    """int64 (m,): what the noise of a try is drawn from: seed, attack, sample id, and which target and restart it is."""
    return mix(mix(ids * GOLDEN + keys.seed("slots", seed, method)) + (trial + 1) * SECOND)


def unit(bits: Tensor) -> Tensor:
    """float32 in [0, 1) from 64 random bits."""
    return ((bits >> 40) & (2**24 - 1)).float().mul_(2.0**-24)


def normal(bits: Tensor) -> Tensor:
    """Standard normal float32 from 64 random bits, by Box & Muller 1958."""
    far = ((bits >> 32) & (2**32 - 1)).add_(1).double().mul_(2.0**-32).log_().mul_(-2).sqrt_()
    return (far * (bits & (2**32 - 1)).double().mul_(2.0**-32 * 2 * torch.pi).cos_()).float()


def below(bits: Tensor, limit: Tensor) -> Tensor:
    """int64 in [0, limit) from 64 random bits; limit below 2**30."""
    return (((bits >> 33) & (2**31 - 1)) * limit) >> 31
