"""The line that every benchmark prints first: what it ran on."""

from __future__ import annotations

import torch

from rtbench.engine.provenance import machine


def line(device: str = "cpu") -> str:
    """Processor, cores, threads and versions."""
    facts = machine(device)
    return f"{facts['processor']}, {facts['cores']} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, device {device}"
