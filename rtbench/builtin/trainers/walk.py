"""The way through a training: its steps, and what is due between two of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rtbench.builtin.trainers.course import Course
from rtbench.builtin.trainers.watch import measure
from rtbench.errors import UserError

SNAPSHOT = re.compile(r"(step|epoch)-(\d+)")


def walk(course: Course) -> Iterator[int]:
    """The number of each step when it is to be made; after it whatever is due is logged, kept, measured and saved."""
    wanted = places(course.snapshots, course.per_epoch, course.total)
    for name in wanted.get(0, ()):
        course.loop.keep(name)
    for step in course.loop(range(course.total), state={"opt": course.opt, "running": course.running, "seen": course.seen}):
        yield step
        done = step + 1
        ends = done % course.per_epoch == 0 or done == course.total
        due = bool(course.probes) and (done % (course.every or course.per_epoch) == 0 or done == course.total)
        if ends or due:
            course.loop.log(done, "epoch", done / course.per_epoch)
        if ends:
            course.loop.log(done, "loss", float(course.running) / (step % course.per_epoch + 1))
            course.running.zero_()
        for name in wanted.get(done, ()):
            course.loop.keep(name)
        if due and measure(course, done):
            break
    if "state" in course.seen:
        course.model.load_state_dict(course.seen["state"])


def places(snapshots: list[str], per_epoch: int, total: int) -> dict[int, list[str]]:
    """The snapshots to keep by the number of steps done; UserError for one that training never reaches."""
    found: dict[int, list[str]] = {}
    for name in snapshots:
        unit, _, number = name.partition("-")
        step = int(number) * (per_epoch if unit == "epoch" else 1)
        if step > total:
            raise UserError(f'snapshot "{name}" lies at step {step} and training ends at step {total}')
        found.setdefault(step, []).append(name)
    return found
