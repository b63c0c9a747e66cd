"""Built-in pruners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtbench.builtin.pruners.filters import filters, random_filters
from rtbench.builtin.pruners.scores import magnitude, normalised_magnitude, random
from rtbench.hookspecs import hookimpl


@hookimpl
def rtbench_pruners() -> dict[str, Callable[..., Any]]:
    return {
        "magnitude": magnitude, "normalised-magnitude": normalised_magnitude, "random": random,
        "filters": filters, "random-filters": random_filters,
    }  # fmt: skip
