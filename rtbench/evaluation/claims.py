"""Whether a claimed adversarial example holds: strictly inside ball and box, misclassified in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtbench.evaluation.ladder import Ladder
from rtbench.evaluation.margins import margins
from rtbench.parts.slots import missed
from rtbench.parts.threats import Threat, inside, project


def verified(
    judge: nn.Module, ladder: Ladder, points: Tensor, x: Tensor, y: Tensor, threat: Threat, seen: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(which claims hold, bool (m,); the points (m, ...) that were judged; their margins (m,), NaN where nothing was asked again).

    Of points around x, m no more than the batch. seen: the model that missed them was `judge` itself, so that one inside as it is needs
    no second look. Others are moved inside first.
    """
    held = inside(points, x, threat)
    again = (~held if seen else torch.ones_like(held)).nonzero().squeeze(1)
    margin = torch.full((len(points),), torch.nan, device=points.device)
    if len(again) == 0:
        return held, points, margin
    admitted = project(points[again], x[again], threat)
    logits = _asked(judge, ladder, admitted)
    held[again] = missed(logits, y[again]) & inside(admitted, x[again], threat)
    margin[again] = margins(logits, y[again])
    return held, points.index_copy(0, again, admitted), margin


@torch.no_grad()
def _asked(judge: nn.Module, ladder: Ladder, x: Tensor) -> Tensor:
    """Logits of points, asked at one of the batch sizes."""
    logits: Tensor = judge(torch.cat([x, x[:1].expand(ladder.fit(len(x)) - len(x), *x.shape[1:])]))
    return logits[: len(x)]


def wrong(judge: nn.Module, ladder: Ladder, x: Tensor, y: Tensor) -> Tensor:
    """Which points the model misses, asked at one of the batch sizes."""
    return missed(_asked(judge, ladder, x), y)
