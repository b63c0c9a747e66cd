"""The loop that all gradient attacks share: start, climb by steepest steps inside ball and box, keep the best restart."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from rtbench.builtin.attacks.losses import LOSSES, Loss, kl_from
from rtbench.errors import UserError
from rtbench.parts import threats
from rtbench.parts.knobs import Range
from rtbench.parts.noise import Noise
from rtbench.parts.threats import Threat

Model = Callable[[Tensor], Tensor]
Step = Annotated[Fraction | None, Range("(0, inf)")]
Scale = Annotated[float, Range("(0, inf)")]
LossName = Literal["ce", "kl", "margin", "dlr"]
Label = Literal["true", "predicted", "target", "least-likely"]


class Ascent(NamedTuple):
    """The knobs of a gradient attack. step: in input units. start_scale: standard deviation of the gaussian start."""

    steps: int
    step: Fraction
    start: threats.Start
    start_scale: float
    loss: LossName
    label: Label
    restarts: int = 1


def ascend(model: Model, x: Tensor, y: Tensor, threat: Threat, noise: Noise, how: Ascent) -> Tensor:
    """Adversarial examples (n, ...) strictly inside the threat model; no gradient reaches the parameters.

    A sample is restarted until it is misclassified; one that never is keeps the try of highest loss. Raises UserError on knobs that
    contradict each other.
    """
    _refuse(how)
    best, loss = _climb(model, x, y, threat, noise, how)
    if how.restarts == 1:
        return best
    wrong, height = _verdict(model, best, y, loss)
    for _ in range(how.restarts - 1):
        left = (~wrong).nonzero().squeeze(1)
        if len(left) == 0:
            break
        found, loss = _climb(model, x[left], y[left], threat, noise.rows(left), how)
        wrong[left], risen = _verdict(model, found, y[left], loss)
        better = wrong[left] | (risen > height[left])
        best[left[better]], height[left[better]] = found[better], risen[better]
    return best


def _climb(model: Model, x: Tensor, y: Tensor, threat: Threat, noise: Noise, how: Ascent) -> tuple[Tensor, Loss]:
    """One start and all steps from it; also the loss that tells how far a sample got from its true label."""
    limits = threats.bounds(x, threat.eps) if threat.norm == "linf" else None
    move = _mover(x, threat, float(how.step), limits)
    with torch.no_grad():
        clean = model(x) if how.loss == "kl" or how.label != "true" else None
    loss = kl_from(clean) if how.loss == "kl" and clean is not None else LOSSES[how.loss]
    climbed = _climbed(loss, y, clean, noise, how.label)
    x_adv = threats.start(x, threat, noise, how.start, how.start_scale, limits)
    for _ in range(how.steps):
        x_adv = move(x_adv, _gradient(model, x_adv, climbed))
    return (x_adv if limits else threats.project(x_adv, x, threat)), loss


@torch.no_grad()
def _verdict(model: Model, x_adv: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """(misclassified, loss), each (n,)."""
    logits = model(x_adv)
    return logits.argmax(1) != y, loss(logits, y)


def _refuse(how: Ascent) -> None:
    if how.loss == "kl" and how.start == "none":
        raise UserError('loss "kl" has no gradient at the clean image: give a random start, "uniform" or "gaussian"')
    if how.loss == "kl" and how.label != "true":
        raise UserError(f'loss "kl" uses no label, so label "{how.label}" has no effect; leave it out')
    if how.restarts > 1 and how.start == "none" and how.label != "target":
        raise UserError(f'{how.restarts} restarts from the clean image are all the same: give a random start, "uniform" or "gaussian"')


def _climbed(loss: Loss, y: Tensor, clean: Tensor | None, noise: Noise, label: Label) -> Callable[[Tensor], Tensor]:
    """What to climb, as a function of the logits: the loss of the label to leave, or minus the loss of the label to reach."""
    if clean is None or label == "true":
        return lambda logits: loss(logits, y)
    if label == "predicted":
        predicted = clean.argmax(1)
        return lambda logits: loss(logits, predicted)
    classes = clean.shape[1]
    if classes < 2:
        raise UserError(f'label "{label}" needs at least 2 classes')
    if label == "target":
        target = (y + 1 + (noise.uniform(clean[:, 0]) * (classes - 1)).long()) % classes
    else:
        target = clean.scatter(1, y[:, None], torch.inf).argmin(1)
    return lambda logits: -loss(logits, target)


@torch.enable_grad()
def _gradient(model: Model, x_adv: Tensor, climbed: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient at x_adv of what is climbed; samples do not mix, so one sum serves all."""
    x_adv = x_adv.detach().requires_grad_()
    return threats.finite(torch.autograd.grad(climbed(model(x_adv)).sum(), x_adv)[0])


def _mover(x: Tensor, threat: Threat, size: float, limits: tuple[Tensor, Tensor] | None) -> Callable[[Tensor, Tensor], Tensor]:
    """(x_adv, gradient) -> x_adv after one step of this size and back into ball and box, in place."""
    if limits is not None:
        lower, upper = limits
        return lambda x_adv, grad: threats.clip_(x_adv.add_(grad.sign(), alpha=size), lower, upper)

    def move(x_adv: Tensor, grad: Tensor) -> Tensor:
        if threat.norm == "l1":  # its few coordinates must not be spent where the box lets nothing through
            grad = threats.passable(grad, x_adv)
        return threats.pull(x_adv.add_(threats.step(grad, threat.norm), alpha=size), x, threat)

    return move
