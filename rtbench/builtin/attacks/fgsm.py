"""Fast gradient sign method. Source: Goodfellow, Shlens & Szegedy 2015, arXiv:1412.6572."""

from __future__ import annotations

from torch import Tensor

from rtbench.builtin.attacks.ascent import Ascent, Label, LossName, Model, Scale, Step, ascend
from rtbench.parts.kinds import declare
from rtbench.parts.noise import Noise
from rtbench.parts.threats import Start, Threat


@declare(passes=lambda knobs, sizes, nested: (1, 1))
def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    noise: Noise,
    *,
    step: Step = None,
    start: Start = "none",
    start_scale: Scale = 0.001,
    loss: LossName = "ce",
    label: Label = "true",
) -> Tensor:
    """One steepest ascent step; with a uniform start and step 1.25 eps, the fast training of Wong et al. 2020, arXiv:2001.03994.

    step: step size in input units; eps if left out
    start: none (the clean image), uniform in the ball, or gaussian around the image
    start_scale: standard deviation of the gaussian start, in input units
    loss: ce, kl from the clean output, margin (Carlini-Wagner), or dlr
    label: leave the true or the predicted label, or reach a random other (target) or the least-likely class
    """
    return ascend(model, x, y, threat, noise, Ascent(1, threat.eps if step is None else step, start, start_scale, loss, label))
