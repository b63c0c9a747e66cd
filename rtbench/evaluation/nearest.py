"""Native attacks run for distances: no sample is retired, and every misclassified point that is ever queried counts."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from rtbench.evaluation.claims import wrong
from rtbench.evaluation.native import Run
from rtbench.evaluation.tries import Tries
from rtbench.parts.slots import Slots, missed
from rtbench.parts.threats import distances


class Nearest(Run):
    """As `Run`, and every try of every sample that is right clean goes on to its end.

    distance: float64 (n,), of the nearest point in the box that the model gets wrong in float32; inf where none was queried. The
    attack's radius limits nothing; attacks may start from it.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.distance = torch.full((self.n,), torch.inf, dtype=torch.float64)

    def _begin(self) -> Tries:
        tries = super()._begin()
        tries.slots.notice = functools.partial(self._notice, tries)
        return tries

    def _notice(self, tries: Tries, slots: Slots, points: Tensor, logits: Tensor, among: Tensor | None) -> None:
        """Keeps the distances of wrong points that are nearer than any before; rows of one sample do not depend on their order."""
        rows = (missed(logits, slots.y).cpu() & (tries.sample >= 0)).nonzero().squeeze(1)
        if len(rows) == 0:
            return
        here = rows.to(points.device)
        asked, x = points.detach()[here], slots.x[here]
        boxed = asked.clamp(0, 1)
        far = distances(boxed, x, slots.threat.norm).nan_to_num(nan=torch.inf, posinf=torch.inf).cpu()
        doubt = torch.full_like(far, slots.model is not self.model, dtype=torch.bool) | (boxed != asked).flatten(1).any(1).cpu()
        doubt &= far < self.distance[tries.sample[rows]]
        if bool(doubt.any()):
            again = doubt.nonzero().squeeze(1).to(points.device)
            far[doubt] = far[doubt].masked_fill(~wrong(self.model, self.ladder, boxed[again], slots.y[here][again]).cpu(), torch.inf)
        self.distance.scatter_reduce_(0, tries.sample[rows], far, "amin")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "distance": self.distance}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.distance = saved["distance"]
