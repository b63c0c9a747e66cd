"""Built-in objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtbench.builtin.objectives.cross_entropy import natural, robust
from rtbench.builtin.objectives.trades import trades
from rtbench.hookspecs import hookimpl


@hookimpl
def rtbench_objectives() -> dict[str, Callable[..., Any]]:
    return {"natural": natural, "robust": robust, "trades": trades}
