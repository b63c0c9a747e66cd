"""The tries of one native method: a queue of (sample, target, restart) that keeps every slot filled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rtbench.evaluation.claims import verified
from rtbench.evaluation.ladder import Ladder
from rtbench.evaluation.margins import margins
from rtbench.evaluation.queue import Source, begun, upcoming
from rtbench.evaluation.witness import Shelf
from rtbench.parts.slots import Method, Slots, missed
from rtbench.parts.threats import Threat

SYNC = 8
"""Steps between looks at what was broken, where looking makes a GPU wait."""
ROWS = ("x", "y", "target", "age", "restart", "key", "lower", "upper")
OWN = ("sample", "taken", "left", "open", "caught", "claimed", "low")


class Tries:
    """Runs one method over samples `todo`, int64 (n,), positions in `source`; `alive` is False for what it broke.

    ranks: (all samples, ranks) classes by clean logit, likeliest first. ladder: batch sizes that give the same bits.
    `best`, if a tensor (all samples, c, h, w), receives adversarial examples, or where there is none the points that came closest.
    margin: float32 (all samples,), receives that at the adversarial example. shelf: takes adversarial examples.
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
        self.cursor = self.tick = self.due = self.live = self.busy = 0
        """Tries begun; steps made; the step before which none can have spent its own; busy slots; rows that were passed for them."""
        size = self._size(min(ladder.batch, len(todo) * method.tries))
        x, y = like.new_zeros(size, *like.shape[1:]), self._whole(size, self.device)
        self.raised: dict[str, Tensor] = {}
        """Findings, and whether each was true of a sample: on the device, for to look would make a GPU wait."""
        self.slots = Slots(model, threat, x, y, self._notice, self._flag, self._leave, dtype=dtype, fit=ladder.fit)
        self.slots.lanes = self._lanes(size)
        self.sample, self.taken = self._whole(size) - 1, self._whole(size, self.device)
        self.open, self.left = self._whole(size, self.device).bool(), self._whole(size).bool()
        self.caught, self.claimed = torch.zeros_like(self.slots.x), torch.zeros_like(self.open)
        self.low = torch.full((size,), torch.inf, device=self.device)
        """Margins of the points caught."""
        self.noticed = False

    @staticmethod
    def _whole(size: int, device: torch.device | None = None) -> Tensor:
        return torch.zeros(size, dtype=torch.int64, device=device)

    def step(self) -> bool:
        """One step of every slot; False when there was nothing left to do."""
        if self.tick >= self.due or bool(self.left.any()):
            self._expire()
            self._refill()
        if self.due == 0:
            return False
        before = self.slots.tried
        steps = self.method.step(self.slots)
        self.taken.add_(1 if steps is None else steps)
        torch.clamp(self.taken, max=self.method.steps - 1, out=self.slots.age)  # rows of empty slots go on too
        self.tick += 1
        self.busy += (self.slots.tried - before) * self.live // len(self.sample)
        if self.noticed and (self.device.type == "cpu" or self.tick % SYNC == 0 or self.tick >= self.due):
            self._settle()
        return True

    def _notice(self, slots: Slots, points: Tensor, logits: Tensor, among: Tensor | None) -> None:
        """Remembers the first point of each slot that the model gets wrong."""
        hit = missed(logits, slots.y) & self.open
        if among is not None:
            hit &= among
        if self.device.type == "cpu":
            rows = hit.nonzero().squeeze(1)
            if len(rows) == 0:
                return
            self.caught.index_copy_(0, rows, points.detach()[rows])
            self.low.index_copy_(0, rows, margins(logits[rows], slots.y[rows]))
        else:
            torch.where(slots.column(hit), points.detach(), self.caught, out=self.caught)
            torch.where(hit, margins(logits, slots.y), self.low, out=self.low)
        self.claimed |= hit
        self.open &= ~hit
        self.noticed = True

    def _flag(self, name: str, rows: Tensor) -> None:
        found = (rows & self.open).any()
        self.raised[name] = self.raised[name] | found if name in self.raised else found

    @property
    def flags(self) -> list[str]:
        return [name for name, found in self.raised.items() if bool(found)]

    def _leave(self, rows: Tensor) -> None:
        self.left |= rows.cpu() & (self.sample >= 0)

    def _settle(self) -> None:
        """Retires samples whose adversarial example holds strictly inside ball and box, in float32; other claims are dropped."""
        rows = self.claimed.nonzero().squeeze(1)
        self.noticed = False
        if len(rows) == 0:
            return
        self.claimed.zero_()
        slots = self.slots
        seen = slots.model is self.judge
        held, points, margin = verified(self.judge, self.ladder, self.caught[rows], slots.x[rows], slots.y[rows], slots.threat, seen)
        self.open[rows] = ~held
        self.low[rows] = torch.where(margin.isnan(), self.low[rows], margin)
        if bool(held.any()):
            self._retire(rows[held], points[held])

    def _retire(self, here: Tensor, points: Tensor) -> None:
        """Books what these slots broke, int64 (m,), and where; of two slots of one sample the first counts."""
        held = self.sample[here.cpu()]
        first = (held[:, None] == held).int().argmax(1) == torch.arange(len(held))
        samples, here, points = held[first], here[first.to(self.device)], points[first.to(self.device)]
        self.margin[samples] = self.low[here].cpu()
        if self.best is not None:
            self.best[samples] = points.to(self.best.device)
        if self.shelf is not None:
            self.shelf.add(self.source(samples)[2], self.slots.x[here], points)
        self.alive[samples] = False
        self._free((self.sample >= 0) & ~self.alive[self.sample.clamp(min=0)])
        self._refill(tight=True)  # what lies in an empty slot after a break is wrong, and methods look closer at a batch with such a row

    def _expire(self) -> None:
        """Frees the slots whose steps are spent, or that were left."""
        if self.noticed:
            self._settle()
        spent = (self.sample >= 0) & (self.left | (self.taken.cpu() >= self.method.steps))
        if self.best is not None and "best" in self.slots.state and bool(spent.any()):
            self.best[self.sample[spent]] = self.slots.state["best"][spent.to(self.device)].to(self.best.device)
        self._free(spent)

    def _free(self, rows: Tensor) -> None:
        """rows: bool (B,)."""
        self.steps.index_add_(0, self.sample[rows], self.taken.cpu()[rows])
        self.sample[rows] = -1
        self.left[rows] = False
        self.open[rows.to(self.device)] = False

    def _refill(self, tight: bool = False) -> None:
        """tight: keep no empty slots that can be left out, even where that saves the model nothing."""
        free = (self.sample < 0).nonzero().squeeze(1)
        self.cursor, samples, trial = upcoming(self.cursor, len(free), self.todo, self.method.tries, self.alive)
        if len(samples):
            self._fill(free[: len(samples)], samples, trial)
        live = self.sample >= 0
        self.live = int(live.sum())
        if 0 < self.live < len(live):
            size = self._size(self.live)
            if size < len(live) if tight else self._pays(size, len(live)):
                self._shrink(torch.argsort((~live).long(), stable=True)[:size])
                live = self.sample >= 0
        left = self.method.steps - int(self.taken.cpu()[live].max()) if self.live else 0
        self.due = self.tick + -(-left // (self.slots.lanes + self.method.skipped)) if self.live else 0

    def _size(self, count: int) -> int:
        """Slots for so many tries: a batch that the model may be asked at, or, of a method that fills it up itself, just as many."""
        return count if self.method.lanes > 1 else self.ladder.fit(count)

    def _pays(self, size: int, now: int) -> bool:
        """Whether with so many slots the model would be asked at fewer rows, or at more of each slot."""
        return self.ladder.fit(size) < self.ladder.fit(now) or self._lanes(size) > self.slots.lanes

    def _lanes(self, size: int) -> int:
        return max(1, min(self.method.lanes, self.ladder.batch // max(1, size)))

    def _fill(self, rows: Tensor, samples: Tensor, trial: Tensor) -> None:
        slots, here = self.slots, rows.to(self.device)
        self.sample[rows] = samples
        self.taken[here] = 0
        for name, value in begun(self.source, samples, trial, self.method, self.ranks, self.seed, slots.threat).items():
            getattr(slots, name).index_copy_(0, here, value)
        self.open[here] = True
        slots.scratch.clear()
        self.method.begin(slots, here)

    def _shrink(self, rows: Tensor) -> None:
        """Keeps only these rows of everything."""
        slots, here = self.slots, rows.to(self.device)
        for name in ROWS:
            setattr(slots, name, getattr(slots, name)[here])
        slots.state = {name: value[here] for name, value in slots.state.items()}
        for name in OWN:
            value = getattr(self, name)
            setattr(self, name, value[rows.to(value.device)])
        slots.lanes = self._lanes(len(rows))
        slots.scratch.clear()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs; taken between steps."""
        if self.noticed:
            self._settle()
        slots = {name: getattr(self.slots, name) for name in ROWS}
        own = {name: getattr(self, name) for name in ("alive", "steps", *OWN)}
        numbers = [self.cursor, self.tick, self.due, self.live, self.busy, self.slots.asked, self.slots.tried]
        rates = {name: value for name, value in self.slots.scratch.items() if isinstance(value, float)}
        return {"slots": slots, "state": dict(self.slots.state), "own": own, "numbers": numbers, "flags": self.flags, "rates": rates}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, value in saved["slots"].items():
            setattr(self.slots, name, value.to(self.device))
        self.slots.state = {name: value.to(self.device) for name, value in saved["state"].items()}
        for name, value in saved["own"].items():
            setattr(self, name, value.to(getattr(self, name).device))
        self.cursor, self.tick, self.due, self.live, self.busy, self.slots.asked, self.slots.tried = saved["numbers"]
        self.slots.lanes = self._lanes(len(self.sample))
        self.slots.scratch.update(saved.get("rates", {}))  # an earlier rtbench did not save them
        self.raised = {name: torch.ones((), dtype=torch.bool, device=self.device) for name in saved["flags"]}
