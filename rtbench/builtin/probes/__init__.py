"""Probes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtbench.builtin.probes.accuracy import accuracy, loss
from rtbench.builtin.probes.convergence import convergence
from rtbench.builtin.probes.curve import curve
from rtbench.builtin.probes.size import cost, density, macs, parameters, sparsity
from rtbench.builtin.probes.transfer import craft, pool, transfer
from rtbench.builtin.probes.weights import mask, overlap, survivors, weights
from rtbench.hookspecs import hookimpl


@hookimpl
def rtbench_probes() -> dict[str, Callable[..., Any]]:
    return {
        "accuracy": accuracy, "curve": curve, "loss": loss, "density": density, "sparsity": sparsity, "parameters": parameters,
        "macs": macs, "cost": cost, "convergence": convergence, "craft": craft, "transfer": transfer, "pool": pool,
        "weights": weights, "survivors": survivors, "mask": mask, "overlap": overlap,
    }  # fmt: skip
