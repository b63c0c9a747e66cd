"""A small panel of attacks on a few samples of every model, which tells how far to trust a number.

Source: Athalye, Carlini & Wagner 2018, arXiv:1802.00420, section 3.1; Carlini et al. 2019, arXiv:1902.06705, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rtbench.evaluation.ladder import slope_of
from rtbench.evaluation.margins import margins
from rtbench.parts import threats
from rtbench.parts.noise import CounterNoise, Noise
from rtbench.parts.threats import Threat

Model = Callable[[Tensor], Tensor]
SAMPLES, STEPS, DRAWS = 64, 10, 8
"""At most so many samples, in the order asked, that are right clean; steps of each ascent; draws of noise."""
FORWARDS, GRADIENTS = 3 * (STEPS + 1) + 1 + DRAWS, 3 * STEPS + 1
"""What the panel asks of each sample, all gradients being of forwards."""
BOX = Threat("linf", Fraction(1))
"""No bound at all: every image there is."""
FAR = 1e6
"""Noise of such a size, projected, lies in corners of the ball or on its surface."""
RESOLVED = Fraction(1, 100_000)
"""In smaller balls float32's rounding of images and logits hides whether the loss rose."""
SHARE, LEAST = 0.05, 2
"""A finding has to hold on more than so many of the samples, a share and a count."""


class Climb(NamedTuple):
    """Per sample: whether any point on the way was misclassified; whether the margin ended above where it began; gradient all 0."""

    broken: Tensor
    higher: Tensor
    flat: Tensor


def about_gradients(
    model: Model, x: Tensor, y: Tensor, ids: Tensor, robust: Tensor, threat: Threat, seed: int, batch: int
) -> list[str]:  # fmt: skip
    """Flags of the model's gradients, asked on samples that are right clean, and of an attack that left `robust` of them, bool (n,)."""
    found: dict[str, int] = {}
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        for name, count in examine(model, x[rows], y[rows], ids[rows], robust[rows], threat, seed).items():
            found[name] = found.get(name, 0) + count
    return [name for name, count in found.items() if count >= min(LEAST, len(x)) and count > SHARE * len(x)]


def examine(model: Model, x: Tensor, y: Tensor, ids: Tensor, robust: Tensor, threat: Threat, seed: int) -> dict[str, int]:
    """How many of the samples speak for each flag.

    Three ascents of the margin loss (in the ball, in one of twice its radius, without a bound), uniform and corner noise in the ball,
    and the gradient of the cross-entropy, which confident networks may lack.
    """
    noise = CounterNoise(seed, ids).stream("panel")
    begin = threats.start(x, threat, noise)
    near = _climb(model, x, y, threat, begin)
    far = _climb(model, x, y, threat._replace(eps=2 * threat.eps), begin)
    free = _climb(model, x, y, BOX, x)
    _, slope = _slope(model, x, lambda logits: cross_entropy(logits, y, reduction="none"))
    by_noise = _by_noise(model, x, y, threat, noise)
    return {
        "zero-gradient": int((free.flat | ~slope.flatten(1).any(1)).sum()),
        "loss-not-increasing": int((~near.higher).sum()) if threat.eps >= RESOLVED else 0,
        "larger-eps-more-accurate": int(near.broken.sum()) - int(far.broken.sum()),
        "unbounded-robust": int((~free.broken).sum()),
        "noise-beats-gradients": int((by_noise & (~near.broken | robust)).sum()),
    }


def _climb(model: Model, x: Tensor, y: Tensor, threat: Threat, point: Tensor) -> Climb:
    def loss(logits: Tensor) -> Tensor:
        return -margins(logits, y)

    size, norm = 2.5 * float(threat.eps) / STEPS, "linf" if threat.norm == "linf" else "l2"  # sparse steps of l1 need many more
    first, slope = _slope(model, point, loss)
    flat, broken, last = ~slope.flatten(1).any(1), first > 0, first
    for step in range(STEPS):
        point = threats.project(point + size * threats.step(threats.passable(slope, point), norm), x, threat)
        if step < STEPS - 1:
            last, slope = _slope(model, point, loss)
        else:
            with torch.no_grad():
                last = loss(model(point))
        broken = broken | (last > 0)
    return Climb(broken, last > first, flat)


@torch.enable_grad()
def _slope(model: Model, point: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(loss (n,), its gradient (n, ...)); a network through which nothing can be differentiated has the gradient 0."""
    point = point.detach().requires_grad_()
    losses = loss(model(point))
    return losses.detach(), slope_of(losses.sum(), point).nan_to_num(0, 0, 0)


@torch.no_grad()
def _by_noise(model: Model, x: Tensor, y: Tensor, threat: Threat, noise: Noise) -> Tensor:
    """bool (n,): which samples uniform noise in the ball, or noise in its corners, breaks."""
    broken = torch.zeros_like(y, dtype=torch.bool)
    for draw in range(DRAWS):
        uniform = draw % 2 == 0
        point = threats.start(x, threat, noise) if uniform else threats.project(x + FAR * noise.normal(x), x, threat)
        broken |= margins(model(point), y) < 0
    return broken
