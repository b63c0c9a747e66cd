"""Which samples a probe measures on, and how its knobs say so."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from rtbench.data.splits import choose
from rtbench.parts.knobs import Range
from rtbench.parts.slots import RECHECKED

Where = Literal["test", "valid", "train"]
Rule = Literal["first", "random", "stratified"]
Seed = Annotated[int, Range("[0, 4294967295]")]
Count = Annotated[int | None, Range("[1, inf)")]
Batch = Annotated[int, Range("[1, inf)")]


def chosen(data: Any, split: str, samples: int | None, rule: Rule, sample_seed: int) -> tuple[Any, Tensor]:
    """The split, and ascending int64 positions in it. Raises ValueError where there is no such split or nothing in it."""
    part = getattr(data, split)
    if part is None or len(part) == 0:
        raise ValueError(f'there is no "{split}" split here')
    return part, choose(part, samples, rule, torch.Generator().manual_seed(sample_seed))


def rechecked(knobs: dict[str, Any], n: int) -> int:
    """How many of n samples, at most, are attacked again in float32, for these knobs of a probe: none where the search is exact."""
    return min(RECHECKED, n) if knobs["attack"]["knobs"].get("precision") == "bf16" else 0


def count(knobs: dict[str, Any], sizes: dict[str, int]) -> int:
    """How many samples these knobs choose."""
    whole = sizes[knobs["split"]]
    return min(knobs["samples"] or whole, whole)
