"""Trainers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtbench.builtin.trainers.sgd import sgd
from rtbench.hookspecs import hookimpl


@hookimpl
def rtbench_trainers() -> dict[str, Callable[..., Any]]:
    return {"sgd": sgd}
