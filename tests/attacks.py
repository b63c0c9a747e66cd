"""Attacks as a suite binds them to a probe, for tests on small networks, which are fastest in one thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rtbench.engine.bind import Binder
from rtbench.evaluation.judge import Judged
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

CATALOGUE = catalogue()
torch.set_num_threads(1)


def judged(use: str, norm: str = "linf", eps: str = "1/10", seed: int = 3, **given: Any) -> Judged:
    part = Resolver({}, CATALOGUE)("attack", {"use": use, "norm": norm, "eps": eps, **given}, use)
    return Binder(CATALOGUE, seed, torch.Generator()).judged(part)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
