"""The tries of one native method: a queue of (sample, target, restart) that keeps every slot filled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rtbench.evaluation.ladder import Ladder
from rtbench.evaluation.margins import margins
from rtbench.evaluation.witness import Shelf
from rtbench.slots import Method, Slots, trial_keys
from rtbench.threats import Threat, bounds, inside, project

Source = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""x float32 (m, c, h, w), y and ids int64 (m,) of the samples at these positions."""
SYNC = 8
"""Steps between looks at what was broken, where looking makes a GPU wait."""
ROWS = ("x", "y", "target", "age", "restart", "key", "lower", "upper")


class Tries:
    """Runs one method over samples `todo`, int64 (n,), positions in `source`; `broken` has what it broke.

    ranks: (all samples, ranks) classes by clean logit, likeliest first. ladder: batch sizes that give the same bits.
    `best`, if a tensor (all samples, c, h, w), receives adversarial examples, or where there is none the points that came closest.
    margin: float32 (all samples,), what is known so far; becomes that at the adversarial example, or the lowest one seen. shelf: takes
    adversarial examples.
    """

    def __init__(
        self, judge: nn.Module, model: nn.Module, source: Source, threat: Threat, method: Method, seed: int, todo: Tensor, ranks: Tensor,
        ladder: Ladder, like: Tensor, margin: Tensor, best: Tensor | None = None, dtype: torch.dtype = torch.float32,
        shelf: Shelf | None = None,
    ) -> None:  # fmt: skip
        self.judge, self.source, self.method, self.seed, self.todo, self.ranks = judge, source, method, seed, todo, ranks
        self.ladder, self.best, self.device, self.margin, self.shelf = ladder, best, like.device, margin, shelf
        self.alive = torch.zeros(len(ranks), dtype=torch.bool)
        self.alive[todo] = True
        self.steps = torch.zeros(len(ranks), dtype=torch.int64)
        """Steps spent on each sample."""
        self.cursor = self.tick = self.due = self.ran = 0
        size = ladder.fit(min(ladder.batch, len(todo) * method.tries))
        x, y = like.new_zeros(size, *like.shape[1:]), self._whole(size, self.device)
        self.flags: list[str] = []
        self.slots = Slots(model, threat, x, y, self._notice, self._flag, dtype=dtype)
        self.sample, self.began = self._whole(size) - 1, self._whole(size)
        self.open = self._whole(size, self.device).bool()
        self.caught, self.claimed = torch.zeros_like(self.slots.x), torch.zeros_like(self.open)
        self.low = torch.full((size,), torch.inf, device=self.device)
        """The lowest margin each slot saw, in the search's precision."""
        self.noticed = False

    @staticmethod
    def _whole(size: int, device: torch.device | None = None) -> Tensor:
        return torch.zeros(size, dtype=torch.int64, device=device)

    def step(self) -> bool:
        """One step of every slot; False when there was nothing left to do."""
        if self.tick >= self.due:
            self._expire()
            self._refill()
        if self.due == 0:
            return False
        self.method.step(self.slots)
        self.slots.age.add_(1).clamp_(max=self.method.steps - 1)  # rows of empty slots go on too
        self.tick += 1
        self.ran += len(self.sample)
        if self.noticed and (self.device.type == "cpu" or self.tick % SYNC == 0 or self.tick >= self.due):
            self._settle()
        return True

    def _notice(self, slots: Slots, points: Tensor, logits: Tensor, among: Tensor | None) -> None:
        """Remembers the first point of each slot that the model gets wrong."""
        hit = logits.argmax(1) != slots.y
        seen = self.open if among is None else self.open & among
        self.low = torch.where(seen, torch.minimum(self.low, margins(logits, slots.y)), self.low)
        if self.device.type != "cpu" or not math.isfinite(float(logits.sum())):  # one number tells whether to look closer
            hit |= ~torch.isfinite(logits).all(1)
        hit &= seen
        if self.device.type == "cpu":
            rows = hit.nonzero().squeeze(1)
            if len(rows) == 0:
                return
            self.caught.index_copy_(0, rows, points.detach()[rows])
        else:
            torch.where(slots.column(hit), points.detach(), self.caught, out=self.caught)
        self.claimed |= hit
        self.open &= ~hit
        self.noticed = True

    def _flag(self, name: str, rows: Tensor) -> None:
        if name not in self.flags and bool((rows & self.open).any()):
            self.flags.append(name)

    def _settle(self) -> None:
        """Retires samples whose adversarial example holds strictly inside ball and box, in float32; other claims are dropped."""
        rows = self.claimed.nonzero().squeeze(1)
        self.claimed.zero_()
        self.noticed = False
        held = self._verify(rows)
        self.open[rows] = ~held
        self._retire(rows[held].cpu())

    def _retire(self, rows: Tensor) -> None:
        """Books the samples whose adversarial examples these slots, int64 (m,), caught; of two slots of a sample the first counts."""
        if len(rows) == 0:
            return
        held = self.sample[rows]
        rows = rows[(held[:, None] == held).int().argmax(1) == torch.arange(len(rows))]
        samples, here = self.sample[rows], rows.to(self.device)
        self.margin[samples] = self.low[here].cpu()
        if self.best is not None:
            self.best[samples] = self.caught[here].to(self.best.device)
        if self.shelf is not None:
            self.shelf.add(self.source(samples)[2], self.slots.x[here], self.caught[here])
        self.alive[samples] = False
        self._free((self.sample >= 0) & ~self.alive[self.sample.clamp(min=0)])
        self._refill()

    def _verify(self, rows: Tensor) -> Tensor:
        slots, claimed = self.slots, self.caught[rows]
        x, y = slots.x[rows], slots.y[rows]
        held = inside(claimed, x, slots.threat)
        again = torch.ones_like(held) if slots.dtype != torch.float32 else ~held
        again = again.nonzero().squeeze(1)
        if len(again):
            admitted = project(claimed[again], x[again], slots.threat)
            right, margin = self._judged(admitted, y[again])
            held[again] = ~right & inside(admitted, x[again], slots.threat)
            self.caught.index_copy_(0, rows[again], admitted)
            self.low.index_copy_(0, rows[again], margin)
        return held

    @torch.no_grad()
    def _judged(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Which points the model gets right, in one of the batch sizes, and the margins."""
        size = self.ladder.fit(len(y))
        logits = self.judge(torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])]))[: len(y)]
        return (logits.argmax(1) == y) & torch.isfinite(logits).all(1), margins(logits, y)

    def _expire(self) -> None:
        """Frees the slots whose steps are spent."""
        if self.noticed:
            self._settle()
        spent = (self.sample >= 0) & (self.tick - self.began >= self.method.steps)
        if self.best is not None and "best" in self.slots.state and bool(spent.any()):
            self.best[self.sample[spent]] = self.slots.state["best"][spent.to(self.device)].to(self.best.device)
        self._free(spent)

    def _free(self, rows: Tensor) -> None:
        """rows: bool (B,)."""
        samples = self.sample[rows]
        self.steps.index_add_(0, samples, self.tick - self.began[rows])
        left = self.alive[samples]
        self.margin.scatter_reduce_(0, samples[left], self.low[rows.to(self.device)].cpu()[left], "amin")
        self.sample[rows] = -1
        self.open[rows.to(self.device)] = False

    def _refill(self) -> None:
        free = (self.sample < 0).nonzero().squeeze(1)
        jobs = self._next(len(free))
        if len(jobs):
            self._fill(free[: len(jobs)], jobs % len(self.todo), jobs // len(self.todo))
        live = self.sample >= 0
        count = int(live.sum())
        if 0 < count < len(live) and (size := self.ladder.fit(count)) < len(live):
            self._shrink(torch.argsort((~live).long(), stable=True)[:size])
            live = self.sample >= 0
        self.due = int(self.began[live].min()) + self.method.steps if count else 0

    def _next(self, count: int) -> Tensor:
        """The next `count` tries of samples not broken yet, try by try over all samples, or as many as there are."""
        total, found = len(self.todo) * self.method.tries, [torch.zeros(0, dtype=torch.int64)]
        while count > 0 and self.cursor < total:
            jobs = torch.arange(self.cursor, min(self.cursor + count, total))
            self.cursor += len(jobs)
            jobs = jobs[self.alive[self.todo[jobs % len(self.todo)]]]
            found.append(jobs)
            count -= len(jobs)
        return torch.cat(found)

    def _fill(self, rows: Tensor, which: Tensor, trial: Tensor) -> None:
        slots, samples = self.slots, self.todo[which]
        x, y, ids = self.source(samples)
        self.sample[rows], self.began[rows] = samples, self.tick
        here = rows.to(self.device)
        targets = max(1, self.method.targets)
        rank = trial % targets + 1 if self.method.targets else torch.zeros_like(trial)
        values = {
            "x": x, "y": y, "age": torch.zeros_like(y), "restart": (trial // targets).to(y.device),
            "target": self.ranks[samples, rank].long().to(y.device) if self.method.targets else y,
            "key": trial_keys(self.seed, self.method.name, ids, trial.to(ids.device)),
        }  # fmt: skip
        if slots.threat.norm == "linf":
            values["lower"], values["upper"] = bounds(x, slots.threat.eps)
        for name, value in values.items():
            getattr(slots, name).index_copy_(0, here, value)
        self.open[here] = True
        self.low[here] = torch.inf
        self.method.begin(slots, here)

    def _shrink(self, rows: Tensor) -> None:
        """Keeps only these rows of everything."""
        slots, here = self.slots, rows.to(self.device)
        for name in ROWS:
            setattr(slots, name, getattr(slots, name)[here])
        slots.state = {name: value[here] for name, value in slots.state.items()}
        self.sample, self.began = self.sample[rows], self.began[rows]
        self.open, self.caught, self.claimed, self.low = self.open[here], self.caught[here], self.claimed[here], self.low[here]

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs; taken between steps."""
        if self.noticed:
            self._settle()
        slots = {name: getattr(self.slots, name) for name in ROWS}
        own = {name: getattr(self, name) for name in ("alive", "steps", "sample", "began", "open", "caught", "claimed", "low")}
        return {"slots": slots, "state": dict(self.slots.state), "own": own, "numbers": [self.cursor, self.tick, self.due, self.ran],
                "flags": list(self.flags)}  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, value in saved["slots"].items():
            setattr(self.slots, name, value.to(self.device))
        self.slots.state = {name: value.to(self.device) for name, value in saved["state"].items()}
        for name, value in saved["own"].items():
            setattr(self, name, value.to(getattr(self, name).device))
        self.cursor, self.tick, self.due, self.ran = saved["numbers"]
        self.flags = list(saved["flags"])
