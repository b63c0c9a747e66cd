"""Whether a claimed adversarial example holds: strictly inside ball and box, misclassified in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtbench.evaluation.ladder import Ladder
from rtbench.slots import missed
from rtbench.threats import Threat, inside, project


def verified(judge: nn.Module, ladder: Ladder, points: Tensor, x: Tensor, y: Tensor, threat: Threat, seen: bool) -> tuple[Tensor, Tensor]:
    """(which claims hold, bool (m,); the points (m, ...) that were judged), of points around x, m no more than the batch.

    seen: the model that missed them was `judge` itself, so that one inside as it is needs no second look. Others are moved inside first.
    """
    held = inside(points, x, threat)
    again = (~held if seen else torch.ones_like(held)).nonzero().squeeze(1)
    if len(again) == 0:
        return held, points
    admitted = project(points[again], x[again], threat)
    held[again] = wrong(judge, ladder, admitted, y[again]) & inside(admitted, x[again], threat)
    return held, points.index_copy(0, again, admitted)


@torch.no_grad()
def wrong(judge: nn.Module, ladder: Ladder, x: Tensor, y: Tensor) -> Tensor:
    """Which points the model misses, asked at one of the batch sizes."""
    size = ladder.fit(len(y))
    return missed(judge(torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])]))[: len(y)], y)
