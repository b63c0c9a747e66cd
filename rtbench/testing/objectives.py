"""The contract of objectives: f(model, x, y, rng, progress) -> losses (n,), against a network in train mode."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rtbench.data.splits import take
from rtbench.errors import UserError
from rtbench.evaluation.guard import own_randomness
from rtbench.parts.kinds import Progress
from rtbench.parts.masks import prunable
from rtbench.testing.lab import alike, changes, data, network, portrait, trained
from rtbench.testing.result import Skip, need
from rtbench.testing.sample import Subject

SAMPLES, SEED = 48, 3
MIDDLE = Progress(10, 20, 1, 2)
MOMENTS = (Progress(0, 20, 0, 2), MIDDLE, Progress(19, 20, 1, 2))
RATES = (0.1, 0.01, 0.001)
STEPS = 20


class Call(NamedTuple):
    """One call: the losses, how the network and the batch were left, and the gradients of the mean loss by parameter."""

    losses: Any
    touched: list[str]
    grads: dict[str, Tensor | None]


def prepare(subject: Subject) -> None:
    """Skip where it says that it cannot be had for this network or on these data."""
    try:
        _first(subject)
    except UserError as error:
        raise Skip(str(error)) from None


def _batch() -> tuple[Tensor, Tensor]:
    return take(data().train, torch.arange(SAMPLES))


def _losses(subject: Subject, model: nn.Module, x: Tensor, y: Tensor, progress: Progress, seed: int = SEED) -> Any:
    """The objective as a trainer gets it: bound to a generator."""
    rng = torch.Generator().manual_seed(seed)
    bound = subject.binder(SEED, rng=rng, data=data(test=False)).nested("trainer", "objective", subject.resolve())
    with own_randomness(seed):
        return bound(model, x, y, progress)


def _call(subject: Subject, progress: Progress) -> Call:
    model = trained()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.get_submodule("bn").eval()  # as where a trainer keeps the statistics of BatchNorm fixed
    x, y = _batch()
    x_before, y_before, before = x.clone(), y.clone(), portrait(model)
    losses = _losses(subject, model, x, y, progress)
    touched = changes(before, portrait(model))
    if not torch.equal(x, x_before) or not torch.equal(y, y_before) or x.requires_grad:
        touched.append("its batch")
    grads: dict[str, Tensor | None] = {}
    if isinstance(losses, Tensor) and losses.requires_grad:
        named = dict(model.named_parameters())
        found = torch.autograd.grad(losses.mean(), list(named.values()), allow_unused=True)
        grads = dict(zip(named, found, strict=True))
    return Call(losses, touched, grads)


def _first(subject: Subject) -> Call:
    return subject.once("first", lambda: _call(subject, MIDDLE))


def per_sample(subject: Subject) -> None:
    """It gives one finite float32 loss per sample, at the beginning, in the middle and at the end of training."""
    for moment in MOMENTS:
        losses = (_first(subject) if moment == MIDDLE else _call(subject, moment)).losses
        need(isinstance(losses, Tensor), f"it returns {type(losses).__name__}")
        need(losses.shape == (SAMPLES,), f"for {SAMPLES} samples it returns shape {tuple(losses.shape)}")
        need(losses.dtype == torch.float32 and bool(torch.isfinite(losses).all()), f"at step {moment.step} they are not finite float32")


def differentiable(subject: Subject) -> None:
    """Its losses require grad, and gradients reach every prunable weight."""
    call = _first(subject)
    need(isinstance(call.losses, Tensor) and call.losses.requires_grad, "its losses do not require grad")
    for name in prunable(trained()):
        grad = call.grads[name]
        need(grad is not None and bool(grad.any()), f'no gradient reaches "{name}"')


def tidy(subject: Subject) -> None:
    """It leaves its batch, weights, train and eval modes, requires_grad, .grad and hooks as they were."""
    touched = _first(subject).touched
    need(not touched, f"it changes {', '.join(touched)}")


def repeatable(subject: Subject) -> None:
    """The same network, batch and generator give the same losses and gradients, bit for bit."""
    one, other = _first(subject), _call(subject, MIDDLE)
    need(alike(one.losses, other.losses), "two calls give different losses")
    need(alike(one.grads, other.grads), "two calls give different gradients")


def learnable(subject: Subject) -> None:
    """Twenty steps of plain SGD on one batch lower its mean."""
    ends = []
    for rate in RATES:
        model, (x, y) = network(), _batch()
        start = float(_losses(subject, model, x, y, MIDDLE).detach().mean())
        for step in range(STEPS):
            loss = _losses(subject, model, x, y, MIDDLE, seed=step).mean()
            grads = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
            with torch.no_grad():
                for parameter, grad in zip(model.parameters(), grads, strict=True):
                    parameter.sub_(grad, alpha=rate)
        ends.append(float(_losses(subject, model, x, y, MIDDLE).detach().mean()))
        if ends[-1] < start:
            return
    need(False, f"it goes from {start:.4f} to {', '.join(f'{end:.4f}' for end in ends)} at learning rates {', '.join(map(str, RATES))}")


CHECKS = (per_sample, differentiable, tidy, repeatable, learnable)
