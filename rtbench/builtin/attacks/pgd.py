"""Projected gradient descent. Source: Madry, Makelov, Schmidt, Tsipras & Vladu 2018, arXiv:1706.06083."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from torch import Tensor

from rtbench.builtin.attacks.ascent import Ascent, Label, LossName, Model, Scale, Step, ascend
from rtbench.parts.kinds import declare
from rtbench.parts.knobs import Range
from rtbench.parts.noise import Noise
from rtbench.parts.threats import Start, Threat


@declare(passes=lambda knobs, sizes, nested: (knobs["steps"] * knobs["restarts"],) * 2)
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    noise: Noise,
    *,
    steps: Annotated[int, Range("[1, inf)")] = 10,
    step: Step = None,
    start: Start = "uniform",
    start_scale: Scale = 0.001,
    restarts: Annotated[int, Range("[1, inf)")] = 1,
    loss: LossName = "ce",
    label: Label = "true",
) -> Tensor:
    """Steepest ascent steps, each followed by a projection onto ball and box, under linf, l2 or l1.

    steps: gradient steps per restart
    step: step size in input units; 2.5 eps / steps if left out
    start: none (the clean image), uniform in the ball, or gaussian around the image
    start_scale: standard deviation of the gaussian start, in input units
    restarts: random starts; each sample keeps a misclassified one, else the one of highest loss
    loss: ce, kl from the clean output (TRADES), margin (Carlini-Wagner), or dlr
    label: leave the true or the predicted label, or reach a random other (target) or the least-likely class
    """
    size = threat.eps * Fraction(5, 2) / steps if step is None else step
    return ascend(model, x, y, threat, noise, Ascent(steps, size, start, start_scale, loss, label, restarts))
