"""Several networks trained as one: a step of all of them takes as many calls of a device as a step of one.

Of use where calls, not arithmetic, are what a step waits for: small networks on a GPU. Each network keeps its own generator, batches,
masks, records and probes, and saves itself in the form that it would alone, so that any of them can go on alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from rtbench.builtin.trainers.course import Course, order
from rtbench.builtin.trainers.descent import Net, Objective, Pruned, descend
from rtbench.builtin.trainers.optimizers import make_optimizer
from rtbench.builtin.trainers.sameness import check
from rtbench.builtin.trainers.stack import Stack, States
from rtbench.builtin.trainers.walk import walk
from rtbench.data.splits import batches
from rtbench.parts.kinds import Unstackable
from rtbench.parts.masks import Masks
from rtbench.parts.meter import metered

Together = Callable[[list[int]], dict[str, Any]]
Walks = dict[int, Iterator[int]]


def stacked(calls: list[dict[str, Any]], together: Together) -> None:
    """Trains the networks of several calls of `sgd` as one; together(numbers) has the objective that draws for these of them.

    Raises Unstackable, before anything is changed, where a step of all is not a step of each: a network with randomness of its own, an
    objective or attack that mixes samples or takes some of them.
    """
    courses = [Course(**call) for call in calls]
    if courses[0].clip is not None:
        raise Unstackable("the norm of a gradient is clipped for each network alone")
    check(courses, together(list(range(len(calls))))["objective"])
    started: dict[int, Walks] = {}
    for number, course in enumerate(courses):
        course.model.train()
        steps = walk(course)
        first = next(steps, None)  # what was saved is restored by now
        if first is not None:
            started.setdefault(first, {})[number] = steps
    for step, walks in started.items():
        while walks:
            here = [courses[number] for number in walks]
            step = _train(here, walks, together(list(walks))["objective"], step)


def _train(courses: list[Course], walks: Walks, objective: Objective, step: int) -> int:
    """From this step on, until the first of them is at its end; returns the step that is next for the others."""
    stack, passed = Stack([course.model for course in courses]), dict[str, int]()
    net = _net(stack, courses)
    states = States(net.opt, net.train, [course.opt for course in courses], [course.train for course in courses])
    states.gather()
    with metered(stack, passed):
        for samples in _feed(courses, step):
            descend(net, courses[0], step, samples, objective)
            states.share()
            _count(courses, passed)
            _advance(walks)
            step += 1
            if len(walks) < len(courses):
                break
    return step


def _feed(courses: list[Course], step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of all networks from this step on: one gather for all where nothing is drawn for an image."""
    first = courses[0]
    split, size = first.data.train, first.batch
    while split.augment != "none":
        x, y = zip(*(course.samples(step) for course in courses), strict=True)
        yield torch.cat(x), torch.cat(y)
        step += 1
    while True:
        epoch, i = divmod(step, first.per_epoch)
        orders = [order(len(split), course.rng, epoch)[i * size : first.per_epoch * size] for course in courses]
        rows = torch.cat([positions for same in zip(*(torch.split(each, size) for each in orders), strict=True) for positions in same])
        yield from batches(split, size * len(courses), rows)
        step += first.per_epoch - i


def _net(stack: Stack, courses: list[Course]) -> Net:
    first = courses[0]
    train = [parameter for parameter in stack.own.values() if parameter.requires_grad]
    running = torch.stack([course.running for course in courses])
    for course, own in zip(courses, running, strict=True):
        course.running.data = own
    opt = make_optimizer(first.optimizer, train, first.lr, first.momentum, first.nesterov, first.decay)
    return Net(stack, opt, train, Pruned(stack.own, _stacked_masks(courses)), running)


def _stacked_masks(courses: list[Course]) -> Masks:
    names = dict.fromkeys(name for course in courses for name in course.masks)  # some may have masks of BatchNorm besides
    return {name: torch.stack([_mask(course, name) for course in courses]) for name in names}


def _mask(course: Course, name: str) -> Tensor:
    return course.masks[name] if name in course.masks else torch.ones_like(course.model.get_parameter(name), dtype=torch.bool)


def _count(courses: list[Course], passed: dict[str, int]) -> None:
    """Each network has passed its share of the rows."""
    for name in passed:
        for course in courses:
            course.loop.counts[name] = course.loop.counts.get(name, 0) + passed[name] // len(courses)
        passed[name] = 0


def _advance(walks: Walks) -> None:
    """Every network on to its next step, also where one of them raises, so that all save themselves at the same one."""
    errors = []
    for number, steps in list(walks.items()):
        try:
            if next(steps, None) is None:
                del walks[number]
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]
