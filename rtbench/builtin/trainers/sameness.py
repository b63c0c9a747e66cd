"""Whether a step of several networks as one is a step of each alone: tried, as no declaration of a part could be trusted with it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from rtbench.builtin.trainers.course import Course
from rtbench.builtin.trainers.descent import Objective, losses
from rtbench.builtin.trainers.stack import Stack
from rtbench.parts.kinds import Unstackable

NEAR = 0.05
"""How far gradients of a stack may be from those of a network alone, as a share: an attack's signs flip where a gradient is nearly 0."""


def check(courses: list[Course], objective: Objective) -> None:
    """Unstackable unless losses, gradients and buffers after a step of all are those of each alone. On copies; generators as before."""
    states = [course.rng.get_state() for course in courses]
    samples = [course.samples(0) for course in courses]

    def again() -> None:
        for course, state in zip(courses, states, strict=True):
            course.rng.set_state(state)
            course.feed = None

    try:
        with torch.random.fork_rng(devices=[]):
            again()
            alone = _copies(courses)
            each = [losses(c, 0, m, both, c.objective) for c, m, both in zip(courses, alone, samples, strict=True)]
            torch.cat(each).sum().backward()  # type: ignore[no-untyped-call]
            again()
            stack = Stack(_copies(courses))
            x, y = (torch.cat(columns) for columns in zip(*samples, strict=True))
            together = losses(courses[0], 0, stack, (x, y), objective)
            together.sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise Unstackable(f"{type(error).__name__}: {error}") from error
    finally:
        again()
    near = _near(together.view(len(courses), -1), torch.stack(each))
    near &= all(_near(held, torch.stack([m.get_buffer(name) for m in alone])) for name, held in stack.held.items())
    train = [name for name, parameter in stack.own.items() if parameter.requires_grad]
    grads = [(_grad(stack.own[name]), torch.stack([_grad(m.get_parameter(name)) for m in alone])) for name in train]
    # What is 0 but for rounding, as the gradient of a bias before BatchNorm, is compared with the whole gradient.
    whole = torch.stack([_norms(b) for _, b in grads]).norm(dim=0)
    if not near or not all(_near(a, b, 1e-5 * whole) for a, b in grads):
        raise Unstackable("a step of all of them is not a step of each alone")


def _copies(courses: list[Course]) -> list[nn.Module]:
    copies = [copy.deepcopy(course.model).train() for course in courses]
    for model in copies:
        model._forward_hooks.clear()
    return copies


def _grad(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _near(a: Tensor, b: Tensor, rounding: Tensor | float = 1e-9) -> bool:
    """Whether each network's share of a, (networks, ...), is that of b but for rounding."""
    return a.shape == b.shape and bool((_norms(a.double() - b.double()) <= NEAR * _norms(b) + rounding).all())


def _norms(each: Tensor) -> Tensor:
    """(networks,)."""
    norms: Tensor = each.detach().reshape(len(each), -1).double().norm(dim=1)
    return norms
