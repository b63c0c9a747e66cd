"""What is measured while training, and what follows from it: the best state, an early stop, catastrophic overfitting seen."""

from __future__ import annotations

import math
from typing import Any

from rtbench.builtin.trainers.course import Course
from rtbench.errors import UserError


def measure(course: Course, done: int) -> bool:
    """Logs every probe after `done` steps, and says whether training shall stop."""
    stop = False
    for name, probe in course.probes.items():
        measured = probe(course.model, course.masks)
        for sub, value in measured.numbers.items():
            full = f"{name}.{sub}" if sub else name
            course.loop.log(done, full, value)
            if full in (course.select, course.guard):
                _on_validation(full, measured.about.get("split"))
            if full == course.guard and value is not None:
                stop |= _collapses(course, done, value)
            if full == course.select:
                stop |= _chosen(course, done, value)
    return stop


def _on_validation(name: str, split: Any) -> None:
    if split != "valid":
        raise UserError(f'"{name}" decides about training, so it must be measured on the validation split, not on "{split}"')


def _chosen(course: Course, done: int, value: float | None) -> bool:
    """Keeps the state if it is better than before (the earlier one wins a tie); True when patience is at its end."""
    seen = course.seen
    finite = value is not None and math.isfinite(value)
    if finite and ("value" not in seen or _better(course, value, seen["value"])):
        state = {key: tensor.detach().clone() for key, tensor in course.model.state_dict().items()}
        seen.update(value=value, step=done, state=state, waited=0)
        return False
    seen["waited"] = seen.get("waited", 0) + 1
    if course.patience is None or seen["waited"] < course.patience:
        return False
    course.loop.log(done, "stopped", 1.0)
    return True


def _better(course: Course, value: Any, before: float) -> bool:
    return bool(value > before + course.improve if course.best == "max" else value < before - course.improve)


def _collapses(course: Course, done: int, value: float) -> bool:
    """Records the first fall of the guard; True if training shall stop for it."""
    seen = course.seen
    seen["peak"] = max(seen.get("peak", value), value)
    if "collapsed" in seen or value > seen["peak"] - course.fall:
        return False
    seen["collapsed"] = True
    course.loop.log(done, "collapsed", value)
    return course.on_collapse == "stop"
