"""What a plain attack found on its way: the first misclassified point of each sample that it asked the model about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from rtbench.parts.slots import missed
from rtbench.parts.threats import Threat, inside, project

ROUNDING = Fraction(1, 100000)
"""By what share of eps attacks leave the ball through float32 rounding; such points are moved into it."""


class Watch:
    """Of samples x (n, c, h, w), y under a threat: `found`, bool (n,), and `points`, strictly inside, where found.

    A forward can be attributed if it has as many rows as there are samples and row i lies in the ball of sample i; rows of other
    forwards (of a part of the samples, of several restarts at once) are not looked at.
    """

    def __init__(self, x: Tensor, y: Tensor, threat: Threat) -> None:
        self.x, self.y, self.threat = x.clone(), y.clone(), threat
        self.near = threat._replace(eps=threat.eps * (1 + ROUNDING))
        self.points, self.found = self.x.clone(), torch.zeros_like(y, dtype=torch.bool)

    @contextlib.contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Watches the model for a while."""
        handle = model.register_forward_hook(self._see)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _see(self, _: nn.Module, given: tuple[Any, ...], logits: Any) -> None:
        asked = given[0] if len(given) == 1 else None
        if type(asked) is not Tensor or asked.shape != self.x.shape or type(logits) is not Tensor or logits.dim() != 2:
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(asked):  # what happens within torch.func cannot be kept
            return
        rows = (missed(logits, self.y) & ~self.found).nonzero().squeeze(1)
        if len(rows):  # only these are worth the comparison
            points = asked.detach()[rows].to(self.x)
            held = inside(points, self.x[rows], self.near)
            rows = rows[held]
            self.points[rows] = project(points[held], self.x[rows], self.threat)
            self.found[rows] = True
