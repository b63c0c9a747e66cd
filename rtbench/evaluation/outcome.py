"""What comes of an attack: a verdict per sample, or a failure, which is never a robust sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rtbench.evaluation.margins import margins
from rtbench.evaluation.recheck import Recheck
from rtbench.evaluation.witness import Shelf
from rtbench.parts.slots import missed


class AttackFailure(Exception):
    """The attack crashed or proposed something that is no adversarial example at all."""


@dataclass
class Outcome:
    """What an attack did, one entry per sample in the order asked. True in `robust` is a sample it could not break.

    clean_margin, margin: float32 (see `margins`), at the clean image and where the verdict was given: of a broken sample at its
    adversarial example, of one that is wrong clean at the clean image, of a robust one at the point that a plain attack returned, and
    under native attacks at the clean image, since no other point stands for it.
    """

    ids: Tensor
    y: Tensor
    clean: Tensor
    robust: Tensor
    clean_margin: Tensor
    margin: Tensor
    inner: dict[str, Tensor] = field(default_factory=dict)
    passes: dict[str, Tensor] = field(default_factory=dict)
    """Of native attacks, int64: forwards and gradients, what each sample cost."""
    flags: list[str] = field(default_factory=list)
    shelf: Shelf | None = None
    """Where adversarial examples of samples that are right clean were put, if they were to be kept."""
    points: Tensor = field(default_factory=lambda: torch.zeros(0))
    """If asked for, (n, c, h, w): what the attack made of each sample, those that are misclassified clean too, inside ball and box."""
    precision: str = "exact"
    recheck: Recheck | None = None
    """Of a search that was not exact."""

    @property
    def accuracy(self) -> float:
        return float(self.robust.double().mean())


def woven(parts: list[Outcome]) -> Outcome:
    """One outcome of the k parts of a set of samples, of which part i has samples i, i + k, i + 2k, ...; a flag of one is raised."""

    def whole(columns: list[Tensor]) -> Tensor:
        found = columns[0].new_zeros(sum(map(len, columns)), *columns[0].shape[1:])
        for number, column in enumerate(columns):
            found[number :: len(columns)] = column
        return found

    def by_name(tables: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: whole([table[name] for table in tables]) for name in tables[0]}

    ids, y, clean, robust, first, margin = (
        whole([getattr(part, name) for part in parts]) for name in ("ids", "y", "clean", "robust", "clean_margin", "margin")
    )
    inner, passes = by_name([part.inner for part in parts]), by_name([part.passes for part in parts])
    flags = list(dict.fromkeys(flag for part in parts for flag in part.flags))
    shelves = [part.shelf for part in parts if part.shelf is not None]
    for shelf in shelves[1:]:
        shelves[0].extend(shelf)
    points = whole([part.points for part in parts])
    kept = shelves[0] if shelves else None
    return Outcome(ids, y, clean, robust, first, margin, inner, passes, flags, kept, points, parts[0].precision)


@torch.no_grad()
def verdict(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples the model gets right, bool (n,), a logit that is not finite counting as wrong; and the margins."""
    logits: Tensor = model(x)
    return ~missed(logits, y), margins(logits, y)


def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which samples the model gets right, bool (n,)."""
    return verdict(model, x, y)[0]
