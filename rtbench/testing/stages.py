"""Runs trainers and pruners on the small network as the engine does, whole or killed at borders of their loops and resumed."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rtbench.engine.loop import Loop
from rtbench.evaluation.guard import own_randomness
from rtbench.parts.masks import Masks, ones
from rtbench.parts.meter import metered
from rtbench.testing.lab import alike, columns, data, everything
from rtbench.testing.result import Skip, need
from rtbench.testing.sample import Subject

SEED = 11


class Killed(BaseException):
    """Stands for the signal that ends a process; no Exception, so that a part does not catch it by accident."""


class Fragile(Loop):
    """A loop that saves and dies at its n-th border. borders: how many it came to."""

    def __init__(self, dies_at: int | None = None, **rest: Any) -> None:
        super().__init__(seconds=math.inf, **rest)
        self.borders, self.dies_at = 0, dies_at

    def _border(self, number: int, done: int, total: int, state: dict[str, Any]) -> None:
        super()._border(number, done, total, state)
        self.borders += 1
        if self.borders == self.dies_at:
            self._save(number, done, state)
            raise Killed


class Done(NamedTuple):
    """A finished stage. begun, state: the model's tensors before and after. touched: whether its data were altered."""

    begun: dict[str, Tensor]
    state: dict[str, Tensor]
    old: Masks
    masks: Masks
    returned: Any
    records: list[list[Any]]
    kept: dict[str, dict[str, Tensor]]
    counts: dict[str, int]
    touched: bool
    borders: int


RESULT = ("state", "masks", "records", "kept", "counts")
"""What two runs of the same stage must agree on."""

Make = Callable[[], tuple[nn.Module, Masks]]
"""Makes the network and the masks that a stage starts from, the same at each call."""


def run(subject: Subject, resolved: dict[str, Any], make: Make, file: Path | None = None, dies_at: int | None = None) -> Done:
    """One stage of a trainer or a pruner; Killed if it came to that border."""
    model, masks = make()
    begun, found = everything(model), data(test=False)
    before = columns(found)
    masks = masks or ones(model)
    given = {name: mask.clone() for name, mask in masks.items()}
    rng = torch.Generator().manual_seed(SEED)
    loop = Fragile(dies_at, model=model, masks=given, rng=rng, file=file, counts={"forwards": 0, "gradients": 0})
    part = subject.binder(SEED, rng=rng, data=found, counts=loop.counts).part(subject.part.kind, resolved)
    with own_randomness(SEED), metered(model, loop.counts):
        returned = part(model=model, masks=given, data=found, rng=rng, loop=loop)
    final = returned if isinstance(returned, dict) else given
    touched = not alike(before, columns(found))
    return Done(begun, everything(model), masks, final, returned, loop.records, loop.kept, dict(loop.counts), touched, loop.borders)


def killed(subject: Subject, resolved: dict[str, Any], make: Make, borders: int) -> Done:
    """The same stage killed at its first, its middle and its last border, each time resumed from what was saved."""
    with tempfile.TemporaryDirectory() as folder:
        file, lived = Path(folder) / "loop.pt", 0
        for border in sorted({1, (borders + 1) // 2, borders}):
            try:
                run(subject, resolved, make, file, border - lived)
            except Killed:
                lived = border
            else:
                need(False, f"resumed after border {lived} of {borders}, it did not come to border {border}")
        return run(subject, resolved, make, file)


def resumes(subject: Subject, resolved: dict[str, Any], make: Make, whole: Done) -> None:
    """Broken unless the stage killed on the way ends bit-identical to `whole`; Skip if it has no loop to be killed in."""
    if not whole.borders:
        raise Skip("it does not use the loop")
    difference = differing(whole, killed(subject, resolved, make, whole.borders))
    need(not difference, f"after three kills {difference}")


def differing(one: Done, other: Done) -> str:
    """Where two runs differ first, or nothing."""
    for field in RESULT:
        a, b = getattr(one, field), getattr(other, field)
        if not alike(a, b):
            where = first(a, b) if isinstance(a, dict) and isinstance(b, dict) else ""
            return f"its {field} differ{f', first in {where}' if where else ''}"
    return ""


def first(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The first name whose values differ."""
    return next((f'"{name}"' for name in [*a, *b] if name not in a or name not in b or not alike(a[name], b[name])), "")


def intact(done: Done) -> None:
    """Broken unless the network has the tensors it had, by name and shape, and they are finite: the next stage has to load them."""
    odd = sorted(done.begun.keys() ^ done.state.keys())
    need(not odd, f'the network has other tensors than before, first "{odd[0] if odd else ""}"')
    for name, tensor in done.state.items():
        need(tensor.shape == done.begun[name].shape, f'"{name}" has shape {tuple(tensor.shape)} now')
        need(bool(torch.isfinite(tensor).all()), f'"{name}" is not finite')
