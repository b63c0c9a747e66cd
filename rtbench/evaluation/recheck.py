"""What a search in bfloat16 missed: some of the samples that it left robust, attacked again in float32."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rtbench.evaluation.native import Build
from rtbench.parts.slots import RECHECKED, Native
from rtbench.parts.threats import Threat
from rtbench.statistics import wilson


class Recheck(NamedTuple):
    """Of the samples that a search in bfloat16 left robust, those that were attacked again in float32, and those that held; bool (n,)."""

    asked: Tensor
    held: Tensor

    @property
    def missed(self) -> float | None:
        """The share that float32 breaks; None if none was left to ask."""
        return int((self.asked & ~self.held).sum()) / int(self.asked.sum()) if bool(self.asked.any()) else None

    def __str__(self) -> str:
        asked, broke = int(self.asked.sum()), int((self.asked & ~self.held).sum())
        if not asked:
            return "the search in bfloat16 left no sample to attack again in float32"
        low, high = wilson(broke / asked, asked)
        return f"float32 broke {broke} of {asked} samples that the search in bfloat16 left robust, 95 % interval {low:.1%} to {high:.1%}"


def chosen(robust: Tensor) -> Tensor:
    """Which samples are attacked again: the first that are robust, bool (n,)."""
    return robust & (robust.cumsum(0) <= RECHECKED)


def in_float32(build: Build, threat: Threat, classes: int, shape: tuple[int, ...]) -> Native:
    """The native attack that `build` builds, its search in float32."""
    return build(threat, classes, shape)._replace(precision="exact")
